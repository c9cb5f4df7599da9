"""`retsta train` on a base in 8 bits: it learns as on the whole base, continues, and writes reports."""

import json

import jax
import numpy as np
import pytest
from flax.traverse_util import flatten_dict

from common.config import read_config
from common.training.logs import read_metrics
from common.training.parallel import make_device_layout
from retsta_jax.config import RetstaConfig
from retsta_jax.exported import load_model
from retsta_jax.standardize import load_trained
from retsta_jax.train import load_base
from tests.runs import retsta


@pytest.fixture(scope="module")
def trained(material, tmp_path_factory):
    """Runs of eight steps on a base in bfloat16 and in int8."""
    folder = tmp_path_factory.mktemp("quantized")
    for dtype in ("bfloat16", "int8"):
        assert retsta(material.train(folder / dtype, max_steps=8, max_new_tokens=6, model__param_dtype=dtype)) == 0
    return folder


def test_kernels_of_layers_are_in_8_bits_and_nothing_else(trained):
    config = read_config(RetstaConfig, trained / "int8")
    leaves = flatten_dict(load_base(config, make_device_layout("jit")).params)
    dtypes = {path[-1]: leaf.dtype.name for path, leaf in leaves.items()}
    assert (dtypes["int8"], dtypes["step"], dtypes["embed_tokens"]) == ("int8", "float32", "bfloat16")
    assert "kernel" not in dtypes


def test_it_learns_as_on_the_whole_base(trained):
    whole, eight = (read_metrics(trained / dtype / "metrics.jsonl") for dtype in ("bfloat16", "int8"))
    for row, expected in zip(eight, whole, strict=True):
        assert row["loss"] == pytest.approx(expected["loss"], rel=5e-3)
    assert [row["grad_norm"] for row in eight] != [row["grad_norm"] for row in whole]
    assert eight[-1]["val/loss"] < eight[0]["loss"]
    assert json.loads((trained / "int8" / "config.json").read_text())["model"]["param_dtype"] == "int8"


def test_its_exported_adapter_is_that_of_the_run(trained):
    run, adapter = load_trained(trained / "int8"), load_model(trained / "int8" / "adapter")
    for own, other in zip(*(jax.tree.leaves((one.trainable, one.frozen)) for one in (run, adapter)), strict=True):
        np.testing.assert_array_equal(own, other)


def test_it_continues_to_the_same_bits_and_writes_reports(trained, material, tmp_path):
    shared = {"max_new_tokens": 6, "model__param_dtype": "int8"}
    run_dir, reports = tmp_path / "run", tmp_path / "reports.txt"
    assert retsta(material.train(run_dir, max_steps=8, **shared)) == 0
    whole, other = ((folder / "metrics.jsonl").read_bytes() for folder in (trained / "int8", run_dir))
    assert whole == other
    reports.write_text("OD: few drusen.\n")
    output = tmp_path / "out.jsonl"
    assert retsta(["standardize", str(reports), "--run-dir", str(run_dir), "--output", str(output)]) == 0
    assert len(output.read_text().splitlines()) == 1
