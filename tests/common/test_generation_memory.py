"""A device that runs out of memory while reports are written: one line that says which options to lower, to what."""

import jax.numpy as jnp
import pytest

from common.errors import UserError
from common.generation.memory import halved, slot_memory
from deer_jax.cli import dispatch

WANTED = "not enough memory (281474976710656 bytes requested) to write reports; try "


def exhausted(*_):
    """What XLA raises where `run_slots` asks for 256 TiB, more than any process can address."""
    yield jnp.zeros(2**46).sum().item()


def test_sampling_names_the_options_that_decide_its_memory(tmp_path, monkeypatch):
    monkeypatch.setattr("deer_jax.sample.run_slots", exhausted)
    command = ["sample", "--preset", "demo", "--output", str(tmp_path / "rows.jsonl"), "--data.side", "56"]
    small = [
        "--data.train-size",
        "32",
        "--batch-size",
        "4",
        "--rollout.group",
        "3",
        "--draft",
        "reports",
    ]
    with pytest.raises(UserError) as refused:
        dispatch([*command, *small, "--rollout.max-new-tokens", "1"])
    expected = "--batch-size 2 in place of 4, then --draft none, then --rollout.group 1 in place of 3"
    assert str(refused.value) == WANTED + expected


def test_where_nothing_can_be_lowered_the_line_says_so():
    assert (
        halved("--batch-size", 1) == halved("--batch-size", 16, used=1) == halved("--batch-size", 8, multiple=8) == ""
    )
    with pytest.raises(UserError, match=r"try a device with more memory$"), slot_memory("", ""):
        jnp.zeros(2**46).block_until_ready()


def test_other_errors_stay_as_they_are():
    with pytest.raises(RuntimeError, match="a mistake of ours"), slot_memory("--draft none"):
        raise RuntimeError("INTERNAL: a mistake of ours")
