"""RaTEScore of reports, by the public package `RaTEScore` (made with 0.6.0) in an environment of its own.

    python3.11 -m venv ratescore
    ratescore/bin/pip install RaTEScore==0.6.0 medspacy "numpy<2" torch transformers pandas tiktoken

Rows `{"id", "prediction", "reference"}` on standard input, rows `{"id", "scores"}` on standard output, with the score
`RaTEScore`: 0.5 where either report has no entity, as in the package, and 0.5 where either has no sentence, on which
the package fails. No network is used: `--entities` and `--synonyms` are the folders of the two models.
"""

import argparse
import contextlib
import json
import os
import sys
from pathlib import Path

NOTHING = 0.5


def main() -> None:
    """Score the rows of standard input."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--entities", type=Path, required=True, help="folder of Angelakeke/RaTE-NER-Deberta")
    parser.add_argument("--synonyms", type=Path, required=True, help="folder of FremyCompany/BioLORD-2023-C")
    parser.add_argument("--affinity", choices=["long", "short"], default="long", help="weights of kinds of entities")
    parser.add_argument("--batch-size", type=int, default=8)
    parser.add_argument("--cpu", action="store_true", help="leave the GPU alone")
    arguments = parser.parse_args()
    for option in ("entities", "synonyms"):
        folder = getattr(arguments, option)
        if not (folder / "config.json").exists():
            parser.error(f"--{option} {folder}: has no config.json; expected the folder of a model")
    rows = [json.loads(line) for line in sys.stdin.buffer if line.strip()]
    if foreign := [row["id"] for row in rows if row.get("language", "en") != "en"]:
        parser.error(f"id {foreign[0]!r}: RaTEScore reads English reports, and {len(foreign)} of {len(rows)} are not")
    os.environ["HF_HUB_OFFLINE"] = "1"
    os.environ["LOGURU_LEVEL"] = "ERROR"  # the splitter of sentences logs their words
    # The package prints to standard output, where only scores may stand.
    with contextlib.redirect_stdout(sys.stderr):
        scores = score(rows, arguments)
    for row, value in zip(rows, scores, strict=True):
        print(json.dumps({"id": row["id"], "scores": {"RaTEScore": value}}, allow_nan=False))


def score(rows: list[dict[str, str]], arguments: argparse.Namespace) -> list[float]:
    """The score of each row."""
    from RaTEScore import RaTEScore
    from RaTEScore.utils import sentence_split

    scorer = RaTEScore(
        bert_model=str(arguments.entities),
        eval_model=str(arguments.synonyms),
        batch_size=arguments.batch_size,
        use_gpu=not arguments.cpu,
        affinity_matrix=arguments.affinity,
    )
    scores = [NOTHING] * len(rows)
    # A report without a sentence would take the place of the next one's.
    whole = [
        index for index, row in enumerate(rows)
        if all(sentence_split([row[side]])[0] for side in ("prediction", "reference"))
    ]  # fmt: skip
    if whole:
        predictions, references = ([rows[index][side] for index in whole] for side in ("prediction", "reference"))
        for index, value in zip(whole, scorer.compute_score(predictions, references), strict=True):
            scores[index] = float(value)
    return scores


if __name__ == "__main__":
    main()
