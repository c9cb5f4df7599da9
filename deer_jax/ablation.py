"""`deer ablation`: the paper's comparisons of reinforcement learning, each of them one command and one table.

`components` is Table 4 (SFT, GRPO, DiTPO by rule and by gradient, DEER), `rewards` Table 5 (the schedule of gamma),
`proportion` Figure 1a (GRPO and DEER on shares of the data). All rows start from one supervised run and take the same
number of steps.
"""

import dataclasses
import functools
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from matplotlib.figure import Figure

from common.bounds import SEED, STEPS_OR_ALL, bounded
from common.clinical.labeler import labeler_digests
from common.clinical.scores import Scores, default_labeler, in_each_language, score_systems
from common.config import check_run_directory, check_trained_on
from common.config_options import first_word, preset_parser, read_preset_options
from common.data.records import Quarantine
from common.data.splits import Split
from common.data.summary import say_data
from common.errors import UserError
from common.io.differences import differences
from common.io.fingerprints import model_record
from common.io.locks import locked_by_first
from common.io.numbers import rounded
from common.io.outputs import check_own_object, check_own_page
from common.io.safetensors import disk_errors, write_json
from common.io.terminal import say
from common.io.text import read_json_object
from common.metrics.text import warn_of_absent
from common.report.comparison import Result, compare_texts, summary
from common.report.table import as_markdown, mean_interval
from common.training.parallel import make_device_layout
from common.training.run import base_weights
from deer_jax.config import (
    ABLATION_NEEDS,
    HELP,
    LABELER_HELP,
    RL_PRESETS,
    SAMPLE_PRESETS,
    SFT_PRESETS,
    RlConfig,
    SftConfig,
    check_rewarded,
)
from deer_jax.ddsampling import Strategy
from deer_jax.prompts import read_splits, splits_line
from deer_jax.rl_run import check_config, reward_labeler
from deer_jax.rl_run import train_run as run_rl
from deer_jax.sample import sample_run
from deer_jax.select import choose, read_studies
from deer_jax.setup import base_directory, load_base
from deer_jax.sft import train_run as run_sft
from deer_jax.test_evaluation import (
    CONSTANT,
    NEAREST,
    Reports,
    baselines,
    held_out_reports,
    sampling,
    score_model,
)

PROGRAM = "deer ablation"
DESCRIPTION = "The fields are those of the config of deer rl. Finished runs in the directory are not repeated.\n\n"
SFT = "SFT"
SHOWN = (
    "findings/precision", "findings/recall", "findings/F1", "sampled/findings/F1", "promptmrg/precision",
    "promptmrg/recall", "promptmrg/F1", "sampled/promptmrg/F1", "coco/BLEU-4", "coco/ROUGE-L", "distinct_outputs",
)  # fmt: skip
PANELS = {"sampled/promptmrg/F1": "one report drawn at temperature 1", "promptmrg/F1": "the likeliest report"}

Table = Mapping[str, Sequence[Mapping[str, Any]]]


class Variant(NamedTuple):
    """What a row of a table has of its own: token weights, share of the studies and how it is chosen, gammas."""

    weights: str = "gradient"
    fraction: float = 1.0
    strategy: Strategy = "log-rank"
    gammas: tuple[float, ...] = (0.0, 0.25)


PROPORTIONS: tuple[tuple[str, str, Strategy], ...] = (("GRPO", "uniform", "random"), ("DEER", "gradient", "log-rank"))

TABLES: dict[str, dict[str, Variant]] = {
    "components": {
        "GRPO": Variant("uniform"),
        "DiTPO, rule": Variant("tfidf"),
        "DiTPO, gradient": Variant("gradient"),
        "DEER, rule, 20%": Variant("tfidf", 0.2),
        "DEER, gradient, 20%": Variant("gradient", 0.2),
    },
    "rewards": {
        "F1": Variant(fraction=0.2, gammas=(0.0,)),
        "F1 + BLEU-2": Variant(fraction=0.2, gammas=(0.25,)),
        "F1, then F1 + BLEU-2": Variant(fraction=0.2),
    },
    "proportion": {
        f"{name}, {share:.0%}": Variant(weights, share, strategy)
        for name, weights, strategy in PROPORTIONS
        for share in (0.1, 0.2, 0.5, 1.0)
    },
}


def main(arguments: list[str]) -> None:
    """The command line."""
    options = preset_parser(
        PROGRAM, RL_PRESETS, DESCRIPTION + HELP + LABELER_HELP, "--directory DIR", choice="|".join(TABLES)
    )
    options.add_argument("--rows", nargs="+", metavar="NAME", help="only these, such as 'GRPO'")
    options.add_argument("--seeds", nargs="+", type=bounded(SEED), default=[0], metavar="N", help="default: 0")
    options.add_argument(
        "--sft-steps", type=bounded(STEPS_OR_ALL), default=0, metavar="N",
        help="supervised updates; 0, the default: all epochs of the preset",
    )  # fmt: skip
    which, words = first_word(PROGRAM, TABLES, arguments)
    config, chosen = read_preset_options(options, RL_PRESETS, words, ABLATION_NEEDS, check_rewarded)
    sft = dataclasses.replace(SFT_PRESETS[chosen.preset], max_steps=chosen.sft_steps)
    rows = dict(TABLES[which])
    if chosen.rows is not None:
        if unknown := [name for name in chosen.rows if name not in rows]:
            raise UserError(f"{PROGRAM}: --rows {unknown[0]!r}: unknown; expected some of {', '.join(rows)}")
        rows = {name: rows[name] for name in chosen.rows}
    file, paired = (chosen.directory / f"{which}{end}.json" for end in ("", "-differences"))
    with locked_by_first(chosen.directory):
        check_own_object(file, [SFT, NEAREST, CONSTANT])
        check_own_object(paired, ["differences", "systems"])
        check_own_page(paired.with_suffix(".html"))
        table, differences = run_ablation(config, sft, chosen.preset, chosen.directory, rows, chosen.seeds)
        write_json(file, rounded(table))
        differences.save(paired, paired.with_suffix(".html"))
        warn_of_absent({name: scores[0] for name, scores in table.items()})
        print(as_markdown(table, in_each_language(SHOWN, table[SFT][0])), flush=True)
        say(f"{summary(differences.differences)}: {paired.with_suffix('.html')}")
        if which == "proportion":
            curve = chosen.directory / "proportion.svg"
            draw_proportions(table, curve, level=SFT)
            say(f"curve: {curve}")


def run_ablation(
    config: RlConfig, sft: SftConfig, preset: str, directory: Path, rows: Mapping[str, Variant], seeds: Sequence[int]
) -> tuple[dict[str, list[Scores]], Result]:
    """Train and evaluate every row with every seed in `directory`; what is finished already is not done again.

    The supervised run, and the choice of studies, have the first seed. Returns the scores of each system, one for each
    seed, the baselines and SFT first; and how the likeliest reports of all systems, of the first seed, differ.
    Raises UserError.
    """
    check_config(config)
    shared = {name: getattr(config, name) for name in ("data", "mesh", "parallel", "instruction")}
    sft_model = dataclasses.replace(config.model, tuning=sft.model.tuning)
    sft = dataclasses.replace(sft, model=sft_model, seed=seeds[0], tensorboard=config.tensorboard, **shared)
    start = directory / "sft" / "model"
    check_run_directory(directory / "sft", sft)
    check_labeler(config, rows.values())
    labeler = reward_labeler(config.reward)
    quarantine = Quarantine()
    data = dataclasses.replace(config.data, ids="")
    splits = read_splits(data, quarantine)
    say_data(splits_line(data, splits, quarantine))
    if "test" not in splits:
        raise UserError(f"{PROGRAM}: the data has no test split to compare the rows on")
    test = splits["test"]
    if not start.is_dir():
        run_sft(sft, directory / "sft")
    check_trained_on(directory / "sft", {"base": base_weights(base_directory(sft.model)).sha256})
    scoring = default_labeler(config.data.layout) or labeler
    score = functools.partial(score_model, split=test, labeler=scoring)
    supervised = held_out_reports(config, start, directory / "sft")
    table = {SFT: [score(supervised)]}
    others = nearest(config, start, splits["train"], test)
    outputs = {SFT: supervised.greedy, **others}
    table |= {name: [scores] for name, scores in score_systems(others, test.studies, scoring).items()}
    for seed in seeds:
        for name, variant in rows.items():
            run_dir = directory / run_name(variant, seed)
            chosen = ""
            if variant.fraction < 1:
                chosen = select_studies(config, preset, start, directory, variant, seeds[0])
            say(run_dir)
            reports = rl_reports(with_variant(config, variant, start, chosen, seed), run_dir)
            table.setdefault(name, []).append(score(reports))
            outputs.setdefault(name, reports.greedy)
    references, languages = zip(*((study.report, study.language) for study in test.studies), strict=True)
    return table, compare_texts(outputs, references, languages, scoring)


def check_labeler(config: RlConfig, variants: Iterable[Variant]) -> None:
    """Raise UserError where no labeler is named and a row needs one, before anything is trained."""
    read = [not config.reward.function, *(own.weights == "gradient" or own.fraction < 1 for own in variants)]
    if any(read) and not config.reward.labeler:
        raise UserError(
            f"{PROGRAM}: rewards, gradient weights and the choice of studies need a labeler; name one with "
            "--reward.labeler"
        )


def run_name(variant: Variant, seed: int) -> str:
    """The directory of a run; tables share the runs that they have in common."""
    share = [] if variant.fraction == 1 else [str(variant.fraction), variant.strategy]
    return "-".join([variant.weights, *share, "gamma", *map(str, variant.gammas), "seed", str(seed)])


def with_variant(config: RlConfig, variant: Variant, start: Path, chosen: str, seed: int) -> RlConfig:
    """The config of one run."""
    ends = config.reward.phase_ends[: len(variant.gammas) - 1]
    return dataclasses.replace(
        config,
        data=dataclasses.replace(config.data, ids=chosen),
        model=dataclasses.replace(config.model, base=str(start)),
        reward=dataclasses.replace(config.reward, weights=variant.weights, gammas=variant.gammas, phase_ends=ends),
        seed=seed,
    )


def rl_reports(config: RlConfig, run_dir: Path) -> Reports:
    """The reports for the test studies after a run, which is done, continued or already there."""
    check_run_directory(run_dir, config)
    check_trained_on(run_dir, {"base": base_weights(base_directory(config.model)).sha256})
    if not (run_dir / "model").is_dir():
        run_rl(config, run_dir)
    return held_out_reports(config, run_dir / "model", run_dir)


def select_studies(config: RlConfig, preset: str, model: Path, directory: Path, variant: Variant, seed: int) -> str:
    """The file with the ids that DDSampling, or chance, chooses by what `model` samples for the training studies."""
    file = directory / f"chosen-{variant.strategy}-{variant.fraction}.json"
    of: dict[str, Any] = {"fraction": variant.fraction, "strategy": variant.strategy, "seed": seed}
    of["model"] = model_record(model)
    if (labeler := reward_labeler(config.reward)) is not None:
        of["labeler"] = labeler_digests(labeler)
    if file.is_file():
        if found := differences(read_json_object(file).get("of"), of):
            shown = "; ".join(map(str, found))
            raise UserError(
                f"{file}: its studies were chosen differently ({shown}); choose another --directory, "
                "or remove the file "
                "and the runs that learn from it"
            )
        return str(file)
    samples = directory / "sft" / "rollouts.jsonl"
    reward = config.reward
    rollout = dataclasses.replace(SAMPLE_PRESETS[preset].rollout, max_new_tokens=config.rollout.max_new_tokens)
    labels = {"labeler": reward.labeler, "labeler_tokenizer": reward.labeler_tokenizer}
    sample_run(sampling(config, model, rollout, seed=seed, **labels), samples)
    chosen = choose(read_studies(samples), variant.fraction, seed, variant.strategy)
    write_json(file, chosen | {"of": of})
    return str(file)


def nearest(config: RlConfig, model: Path, train: Split, test: Split) -> dict[str, list[str]]:
    """The baselines, with the features of the model in a directory."""
    layout = make_device_layout(config.parallel, config.mesh)
    own = dataclasses.replace(config.model, base=str(model))
    base = load_base(own, config.data.side, config.instruction, layout)
    return baselines(base, train, test, config.data.views, layout)


def draw_proportions(table: Table, file: Path, *, level: str) -> None:
    """Write Figure 1a as an SVG: for each available score a panel with a curve for each method; `level` is dashed.

    A curve joins the systems whose names end in a share, such as "GRPO, 20%". Bars are 95% intervals.
    """
    curves: dict[str, dict[int, Sequence[Mapping[str, Any]]]] = {}
    for name, rows in table.items():
        method, _, share = name.rpartition(", ")
        if share.removesuffix("%").isdecimal():
            curves.setdefault(method, {})[int(share.removesuffix("%"))] = rows
    shown = [name for name in PANELS if name in table[level][0]]
    figure = Figure(figsize=(4.6 * max(len(shown), 1), 3.4), layout="constrained")
    for number, name in enumerate(shown, start=1):
        axes = figure.add_subplot(1, len(shown), number)
        for method, points in curves.items():
            shares = sorted(points)
            mean, low, high = np.array([mean_interval([row[name] for row in points[one]]) for one in shares]).T
            axes.errorbar(shares, mean, [mean - low, high - mean], marker="o", capsize=3, label=method)
        axes.axhline(mean_interval([row[name] for row in table[level]])[0], linestyle="--", color="grey", label=level)
        axes.set(title=PANELS[name], xlabel="share of the training studies (%)", ylabel="label F1")
        axes.legend(frameon=False)
    with disk_errors(file.parent):
        figure.savefig(file, metadata={"Date": None})
