"""`medreport submission predictions.jsonl`: predictions as ReXrank or RadEval read them.

Rows are those of `medreport score`. For RadEval the file is an object with the lists `references` and `hypotheses`, in
the order of the rows. For ReXrank it is the leaderboard's file of studies (--studies), such as
ReXRank_MIMICCXR_test.json, with `model_prediction` in each.
"""

from pathlib import Path
from typing import Any

from common.data.rexrank import PREDICTION, add_predictions, read_studies
from common.data.summary import data_line, say_data
from common.errors import Parser, UserError
from common.io.jsonl import read_jsonl
from common.io.outputs import check_output, check_own_object, refuse_foreign
from common.io.safetensors import write_json
from common.io.terminal import say

REFERENCES, HYPOTHESES = "references", "hypotheses"  # of RadEval (docs/file_formats.md)


def main(argv: list[str]) -> None:
    """Write the file. Raises UserError for malformed rows, and for studies of ReXrank without a prediction."""
    parser = Parser("medreport submission", description=__doc__.split(":", 1)[1].strip())
    parser.add_argument("file", type=Path, metavar="FILE.jsonl", help='rows {"id", "prediction", "reference"}')
    parser.add_argument("--format", choices=["rexrank", "radeval"], required=True)
    parser.add_argument("--studies", type=Path, metavar="FILE.json", help="of ReXrank, as it publishes them")
    parser.add_argument("--output", type=Path, required=True, metavar="FILE.json", help="file to write")
    chosen = parser.parse_args(argv)
    if (chosen.format == "rexrank") != (chosen.studies is not None):
        raise UserError("--studies is ReXrank's file of studies: give it with --format rexrank, and only then")
    check_output(chosen.output, chosen.file, *([chosen.studies] if chosen.studies else []))
    rows = read_jsonl(chosen.file, {"id": str | int, "prediction": str, "reference": str})
    counts = {"reports": len(rows)}
    if chosen.format == "radeval":
        check_own_object(chosen.output, [REFERENCES, HYPOTHESES])
        written: dict[str, Any] = {
            REFERENCES: [row["reference"] for row in rows],
            HYPOTHESES: [row["prediction"] for row in rows],
        }
    else:
        studies = read_studies(chosen.studies)
        check_own_studies(chosen.output)
        written = add_predictions(studies, {str(row["id"]): row["prediction"] for row in rows}, chosen.file)
        counts |= {"studies": len(studies)}
    say_data(data_line([chosen.file], "rows", counts), rows_on_stdout=False)
    write_json(chosen.output, written)
    say(f"submission: {chosen.output.absolute()}")


def check_own_studies(path: Path) -> None:
    """Raise UserError where a file that is to be replaced is another than one of ReXrank with predictions."""
    if not path.is_file() or not path.stat().st_size:
        return
    try:
        own = all(PREDICTION in study for study in read_studies(path).values())
    except UserError:
        own = False
    if not own:
        raise refuse_foreign(path, "an earlier output of this command", f"studies without {PREDICTION!r}")
