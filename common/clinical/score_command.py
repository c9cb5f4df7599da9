"""`medreport score FILE.jsonl`: text metrics of rows {"id", "prediction", "reference"} as one JSON object.

The object holds each metric under its key, then `intervals` (95%, bootstrap over reports), `constant_report` (the
scores of one report for all, chosen from the references), `distinct_outputs`, `count`, `language`, and `notes` on
what is absent and why. English and Chinese rows are scored separately: names then begin with `en/` or `zh/`, and
`language` counts both.
"""

from collections import Counter
from typing import Any

from common.data.summary import data_line, say_data
from common.errors import Parser
from common.io.jsonl import read_jsonl
from common.io.numbers import rounded
from common.io.terminal import say
from common.io.text import json_text
from common.metrics.baselines import constant_reports
from common.metrics.text import evaluate_texts
from common.metrics.tokenize import languages_of, unread_note

LANGUAGE_HELP = "en: white-space tokens; zh: characters; default: the row's 'language', or detected from its characters"


def main(argv: list[str]) -> None:
    """Print the metrics of a file. Raises UserError for malformed rows and for METEOR asked for without WordNet."""
    parser = Parser("medreport score", description=__doc__.split(":", 1)[1].strip())
    parser.add_argument("file", help='JSONL, a row {"id", "prediction", "reference"} per report')
    parser.add_argument("--convention", choices=["coco", "coco-jieba", "nltk", "all"], default="all")
    parser.add_argument("--language", choices=["en", "zh"], help=LANGUAGE_HELP)
    arguments = parser.parse_args(argv)
    rows = read_jsonl(arguments.file, {"id": str | int, "prediction": str, "reference": str})
    say_data(data_line([arguments.file], "rows", {"reports": len(rows)}), rows_on_stdout=True)
    result = evaluate(rows, arguments.language, arguments.convention)
    for key, reason in result["notes"].items():
        say(f"warning: {key}: {reason}" if key == "language" else f"warning: {key} is absent: {reason}", error=True)
    print(json_text(rounded(result), arguments.file, indent=2))


def evaluate(rows: list[dict[str, Any]], language: Any, convention: Any) -> dict[str, Any]:
    """The object that the command prints, of rows with "prediction" and "reference".

    `language` is that of all rows; of each its own where it is None (`languages_of`).
    """
    predictions, references = [row["prediction"] for row in rows], [row["reference"] for row in rows]
    found = languages_of(rows)
    languages = found if language is None else [language] * len(rows)
    scores = evaluate_texts(predictions, references, language=languages, convention=convention)
    constant = constant_reports(references, languages, languages)
    baseline = evaluate_texts(constant, references, language=languages, convention=convention, intervals=False)
    notes = dict(scores["notes"])
    if other := sum(own != chosen for own, chosen in zip(found, languages, strict=True)):
        notes["language"] = (
            f"{other} of {len(rows)} reports are not in {language}, in which --language has them scored: their text "
            "metrics mean nothing"
        )
    elif unread := unread_note(references, languages):
        notes["language"] = unread
    metrics = [key for key in scores if "/" in key]
    return {
        **{key: scores[key] and scores[key]["value"] for key in metrics},
        "intervals": {key: [scores[key]["low"], scores[key]["high"]] for key in metrics if scores[key]},
        "constant_report": {key: baseline[key] and baseline[key]["value"] for key in metrics},
        "distinct_outputs": scores["distinct_outputs"],
        "count": len(rows),
        "language": languages[0] if len(set(languages)) == 1 else dict(sorted(Counter(languages).items())),
        "notes": notes,
    }
