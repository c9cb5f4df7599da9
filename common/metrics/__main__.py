"""`python -m common.metrics FILE.jsonl`: text metrics of rows {"id", "prediction", "reference"} as one JSON object.

The object holds each metric under its key, then `intervals` (95%, bootstrap over reports), `constant_report` (the
scores of one report for all, chosen from the references), `distinct_outputs`, `count`, `language`, and `notes` on
what is absent and why.
"""

from typing import Any

from common.errors import Parser, run_cli
from common.io.numbers import rounded
from common.io.terminal import say
from common.io.text import json_text
from common.jsonl import read_rows
from common.metrics.baselines import constant_report
from common.metrics.text import evaluate_texts


def main(argv: list[str]) -> None:
    """Print the metrics of a file. Raises UserError for malformed rows and for METEOR asked for without WordNet."""
    parser = Parser("python -m common.metrics", description=__doc__.split(":", 1)[1].strip())
    parser.add_argument("file", help='JSONL, a row {"id", "prediction", "reference"} per report')
    parser.add_argument("--convention", choices=["coco", "coco-jieba", "nltk", "all"], default="all")
    parser.add_argument("--language", choices=["en", "zh"], default="en", help="en: white-space tokens; zh: characters")
    arguments = parser.parse_args(argv)
    rows = read_rows(arguments.file, {"id": str | int, "prediction": str, "reference": str})
    result = evaluate(rows, arguments.language, arguments.convention)
    for key, reason in result["notes"].items():
        say(f"warning: {key} is absent: {reason}", error=True)
    print(json_text(rounded(result), arguments.file, indent=2))


def evaluate(rows: list[dict[str, Any]], language: Any, convention: Any) -> dict[str, Any]:
    """The object that the command prints, of rows with "prediction" and "reference"."""
    predictions, references = [row["prediction"] for row in rows], [row["reference"] for row in rows]
    scores = evaluate_texts(predictions, references, language=language, convention=convention)
    constant = [constant_report(references, language=language)] * len(references)
    baseline = evaluate_texts(constant, references, language=language, convention=convention, intervals=False)
    metrics = [key for key in scores if "/" in key]
    return {
        **{key: scores[key] and scores[key]["value"] for key in metrics},
        "intervals": {key: [scores[key]["low"], scores[key]["high"]] for key in metrics if scores[key]},
        "constant_report": {key: baseline[key] and baseline[key]["value"] for key in metrics},
        "distinct_outputs": scores["distinct_outputs"],
        "count": len(rows),
        "language": language,
        "notes": scores["notes"],
    }


if __name__ == "__main__":
    run_cli(main)
