"""Make the default model of `unicross report`: `make assets`.

The small preset on more phantoms, for more updates; weights are stored as float16.
"""

import dataclasses
from pathlib import Path

import jax
import jax.numpy as jnp

from common.command import run_cli
from common.errors import Parser
from common.io.terminal import say
from unicross_jax.config import EMBEDDED_RUN, PRESETS
from unicross_jax.train import train_run
from unicross_jax.trained import export, load_trained

CONFIG = dataclasses.replace(
    PRESETS["small"],
    data=dataclasses.replace(PRESETS["small"].data, train_size=4000),
    epochs=6,
    checkpoint_every=250,
    evaluate_every=250,  # an epoch
    tensorboard=False,
)


def main(argv: list[str]) -> None:
    """Train, or continue, the run in a directory, and export it."""
    parser = Parser("python -m unicross_jax.make_assets", description="Train the shipped model on phantoms.")
    parser.add_argument("--run-dir", type=Path, default=Path("runs/unicross-asset"))
    run_dir = parser.parse_args(argv).run_dir
    train_run(CONFIG, run_dir)
    trained = load_trained(run_dir)
    half = jax.tree.map(lambda leaf: leaf.astype(jnp.float16), trained.trainable)
    export(CONFIG, trained.task, half, EMBEDDED_RUN)
    say(f"exported: {EMBEDDED_RUN}; next: unicross evaluate --run-dir {run_dir}")


if __name__ == "__main__":
    run_cli(main)
