"""Make the adapter with which the shipped base standardizes reports: `make assets`.

The small preset on more generated pairs, for more epochs, with a larger rank; adapters are stored as float16.
"""

import dataclasses
import shutil
from pathlib import Path

import jax
import jax.numpy as jnp

from common.command import run_cli
from common.config import CONFIG_FILE, to_json
from common.errors import Parser
from common.io.safetensors import write_json
from common.io.terminal import say
from common.models.adapters import save_adapter
from common.models.lora import LoraConfig
from retsta_jax.config import EMBEDDED_ADAPTER, PRESETS
from retsta_jax.standardize import load_trained
from retsta_jax.train import train_run

CONFIG = dataclasses.replace(
    PRESETS["small"],
    data=dataclasses.replace(PRESETS["small"].data, train_size=12_000),
    lora=LoraConfig(rank=32, alpha=64.0, dropout=0.0),
    epochs=4,
    tensorboard=False,
)


def main(argv: list[str]) -> None:
    """Train, or continue, the run in a directory, and export its adapter."""
    parser = Parser("python -m retsta_jax.make_adapter", description="Train the shipped adapter on generated reports.")
    parser.add_argument("--run-dir", type=Path, default=Path("runs/retsta-asset"))
    run_dir = parser.parse_args(argv).run_dir
    train_run(CONFIG, run_dir)
    trained = load_trained(run_dir)
    half = jax.tree.map(lambda leaf: leaf.astype(jnp.float16), trained.trainable)
    shutil.rmtree(EMBEDDED_ADAPTER, ignore_errors=True)
    save_adapter(EMBEDDED_ADAPTER, trained.base.config, half, CONFIG.lora, "retsta_jax/assets/base")
    write_json(EMBEDDED_ADAPTER / CONFIG_FILE, to_json(CONFIG))
    say(f"exported: {EMBEDDED_ADAPTER}; next: retsta evaluate --run-dir {run_dir}")


if __name__ == "__main__":
    run_cli(main)
