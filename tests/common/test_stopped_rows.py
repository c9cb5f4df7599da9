"""A signal while reports are written: those that are finished are in the output, and the same command continues."""

import itertools
import json
import os
import signal

import pytest

import common.generation.generate
import deer_jax.sample
from common.command import run_cli
from deer_jax.cli import dispatch as deer
from launch.cli import dispatch as medreport
from retsta_jax.cli import dispatch as retsta
from tests.corpus import make_pairs

ROWS, FOUND = 20, 12  # of all, and those after which the signal comes


def exit_code(dispatch, command) -> int:
    with pytest.raises(SystemExit) as stop:
        run_cli(dispatch, command)
    return stop.value.code


def check(module, dispatch, command, output, monkeypatch):
    """Stop a command in its slots; its output has at least the rows that cannot wait for others, and goes on."""
    assert exit_code(dispatch, [*command, "--output", str(output.with_name("whole.jsonl"))]) == 0
    run_slots, counted = module.run_slots, itertools.count(1)

    def stopped(*arguments):
        for found in run_slots(*arguments):
            yield found
            if next(counted) == FOUND:
                os.kill(os.getpid(), signal.SIGTERM)

    command = [*command, "--output", str(output)]
    with monkeypatch.context() as patch:
        patch.setattr(module, "run_slots", stopped)
        assert exit_code(dispatch, command) == 75
    whole = output.with_name("whole.jsonl").read_bytes()
    rows = output.read_bytes()
    assert whole.startswith(rows)
    assert 0 < rows.count(b"\n") <= FOUND
    assert exit_code(dispatch, command) == 0
    assert output.read_bytes() == whole


def test_standardize(retsta_run, tmp_path, monkeypatch):
    reports = tmp_path / "reports.jsonl"
    (pair,) = make_pairs(1, seed=2, language="en")
    rows = [{"id": number, "report": pair.source} for number in range(ROWS)]
    reports.write_text("".join(json.dumps(row) + "\n" for row in rows), "utf-8")
    command = ["standardize", str(reports), "--run-dir", str(retsta_run), "--batch-size", "1", "--draft", "none"]
    check(common.generation.generate, retsta, command, tmp_path / "out.jsonl", monkeypatch)


def test_decode(material, tmp_path, monkeypatch):
    prompts = tmp_path / "prompts.jsonl"
    rows = [{"id": number, "prompt": "few drusen"} for number in range(ROWS)]
    prompts.write_text("".join(json.dumps(row) + "\n" for row in rows), "utf-8")
    command = ["decode", "--model", str(material.base), "--prompts", str(prompts), "--max-new-tokens", "4"]
    check(common.generation.generate, medreport, [*command, "--batch-size", "1"], tmp_path / "out.jsonl", monkeypatch)


def test_sample(tmp_path, monkeypatch):
    """Of which some at a time are labelled together before they are written."""
    options = {
        "data.train-size": ROWS, "data.side": 56, "rollout.group": 2, "rollout.max-new-tokens": 4, "batch-size": 4,
        "parallel": "jit", "labeler": "phantom",
    }  # fmt: skip
    words = [part for name, value in options.items() for part in (f"--{name}", str(value))]
    check(deer_jax.sample, deer, ["sample", "--preset", "demo", *words], tmp_path / "out.jsonl", monkeypatch)
