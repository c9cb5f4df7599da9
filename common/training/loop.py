"""The training loop as one function: steps, logs, evaluations, checkpoints, resuming, and stopping on request.

A run that is killed at any moment and started again continues from its last checkpoint with the same batches and random
keys, and writes the same `metrics.jsonl`: a row is on disk before the checkpoint that follows it. Where an evaluation
is cut short, the checkpoint holds the row that it belongs to, and the next start evaluates first.
"""

import contextlib
import functools
import math
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple, Protocol

import jax
import numpy as np
import optax

from common.errors import UserError
from common.io.fingerprints import fingerprint
from common.io.terminal import say
from common.process.host_watch import stop_asked
from common.process.stopping import Stopped, held, named, received, stop
from common.training.checkpoint import CHECKPOINTS, Checkpoints, best_so_far, restore_latest, save_best, save_latest
from common.training.evaluation import BY_LOSS, Best, Evaluation, best_every, check_best, due
from common.training.logs import LOGS, SECONDS, Logs, check_logged, open_logs
from common.training.optim import averaged
from common.training.parallel import DeviceLayout, place_batch
from common.training.profile import FOLDER as PROFILE
from common.training.profile import tracing
from common.training.step import TrainStep
from common.training.step_clock import StepClock
from common.types import Batch, PyTree, TrainState

LIVE_FILE = "live.html"  # the page that a `Watch` may write
RUN_OUTPUTS = (CHECKPOINTS, PROFILE, LIVE_FILE, *LOGS)  # what training writes into a run directory
MAX_SKIPPED_IN_A_ROW = 10  # non-finite updates in a row after which a run stops
UNFINISHED = "row"  # in a checkpoint beside the position in the data: the row whose evaluations are to be done


class Batches(Protocol):
    """A Grain iterator: batches, and its position as a small dictionary."""

    def __next__(self) -> Batch: ...
    def get_state(self) -> dict[str, int]: ...
    def set_state(self, state: dict[str, int]) -> None: ...


# flops(batch, metrics) -> model FLOPs of a step on this process's rows of a batch
Flops = Callable[[Any, Mapping[str, float]], float]


# watch(step, total_steps, last) shows the run on its first process, after the row of a step is in the logs.
Watch = Callable[[int, int, bool], None]


def unwatched(step: int, total_steps: int, last: bool) -> None:
    """Shows nothing."""


class _Row(NamedTuple):
    """What is known of a step: numbers that do not depend on the clock, and those that do."""

    metrics: dict[str, Any]
    timings: dict[str, Any]


def train(
    state: TrainState,
    frozen: PyTree,
    batches: Batches,
    step: TrainStep,
    *,
    run_dir: Path,
    total_steps: int,
    rng: jax.Array,
    layout: DeviceLayout,
    checkpoints: Checkpoints,
    schedule: optax.Schedule,
    evaluations: Sequence[Evaluation],
    best: Best = BY_LOSS,
    flops: Flops | None = None,
    peak_flops: float | None = None,
    checkpoint_every: int,
    tensorboard: bool = True,
    wandb_project: str = "",
    shown: Sequence[str] = ("loss",),
    profile: int = 0,
    watch: Watch = unwatched,
    now: Callable[[], float] = time.perf_counter,
) -> TrainState:
    """Train `state` until step `total_steps`, from the latest checkpoint where there is one.

    `state`, `frozen` and `rng` are placed; `step` is compiled, and its metric `tokens` is the number of tokens that it
    learns from. `best` chooses the best checkpoint; where its measurement is not finite, which is
    said, these weights are no candidate. The console shows the metrics in `shown`; `profile` steps are traced. `watch`
    is called after evaluations and checkpoints, and after the last step. `now` is the clock in seconds. Raises
    UserError after too many non-finite updates in a row, and `Stopped`, with the state saved, after the step or the
    batch of an evaluation in which SIGTERM or SIGINT came.
    """
    check_best(best, evaluations)
    best_interval = best_every(best, evaluations)

    def stalled(step: int, value: float = math.nan) -> bool:
        """Whether the best measurement, of those before and `value` at this step, is `patience` evaluations old."""
        if not best.patience:
            return False
        reached, least = best_so_far(checkpoints) or (0, math.inf)
        if (-value if best.highest else value) < least:
            reached = step
        return step // best_interval - reached // best_interval >= best.patience

    resumed = restore_latest(checkpoints, state)
    unfinished: list[Any] | None = None
    if resumed is not None:
        state, position = resumed
        unfinished = position.pop(UNFINISHED, None)
        batches.set_state(position)
    first = int(state.step)
    logged = first if unfinished is None else first - 1
    check_logged(run_dir, logged)
    if (first >= total_steps or stalled(first)) and unfinished is None:
        return state
    logs = open_logs(
        run_dir,
        total_steps=total_steps,
        resume_step=logged,
        tensorboard=tensorboard,
        wandb_project=wandb_project or None,
        shown=shown,
    )
    clock, asked = StepClock(now), stop_asked()
    waiting: Callable[[], _Row] | None = None

    def check() -> None:
        if asked():
            raise Stopped(received())

    def row_of(index: int, metrics: dict[str, jax.Array], batch: Batch, timed: Callable[[], dict[str, float]]) -> _Row:
        timings: dict[str, Any] = timed()  # waits
        values: dict[str, Any] = {name: np.asarray(value).item() for name, value in metrics.items()}
        seconds = timings["step_seconds"]
        timings["tokens_per_second"] = values["tokens"] / seconds
        timings |= {name: values.pop(name) for name in [*values] if name.startswith(SECONDS)}
        if flops is not None:
            rate = flops(batch, values) * jax.process_count() / seconds
            timings["model_tflops"] = rate / 1e12
            if peak_flops is not None:
                timings["utilisation"] = rate / (peak_flops * layout.mesh.size)
        return _Row(values | {"learning_rate": float(schedule(index - 1))}, timings)

    def finished(index: int, row: _Row, state: TrainState) -> bool:
        """Evaluate what is due, and write the row; False where a signal ends an evaluation."""
        extra: dict[str, Any] = {}
        measured = averaged(state)
        for evaluation in due(evaluations, index, index == total_steps):
            try:
                check()
                with named("the batch at hand of an evaluation"):
                    extra |= evaluation.measure(measured, check)
            except Stopped:
                return False
        if extra and best.name not in extra and (index % best_interval == 0 or index == total_steps):
            raise UserError(f"best_by: {best.name} is not measured while training; expected {', '.join(extra)}")
        value = extra.get(best.name)
        if value is not None and not math.isfinite(value):
            tell(f"step {index}: {best.name} is not finite (NaN or infinity): never the best checkpoint")
        last = index == total_steps or (value is not None and stalled(index, value))
        if last:
            extra["weights_sha256"] = fingerprint(state.trainable)
        _write(logs, run_dir, index, _Row(row.metrics | extra, row.timings))
        if jax.process_index() == 0:
            watch(index, total_steps, last)
        if value is not None:
            save_best(checkpoints, measured, -value if best.highest else value)
        return True

    with logs, clock.listening(), contextlib.ExitStack() as block:
        block.callback(checkpoints.wait)  # a process must not end while they are being written
        traced = block.enter_context(tracing(run_dir, profile))
        if unfinished is not None and not finished(first, _row_of_json(unfinished), state):
            stop(f"the state after step {first} is saved; the same command continues")
        clock.restart()
        for index in range(first + 1, total_steps + 1):
            if stalled(index - 1):
                tell(f"ended after step {index - 1}: no better {best.name} in {best.patience} evaluations")
                break
            batch = next(batches)
            state, metrics = step(state, frozen, place_batch(batch, layout), rng)
            timed = clock.dispatched(metrics)
            traced(index - first, metrics)
            if index == first + 1:
                # Before, there was nothing to save, and compiling can take minutes.
                block.enter_context(held("the update at hand"))
            # One step ahead at most: the previous step's numbers are fetched while this one runs.
            if waiting is not None:
                _write(logs, run_dir, index - 1, waiting())
            waiting = functools.partial(row_of, index, metrics, batch, timed)
            last, stopping = index == total_steps, asked()
            evaluate = bool(due(evaluations, index, last))
            if not (evaluate or stopping or index % checkpoint_every == 0):
                continue
            # What follows compiles programs. On CPUs a step that waits for other hosts holds the threads that compile.
            jax.block_until_ready(metrics)
            row, waiting = waiting(), None
            done = finished(index, row, state)
            save_latest(checkpoints, state, batches.get_state() | ({} if done else {UNFINISHED: _json_of_row(row)}))
            if stopping or not done:
                stop(f"the state after step {index} is saved; the same command continues")
            clock.restart()
    if skipped := int(state.skipped):
        tell(f"{skipped} of {total_steps} updates were not finite and were skipped")
    return state


def tell(line: str) -> None:
    """Say a line once, on the first process."""
    if jax.process_index() == 0:
        say(f"warning: {line}", error=True)


def _json_of_row(row: _Row) -> list[dict[str, Any]]:
    """A row for a checkpoint, in which what is not finite is None: JSON has no NaN."""
    return [{name: value if math.isfinite(value) else None for name, value in part.items()} for part in row]


def _row_of_json(parts: list[dict[str, Any]]) -> _Row:
    """The row of `_json_of_row`; what was not finite is NaN."""
    return _Row(*({name: math.nan if value is None else value for name, value in part.items()} for part in parts))


def _write(logs: Logs, run_dir: Path, index: int, row: _Row) -> None:
    """Add the row of a step. Raises UserError where too many updates in a row were not finite."""
    logs.write(index, *row)
    if row.metrics["skipped_in_a_row"] >= MAX_SKIPPED_IN_A_ROW:
        raise UserError(
            f"{run_dir}: {MAX_SKIPPED_IN_A_ROW} updates in a row had a non-finite gradient, loss or result, up to "
            f"step {index}; lower the learning rate, or look for bad weights; the checkpoints are older than that"
        )
