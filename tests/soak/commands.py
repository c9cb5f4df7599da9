"""Small runs of every command that continues what it was killed in: what they need, and how they are started."""

import json
import shutil
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from common.data.images import encode_png
from retsta_jax.corpus.pairs import Languages
from retsta_jax.labelling.filters import RULES
from tests.corpus import make_pairs
from tests.runs import GENERATED, PARADIGM, ROOT, Material, make_material
from tests.runs import retsta as run_retsta
from tests.unicross_jax.runs import arguments as unicross_arguments
from tests.unicross_jax.runs import make_clip
from tests.unicross_jax.runs import unicross as run_unicross

Command = Callable[[Path], list[str]]  # from what it is to write, the words after `python -m`

RETSTA, UNICROSS, DEER, MEDREPORT = "retsta_jax.cli", "unicross_jax.cli", "deer_jax.cli", "launch.cli"
STUDIES = {"data.train-size": 24, "data.validation-size": 4, "data.test-size": 4, "data.side": 56}
TRAINING = {
    **STUDIES, "tensorboard": False, "parallel": "jit", "batch-size": 4, "micro-batch": 2, "checkpoint-every": 2,
    "evaluate-every": 3,
}  # fmt: skip
# Of nearly one length, so that one program is traced and not one for each bucket: that is where a start's time goes.
REPORTS = sorted((pair.source for pair in make_pairs(96, seed=2, language="en")), key=len)[40:64]


def retsta_train(folder: Path) -> Command:
    """Twenty updates with a validation after each fifth."""
    material = make_material(folder)
    return lambda out: [RETSTA, *material.train(out)]


def retsta_standardize(folder: Path) -> Command:
    """Of a model that was trained for two updates."""
    _, run_dir = _retsta_run(folder)
    reports = _rows(folder / "reports.jsonl", ({"report": report} for report in REPORTS))
    options = ["--run-dir", str(run_dir), "--batch-size", "2"]
    return lambda out: [RETSTA, "standardize", str(reports), *options, "--output", str(out)]


def decode(folder: Path) -> Command:
    """Sampled answers."""
    material = make_material(folder)
    prompts = _rows(folder / "prompts.jsonl", ({"prompt": report} for report in REPORTS))
    options = ["--model", str(material.base), "--prompts", str(prompts), "--batch-size", "2", "--max-new-tokens", "24"]
    return lambda out: [MEDREPORT, "decode", *options, "--temperature", "1", "--output", str(out)]


def decode_score(folder: Path) -> Command:
    """The probabilities of given answers."""
    material = make_material(folder)
    rows = ({"prompt": report, "completion": report[:20]} for report in REPORTS * 8)
    prompts = _rows(folder / "prompts.jsonl", rows)
    options = ["--model", str(material.base), "--prompts", str(prompts), "--batch-size", "1", "--score"]
    return lambda out: [MEDREPORT, "decode", *options, "--output", str(out)]


def retsta_label(folder: Path) -> Command:
    """In three shards, with filters and a page."""
    _, run_dir = _retsta_run(folder)
    reports = _rows(folder / "reports.jsonl", ({"report": report} for report in REPORTS))
    options = ["--run-dir", str(run_dir), "--shard-size", "8", "--batch-size", "2"]
    return lambda out: [RETSTA, "label", str(reports), *options, "--output", str(out)]


def retsta_augment(folder: Path) -> Command:
    """Five pairs of each."""
    pairs = _pairs(folder / "pairs.jsonl", "en", 60)
    return lambda out: [RETSTA, "augment", str(pairs), "--factor", "5", "--output", str(out)]


def retsta_translate(folder: Path) -> Command:
    """Of which some cannot be."""
    pairs = _pairs(folder / "pairs.jsonl", "zh", 150)
    return lambda out: [RETSTA, "translate", str(pairs), "--to", "en", "--output", str(out)]


def retsta_match(folder: Path) -> Command:
    """The terms of many reports."""
    reports = _rows(folder / "reports.jsonl", ({"report": report} for report in REPORTS * 20))
    return lambda out: [RETSTA, "terminology", "match", str(reports), "--output", str(out)]


def retsta_baseline(folder: Path) -> Command:
    """A model that was not trained, asked with one example."""
    material, run_dir = _retsta_run(folder)
    options = ["--model", str(material.base), "--like", str(run_dir), "--shots", "1", "--batch-size", "1"]
    return lambda out: [RETSTA, "baseline", *options, "--max-new-tokens", "16", "--output", str(out)]


def retsta_paradigm(folder: Path) -> Command:
    """Two models of two updates each."""
    material = make_material(folder)
    sizes = {"augment-to": 0, "label.shard-size": 10, "train.model.base": material.base, "train.tensorboard": False}
    options = _options({**PARADIGM, **GENERATED, **sizes})
    own = ["--preset", "demo", *options, "--label.skip-rules", *RULES]
    return lambda out: [RETSTA, "paradigm", *own, "--run-dir", str(out)]


def retsta_evaluate(folder: Path) -> Command:
    """Of a copy of a run."""
    _, run_dir = _retsta_run(folder)
    return lambda out: [RETSTA, "evaluate", "--batch-size", "2", "--run-dir", str(_copied(run_dir, out))]


def unicross_evaluate(folder: Path) -> Command:
    """Of a copy of a run."""
    run_dir = folder / "run"
    _made(run_unicross(unicross_arguments(run_dir, make_clip(folder / "clip"), max_steps=2)))
    return lambda out: [UNICROSS, "evaluate", "--batch-size", "2", "--run-dir", str(_copied(run_dir, out))]


def unicross_ablation(folder: Path) -> Command:
    """Two variants of two updates each."""
    words = unicross_arguments(folder, make_clip(folder / "clip"), max_steps=2)
    options = words[words.index("--run-dir") + 2 :]
    own = ["--preset", "small", *options, "--variants", "full model", "no-modulation"]
    return lambda out: [UNICROSS, "ablation", *own, "--directory", str(out)]


def unicross_report(folder: Path) -> Command:
    """Of four images, each a study, with a page."""
    files = [folder / f"{number}.png" for number in range(4)]
    for number, file in enumerate(files):
        file.write_bytes(encode_png(np.random.default_rng(number).integers(0, 256, (80, 80), dtype=np.uint8)))
    options = ["--batch-size", "2", *map(str, files)]
    return lambda out: [
        UNICROSS, "report", *options, "--output", str(out), "--page", str(out.with_suffix(".html")),
    ]  # fmt: skip


def prepare(folder: Path) -> Command:
    """Forty studies of one image."""
    rows = []
    for number in range(40):
        image = np.random.default_rng(number).integers(0, 256, (64, 64), dtype=np.uint8)
        (folder / f"{number}.png").write_bytes(encode_png(image))
        split = ("train", "validation", "test")[number % 3]
        rows.append({"images": [f"{number}.png"], "report": REPORTS[number % len(REPORTS)], "split": split})
    source = _rows(folder / "rows.jsonl", rows)
    options = ["--layout", "rows", "--source", str(source), "--images", str(folder)]
    return lambda out: [MEDREPORT, "prepare", *options, "--output", str(out)]


def unicross_train(folder: Path) -> Command:
    """Twelve updates with a validation after each sixth."""
    clip = make_clip(folder / "clip")
    return lambda out: [UNICROSS, *unicross_arguments(out, clip)]


def deer_sft(folder: Path) -> Command:
    """Eight updates of the shipped model."""
    options = _options(TRAINING | {"max-steps": 8, "max-length": 24})
    return lambda out: [DEER, "sft", "--preset", "demo", *options, "--run-dir", str(out)]


def deer_rl(folder: Path) -> Command:
    """Six steps of the shipped model."""
    options = _options(TRAINING | {"steps": 6, "rollout.group": 2, "rollout.max-new-tokens": 8})
    return lambda out: [DEER, "rl", "--preset", "demo", *options, "--run-dir", str(out)]


def deer_sample(folder: Path) -> Command:
    """Rollouts with their labels."""
    own = {"rollout.group": 2, "rollout.max-new-tokens": 16, "batch-size": 4, "labeler": "phantom"}
    options = _options(STUDIES | own)
    return lambda out: [DEER, "sample", "--preset", "demo", *options, "--output", str(out)]


def deer_label(folder: Path) -> Command:
    """By the shipped labeler, in several parts."""
    reports = _rows(folder / "reports.jsonl", ({"report": report} for report in REPORTS * 4))
    options = ["--labeler", "phantom", "--logits", "--batch-size", "1"]
    return lambda out: [DEER, "label", str(reports), *options, "--output", str(out)]


def deer_train_labeler(folder: Path) -> Command:
    """Eight updates on generated reports."""
    sizes = {"encoder.hidden-size": 32, "encoder.intermediate-size": 64, "encoder.vocab-size": 300}
    data = {"train-size": 64, "validation-size": 8, "test-size": 8, "batch-size": 8, "buckets": 64}
    every = {"checkpoint-every": 2, "evaluate-every": 3, "tensorboard": False, "parallel": "jit", "max-steps": 8}
    options = _options({**sizes, **data, **every})
    return lambda out: [DEER, "train-labeler", "--preset", "phantom", *options, "--output", str(out)]


def deer_weights(folder: Path) -> Command:
    """By the gradients of the shipped labeler."""
    rows = ({"reference": report, "rollouts": [report[:60], report]} for report in REPORTS * 4)
    rollouts = _rows(folder / "rollouts.jsonl", rows)
    options = ["--labeler", "phantom", "--tokenizer", str(ROOT / "deer_jax" / "assets" / "base")]
    return lambda out: [DEER, "weights", str(rollouts), *options, "--output", str(out)]


def deer_ablation(folder: Path) -> Command:
    """One row that learns from half of the studies, after two supervised updates."""
    own = {"steps": 2, "rollout.group": 2, "rollout.max-new-tokens": 8, "reward.labeler": "phantom"}
    options = _options(TRAINING | own | {"sft-steps": 2})
    return lambda out: [
        DEER, "ablation", "components", "--preset", "demo", *options, "--rows", "GRPO", "DEER, rule, 20%",
        "--directory", str(out),
    ]  # fmt: skip


def deer_evaluate(folder: Path) -> Command:
    """By the shipped labeler."""
    predictions = _rows(
        folder / "predictions.jsonl", ({"prediction": report[:60], "reference": report} for report in REPORTS)
    )
    options = ["--predictions", str(predictions), "--labeler", "phantom", "--batch-size", "4"]
    return lambda out: [DEER, "evaluate", *options, "--output", str(out)]


def deer_select(folder: Path) -> Command:
    """Of two thousand studies a fifth."""
    draw = np.random.default_rng(0)
    labels = _rows(folder / "labels.jsonl", ({"labels": draw.integers(0, 2, (4, 14)).tolist()} for _ in range(2000)))
    return lambda out: [DEER, "select", str(labels), "--fraction", "0.2", "--seed", "0", "--output", str(out)]


COMMANDS: Mapping[str, Callable[[Path], Command]] = {
    "retsta-train": retsta_train,
    "retsta-standardize": retsta_standardize,
    "unicross-train": unicross_train,
    "deer-sft": deer_sft,
    "deer-rl": deer_rl,
    "deer-sample": deer_sample,
    "deer-label": deer_label,
    "decode": decode,
    "decode-score": decode_score,
    "retsta-label": retsta_label,
    "retsta-augment": retsta_augment,
    "retsta-translate": retsta_translate,
    "retsta-match": retsta_match,
    "retsta-baseline": retsta_baseline,
    "retsta-paradigm": retsta_paradigm,
    "unicross-ablation": unicross_ablation,
    "deer-train-labeler": deer_train_labeler,
    "deer-weights": deer_weights,
    "deer-ablation": deer_ablation,
    "retsta-evaluate": retsta_evaluate,
    "unicross-evaluate": unicross_evaluate,
    "unicross-report": unicross_report,
    "deer-evaluate": deer_evaluate,
    "deer-select": deer_select,
    "prepare": prepare,
}
# Those that begin again: what stands under a final name is whole, at every moment.
BEGIN_AGAIN = {
    "retsta-evaluate", "unicross-evaluate", "unicross-report", "deer-evaluate", "deer-select", "prepare",
}  # fmt: skip

LOCKED = {"retsta-label": "pairs.jsonl", "prepare": "rows"}  # in what they write, where it is not that itself


def _retsta_run(folder: Path) -> tuple[Material, Path]:
    """Material, and a run of two updates."""
    material, run_dir = make_material(folder), folder / "run"
    _made(run_retsta(material.train(run_dir, max_steps=2, max_new_tokens=24)))
    return material, run_dir


def _made(code: int) -> None:
    if code:
        raise SystemExit(f"the model that is needed could not be trained: exit code {code}")


def _copied(run_dir: Path, out: Path) -> Path:
    """A copy of a run, whole at every moment."""
    if not out.exists():
        shutil.copytree(run_dir, out.with_name("copy")).rename(out)
    return out


def _pairs(file: Path, language: Languages, count: int) -> Path:
    return _rows(file, (vars(pair) for pair in make_pairs(count, seed=2, language=language)))


def _options(values: Mapping[str, object]) -> list[str]:
    return [word for name, value in values.items() for word in (f"--{name}", str(value))]


def _rows(file: Path, rows: Iterable[Mapping[str, Any]]) -> Path:
    file.write_text("".join(json.dumps({"id": number, **row}) + "\n" for number, row in enumerate(rows)), "utf-8")
    return file
