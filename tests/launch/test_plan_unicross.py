"""The plan of UniCrossAdapter's step counts its FLOPs and bytes; what the compiler would say is given here."""

import json

import jax
import pytest

from launch import plan_unicross, steps
from launch.chips import CHIPS
from launch.micro_batch_search import Compiled
from launch.slices import Slice, device_bytes

TEMPORARY = 5_000_000_000


@pytest.fixture
def given(monkeypatch):
    """Two devices of this machine stand for H100s, and arguments are measured in place of compiled."""
    seen = {}

    def compile_abstract(step, arguments, layout):
        seen["state"], seen["frozen"] = arguments[:2]
        placed = device_bytes(arguments)
        return Compiled(True, placed + TEMPORARY, placed, TEMPORARY, 1.0), None

    monkeypatch.setattr(plan_unicross, "compile_abstract", compile_abstract)
    monkeypatch.setattr(plan_unicross, "open_slice", lambda name: Slice(CHIPS["h100"], jax.devices()[:2]))
    monkeypatch.setattr(steps, "peak_flops", lambda device: 989e12)
    return seen


def test_the_plan_says_what_the_bytes_are_for_and_what_bounds_the_time(given):
    found = plan_unicross.make_plan("iu-xray", "h100:2", None, None)
    assert found["fits"] is True
    assert found["batch"]["studies"] == found["batch"]["micro_batch"] * 2
    kinds = found["bytes"]
    assert sum(kinds.values()) == found["bytes_per_device"]
    assert min(kinds.values()) >= 0
    assert kinds["parameters"] == 4 * (found["trainable_parameters"] + found["frozen_parameters"])
    assert kinds["optimizer"] >= 3 * 4 * found["trainable_parameters"]  # AMSGrad keeps three of each
    assert (kinds["activations"], kinds["workspace"], kinds["caches"]) == (TEMPORARY, 0, 0)
    bounds = found["bounds"]
    assert 0 < bounds["compute_seconds"] == pytest.approx(found["flops_per_device"] / 989e12)
    assert bounds["links_seconds"] == pytest.approx(4 * found["trainable_parameters"] / 450e9)
    assert bounds["seconds_at_least"] == max(bounds[f"{name}_seconds"] for name in ("compute", "memory", "links"))
    json.dumps(found)
