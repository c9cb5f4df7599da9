"""The training loop as one function: steps, logs, validation, checkpoints, resuming, and stopping when told to.

A run that is killed at any moment and started again goes on from its last checkpoint with the same batches and random
keys, and writes the same `metrics.jsonl`: a row is on disk before the checkpoint that follows it.
"""

import contextlib
import signal
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, Protocol

import jax
import numpy as np
import optax
from jax.experimental import multihost_utils

from common.checkpoint import Checkpoints, restore_latest, save_best, save_latest
from common.errors import UserError
from common.fingerprints import fingerprint
from common.logs import SECONDS, open_logs
from common.parallel import Layout, place_batch
from common.step import TrainStep
from common.types import Batch, PyTree, TrainState

STOPPED_EXIT_CODE = 75  # EX_TEMPFAIL: SIGTERM came, the state is saved, the same command continues


class Batches(Protocol):
    """A Grain iterator: batches, and its position as a small dictionary."""

    def __next__(self) -> Batch: ...
    def get_state(self) -> dict[str, int]: ...
    def set_state(self, state: dict[str, int]) -> None: ...


MAX_SKIPPED_IN_A_ROW = 10  # non-finite updates in a row after which a run stops


def train(
    state: TrainState,
    frozen: PyTree,
    batches: Batches,
    step: TrainStep,
    *,
    run_dir: Path,
    total_steps: int,
    rng: jax.Array,
    layout: Layout,
    checkpoints: Checkpoints,
    schedule: optax.Schedule,
    validation_loss: Callable[[TrainState], float],
    flops_per_batch: Callable[[Batch], float] | None = None,
    peak_flops: float | None = None,
    checkpoint_every: int,
    evaluate_every: int,
    tensorboard: bool = True,
    wandb_project: str = "",
) -> TrainState:
    """Train `state` until step `total_steps`, from the latest checkpoint where there is one.

    `state`, `frozen` and `rng` are placed; `step` is compiled; where it makes the tokens that it learns from, its
    metric `tokens` is their number. `validation_loss` decides the best checkpoint. Raises UserError after too many
    non-finite updates in a row; on SIGTERM saves and exits with STOPPED_EXIT_CODE.
    """
    resumed = restore_latest(checkpoints, state)
    if resumed is not None:
        state, position = resumed
        batches.set_state(position)
    first = int(state.step)
    if first >= total_steps:
        return state
    logs = open_logs(
        run_dir,
        total_steps=total_steps,
        resume_step=first,
        tensorboard=tensorboard,
        wandb_project=wandb_project or None,
    )
    started = time.perf_counter()
    waiting: tuple[int, dict[str, jax.Array], Batch] | None = None

    def write(row: tuple[int, dict[str, jax.Array], Batch], extra: dict[str, Any], ended: float = 0.0) -> None:
        nonlocal started
        index, metrics, batch = row
        values: dict[str, Any] = {name: np.asarray(value).item() for name, value in metrics.items()}  # waits
        seconds, started = (ended or time.perf_counter()) - started, time.perf_counter()
        tokens = values.pop("tokens", batch.real_tokens * jax.process_count())
        timings = {"step_seconds": seconds, "tokens_per_second": tokens / seconds}
        timings |= {name: values.pop(name) for name in [*values] if name.startswith(SECONDS)}
        if flops_per_batch is not None:
            rate = flops_per_batch(batch) * jax.process_count() / seconds
            timings["model_tflops"] = rate / 1e12
            if peak_flops is not None:
                timings["utilisation"] = rate / (peak_flops * layout.mesh.size)
        values |= {"learning_rate": float(schedule(index - 1)), "tokens": tokens, **extra}
        logs.write(index, values, timings)
        if values["skipped_in_a_row"] >= MAX_SKIPPED_IN_A_ROW:
            raise UserError(
                f"{run_dir}: {MAX_SKIPPED_IN_A_ROW} updates in a row were not finite, or their gradient or loss, up to "
                f"step {index}; lower the learning rate, or look for bad weights; the checkpoints are from before"
            )

    with logs, stop_signal() as stopping:
        for index in range(first + 1, total_steps + 1):
            batch = next(batches)
            state, metrics = step(state, frozen, place_batch(batch, layout), rng)
            # One step ahead at most: the previous step's numbers are fetched while this one runs.
            if waiting is not None:
                write(waiting, {})
            waiting = index, metrics, batch
            last, stop = index == total_steps, stopping(index)
            evaluate = last or index % evaluate_every == 0
            if not (evaluate or stop or index % checkpoint_every == 0):
                continue
            # What follows compiles programs. On CPUs a step that waits for other hosts holds the threads that compile.
            jax.block_until_ready(metrics)
            ended = time.perf_counter()
            extra: dict[str, Any] = {}
            if evaluate:
                extra["val/loss"] = validation_loss(state)
            if last:
                extra["weights_sha256"] = fingerprint(state.trainable)
            write(waiting, extra, ended)
            waiting = None
            if evaluate:
                save_best(checkpoints, state, extra["val/loss"])
            save_latest(checkpoints, state, batches.get_state())
            started = time.perf_counter()
            if stop and not last:
                checkpoints.close()
                raise SystemExit(STOPPED_EXIT_CODE)
    return state


@contextlib.contextmanager
def stop_signal() -> Iterator[Callable[[int], bool]]:
    """A function of the step that says whether to stop: SIGTERM came, to this process or, of several, to any."""
    received: list[int] = []
    if jax.process_count() > 1:
        yield lambda step: multihost_utils.reached_preemption_sync_point(step)
        return
    previous = signal.signal(signal.SIGTERM, lambda number, frame: received.append(number))
    try:
        yield lambda step: bool(received)
    finally:
        signal.signal(signal.SIGTERM, previous)
