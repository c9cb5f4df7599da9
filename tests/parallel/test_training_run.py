"""The same run through the command line by jit, pmap and a mesh of eight devices."""

import json

import pytest

from tests.runs import retsta

OPTIONS = {
    "lora__dropout": 0.0,  # under pmap each device has keys of its own
    "lora__dora": True,  # whose norms are of whole columns, which a mesh splits
    "batch_size": 16,
    "micro_batch": 2,
    "max_steps": 2,
    "evaluate_every": 2,
}
MESH = {"mesh__data": 2, "mesh__fsdp": 2, "mesh__tensor": 2}


def test_pmap_and_mesh_train_as_jit_does(material, tmp_path):
    losses = {}
    for mode, more in {"jit": {}, "pmap": {}, "mesh": MESH}.items():
        assert retsta(material.train(tmp_path / mode, parallel=mode, **OPTIONS, **more)) == 0
        rows = [json.loads(line) for line in (tmp_path / mode / "metrics.jsonl").read_text().splitlines()]
        losses[mode] = [*[row["loss"] for row in rows], rows[-1]["val/loss"]]
        assert (tmp_path / mode / "adapter" / "adapter_model.safetensors").stat().st_size > 0
    assert losses["pmap"] == pytest.approx(losses["jit"], rel=1e-5)
    assert losses["mesh"] == pytest.approx(losses["jit"], rel=1e-5)
