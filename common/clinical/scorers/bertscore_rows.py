"""BERTScore of reports, by the public package `bert-score` (made with 0.3.13) in an environment of its own.

    python3.11 -m venv bertscore && bertscore/bin/pip install bert-score==0.3.13 "transformers<5"

Rows `{"id", "prediction", "reference"}` on standard input, rows `{"id", "scores"}` on standard output, with the scores
`precision`, `recall` and `F1`; a report without a word, on either side, scores 0. No network is used: `--model` is the
folder of a model, and `--name` what it is called on the Hugging Face hub, by which the package knows the layer to take
and, with `--rescale`, the baseline. Published figures differ in all three: say which you used.
"""

import argparse
import contextlib
import json
import os
import sys
from pathlib import Path

LONGEST = 512  # tokens, where a tokenizer does not say


def main() -> None:
    """Score the rows of standard input."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", type=Path, required=True, help="folder of a model with its tokenizer")
    parser.add_argument("--name", default="distilroberta-base", help="distilroberta-base (default), roberta-large, ...")
    parser.add_argument("--layer", type=int, help="layer whose embeddings are compared (default: that of --name)")
    parser.add_argument("--rescale", action="store_true", help="between the baseline of --name in English and 1")
    parser.add_argument("--idf", action="store_true", help="weigh words by how rare they are in the references")
    parser.add_argument("--batch-size", type=int, default=64)
    parser.add_argument("--cpu", action="store_true", help="leave the GPU alone")
    arguments = parser.parse_args()
    if not (arguments.model / "config.json").exists():
        parser.error(f"--model {arguments.model}: has no config.json; expected the folder of a model")
    rows = [json.loads(line) for line in sys.stdin.buffer if line.strip()]
    foreign = [row["id"] for row in rows if row.get("language", "en") != "en"]
    if foreign and arguments.rescale:
        parser.error(f"id {foreign[0]!r}: the baseline is of English, and {len(foreign)} of {len(rows)} are not")
    os.environ["HF_HUB_OFFLINE"] = "1"
    # The package prints to standard output, where only scores may stand.
    with contextlib.redirect_stdout(sys.stderr):
        scores = score(parser, rows, arguments)
    for row, values in zip(rows, scores, strict=True):
        print(json.dumps({"id": row["id"], "scores": values}, allow_nan=False))


def score(
    parser: argparse.ArgumentParser, rows: list[dict[str, str]], arguments: argparse.Namespace
) -> list[dict[str, float]]:
    """The scores of each row."""
    import bert_score
    from bert_score.utils import model2layers

    layer = model2layers.get(arguments.name) if arguments.layer is None else arguments.layer
    if layer is None:
        parser.error(f"--name {arguments.name}: the package knows no layer for it; give it with --layer")
    baseline = Path(bert_score.__file__).parent / "rescale_baseline" / "en" / f"{arguments.name}.tsv"
    if arguments.rescale and not baseline.exists():
        parser.error(f"--rescale: the package has no baseline for {arguments.name}")
    scorer = bert_score.BERTScorer(
        model_type=str(arguments.model),
        num_layers=layer,
        batch_size=arguments.batch_size,
        idf=arguments.idf,
        idf_sents=[row["reference"] for row in rows] if arguments.idf else None,
        device="cpu" if arguments.cpu else None,
        lang="en",
        rescale_with_baseline=arguments.rescale,
        baseline_path=str(baseline) if arguments.rescale else None,
    )
    # A tokenizer that names no limit has one that does not fit into an integer of the tokenizers' code.
    scorer._tokenizer.model_max_length = min(scorer._tokenizer.model_max_length, LONGEST)
    found: list[dict[str, float]] = [{"precision": 0.0, "recall": 0.0, "F1": 0.0} for _ in rows]
    written = [index for index, row in enumerate(rows) if row["prediction"].strip() and row["reference"].strip()]
    if written:
        predictions, references = ([rows[index][side] for index in written] for side in ("prediction", "reference"))
        values = scorer.score(predictions, references, batch_size=arguments.batch_size)
        for index, *own in zip(written, *(column.tolist() for column in values), strict=True):
            found[index] = dict(zip(found[index], own, strict=True))
    return found


if __name__ == "__main__":
    main()
