"""The benchmark at toy shapes: its keys, its fairness, and that it runs on an image without the data packages."""

import dataclasses
import json
import subprocess
import sys

import numpy as np
import pytest

from common.errors import UserError
from launch.bench import command
from launch.bench import decoder as bench
from launch.bench.peer import Peer
from launch.cli import dispatch

TOY = dataclasses.replace(
    bench.CPU, hidden=32, layers=2, heads=4, kv_heads=2, intermediate=48, vocabulary=96, loss_chunk=8,
    rows=8, length=16, segment=16, examples=20, prompts=2, prompt=8, new_tokens=3, shared_prompt=8, repetitions=1,
)  # fmt: skip
FLAGS = [f"--{key.replace('_', '-')}={value}" for key, value in dataclasses.asdict(TOY).items()]

BARE_IMAGE = """
import importlib.abc, sys
import flax.linen, optax  # flax itself brings rich and orbax
ABSENT = {"grain", "tensorflow_datasets", "tyro", "rich", "orbax", "transformers", "torch", "peft", "nltk",
          "safetensors", "sentencepiece", "sklearn", "matplotlib", "jinja2", "PIL", "tensorboardX", "jieba"}
class Blocker(importlib.abc.MetaPathFinder):
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in ABSENT:
            raise ModuleNotFoundError(f"{name} is absent from this image", name=name)
for name in [name for name in sys.modules if name.partition(".")[0] in ABSENT]:
    del sys.modules[name]
sys.meta_path.insert(0, Blocker())
from launch.cli import dispatch
sys.exit(dispatch(sys.argv[1:]))
"""


@pytest.mark.parametrize("work", ["sft", "decode"])
def test_runs_on_a_bare_image_and_prints_one_json_object(work):
    done = subprocess.run(
        [sys.executable, "-c", BARE_IMAGE, "bench", work, *FLAGS], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    result = json.loads(done.stdout)
    assert result["peak_bytes"] > 1e6
    assert result["attention"] == "xla"
    names = {"sft": {"equal_shapes", "mixed_lengths"}, "decode": {"greedy", "top_p", "samples"}}
    assert result["cases"].keys() == names[work]
    for case in result["cases"].values():
        assert case["tokens_per_second"] > 0
        assert case["lowest"] <= case["tokens_per_second"] <= case["highest"]
        assert case["utilisation"] is None  # the peak of a CPU is not known
        assert case["model_tflops"] > 0


def test_peer_does_the_same_work_and_ratios_are_to_its_default_and_to_its_best():
    pytest.importorskip("torch", reason="torch is not installed (make dev)")
    pytest.importorskip("peft", reason="peft is not installed (make dev)")
    for work in ("sft", "decode"):
        result = bench.measure(work, TOY, with_peer=True)
        assert set(result["ratios"]) == set(result["goals"]) == set(result["cases"])
        for name, case in result["cases"].items():
            ours, peer = case["tokens_per_second"], [one["tokens_per_second"] for one in case["peer"].values()]
            assert case["ratio"] == ours / peer[0] == result["ratios"][name]
            assert case["ratio_to_best"] == ours / max(peer)
    assert {"torch", "peft"} <= result["peer"].keys()


def test_a_peer_that_cannot_start_is_one_clear_line(monkeypatch, tmp_path):
    (tmp_path / "torch.py").write_text("raise ImportError('no torch here')\n")
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    with pytest.raises(UserError, match=r"requirements-parity\.txt"):
        Peer("launch.bench.peer_qwen2", {"shape": dataclasses.asdict(TOY), "lora": dataclasses.asdict(bench.LORA)})


def test_padded_batches_hold_the_same_examples_and_answers():
    random = np.random.default_rng(0)
    lengths = bench.mixed_lengths(10, 16, random)
    examples = bench._examples(lengths, 96, random)
    batches = bench._padded_batches(examples, rows=4)
    names = ("tokens", "labels", "mask")
    rows = [row for batch in batches for row in zip(*(batch[name] for name in names), strict=True)]
    assert max(lengths) == 16
    for example, (tokens, labels, mask) in zip(examples, rows, strict=True):
        n = sum(mask)
        assert tokens[:n] == example.tokens.tolist()
        assert [label for label in labels if label != -100] == example.tokens[example.answer_start :].tolist()


def test_mixed_lengths_are_seeded_and_within_bounds():
    first, again = (bench.mixed_lengths(50, 512, np.random.default_rng(3)) for _ in range(2))
    assert first == again
    assert min(first) >= 8
    assert max(first) == 512
    assert np.mean(first) < 256


def test_an_unknown_command_is_one_clear_line():
    with pytest.raises(UserError, match=r"medreport bnech: unknown command \(did you mean bench"):
        dispatch(["bnech"])


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--rows", "0"], "--rows: found 0, expected a positive integer"),
        (["--examples", "-1"], "--examples: found -1"),
        (["--heads", "3"], "--hidden: expected an even multiple of --heads 3"),
        (["--kv-heads", "3"], "--heads: expected a multiple of --kv-heads 3"),
        (["--length", "100"], "--length: expected at least --segment 256"),
    ],
)
def test_a_shape_that_cannot_be_measured_is_one_clear_line(arguments, message):
    with pytest.raises(UserError, match=message):
        command.main(["sft", *arguments])
