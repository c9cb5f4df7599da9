"""A tiny base model on disk and generated report pairs, and how to start a run on them from the command line."""

import dataclasses
import io
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import NamedTuple

import jax
import pytest
import sentencepiece

from common.command import run_cli
from common.data.pieces import CHAT_MARKS
from common.models.qwen2 import init_params
from common.models.qwen2_weights import save_qwen2
from retsta_jax.cli import dispatch
from retsta_jax.corpus.pairs import make_splits
from tests import tiny

ROOT = Path(__file__).parents[1]
VOCABULARY = 448
SIZES = dataclasses.replace(tiny.CONFIG, vocab_size=VOCABULARY)
TWO_STEPS = {"max_steps": 2, "checkpoint_every": 1, "evaluate_every": 1, "max_new_tokens": 4, "epochs": 1}
PARADIGM = {
    "train.max-steps": 2,
    "train.max-new-tokens": 4,
    "train.batch-size": 4,
    "train.micro-batch": 4,
    "train.parallel": "jit",
    "train.evaluate-every": 2,
    "final-epochs": 1,
}  # options of a paradigm whose models learn for two steps
GENERATED = {"data.train-size": 12, "data.validation-size": 4, "data.test-size": 6, "data.reports-size": 14}


class Material(NamedTuple):
    """Directories of two base models of one shape, and the folder with train, validation and test `.jsonl`."""

    base: Path
    other_base: Path
    data: Path

    def train(self, run_dir: Path, **changed: object) -> list[str]:
        """Arguments of `retsta` for a run of 20 small steps; `data__train="x"` stands for `--data.train x`."""
        corpus = changed.get("data__corpus", "jsonl")
        names = ("train", "validation", "test") if corpus == "jsonl" else ()
        chosen: dict[str, object] = {
            "preset": "demo",
            "instruction": "Standardize",
            "model__base": self.base,
            "model__dtype": "float32",
            "model__param_dtype": "float32",
            "model__remat": "none",
            "data__corpus": corpus,
            **{f"data__{name}": self.data / f"{name}.jsonl" for name in names},
            "lora__rank": 16,
            "lora__dropout": 0.2,
            "optim__learning_rate": 1e-2,
            "parallel": "jit",
            "epochs": 4,
            "max_steps": 20,
            "batch_size": 4,
            "micro_batch": 2,
            "max_length": 256,
            "buckets": 256,
            "packing": False,
            "checkpoint_every": 3,
            "evaluate_every": 5,
            "max_new_tokens": 8,
            "tensorboard": False,
            **changed,
        }
        options = (name.replace("__", ".").replace("_", "-") for name in chosen)
        pairs = zip(options, chosen.values(), strict=True)
        return [
            "train",
            "--run-dir",
            str(run_dir),
            *[part for name, value in pairs for part in (f"--{name}", str(value))],
        ]


def make_material(root: Path) -> Material:
    """Write the base models and the data below `root`."""
    splits = make_splits(24, 4, 4, seed=3, language="en")
    (root / "data").mkdir()
    for name, pairs in splits.items():
        rows = ({"id": pair.id, "source": pair.source, "target": pair.target, "language": "en"} for pair in pairs)
        (root / "data" / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows), "utf-8")
    (root / "data" / "reports.txt").write_text("OD: few drusen.\n", "utf-8")
    tokenizer = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter([text for pair in splits["train"] for text in (pair.source, pair.target)]),
        model_writer=tokenizer,
        vocab_size=VOCABULARY,
        model_type="bpe",
        byte_fallback=True,
        normalization_rule_name="identity",
        remove_extra_whitespaces=False,
        add_dummy_prefix=False,
        control_symbols=list(CHAT_MARKS),
        pad_id=0,
        eos_id=1,
        unk_id=2,
        bos_id=-1,
        minloglevel=2,
    )
    for seed, name in enumerate(("base", "other-base")):
        save_qwen2(root / name, SIZES, init_params(SIZES, jax.random.key(seed)))
        (root / name / "tokenizer.model").write_bytes(tokenizer.getvalue())
    return Material(root / "base", root / "other-base", root / "data")


def retsta(arguments: list[str]) -> int:
    """Run the command in this process; its exit code."""
    with pytest.raises(SystemExit) as stop:
        run_cli(dispatch, arguments)
    return stop.value.code


def start(arguments: list[str], **environment: str) -> subprocess.Popen[str]:
    """Run the command in a process of its own, its standard error readable."""
    return subprocess.Popen(
        [sys.executable, "-m", "retsta_jax.cli", *arguments],
        cwd=ROOT,
        env={**os.environ, **environment},
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
    )
