"""UniCrossAdapter, whole, by jit, pmap and a mesh of eight devices: the same losses."""

import pytest

from tests.unicross_jax.runs import arguments, log, make_clip, unicross

OPTIONS = {"model__adapters": "both", "model__dropout": 0.0, "model__adapter_dropout": 0.0, "max_steps": 2}


def test_pmap_and_mesh_train_as_jit_does(tmp_path):
    clip = make_clip(tmp_path / "clip")
    losses = {}
    for mode, rows in {"jit": 8, "pmap": 1, "mesh": 1}.items():
        assert unicross(arguments(tmp_path / mode, clip, parallel=mode, micro_batch=rows, **OPTIONS)) == 0
        losses[mode] = [*[row["loss"] for row in log(tmp_path / mode)], log(tmp_path / mode)[-1]["val/loss"]]
    assert losses["pmap"] == pytest.approx(losses["jit"], rel=1e-5)
    assert losses["mesh"] == pytest.approx(losses["jit"], rel=1e-5)
