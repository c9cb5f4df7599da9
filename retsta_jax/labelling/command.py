"""The command line of `retsta label`."""

import argparse
import shlex
from pathlib import Path

from common.config_options import read_options
from common.data.records import Quarantine
from common.endpoint import add_endpoint_options
from common.errors import Parser, UserError
from common.io.exports import CARD
from common.io.terminal import say
from common.metrics.tokenize import language_of
from common.options import changed_options, command_line, used_settings
from common.process.first import is_first_process
from common.report.environment import environment
from common.report.page import REPORT_FILE, Example, Page, Stage, save_run_page
from retsta_jax.endpoint_standardizer import run_endpoint
from retsta_jax.labelling.card import Labelled, write_card
from retsta_jax.labelling.code_rules import CODE_RULES, judge_by_codes
from retsta_jax.labelling.filters import RULES, Judge, judge_by_terms
from retsta_jax.labelling.label import PAIRS, Funnel, LabelConfig, label_reports
from retsta_jax.pairs import read_pairs
from retsta_jax.terminology.check import load_terminology
from retsta_jax.terminology.terms import SHIPPED

HELP = f"""Label free-text reports with a trained model, and keep the pairs that pass the rules and are not duplicates.
REPORTS: JSONL rows {{"id", "report"}}, or text with one report per line. Writes into --output: shards/, pairs.jsonl
(rows {{"id", "source", "target", "language"}}), rejected.jsonl (with the reasons), funnel.json, report.html,
README.md (a data set card).
Rules: {", ".join(RULES)}.
--codes: standard reports are lists of codes, one per line, and the terminology is what these pairs have as targets.
Rules: {", ".join(CODE_RULES)}.
--endpoint: an engine that serves what the run exported is asked, and no weights are read here. A report that it refuses
has no standard report, and is rejected.
"""
OF_THE_PAGE = ("terminology", "codes", "endpoint", "endpoint_model")  # options that its command line shows


def label(arguments: list[str]) -> None:
    """Run the command. Raises UserError."""
    options = Parser(
        "retsta label", description=HELP, formatter_class=argparse.RawDescriptionHelpFormatter, add_help=False
    )
    options.add_argument("source", metavar="REPORTS")
    options.add_argument("--run-dir", type=Path, metavar="DIR", required=True)
    options.add_argument("--output", type=Path, metavar="DIR", required=True)
    options.add_argument("--terminology", type=Path, metavar="FILE")
    options.add_argument("--codes", type=Path, metavar="PAIRS.jsonl")
    add_endpoint_options(options)
    config, chosen = read_options(options, LabelConfig(), arguments)
    if chosen.codes and chosen.terminology:
        raise UserError(
            "retsta label: --codes and --terminology: standard reports are lists of codes or words; give one"
        )
    judge = judge_of(chosen.terminology, chosen.codes)
    if unknown := [name for name in config.skip_rules if name not in judge.rules]:
        raise UserError(f"retsta label: --skip-rules {unknown[0]}: unknown; rules are {', '.join(judge.rules)}")
    endpoint = run_endpoint(chosen, arguments, "retsta label", chosen.output / "answers.sqlite")
    funnel = label_reports(chosen.run_dir, chosen.source, chosen.output, judge, config, endpoint)
    if not is_first_process():
        return
    print(funnel_text(funnel))
    named = {"run_dir": chosen.run_dir, "output": chosen.output}
    named |= {name: getattr(chosen, name) for name in OF_THE_PAGE if getattr(chosen, name)}
    named |= changed_options(used_settings(config, ()), used_settings(LabelConfig(), ()))
    program = f"retsta label {shlex.quote(chosen.source)}"
    labelled = Labelled(chosen.run_dir, chosen.source, chosen.output, judge, config, endpoint, funnel)
    write_card(labelled, command_line(program, named | {"output": "FOLDER"}))
    page = Page(
        title="RetSTA: pseudo-labels",
        verdict=f"{funnel.kept:,} of {funnel.reports:,} labelled reports are kept as pairs.",
        command=command_line(program, named),
        environment=environment(),
        funnel=stages_of(funnel),
        examples=examples_of(funnel),
        notes=[plain_text_note(funnel)],
    )
    save_run_page(chosen.output, page)
    say(f"pairs: {chosen.output / PAIRS}, card: {CARD} beside them\npage: {(chosen.output / REPORT_FILE).absolute()}")


def judge_of(terminology: Path | None, codes: Path | None) -> Judge:
    """The judge by a table of terms, or by the codes of a file of pairs. Raises UserError."""
    if codes is None:
        return judge_by_terms(load_terminology(terminology or SHIPPED))
    quarantine = Quarantine()
    pairs = read_pairs(codes, quarantine)
    if not pairs:
        raise UserError(f"{codes}: no pair with text on both sides ({quarantine.summary()}); expected labelled pairs")
    return judge_by_codes(pairs)


def stages_of(funnel: Funnel) -> list[Stage]:
    """The steps from reports to pairs."""
    passed = funnel.reports - sum(funnel.rejected.values())
    return [
        Stage("labelled", funnel.reports, {}),
        Stage("kept all rules", passed, funnel.rejected),
        Stage("no duplicate", funnel.kept, {f"{kind} duplicate": n for kind, n in funnel.duplicates.items()}),
    ]


def examples_of(funnel: Funnel) -> list[Example]:
    """The examples for a page: the reason in place of an id."""
    return [
        Example(one["reason"], one["source"], None, {"standard report": one["standard"]}, language_of(one["source"]))
        for one in funnel.examples
    ]


def plain_text_note(funnel: Funnel) -> str:
    """What similarity of text alone would have done."""
    return (
        f"Similarity of text alone would have removed {funnel.plain_text['removed']} pairs; "
        f"{funnel.plain_text['different']} of them state something else than the pair that would have stayed."
    )


def funnel_text(funnel: Funnel) -> str:
    """The funnel as lines."""
    lines = [f"{funnel.kept} of {funnel.reports} reports are kept as pairs"]
    lines += [f"  rejected, {name}: {count}" for name, count in funnel.rejected.items()]
    lines += [f"  {kind} duplicates: {count}" for kind, count in funnel.duplicates.items()]
    return "\n".join([*lines, plain_text_note(funnel)])
