"""The plan of the commands that write reports: programs compile at toy size, caches are counted by hand."""

import dataclasses
import json

import jax
import pytest

from common.generation.draft_sources import DRAFT_TOKENS
from deer_jax.config import SAMPLE_PRESETS
from launch import plan, plan_deer, plan_slots, plan_unicross
from launch.chips import CHIPS
from launch.slices import Slice, open_slice
from tests.launch import test_plan, test_plan_deer
from unicross_jax.config import PRESETS

DEVICES = [
    pytest.param("v5e:2x4", marks=test_plan.needs_libtpu),
    pytest.param("h100:8", marks=test_plan.needs_cuda),
]


def check(found):
    """Bytes add up, and caches are among the arguments of both programs."""
    assert found["fits"] is True
    assert found["programs"].keys() == {"admit", "advance"}
    for program in found["programs"].values():
        assert min(program["bytes"].values()) >= 0
        assert sum(program["bytes"].values()) == program["bytes_per_device"] <= found["bytes_per_device"]
        assert program["bytes"]["caches"] == sum(found["caches"].values())
    assert found["programs"]["advance"]["bytes"]["drafts"] >= 36 << 23  # a table of 2^23 places
    assert found["bounds"]["seconds_at_least"] > 0
    json.dumps(found)


@pytest.mark.parametrize("topology", DEVICES)
def test_standardizing_is_planned_with_its_slots_drafts_and_buckets(topology, capsys):
    config = dataclasses.replace(test_plan.CONFIG, max_length=96, max_new_tokens=16)
    found = plan.plan_standardizing(config, test_plan.SIZES, open_slice(topology))
    check(found)
    assert (found["slots"], found["read_at_a_time"], found["prompt"], found["drafts"]) == (32, 4, 96, DRAFT_TOKENS)
    token = 2 * 2 * 1 * 128 * 2  # keys and values, layers, heads, channels, bytes
    continuations = 32 * (16 + DRAFT_TOKENS) * token
    assert found["caches"] == {"prompts": 32 * 96 * token, "context": 0, "continuations": continuations}
    assert found["buckets"] == {str(length): 32 * length * token + continuations for length in (64, 96)}
    said = capsys.readouterr().err
    assert said.startswith("retsta standardize: 32 slots: fits, ")
    assert said.count("\n") == 1


@pytest.mark.parametrize("topology", DEVICES)
def test_sampling_is_planned_with_all_its_studies_on_each_device(topology):
    preset = SAMPLE_PRESETS["mimic-cxr"]
    config = dataclasses.replace(
        preset,
        data=dataclasses.replace(preset.data, side=112),
        rollout=dataclasses.replace(preset.rollout, group=3, max_new_tokens=8),
    )
    on = open_slice(topology)
    found = plan_slots.plan_writing(plan_deer.sampling_of(config, test_plan_deer.SIZES), on)
    check(found)
    assert (found["slots"], found["continuations"], found["prompt"]) == (16, 3, 64)
    token = 2 * 2 * 2 * 16 * 2
    continuations = 16 * 3 * (8 + DRAFT_TOKENS) * token
    assert found["caches"] == {"prompts": 16 * 64 * token, "context": 0, "continuations": continuations}


def test_reports_of_images_are_planned_with_beams_or_with_drafts():
    here, preset = Slice(CHIPS["h100"], jax.devices()[:1]), PRESETS["iu-xray"]
    model = plan_unicross.model_of(preset)
    beams = plan_unicross.reporting_of(preset, model)
    assert (beams.settings.beams, beams.settings.drafts, beams.table) == (3, 0, False)
    assert beams.slots == 32
    fewer = plan_slots.cache_bytes_of(beams._replace(slots=4), here)
    assert plan_slots.cache_bytes_of(beams, here) == 8 * fewer
    greedy = plan_unicross.reporting_of(dataclasses.replace(preset, beams=1), model)
    assert (greedy.settings.drafts, greedy.table) == (DRAFT_TOKENS, True)
    places = preset.max_length - 1
    beam_caches, greedy_caches = (
        plan_slots.cache_bytes(plan_slots.state_of(plan_slots.arguments_of(writing, here)))
        for writing in (beams, greedy)
    )
    assert beam_caches["continuations"] * (places + DRAFT_TOKENS) == greedy_caches["continuations"] * 3 * places
    assert beam_caches["context"] == greedy_caches["context"] > 0
