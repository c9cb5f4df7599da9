"""`deer evaluate`: clinical and text scores of any system's reports, with intervals and a constant report.

Clinical scores follow each convention of `common.metrics.clinical` by its name; text scores are those of `medreport
score` (DEER's Tables 1-3). Scorers with an environment of their own, such as GREEN and RadGraph, are commands of the
user (`common.clinical.external`).
"""

import argparse
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Int

from common.bounds import COUNT, bounded
from common.clinical.external import Scorer, check_programs, parse_scorers, run_scorers
from common.clinical.report_labeler import ReportLabeler, check_findings, label_lists
from common.clinical.score_command import LANGUAGE_HELP
from common.clinical.score_command import evaluate as evaluate_as_texts
from common.data.summary import say_data
from common.devices import say_devices
from common.errors import Parser
from common.io.jsonl import read_jsonl
from common.io.locks import locked_file
from common.io.numbers import rounded
from common.io.outputs import check_output, check_own_object
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
    parser.add_argument(
        "--batch-size", type=bounded(COUNT), default=32, metavar="N", help="of the labeler; default: %(default)s"
    )
    parser.add_argument("--output", type=Path, metavar="FILE.json", help="file to which the object is also written")
    chosen = parser.parse_args(arguments)
    check_output(chosen.output, chosen.predictions)
    with locked_file(chosen.output):
        evaluate_file(chosen)


def evaluate_file(chosen: argparse.Namespace) -> None:
    """Print, and write, the scores that the parsed command line asks for. Raises UserError before scoring."""
    check_own_object(chosen.output, ["intervals", "constant_report"])
    rows = read_jsonl(chosen.predictions, {"id": str | int, "prediction": str, "reference": str})
    scorers = parse_scorers(chosen.external)
    check_programs(scorers)
    if scorers:
        # JAX would take most of the accelerator's memory, and leave none for the scorers.
        os.environ.setdefault("XLA_PYTHON_CLIENT_PREALLOCATE", "false")
    from common.clinical.labeler import load_labeler, texts_line  # JAX reads the variable above when it is first used

    labeler = load_labeler(chosen.labeler, chosen.tokenizer, option="--tokenizer", batch_size=chosen.batch_size)
    texts = [row[name] for row in rows for name in ("prediction", "reference")]
    say_data(texts_line([chosen.predictions], {"reports": len(rows)}, labeler, texts), rows_on_stdout=True)
    say_devices()
    result = evaluate_predictions(rows, labeler, chosen.language, scorers=scorers)
    for name, reason in result["notes"].items():
        say(f"note: {name}: {reason}", error=True)
    if chosen.output is not None:
        from common.io.safetensors import write_json

        write_json(chosen.output, rounded(result))
    print(json_text(rounded(result), "deer evaluate", indent=2))


def evaluate_predictions(
    rows: Sequence[Mapping[str, Any]],
    labeler: ReportLabeler,
    language: Language | None = None,
    *,
    scorers: Sequence[Scorer] = (),
) -> dict[str, Any]:
    """The object that the command prints, of rows with "id", "prediction" and "reference".

    A scorer that fails, and GREEN and RadGraph where they are not given, are None under their names, with the reason in
    the notes. Raises UserError for a labeler of other labels than CheXbert's.
    """
    check_findings(labeler)
    result = evaluate_as_texts([dict(row) for row in rows], language, "all")
    predictions, references = [row["prediction"] for row in rows], [row["reference"] for row in rows]
    languages = languages_of(rows) if language is None else [language] * len(rows)
    constant = constant_reports(references, languages, languages)
    ids = [row["id"] for row in rows]
    texts = predictions, references, constant
    (predicted, expected, always), labelled = label_lists(labeler, texts, ids)
    _add(result, evaluate_labels(predicted, expected))
    baseline = evaluate_labels(always, expected, intervals=False)
    result["constant_report"] |= {name: score["value"] for name, score in baseline.items()}
    own = zip(rows, languages, strict=True)
    external, absent = run_scorers(scorers, [{**row, "language": language} for row, language in own])
    for scorer, scores in external.items():
        _add(result, summarize([mean_measure(f"{scorer}/{name}", values) for name, values in scores.items()]))
    result |= dict.fromkeys(absent)
    result["without_positive_label"] = {
        "predictions": _share_without(predicted),
        "references": _share_without(expected),
    }
    result["notes"] |= absent | labelled.notes()
    return {name: result[name] for name in sorted(result, key=lambda name: "/" not in name)}  # the metrics first


def _add(result: dict[str, Any], summary: Summary) -> None:
    result |= {name: score["value"] for name, score in summary.items()}
    result["intervals"] |= {name: [score["low"], score["high"]] for name, score in summary.items()}


def _share_without(classes: Classes) -> float:
    return float((classes != POSITIVE).all(axis=1).mean())
