"""`deer evaluate`: clinical and text scores of any system's reports, with intervals and a constant report.

Clinical scores follow each convention of `common.metrics.clinical` by its name; text scores are those of `medreport
score` (DEER's Tables 1-3). Scorers with an environment of their own, such as GREEN and RadGraph, are commands of the
user (`common.clinical.external`).
"""

import argparse
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np
from jaxtyping import Int

from common.clinical.external import NOT_GIVEN, Scorer, check_programs, parse_scorers, run_scorers
from common.clinical.labeler import load_labeler, replicate, texts_line
from common.clinical.report_labeler import Labelled, ReportLabeler, label_lists
from common.clinical.score_command import LANGUAGE_HELP
from common.clinical.score_command import evaluate as evaluate_as_texts
from common.clinical.shared_labeler import SharedLabeler
from common.config_options import add_batch_size
from common.data.summary import say_data
from common.errors import Parser
from common.generation.processes import of_first
from common.io.jsonl import read_jsonl
from common.io.locks import locked_by_first, locked_file
from common.io.numbers import rounded
from common.io.outputs import check_output, check_own_object
from common.io.safetensors import write_json
from common.io.terminal import say
from common.io.text import json_text
from common.metrics.baselines import constant_reports
from common.metrics.bootstrap import mean_measure, summarize
from common.metrics.clinical import POSITIVE, evaluate_labels
from common.metrics.tokenize import Language, languages_of

DESCRIPTION = """Score reports against their references. Prints one JSON object: each metric under its name and
convention, then `intervals` (95%, bootstrap over reports), `constant_report` (one report for all, chosen from the
references, scored the same way), `distinct_outputs`, `count`, and `notes` on what is absent or was cut, and why."""

Classes = Int[np.ndarray, "N 14"]
Summary = Mapping[str, Mapping[str, float]]
Rows = Sequence[Mapping[str, Any]]


def main(arguments: list[str]) -> None:
    """Run the command. Raises UserError for whatever is wrong with its input."""
    parser = Parser("deer evaluate", description=DESCRIPTION)
    parser.add_argument(
        "--predictions", type=Path, required=True, metavar="FILE.jsonl", help='rows {"id", "prediction", "reference"}'
    )
    parser.add_argument(
        "--labeler", required=True, metavar="PATH",
        help="chexbert.pth, a directory of deer train-labeler, or 'phantom' for the one shipped for phantom reports",
    )  # fmt: skip
    parser.add_argument(
        "--tokenizer", type=Path, metavar="DIR", help="with vocab.txt; of bert-base-uncased for CheXbert"
    )
    parser.add_argument("--language", choices=("en", "zh"), help=f"of the text metrics; {LANGUAGE_HELP}")
    parser.add_argument(
        "--external", action="append", default=[], metavar="NAME=COMMAND",
        help='a scorer: reads those rows on standard input, writes rows {"id", "scores": {name: number}}; repeatable',
    )  # fmt: skip
    add_batch_size(parser, "texts")
    parser.add_argument("--output", type=Path, metavar="FILE.json", help="file to which the object is also written")
    chosen = parser.parse_args(arguments)
    check_output(chosen.output, chosen.predictions)
    if chosen.external:
        # JAX would take most of the accelerator's memory when it is first used, and leave none for the scorers.
        os.environ.setdefault("XLA_PYTHON_CLIENT_PREALLOCATE", "false")
    with locked_by_first(chosen.output, locked_file):
        evaluate_file(chosen)


def evaluate_file(chosen: argparse.Namespace) -> None:
    """Print, and write, the scores that the parsed command line asks for. Raises UserError before scoring.

    With several processes, each reads the whole file and labels a share of its texts; the first one does the rest.
    """
    check_own_object(chosen.output, ["intervals", "constant_report"])
    rows = read_jsonl(chosen.predictions, {"id": str | int, "prediction": str, "reference": str})
    scorers = parse_scorers(chosen.external)
    check_programs(scorers)
    batch_size = chosen.batch_size * jax.local_device_count()
    labeler = load_labeler(chosen.labeler, chosen.tokenizer, option="--tokenizer", batch_size=batch_size)
    texts = [row[name] for row in rows for name in ("prediction", "reference")]
    say_data(texts_line([chosen.predictions], {"reports": len(rows)}, labeler, texts), rows_on_stdout=True)
    read = read_reports(rows, SharedLabeler(replicate(labeler)), chosen.language)

    def write() -> None:
        result = score_reports(rows, read, chosen.language, scorers)
        for name, reason in result["notes"].items():
            if not reason.startswith(NOT_GIVEN):
                say(f"note: {name}: {reason}", error=True)
        if missing := [name for name, reason in result["notes"].items() if reason.startswith(NOT_GIVEN)]:
            names = ", ".join(missing)
            say(f"note: scorers not given: {names}; the result's notes say how to install each", error=True)
        if chosen.output is not None:
            write_json(chosen.output, rounded(result))
        print(json_text(rounded(result), "deer evaluate", indent=2))

    of_first(write)


class Read(NamedTuple):
    """The classes of predictions, of references and of the constant report for each, and how they were read."""

    predicted: Classes
    expected: Classes
    always: Classes
    labelled: Labelled


def read_reports(rows: Rows, labeler: ReportLabeler, language: Language | None = None) -> Read:
    """What a labeler says of rows with "id", "prediction" and "reference".

    Raises UserError for a labeler whose labels are not CheXbert's.
    """
    predictions, references = texts_of(rows)
    languages = languages_in(rows, language)
    texts = predictions, references, constant_reports(references, languages, languages)
    (predicted, expected, always), labelled = label_lists(labeler, texts, [row["id"] for row in rows])
    return Read(predicted, expected, always, labelled)


def evaluate_predictions(
    rows: Rows,
    labeler: ReportLabeler,
    language: Language | None = None,
    *,
    scorers: Sequence[Scorer] = (),
) -> dict[str, Any]:
    """The object that the command prints, of rows with "id", "prediction" and "reference".

    A scorer that fails, and the known ones that are not given, are None under their names, with the reason in
    the notes. Raises UserError for a labeler whose labels are not CheXbert's.
    """
    return score_reports(rows, read_reports(rows, labeler, language), language, scorers)


def score_reports(
    rows: Rows, read: Read, language: Language | None = None, scorers: Sequence[Scorer] = ()
) -> dict[str, Any]:
    """The result of `evaluate_predictions` for reports that have been read."""
    result = evaluate_as_texts([dict(row) for row in rows], language, "all")
    _add(result, evaluate_labels(read.predicted, read.expected))
    baseline = evaluate_labels(read.always, read.expected, intervals=False)
    result["constant_report"] |= {name: score["value"] for name, score in baseline.items()}
    own = zip(rows, languages_in(rows, language), strict=True)
    external, absent = run_scorers(scorers, [{**row, "language": language} for row, language in own])
    for scorer, scores in external.items():
        _add(result, summarize([mean_measure(f"{scorer}/{name}", values) for name, values in scores.items()]))
    result |= dict.fromkeys(absent)
    result["without_positive_label"] = {
        "predictions": _share_without(read.predicted),
        "references": _share_without(read.expected),
    }
    result["notes"] |= absent | read.labelled.notes()
    return {name: result[name] for name in sorted(result, key=lambda name: "/" not in name)}  # the metrics first


def texts_of(rows: Rows) -> tuple[list[str], list[str]]:
    """The predictions and the references."""
    return [row["prediction"] for row in rows], [row["reference"] for row in rows]


def languages_in(rows: Rows, language: Language | None) -> list[Language]:
    """The language of each row: the one given for all, otherwise `languages_of`."""
    return languages_of(rows) if language is None else [language] * len(rows)


def _add(result: dict[str, Any], summary: Summary) -> None:
    result |= {name: score["value"] for name, score in summary.items()}
    result["intervals"] |= {name: [score["low"], score["high"]] for name, score in summary.items()}


def _share_without(classes: Classes) -> float:
    return float((classes != POSITIVE).all(axis=1).mean())
