"""The plan of DEER's supervised step compiles at toy size, with the language model frozen."""

import dataclasses
import importlib.util
import json

import jax
import pytest

from common.errors import UserError
from common.training.parallel import MeshConfig
from deer_jax.config import SFT_PRESETS
from launch import plan_deer_sft
from launch.chips import CHIPS
from launch.plan_deer_sft import plan_step
from launch.slices import Slice
from tests.launch.test_plan_deer import SIZES

PRESET = SFT_PRESETS["mimic-cxr"]
CONFIG = dataclasses.replace(
    PRESET, data=dataclasses.replace(PRESET.data, side=112), max_length=64, batch_size=16, micro_batch=1
)


@pytest.mark.skipif(importlib.util.find_spec("libtpu") is None, reason="the compiler for TPUs is not installed")
def test_a_tiny_step_compiles_for_a_slice():
    found = plan_step(CONFIG, SIZES, "v5e:2x4")
    assert found["fits"] is True
    assert found["batch"] == {"studies": 16, "micro_batch": 1, "accumulate": 2, "prompt": 64, "report": 64}
    assert sum(found["bytes"].values()) == found["bytes_per_device"]
    assert min(found["bytes"].values()) >= 0
    bounds = found["bounds"]
    assert bounds["seconds_at_least"] == max(bounds[f"{name}_seconds"] for name in ("compute", "memory", "links")) > 0
    json.dumps(found)


def test_more_parts_than_key_value_heads_are_one_line(monkeypatch):
    monkeypatch.setattr(plan_deer_sft, "open_slice", lambda name: Slice(CHIPS["h100"], jax.devices()))
    config = dataclasses.replace(CONFIG, mesh=MeshConfig(1, -1, 4))
    with pytest.raises(UserError, match=r"mesh\.tensor: 4 parts do not split the model's 2 key/value heads"):
        plan_step(config, SIZES, "h100:8")
