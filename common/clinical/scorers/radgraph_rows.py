"""RadGraph F1 of reports, by the public package `radgraph` (made with 0.1.18) in an environment of its own.

    python3.11 -m venv radgraph && radgraph/bin/pip install radgraph==0.1.18 "transformers<5"

Needs that package alone. Rows `{"id", "prediction", "reference"}` on standard input, rows `{"id", "scores"}` on
standard output. The scores are F1 over what the model finds in both reports, by level:

- `simple`: entities and their labels;
- `partial`: with whether an entity has a relation;
- `complete`: with its relations.

A report without text, on either side, scores 0, as in the package. No network is used: `--weights` is the folder that
the archive `radgraph.tar.gz` or `radgraph-xl.tar.gz` of StanfordAIMI/RRG_scorers unpacks to, `--bert` that of the BERT
which its config.json names.
"""

import argparse
import contextlib
import json
import os
import sys
import tempfile
from pathlib import Path

LEVELS = ("simple", "partial", "complete")
AT_ONCE = 32  # reports between two lines of progress


def main() -> None:
    """Score the rows of standard input."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--weights", type=Path, required=True, help="folder with config.json, vocabulary, weights.th")
    parser.add_argument(
        "--bert", type=Path, help="folder of the BERT that config.json names, if it is not in the cache"
    )
    parser.add_argument("--model-type", default="radgraph", help="radgraph (default), radgraph-xl, ...")
    parser.add_argument("--cpu", action="store_true", help="leave the GPU alone")
    arguments = parser.parse_args()
    missing = [name for name in ("config.json", "vocabulary", "weights.th") if not (arguments.weights / name).exists()]
    if missing:
        parser.error(f"--weights {arguments.weights}: has no {missing[0]}; unpack the model's archive there")
    rows = [json.loads(line) for line in sys.stdin.buffer if line.strip()]
    if foreign := [row["id"] for row in rows if row.get("language", "en") != "en"]:
        parser.error(f"id {foreign[0]!r}: RadGraph reads English reports, and {len(foreign)} of {len(rows)} are not")
    os.environ["HF_HUB_OFFLINE"] = "1"
    # The package prints to standard output, where only scores may stand.
    with contextlib.redirect_stdout(sys.stderr), tempfile.TemporaryDirectory() as cache:
        scores = score(rows, arguments, Path(cache))
    for row in rows:
        print(
            json.dumps({"id": row["id"], "scores": dict(zip(LEVELS, scores[row["id"]], strict=True))}, allow_nan=False)
        )


def score(rows: list[dict[str, str]], arguments: argparse.Namespace, cache: Path) -> dict[str, tuple[float, ...]]:
    """The three levels of each id."""
    from radgraph import F1RadGraph

    link_model(arguments.weights.absolute(), arguments.bert, cache / arguments.model_type)
    device = {"cuda": -1} if arguments.cpu else {}
    scorer = F1RadGraph(reward_level="all", model_type=arguments.model_type, model_cache_dir=str(cache), **device)
    scores: dict[str, tuple[float, ...]] = {row["id"]: (0.0, 0.0, 0.0) for row in rows}
    written = [row for row in rows if row["prediction"].strip() and row["reference"].strip()]
    for start in range(0, len(written), AT_ONCE):
        batch = written[start : start + AT_ONCE]
        _, levels, _, _ = scorer(hyps=[row["prediction"] for row in batch], refs=[row["reference"] for row in batch])
        for row, *found in zip(batch, *levels, strict=True):
            scores[row["id"]] = tuple(map(float, found))
        print(f"radgraph: {start + len(batch)} of {len(written)} reports", file=sys.stderr)
    return scores


def link_model(weights: Path, bert: Path | None, folder: Path) -> None:
    """Show the model to the package where it looks for it, with another BERT if one is named."""
    folder.mkdir(parents=True)
    for file in weights.iterdir():
        if file.name != "config.json":
            (folder / file.name).symlink_to(file)
    config = json.loads((weights / "config.json").read_bytes())
    if bert is not None:
        config["dataset_reader"]["token_indexers"]["bert"]["model_name"] = str(bert.absolute())
        config["model"]["embedder"]["token_embedders"]["bert"]["model_name"] = str(bert.absolute())
    (folder / "config.json").write_text(json.dumps(config), encoding="utf-8")


if __name__ == "__main__":
    main()
