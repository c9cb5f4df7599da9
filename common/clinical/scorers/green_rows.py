"""GREEN of reports, by the public package `green_score` (made with 0.0.12) in an environment of its own.

    python3.12 -m venv green && green/bin/pip install green_score==0.0.12

Needs that package alone. Rows `{"id", "prediction", "reference"}` on standard input, rows `{"id", "scores"}` on
standard output, with the scores

- `GREEN`: matched findings / (matched findings + significant errors), 0 when nothing matches;
- `matched`, `significant_errors`: those numbers;
- `unreadable`: 1 where the model's answer names no matched findings, so that the three above are 0 by default.

No network is used: `--weights` is the folder of a GREEN model, such as StanfordAIMI/GREEN-radllama2-7b.
"""

import argparse
import contextlib
import json
import os
import sys
import tempfile
from pathlib import Path
from typing import Any

MATCHED = "Matched Findings"


def main() -> None:
    """Score the rows of standard input."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--weights", type=Path, required=True, help="folder of a GREEN model")
    parser.add_argument("--batch-size", type=int, default=8)
    parser.add_argument("--cpu", action="store_true", help="leave the GPU alone; slow")
    arguments = parser.parse_args()
    if not (arguments.weights / "config.json").exists():
        parser.error(f"--weights {arguments.weights}: has no config.json; expected the folder of a GREEN model")
    rows = [json.loads(line) for line in sys.stdin.buffer if line.strip()]
    if foreign := [row["id"] for row in rows if row.get("language", "en") != "en"]:
        parser.error(f"id {foreign[0]!r}: GREEN reads English reports, and {len(foreign)} of {len(rows)} are not")
    os.environ["HF_HUB_OFFLINE"] = "1"
    # With several GPUs in sight the package expects to have been started by torchrun.
    os.environ["CUDA_VISIBLE_DEVICES"] = os.environ.get("CUDA_VISIBLE_DEVICES", "0").split(",")[0]
    # The package prints to standard output, where only scores may stand.
    with contextlib.redirect_stdout(sys.stderr):
        scores = score(rows, arguments)
    for row, found in zip(rows, scores, strict=True):
        print(json.dumps({"id": row["id"], "scores": found}, allow_nan=False))


def score(rows: list[dict[str, str]], arguments: argparse.Namespace) -> list[dict[str, float]]:
    """The scores of each row."""
    from green_score import GREEN

    with tempfile.TemporaryDirectory() as unused:
        # The summary would fetch another model, to group sentences.
        scorer = GREEN(str(arguments.weights), output_dir=unused, cpu=arguments.cpu, compute_summary_stats=False)
        scorer.batch_size = arguments.batch_size
        *_, table = scorer([row["reference"] for row in rows], [row["prediction"] for row in rows])
    return [scores_of(record) for record in table.to_dict("records")]


def scores_of(record: dict[str, Any]) -> dict[str, float]:
    """The scores of one row of the package's table, which has a column for each kind of significant error."""
    matched = int(record[MATCHED])
    errors = sum(int(value) for name, value in record.items() if name.startswith("("))
    return {
        "GREEN": matched / (matched + errors) if matched else 0.0,
        "matched": matched,
        "significant_errors": errors,
        "unreadable": float(f"[{MATCHED}]" not in record["green_analysis"]),
    }


if __name__ == "__main__":
    main()
