"""Small runs of every command that continues what it was killed in: what they need, and how they are started."""

import json
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

from tests.corpus import make_pairs
from tests.runs import make_material
from tests.runs import retsta as run_retsta
from tests.unicross_jax.runs import arguments as unicross_arguments
from tests.unicross_jax.runs import make_clip

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
    material = make_material(folder)
    run_dir = folder / "run"
    if code := run_retsta(material.train(run_dir, max_steps=2, max_new_tokens=24)):
        raise SystemExit(f"the model for retsta standardize could not be trained: exit code {code}")
    reports = _rows(folder / "reports.jsonl", ({"report": report} for report in REPORTS))
    options = ["--run-dir", str(run_dir), "--batch-size", "2"]
    return lambda out: [RETSTA, "standardize", str(reports), *options, "--output", str(out)]


def decode(folder: Path) -> Command:
    """Sampled answers."""
    material = make_material(folder)
    prompts = _rows(folder / "prompts.jsonl", ({"prompt": report} for report in REPORTS))
    options = ["--model", str(material.base), "--prompts", str(prompts), "--batch-size", "2", "--max-new-tokens", "24"]
    return lambda out: [MEDREPORT, "decode", *options, "--temperature", "1", "--output", str(out)]


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


COMMANDS: Mapping[str, Callable[[Path], Command]] = {
    "retsta-train": retsta_train,
    "retsta-standardize": retsta_standardize,
    "unicross-train": unicross_train,
    "deer-sft": deer_sft,
    "deer-rl": deer_rl,
    "deer-sample": deer_sample,
    "deer-label": deer_label,
    "decode": decode,
}


def _options(values: Mapping[str, object]) -> list[str]:
    return [word for name, value in values.items() for word in (f"--{name}", str(value))]


def _rows(file: Path, rows: Iterable[Mapping[str, Any]]) -> Path:
    file.write_text("".join(json.dumps({"id": number, **row}) + "\n" for number, row in enumerate(rows)), "utf-8")
    return file
