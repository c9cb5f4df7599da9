"""A trace of a few training steps, which TensorBoard and Perfetto (ui.perfetto.dev) open."""

import contextlib
from collections.abc import Callable, Iterator
from pathlib import Path

import jax

from common.io.terminal import say

FOLDER = "profile"  # in a run directory
SKIPPED = 2  # steps before the first that is traced: they compile


@contextlib.contextmanager
def tracing(run_dir: Path, steps: int) -> Iterator[Callable[[int, object], None]]:
    """Yields a function for the loop to call with the number of steps done in this process and what the last returned.

    `steps` of them are traced, into the folder `profile` of the run; with 0 none are.
    """
    running = False

    def stop() -> None:
        nonlocal running
        if running:
            jax.profiler.stop_trace()
            running = False
            say(f"profile: {run_dir / FOLDER}; open it with tensorboard --logdir {run_dir}, or in ui.perfetto.dev")

    def after(done: int, result: object) -> None:
        nonlocal running
        if steps and done == SKIPPED:
            jax.block_until_ready(result)
            jax.profiler.start_trace(str(run_dir / FOLDER), create_perfetto_trace=True)
            running = True
        elif running and done == SKIPPED + steps:
            jax.block_until_ready(result)
            stop()

    try:
        yield after
    finally:
        stop()
