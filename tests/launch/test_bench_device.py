"""The benchmark of a new device, at toy sizes on a CPU: every part runs, measures, and fails alone."""

import dataclasses
import json
import os
import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from common.errors import UserError
from launch.bench import decoder, device, device_parity
from tests.compile_flags import QUICK


@pytest.fixture(scope="module")
def result(tmp_path_factory):
    """What the command prints and writes."""
    output = tmp_path_factory.mktemp("bench") / "device.json"
    done = subprocess.run(
        [sys.executable, "-m", "launch.cli", "bench", "device", "--output", str(output)],
        capture_output=True,
        text=True,
        check=False,
        env={**os.environ, "XLA_FLAGS": QUICK},  # one device
    )
    assert done.returncode == 0, done.stderr
    assert [line.partition(":")[0] for line in done.stderr.splitlines()] == [*device.PARTS]
    assert json.loads(output.read_text()) == json.loads(done.stdout)
    return json.loads(done.stdout)


def test_every_part_runs_on_a_cpu(result):
    assert result["size"] == "toy"
    assert result["parts"].keys() == device.PARTS.keys()
    assert not [part for part in result["parts"].values() if "failed" in part or "left_out" in part]


def test_towers_round_as_their_dtypes_do(result):
    for name in ("text", "vision", "labels", "clip"):
        part = result["parts"][name]
        assert part["met"] is True
        assert part["float32"]["relative_error"] < 1e-5
        assert 1e-3 < part["bfloat16"]["relative_error"] < 0.02  # a product rounds by up to 2e-3


def test_slots_and_drafts_write_what_plain_decoding_does(result):
    part = result["parts"]["decoding"]
    assert part["met"] is True
    assert part["float32"]["rows_alike"] == 1
    assert part["float32"]["drafted"] > 0.1


def test_speeds_are_those_of_the_work_that_is_named(result):
    lora, rollout, step = (result["parts"][name] for name in ("lora", "rollout", "deer_step"))
    assert (lora["tokens"], lora["utilisation"]) == (64, None)  # the peak of a CPU is not known
    assert rollout["tokens"] == 2 * 2 * 8
    assert rollout["tokens_per_second"] == pytest.approx(rollout["tokens"] / rollout["seconds"])
    assert step["parts"].keys() == {"rollout", "labels", "token_weights", "host", "update"}
    assert sum(step["parts"].values()) <= step["seconds"] < step["first_seconds"]
    assert step["floor"] is None


def test_parts_that_fail_are_one_line_and_the_next_go_on(monkeypatch, tmp_path, capsys):
    def exhausted(sizes):
        return {"sum": jnp.zeros(2**46).sum().item()}

    def wrong(sizes):
        raise UserError("first\nsecond")

    monkeypatch.setattr(device, "PARTS", {"full": exhausted, "wrong": wrong, "right": lambda sizes: {"count": 3}})
    found = device.measure("toy", 60.0, tmp_path / "device.json")["parts"]
    assert found["full"]["failed"] == "not enough memory (281474976710656 bytes requested)"
    assert found["wrong"]["failed"] == "UserError: first second"
    assert found["right"]["count"] == 3
    assert capsys.readouterr().err.count("\n") == 3
    assert json.loads((tmp_path / "device.json").read_text())["parts"] == found


def test_no_part_begins_after_the_seconds(monkeypatch):
    monkeypatch.setattr(device, "PARTS", {"late": lambda sizes: pytest.fail("began")})
    assert device.measure("toy", 0.0, None)["parts"]["late"]["left_out"].endswith("of 0 seconds had passed")


def test_a_path_that_computes_something_else_is_found():
    def apply(dtype, attention, params):
        return params["x"].astype(dtype) * (1.0 if attention == "xla" else 1.001)

    tower = device_parity.Tower(lambda key: {"x": jax.random.normal(key, (64,))}, apply)
    found = device_parity.parity(tower)
    assert found["float32"]["relative_error"] == pytest.approx(1e-3, rel=1e-2)
    assert (found["float32"]["met"], found["bfloat16"]["met"], found["met"]) == (False, True, False)


def test_what_is_not_finite_is_not_hidden():
    expected = np.array([1.0, -np.inf])
    assert device_parity.relative_error(np.array([1.1, -np.inf]), expected) == pytest.approx(0.1)
    assert np.isnan(device_parity.relative_error(np.array([np.nan, 0.0]), expected))


def test_published_sizes_are_those_of_the_presets():
    sizes = device.published()
    assert (sizes.text.hidden_size, sizes.text.num_hidden_layers) == (3584, 28)
    assert (sizes.policy.language.dtype, sizes.policy.language.remat) == ("bfloat16", "full")
    rollout = sizes.rl.rollout
    assert (sizes.rl.batch_size, rollout.group, rollout.max_new_tokens, sizes.rl.data.side) == (64, 8, 256, 448)
    assert decoder.Shape(**sizes.lora).length == 4096
    assert dataclasses.asdict(sizes.clip)["vision_layers"] == (3, 4, 23, 3)


@pytest.mark.parametrize(
    ("output", "line"),
    [
        ("missing/device.json", "its folder does not exist; create it first"),
        (".", "is a directory; name a file for the output"),
        ("rows.jsonl", r"contains something other than an earlier output of this command .* is left unchanged"),
    ],
)
def test_an_output_that_cannot_be_written_is_one_line_before_any_part(tmp_path, monkeypatch, output, line):
    monkeypatch.setattr(device, "PARTS", {"wrong": lambda sizes: pytest.fail("a part began")})
    rows = tmp_path / "rows.jsonl"
    rows.write_text('{"id": 1}\n')
    with pytest.raises(UserError, match=line):
        device.measure("toy", 60.0, tmp_path / output)
    assert [file.name for file in tmp_path.iterdir()] == ["rows.jsonl"]
    assert rows.read_text() == '{"id": 1}\n'
