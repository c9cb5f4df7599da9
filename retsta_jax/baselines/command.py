"""The command line of `retsta baseline`."""

import argparse
import dataclasses
from pathlib import Path
from typing import Any

from common.bounds import COUNT, COUNT_OR_NONE, SEED, Seed, Within, bounded
from common.config import read_config
from common.config_options import add_batch_size, read_options
from common.endpoint import add_endpoint_options, endpoint_settings
from common.errors import Parser, UserError
from common.io.tables import score_lines
from common.io.terminal import say
from common.options import Needs, changed_options, check_options, used_settings
from common.report.page import REPORT_FILE
from common.training.parallel import MeshConfig
from retsta_jax.baselines.baseline import Baseline, evaluate_peer
from retsta_jax.baselines.peers import Peer, endpoint_peer, local_peer
from retsta_jax.config import HELP, NEEDS, DataConfig, RetstaConfig, scored_as
from retsta_jax.evaluate import headline
from retsta_jax.terminology.check import load_terminology
from retsta_jax.terminology.terms import SHIPPED

DESCRIPTION = """Score a model that was not trained here, asked by few-shot prompts: a local directory (--model DIR) of
a family that docs/reference/models.md lists, or one behind an endpoint (--endpoint URL). Reports are those of a run
(--like RUN_DIR) or of the options --data.* of retsta train. Writes predictions.jsonl, metrics.json and report.html
into --output; start the same command again to continue. Prompts that are too long for the
model are shortened; the page says by how much."""
BATCH_SIZE = 4
OF_THE_DATA = ""  # the value of --terminology without a FILE
MOST_CHARACTERS = 400  # of a standard report, for the estimate of cost alone
DEFAULTS = {
    "terminology": None, "like": None, "split": "test", "limit": 0, "shots": 5, "shot_seed": 0, "context": 0,
    "max_new_tokens": None, "batch_size": BATCH_SIZE, "dtype": None, "model": None,
}  # fmt: skip


@dataclasses.dataclass(frozen=True)
class ReportsConfig:
    """Which reports a baseline is scored on, and over which devices a local model is spread."""

    data: DataConfig = DataConfig()
    seed: Seed = 0  # of generated reports, and of the reports that Open-i sets aside for validation
    mesh: MeshConfig = MeshConfig()


LOCAL_ALONE = tuple(
    Needs(name, "model", lambda model: model is not None, "--model DIR") for name in ("batch_size", "dtype", "mesh")
)
REPORTS_NEEDS = (
    *(need for need in NEEDS if need.option.startswith("data.")),
    Needs("data.augment_to", give="a baseline learns from nothing; leave it out"),
)


def baseline(arguments: list[str]) -> None:
    """Run the command. Raises UserError."""
    options = parser()
    reports, chosen = read_options(options, ReportsConfig(), arguments, REPORTS_NEEDS)
    if (chosen.model is None) == (chosen.endpoint is None):
        raise UserError("retsta baseline: give one of --model DIR and --endpoint URL")
    check_options(chosen, arguments, LOCAL_ALONE, "retsta baseline")
    data = dataclasses.replace(RetstaConfig(), data=reports.data, seed=reports.seed)
    new_tokens = RetstaConfig().max_new_tokens
    if chosen.like is not None:
        if named := [word.partition("=")[0] for word in arguments if word.startswith(("--data.", "--seed"))]:
            raise UserError(f"{named[0]}: not used with --like, which takes data and seed from the run; leave it out")
        data = read_config(RetstaConfig, chosen.like)
        new_tokens = data.max_new_tokens
    new_tokens = chosen.max_new_tokens or new_tokens
    named_terms = None
    if chosen.terminology is not None:
        if chosen.terminology != OF_THE_DATA and scored_as(data.data) == "openi":
            raise UserError(
                "--terminology: where targets are codes, the reference is the codes of the training split; give "
                "--terminology alone"
            )
        named_terms = load_terminology(chosen.terminology or data.data.terminology or SHIPPED)
    asked = Baseline(
        data=data,
        terms=named_terms,
        shots=chosen.shots,
        shot_seed=chosen.shot_seed,
        split=chosen.split,
        limit=chosen.limit,
        max_new_tokens=new_tokens,
        like=chosen.like,
    )
    shown = {**changed_options(of_the_page(chosen), DEFAULTS)}
    if chosen.like is None:
        shown |= changed_options(used_settings(reports, REPORTS_NEEDS), used_settings(ReportsConfig(), ()))
    systems = evaluate_peer(asked, peer_of(chosen, reports.mesh, new_tokens), chosen.output, shown)
    print(score_lines(systems, headline(next(iter(systems.values())))))
    say(f"page: {(chosen.output / REPORT_FILE).absolute()}")


def parser() -> Parser:
    """The options of the command, without those of ReportsConfig."""
    options = Parser(
        "retsta baseline",
        description=f"{DESCRIPTION}\n\n{HELP}",
        formatter_class=argparse.RawDescriptionHelpFormatter,
        add_help=False,
    )
    options.add_argument("--model", type=Path, metavar="DIR", help="config.json, weights, tokenizer")
    options.add_argument("--output", type=Path, metavar="DIR", required=True, help="directory to write or resume")
    options.add_argument(
        "--like", type=Path, metavar="RUN_DIR", help="take data and seed from a run, and compare with its scores"
    )
    options.add_argument("--split", choices=("test", "validation"), default=DEFAULTS["split"])
    options.add_argument("--limit", type=bounded(COUNT_OR_NONE), default=0, help="maximum number of reports; 0: all")
    options.add_argument(
        "--shots", type=bounded(Within(0, 64)), default=5, help="examples in a prompt; default: %(default)s"
    )
    options.add_argument("--shot-seed", type=bounded(SEED), default=0, help="draws the examples; default: %(default)s")
    options.add_argument(
        "--terminology",
        nargs="?",
        const=OF_THE_DATA,
        metavar="FILE",
        help="name the standard terms in the prompt: those of FILE, or of the data (where targets are codes, those of "
        "the training split); default: none",
    )
    options.add_argument(
        "--max-new-tokens", type=bounded(COUNT), metavar="N", help="of an answer; default: those of --like, or 512"
    )
    options.add_argument(
        "--context",
        type=bounded(COUNT_OR_NONE),
        default=0,
        metavar="N",
        help="tokens that prompt and answer may have; default: the model's positions; behind an endpoint, where they "
        "are estimated from characters: any number",
    )
    add_batch_size(options, "prompts", BATCH_SIZE)
    options.add_argument("--dtype", choices=("float32", "bfloat16", "float16"), help="default: that of the checkpoint")
    add_endpoint_options(options)
    return options


def peer_of(chosen: argparse.Namespace, mesh: MeshConfig, max_new_tokens: int) -> Peer:
    """The model that the options name. Raises UserError."""
    endpoint = endpoint_settings(chosen, chosen.output / "answers.sqlite", max_new_tokens)
    if endpoint is not None:
        return endpoint_peer(endpoint, context=chosen.context, expected_characters=MOST_CHARACTERS)
    return local_peer(
        chosen.model,
        dtype=chosen.dtype,
        max_new_tokens=max_new_tokens,
        context=chosen.context,
        batch_size=chosen.batch_size,
        mesh=mesh,
    )


def of_the_page(chosen: argparse.Namespace) -> dict[str, Any]:
    """The options that were given, as a command line repeats them; consent is given anew each time."""
    given = {name: value for name, value in vars(chosen).items() if value is not None}
    given.pop("send_reports_to_endpoint", None)
    if given.get("terminology") == OF_THE_DATA:
        given["terminology"] = ()
    return given
