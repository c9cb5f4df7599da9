"""What a run of RetSTA leaves, without training."""

import json
from pathlib import Path
from typing import Any

from common.models.lora import LoraConfig
from common.training.parallel import make_device_layout
from common.training.sft import model_variables
from retsta_jax.config import ModelConfig, RetstaConfig
from retsta_jax.train import Base, export, initial_trees, load_base
from tests import tiny


def export_moved(directory: Path, run_dir: Path, tuning: str, targets: str) -> tuple[Base, dict[str, Any]]:
    """A base with what `tuning` trains moved at random, exported as a run exports it: the base, what a model takes."""
    stored = json.loads((directory / "config.json").read_text())["dtype"]
    config = RetstaConfig(
        model=ModelConfig(base=str(directory), tuning=tuning, dtype="float32", param_dtype=stored),
        lora=LoraConfig(rank=3, alpha=5.0, targets=targets),
    )
    layout = make_device_layout("jit")
    base = load_base(config, layout)
    trainable, frozen = initial_trees(config, base, layout)
    trainable = tiny.moved(trainable)
    export(config, base, trainable, run_dir)
    return base, model_variables(trainable, frozen, config.lora)
