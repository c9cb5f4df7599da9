"""The documented example: DiTPO on a text-only policy, the LoRA run of RetSTA."""

import json

import numpy as np
import pytest

from retsta_jax.corpus.pairs import make_splits
from tests.examples import load_example
from tests.runs import retsta


@pytest.fixture(scope="module")
def example():
    return load_example("ditpo_on_text")


def test_the_reward_is_the_f1_of_what_is_stated(example):
    pairs = make_splits(40, 0, 0, seed=5, language="both")["train"]
    targets = [pair.target for pair in pairs]
    np.testing.assert_array_equal(example.findings_f1(targets, targets), 1)
    cut = [target[: len(target) // 2] for target in targets]
    assert 0 < example.findings_f1(cut, targets).mean() < 1
    np.testing.assert_array_equal(example.findings_f1([""] * len(targets), targets), 0)


def test_the_example_trains_a_run_of_retsta(example, material, tmp_path, capsys):
    assert retsta(material.train(tmp_path / "run", max_steps=1)) == 0
    before = (tmp_path / "run" / "config.json").read_bytes()
    options = ["--run-dir", str(tmp_path / "run"), "--steps", "2", "--rows", "2", "--test-reports", "2"]
    example.main([*options, "--output", str(tmp_path / "result.json")])
    assert "findings/F1" in capsys.readouterr().out
    result = json.loads((tmp_path / "result.json").read_text())
    assert len(result["curve"]) == 2
    assert all(np.isfinite(row["loss"]) for row in result["curve"])
    assert (tmp_path / "run" / "config.json").read_bytes() == before
