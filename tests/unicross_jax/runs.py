"""A tiny CLIP on disk, and how to start a run on phantoms with it from the command line."""

import json
import os
import subprocess
import sys
from pathlib import Path

import jax
import pytest

from common.command import run_cli
from common.data.cleaning import r2gen_clean_iu
from common.data.tokenizers import build_word_tokenizer, save_words
from common.models.clip import ClipConfig, init_params
from common.models.clip_weights import save_clip
from common.phantoms.study import sample_study
from common.phantoms.text import render_report
from unicross_jax.cli import dispatch

ROOT = Path(__file__).parents[2]


def make_clip(directory: Path, vocabulary: int | None = None, seed: int = 0) -> Path:
    """Write a random CLIP of the smallest sizes; with the words of phantom reports, unless `vocabulary` is given."""
    texts = [(r2gen_clean_iu(render_report(study)[0]), study.indication) for study in phantom_studies()]
    words = build_word_tokenizer([text for pair in texts for text in pair], 2)
    config = ClipConfig(
        image_size=32, vision_layers=(1, 1, 1, 1), vision_width=4, embed_dim=16, context_length=24,
        vocab_size=vocabulary or words.vocab_size, text_width=64, text_heads=1, text_layers=3,
    )  # fmt: skip
    save_clip(directory, config, init_params(config, jax.random.key(seed)))
    if vocabulary is None:
        save_words(directory / "words.json", words)
    return directory


def phantom_studies():
    return [sample_study(5, index) for index in range(200)]


def arguments(run_dir: Path, clip: Path, **changed: object) -> list[str]:
    """Arguments of `unicross` for a run of 12 small steps; `data__views=1` stands for `--data.views 1`.

    Without adapters, which take most of the time to compile.
    """
    phantoms = "data__layout" not in changed
    sizes = {"data__train_size": 8, "data__validation_size": 2, "data__test_size": 4} if phantoms else {}
    chosen: dict[str, object] = {
        "data__resize": 36,
        **sizes,
        "model__clip": clip,
        "model__adapters": "none",
        "model__heads": 2,
        "model__decoder_layers": 1,
        "optim__learning_rate": 1e-2,
        "parallel": "jit",
        "epochs": 12,
        "max_steps": 12,
        "batch_size": 8,
        "micro_batch": 8,
        "max_length": 20,
        "checkpoint_every": 4,
        "evaluate_every": 6,
        "tensorboard": False,
        **changed,
    }
    named = ((name.replace("__", ".").replace("_", "-"), value) for name, value in chosen.items())
    options = [word for name, value in named for word in (f"--{name}", str(value))]
    return ["train", *(() if "--preset" in options else ("--preset", "small")), "--run-dir", str(run_dir), *options]


def unicross(words: list[str]) -> int:
    """Run the command in this process; its exit code."""
    with pytest.raises(SystemExit) as stop:
        run_cli(dispatch, words)
    return stop.value.code


def start(words: list[str]) -> subprocess.Popen[str]:
    """Run the command in a process of its own."""
    return subprocess.Popen(
        [sys.executable, "-m", "unicross_jax.cli", *words],
        cwd=ROOT, env=dict(os.environ), stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True,
    )  # fmt: skip


def log(run_dir: Path) -> list[dict]:
    """The rows of a run's metrics.jsonl that are whole."""
    file = run_dir / "metrics.jsonl"
    lines = file.read_bytes().split(b"\n")[:-1] if file.exists() else []
    return [json.loads(line) for line in lines]
