"""`retsta seeds RUN...`: compares finished paradigms on lists of codes in a Markdown table.

Runs with the same number of labelled reports count as seeds of one experiment; a score is their mean with minimum and
maximum. The gain of RetSTA over RetSTA-Zero is their difference on the same test reports, with a 95% bootstrap interval
over these reports.
"""

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Float

from common.config import read_config
from common.errors import Parser, UserError
from common.io.jsonl import read_jsonl
from common.io.numbers import interval_text, score_text
from common.io.tables import markdown_table
from common.io.text import read_json_object
from common.metrics.bootstrap import resampled_scores
from common.metrics.codes import code_measure, heads
from retsta_jax.evaluate import CONSTANT, MODEL, NEAREST
from retsta_jax.paradigm.paradigm import FINAL, ZERO, ParadigmConfig

SHOWN = ("codes/F1", "heads/F1")
SYSTEMS: Mapping[str, tuple[str, str]] = {
    "RetSTA": (FINAL, MODEL),
    "RetSTA-Zero": (ZERO, MODEL),
    "nearest labelled report": (ZERO, NEAREST),
    "constant report": (ZERO, CONSTANT),
}  # the model that was evaluated, and what its metrics.json calls the system


class Run(NamedTuple):
    """A finished run: how many reports are labelled, the scores of each system, and the ids of the test reports.

    `gain` [R, 2]: SHOWN of RetSTA less those of RetSTA-Zero, on R resamples of the test reports.
    """

    labelled: int
    scores: dict[str, dict[str, float]]
    reports: tuple[str, ...]
    gain: Float[np.ndarray, "R M"]


def main(arguments: list[str]) -> None:
    """Print the table of runs. Raises UserError where one is not finished, or on other test reports than the first."""
    options = Parser("retsta seeds", description=__doc__.split(":", 1)[1].strip())
    options.add_argument("runs", nargs="+", metavar="RUN", help="the --run-dir of a finished `retsta paradigm`")
    named: dict[Path, str] = {}  # a run that is named twice counts once
    for name in options.parse_args(arguments).runs:
        named.setdefault(Path(name).resolve(), name)
    runs = {name: read_run(Path(name)) for name in named.values()}
    first = next(iter(runs))
    for name, run in runs.items():
        if run.reports != runs[first].reports:
            raise UserError(f"{name}: was evaluated on other test reports than {first}; expected the same")
    print(table_of(runs.values()), flush=True)


def read_run(run_dir: Path) -> Run:
    """A run of `retsta paradigm` from its files. Raises UserError."""
    read_config(ParadigmConfig, run_dir)
    files = {name: run_dir / name / "metrics.json" for name in (ZERO, FINAL)}
    for file in files.values():
        if not file.exists():
            raise UserError(f"{run_dir}: is not finished, {file} is missing; run its command again")
    systems = {name: read_json_object(file).get("systems", {}) for name, file in files.items()}
    if any(SHOWN[0] not in systems[model].get(key, {}) for model, key in SYSTEMS.values()):
        raise UserError(f"{run_dir}: has no {SHOWN[0]}; expected a run whose standard reports are lists of codes")
    keys = {"id": str, "codes": list, "reference_codes": list}
    zero, final = (read_jsonl(run_dir / name / "predictions.jsonl", keys) for name in (ZERO, FINAL))
    reports = tuple(row["id"] for row in final)
    if reports != tuple(row["id"] for row in zero):
        raise UserError(f"{run_dir}: its two models were evaluated on different reports; expected the same")
    return Run(
        labelled=len(read_jsonl(run_dir / "train.jsonl", {"id": str})),
        scores={
            name: {score: systems[model][key][score]["value"] for score in SHOWN}
            for name, (model, key) in SYSTEMS.items()
        },
        reports=reports,
        gain=resampled(final) - resampled(zero),
    )


def resampled(rows: Sequence[Mapping[str, Any]]) -> Float[np.ndarray, "R M"]:
    """SHOWN of the codes in rows of predictions, on resamples of the reports."""
    ours, theirs = ([frozenset(row[key]) for row in rows] for key in ("codes", "reference_codes"))
    measures = code_measure("codes", ours, theirs), code_measure("heads", [*map(heads, ours)], [*map(heads, theirs)])
    scores = zip(SHOWN, measures, strict=True)
    return np.stack([resampled_scores(one)[:, one.names.index(name)] for name, one in scores], axis=-1)


def table_of(runs: Iterable[Run]) -> str:
    """The table, fewest labelled reports first, under each number of these the systems and the gain."""
    by_size: dict[int, list[Run]] = {}
    for run in sorted(runs, key=lambda run: run.labelled):
        by_size.setdefault(run.labelled, []).append(run)
    lines: list[tuple[str, ...]] = []
    for size, seeds in by_size.items():
        rows = {
            system: [spread_text([run.scores[system][name] for run in seeds]) for name in SHOWN] for system in SYSTEMS
        }
        gain = np.mean([run.gain for run in seeds], axis=0)
        low, high = np.quantile(gain, [0.025, 0.975], axis=0)
        rows["RetSTA less RetSTA-Zero"] = [
            interval_text({"value": mean_gain(seeds, name), "low": low[index], "high": high[index]}, sign=True)
            for index, name in enumerate(SHOWN)
        ]
        lines += [(f"{size:,}", str(len(seeds)), system, *texts) for system, texts in rows.items()]
    return markdown_table(("labelled", "seeds", "system", *SHOWN), lines)


def mean_gain(runs: Sequence[Run], name: str) -> float:
    """A score of RetSTA less that of RetSTA-Zero, the mean over runs."""
    return float(np.mean([run.scores["RetSTA"][name] - run.scores["RetSTA-Zero"][name] for run in runs]))


def spread_text(scores: Sequence[float]) -> str:
    """The mean of scores, with the least and the greatest of several."""
    shown = score_text(float(np.mean(scores)))
    return f"{shown} ({score_text(min(scores))} to {score_text(max(scores))})" if len(scores) > 1 else shown
