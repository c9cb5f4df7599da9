"""`deer sample` with a model whose logits are too large for a float names the study and writes no report."""

import shutil
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from common.errors import UserError
from deer_jax.cli import dispatch
from deer_jax.config import EMBEDDED_BASE


@pytest.fixture
def base(tmp_path) -> Path:
    """The shipped model with the scale of its last norm near the end of float32."""
    directory = tmp_path / "base"
    shutil.copytree(EMBEDDED_BASE, directory)
    tensors = load_file(directory / "model.safetensors")
    tensors = {
        name: np.full_like(tensor, 3e38, np.float32) if name.endswith("model.norm.weight") else tensor
        for name, tensor in tensors.items()
    }
    save_file(tensors, directory / "model.safetensors", metadata={"format": "pt"})
    return directory


def test_the_study_is_named_and_nothing_is_written(base, tmp_path):
    output = tmp_path / "rows.jsonl"
    command = ["sample", "--preset", "demo", "--output", str(output), "--model.base", str(base), "--data.side", "56"]
    command += ["--parallel", "jit"]
    small = ["--data.train-size", "2", "--limit", "2", "--batch-size", "2", "--rollout.group", "2"]
    said = r"^id '[^']+': the model's logits are not finite .* computed in float32, so the weights are"
    with pytest.raises(UserError, match=said):
        dispatch([*command, *small, "--rollout.max-new-tokens", "2"])
    assert not output.exists() or not output.read_bytes()
