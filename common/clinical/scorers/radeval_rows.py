"""Scores of RadEval, among them RadCliQ-v1 and SembScore, by the package `RadEval` (made with 2.2.1).

    python3.11 -m venv radeval && radeval/bin/pip install RadEval==2.2.1 "scikit-learn<1.9" "numpy<2"

Rows `{"id", "prediction", "reference"}` on standard input, rows `{"id", "scores"}` on standard output, with the scores
that the package gives for each report. `radcliq` comes with its parts: `radcliq_v1` (lower is better), `bertscore`,
`semb_score`, `radgraph` and `bleu_score` (BLEU-2); as in the package, its BERTScore weighs words by the references.
`sembscore` is the cosine of CheXbert's embeddings alone.

No network is used. The package loads models by their names on the Hugging Face hub; `--model NAME=FOLDER` says where
each lies (`hf download NAME --local-dir FOLDER`). Metrics that ask a paid service, or that fetch anew at each start
(temporal, srrbert), are not offered; nor is ratescore, which mixes up reports where one is empty (`ratescore_rows.py`).
"""

import argparse
import contextlib
import json
import os
import sys
import tempfile
import types
from pathlib import Path
from typing import Any

SCORERS, BERT = "StanfordAIMI/RRG_scorers", "bert-base-uncased"
NEEDS = {
    "bleu": (),
    "rouge": (),
    "bertscore": ("distilbert-base-uncased",),
    "radeval_bertscore": ("IAMJB/RadEvalModernBERT",),
    "f1chexbert": (f"{SCORERS}/chexbert.pth", BERT),
    "f1radbert_ct": ("IAMJB/RadBERT-CT",),
    "sembscore": (f"{SCORERS}/chexbert.pth", BERT),
    "radgraph": (f"{SCORERS}/radgraph-xl.tar.gz",),
    "radgraph_radcliq": (f"{SCORERS}/radgraph.tar.gz",),
    "radcliq": (f"{SCORERS}/chexbert.pth", f"{SCORERS}/radgraph.tar.gz", BERT, "distilroberta-base"),
    "green": ("StanfordAIMI/GREEN-radllama2-7b",),
}
REVISION = "0" * 40  # of what lies in a folder


def main() -> None:
    """Score the rows of standard input."""
    needs = "\n".join(f"  {metric}: {', '.join(models) or 'no model'}" for metric, models in NEEDS.items())
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter,
        epilog=f"what each metric needs (RadGraph also the BERT that the config.json in its archive names):\n{needs}",
    )  # fmt: skip
    parser.add_argument("--metrics", nargs="+", required=True, choices=NEEDS, metavar="NAME", help="see below")
    parser.add_argument("--model", action="append", default=[], metavar="NAME=FOLDER", help="repeatable")
    arguments = parser.parse_args()
    models = {name: Path(folder) for name, _, folder in (text.partition("=") for text in arguments.model)}
    for name, folder in models.items():
        if not folder.is_dir():
            parser.error(f"--model {name}={folder}: not a directory")
    for metric in arguments.metrics:
        for need in NEEDS[metric]:
            name, file = (SCORERS, need.rpartition("/")[2]) if need.startswith(SCORERS) else (need, "config.json")
            if name not in models or not (models[name] / file).is_file():
                parser.error(f"{metric} needs {file} of {name}: hf download {name}, and --model {name}=FOLDER")
    rows = [json.loads(line) for line in sys.stdin.buffer if line.strip()]
    if foreign := [row["id"] for row in rows if row.get("language", "en") != "en"]:
        parser.error(f"id {foreign[0]!r}: RadEval reads English reports, and {len(foreign)} of {len(rows)} are not")
    # The package prints to standard output, where only scores may stand.
    with contextlib.redirect_stdout(sys.stderr), tempfile.TemporaryDirectory() as cache:
        link_models(models, Path(cache))
        try:
            scores = score([row["reference"] for row in rows], [row["prediction"] for row in rows], arguments.metrics)
        except OSError as error:  # of transformers, whose message goes on for several lines
            parser.error(f"a model cannot be loaded ({str(error).splitlines()[0]}); name its folder with --model")
    if short := [name for name, values in scores.items() if len(values) != len(rows)]:
        parser.error(f"{short[0]}: the package gave {len(scores[short[0]])} values for {len(rows)} reports")
    for index, row in enumerate(rows):
        found = {name: float(values[index]) for name, values in scores.items()}
        print(json.dumps({"id": row["id"], "scores": found}, allow_nan=False))


def score(references: list[str], predictions: list[str], metrics: list[str]) -> dict[str, Any]:
    """The values of each score, in the order of the reports."""
    import nltk

    nltk.download = lambda *_, **__: False  # which the package calls when it is imported
    import radeval
    import torch

    # The package imports parts of itself by the name that it had before it was spelt in lower case.
    former = sys.modules.setdefault("RadEval", types.ModuleType("RadEval"))
    former.__path__ = list(radeval.__path__)
    device = "cuda" if torch.cuda.is_available() else "cpu"
    if {"f1chexbert", "sembscore"} & {*metrics}:
        from radeval.metrics.f1chexbert.f1chexbert import F1CheXbert

        F1CheXbert.__init__.__kwdefaults__["device"] = device  # otherwise a GPU, whether there is one or not
    plain = [metric for metric in metrics if metric not in ("radcliq", "sembscore")]
    scores: dict[str, Any] = {}
    if plain:
        evaluator = radeval.RadEval(metrics=plain, per_sample=True, show_progress=False)
        scores |= evaluator(refs=references, hyps=predictions)
    if "radcliq" in metrics:
        from radeval.metrics.RadCliQv1.radcliq import CompositeMetric

        composite = CompositeMetric()
        parts = composite._compute_sub_metrics(references, predictions)
        composite._compute_sub_metrics = lambda *_: parts  # not computed twice
        scores |= {**parts, "radcliq_v1": composite.predict(references, predictions)[1]}
    elif "sembscore" in metrics:
        from radeval.metrics.RadCliQv1.semb_score import semantic_embedding_scores

        scores["semb_score"] = semantic_embedding_scores(references, predictions, device=device)
    return scores


def link_models(models: dict[str, Path], cache: Path) -> None:
    """Show the models to the package where it looks for those that it has fetched, and nothing else."""
    os.environ |= {"HF_HUB_OFFLINE": "1", "HF_HOME": str(cache), "XDG_CACHE_HOME": str(cache)}
    os.environ["LOGURU_LEVEL"] = "ERROR"  # the splitter of sentences logs their words
    os.environ.pop("HF_HUB_CACHE", None)
    for folder in ("hub", "chexbert", "radgraph/0.1.18"):
        for name, files in models.items():
            repository = cache / folder / f"models--{name.replace('/', '--')}"
            (repository / "snapshots").mkdir(parents=True)
            (repository / "refs").mkdir()
            (repository / "refs" / "main").write_text(REVISION)
            (repository / "snapshots" / REVISION).symlink_to(files.absolute())


if __name__ == "__main__":
    main()
