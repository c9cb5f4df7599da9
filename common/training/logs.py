"""Logging during training: numbers to files and TensorBoard, progress to the console.

A run directory keeps two JSON-lines files. `metrics.jsonl` has one row per logged step with nothing in it that
depends on the clock, so a run that was killed and resumed ends with the same bytes as an uninterrupted one;
`timings.jsonl` has the rest (tokens/s, step seconds, utilisation, memory). Rows hold numbers and fingerprints,
never report text.
"""

import importlib.util
import json
import math
import socket
import struct
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import jax
from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)

from common.errors import UserError
from common.io.files import atomic_file
from common.io.inputs import read_bytes
from common.io.numbers import rounded
from common.io.terminal import printable
from common.io.text import parse_json

METRICS_FILE = "metrics.jsonl"
TIMINGS_FILE = "timings.jsonl"
TENSORBOARD, WANDB = "tensorboard", "wandb"  # folders
LOGS = (METRICS_FILE, TIMINGS_FILE, TENSORBOARD, WANDB)  # in a run directory
PLAIN_LINE_SECONDS = 5.0
HASH = "sha256"  # text stands under names that end so
SECONDS = "seconds/"  # parts of a step are timed under such names

Metrics = Mapping[str, float | int | str]
Timings = Mapping[str, float | int]
Sink = Callable[[int, Metrics, Timings], None]


@dataclass
class Logs:
    """An open set of logs; use it as a context manager or call `close`."""

    sinks: tuple[Sink, ...]
    resources: ExitStack
    last_step: int

    def write(self, step: int, metrics: Mapping[str, Any], timings: Mapping[str, Any] | None = None) -> None:
        """Add the row of one step; values are numbers (also numpy or jax scalars) or short strings such as a hash.

        `metrics` must not depend on the clock; that is what `timings` is for. Raises ValueError for a step that
        has its row already (merge validation into the row of its step), UserError when the disk refuses it.
        """
        if step <= self.last_step:
            raise ValueError(f"step {step} is already logged; the last row is step {self.last_step}")
        self.last_step = step
        metrics = {name: _python_value(value) for name, value in metrics.items()}
        timings = {name: _python_value(value) for name, value in (timings or {}).items()}
        for sink in self.sinks:
            sink(step, metrics, timings)

    def close(self) -> None:
        """Flush and close everything; safe to call twice."""
        self.resources.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


def open_logs(
    run_dir: Path,
    *,
    total_steps: int,
    resume_step: int = 0,
    tensorboard: bool = True,
    wandb_project: str | None = None,
    shown: Sequence[str] = ("loss",),
) -> Logs:
    """Open the logs of a run that continues after `resume_step` (0: starts from the beginning).

    The console shows the metrics in `shown` as far as a step has them, and every evaluation.

    What an earlier attempt logged after `resume_step` is dropped; those steps are about to run again. Process 0
    alone writes: elsewhere the result accepts rows and does nothing. Raises UserError for a directory that
    cannot be written, a damaged log, or a Weights & Biases that is wanted and not installed.
    """
    last_step = resume_step if resume_step > 0 else -1
    if jax.process_index() != 0:
        return Logs((), ExitStack(), last_step)
    with ExitStack() as stack:
        try:
            run_dir.mkdir(parents=True, exist_ok=True)
            sinks = [
                _jsonl_sink(run_dir / METRICS_FILE, last_step, lambda metrics, timings: metrics),
                _jsonl_sink(run_dir / TIMINGS_FILE, last_step, lambda metrics, timings: timings),
            ]
            if tensorboard:
                sinks.append(_tensorboard_sink(run_dir / TENSORBOARD, last_step))
            if wandb_project is not None:
                sinks.append(_wandb_sink(stack, run_dir, wandb_project))
        except OSError as error:
            raise UserError(
                f"cannot write the logs of {run_dir}: {error.strerror}; choose another directory"
            ) from error
        console = Console(stderr=True)
        if console.is_terminal:
            sinks.append(_bar_sink(stack, console, total_steps, resume_step, shown))
        else:
            sinks.append(_line_sink(total_steps, shown))
        return Logs(tuple(sinks), stack.pop_all(), last_step)


def check_wandb(project: str | None) -> None:
    """Raise UserError where numbers are to go to a Weights & Biases project and it is not installed."""
    if project and importlib.util.find_spec("wandb") is None:
        raise UserError(
            f"wandb_project: {project}: Weights & Biases is not installed: pip install 'medreport-jax[wandb]', "
            "or leave out the project name"
        )


def read_metrics(path: Path) -> list[dict[str, Any]]:
    """The rows of a JSON-lines log, [] if there is no file; a last line cut off by a kill is left out.

    Raises UserError naming the line for anything else that is not a row.
    """
    return [row for row, _ in _complete_lines(path)]


def check_logged(run_dir: Path, step: int) -> None:
    """Raise UserError where the log of a run ends before the checkpoint of this step, which is written after it."""
    file = run_dir / METRICS_FILE
    last = max((row["step"] for row in read_metrics(file)), default=0) if jax.process_index() == 0 else step
    if last < step:
        raise UserError(
            f"{file}: ends at step {last}, before the checkpoint of step {step}; was the directory copied while it was "
            f"written? Copy it again, or remove checkpoints/latest/{step} to continue from an earlier one"
        )


def _complete_lines(path: Path) -> Iterator[tuple[dict[str, Any], bytes]]:
    lines = read_bytes(path, "the log of a run").splitlines(keepends=True) if path.exists() else []
    for number, line in enumerate(lines, start=1):
        try:
            row = parse_json(line, path)
        except UserError:
            row = None
        whole = isinstance(row, dict) and type(row.get("step")) is int and line.endswith(b"\n")
        wrong = next((name for name, value in row.items() if not _is_value(name, value)), None) if whole else None
        if wrong is not None:
            raise UserError(
                f"{path}:{number}: {printable(wrong)} must be a finite number or null; the log was damaged from "
                "outside: restore it, or remove the run directory to start again"
            )
        if whole:
            yield row, line
        elif number < len(lines):
            raise UserError(
                f"{path}:{number}: expected a JSON row with a step, found something else; "
                "the log was damaged from outside: restore it, or remove the run directory to start again"
            )


def _is_value(name: str, value: Any) -> bool:
    """Whether a log may hold this value: a number, null for one that was not finite, or text that names a hash."""
    if isinstance(value, str):
        return name.endswith(HASH)
    return value is None or (type(value) in (int, float) and abs(value) <= sys.float_info.max)


def _drop_after(path: Path, last_step: int) -> None:
    kept = [line for row, line in _complete_lines(path) if row["step"] <= last_step] if last_step >= 0 else []
    with atomic_file(path) as aside:
        aside.write_bytes(b"".join(kept))


def _python_value(value: Any) -> float | int | str:
    return value.item() if hasattr(value, "item") else value


def _json_row(step: int, values: Metrics) -> str:
    """One line; floats as the shortest text that reads back to the same bits, what is not finite as null."""
    finite = {
        name: None if isinstance(value, float) and not math.isfinite(value) else value for name, value in values.items()
    }
    return json.dumps({"step": step, **finite}, allow_nan=False) + "\n"


def _jsonl_sink(path: Path, last_step: int, select: Callable[[Metrics, Timings], Metrics]) -> Sink:
    _drop_after(path, last_step)

    def write(step: int, metrics: Metrics, timings: Timings) -> None:
        if values := select(metrics, timings):
            _append(path, _json_row(step, values).encode())

    return write


def _tensorboard_sink(directory: Path, last_step: int) -> Sink:
    # tensorboardX's own writer has a thread, which ends on a full disk, and the run would wait for it without end. What
    # is below it, `EventsWriter`, shows a full disk only where each row is followed by an fsync: 5 ms on a local disk.
    from tensorboardX.proto.event_pb2 import Event, SessionLog
    from tensorboardX.proto.summary_pb2 import Summary

    directory.mkdir(exist_ok=True)
    # TensorBoard reads the files in the order of their names; a clock may have been set back since the last.
    names = (file.name.split(".") for file in directory.glob("events.out.tfevents.*"))
    earlier = max((int(name[3]) for name in names if name[3].isdecimal()), default=0)
    path = directory / f"events.out.tfevents.{max(int(time.time()), earlier + 1)}.{socket.gethostname()}"

    def add(**content: Any) -> None:
        _append(path, _tensorboard_record(Event(wall_time=time.time(), **content).SerializeToString()))

    add(file_version="brain.Event:2")
    # Events cannot be cut out of a file; a start at a step makes TensorBoard hide those of the earlier attempt.
    add(step=last_step + 1, session_log=SessionLog(status=SessionLog.START))

    def write(step: int, metrics: Metrics, timings: Timings) -> None:
        values = _tagged(metrics, timings).items()
        scalars = [Summary.Value(tag=name, simple_value=value) for name, value in values if not isinstance(value, str)]
        add(step=step, summary=Summary(value=scalars))

    return write


def _tensorboard_record(content: bytes) -> bytes:
    """A TFRecord: the length, its checksum, the content, its checksum."""
    from tensorboardX.record_writer import masked_crc32c

    length = struct.pack("<Q", len(content))
    return length + struct.pack("<I", masked_crc32c(length)) + content + struct.pack("<I", masked_crc32c(content))


def _append(path: Path, content: bytes) -> None:
    """Add to the end of a file, at once."""
    try:
        with path.open("ab") as file:
            file.write(content)
    except OSError as error:
        raise UserError(f"cannot write {path}: {error.strerror}; make room and start the same command again") from error


def _wandb_sink(stack: ExitStack, run_dir: Path, project: str) -> Sink:
    check_wandb(project)
    import wandb

    run = wandb.init(project=project, name=run_dir.name, id=run_dir.name, dir=str(run_dir), resume="allow")
    stack.callback(run.finish)

    def write(step: int, metrics: Metrics, timings: Timings) -> None:
        run.log(_tagged(metrics, timings), step=step)

    return write


def _tagged(metrics: Metrics, timings: Timings) -> dict[str, float | int | str]:
    """Names grouped as TensorBoard and Weights & Biases show them: `train/loss`, `val/...`, `timings/...`."""
    tagged = {name if "/" in name else f"train/{name}": value for name, value in metrics.items()}
    return tagged | {f"timings/{name}": value for name, value in timings.items()}


def _bar_sink(stack: ExitStack, console: Console, total_steps: int, resume_step: int, shown: Sequence[str]) -> Sink:
    progress = Progress(
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TextColumn("{task.fields[shown]}"),
        TextColumn("{task.fields[tokens_per_second]} tokens/s"),
        TextColumn("{task.fields[parts]}"),
        TimeElapsedColumn(),
        TextColumn("ETA"),
        TimeRemainingColumn(),
        console=console,
        refresh_per_second=2,
    )
    task = progress.add_task(
        "training", total=total_steps, completed=resume_step, shown="", tokens_per_second="-", parts=""
    )
    stack.enter_context(progress)

    def write(step: int, metrics: Metrics, timings: Timings) -> None:
        fields: dict[str, Any] = {"shown": _named(metrics, shown)}
        if "tokens_per_second" in timings:
            fields["tokens_per_second"] = _short(timings["tokens_per_second"])
        fields["parts"] = _parts(timings)
        progress.update(task, completed=step, **fields)
        if _validation(metrics):
            progress.console.print(f"step {step}  {_validation(metrics)}", markup=False, highlight=False)

    return write


def _line_sink(total_steps: int, shown: Sequence[str]) -> Sink:
    first: tuple[int, float] | None = None
    last_line = -math.inf

    def write(step: int, metrics: Metrics, timings: Timings) -> None:
        nonlocal first, last_line
        now = time.monotonic()
        first = first or (step, now)
        due = now - last_line >= PLAIN_LINE_SECONDS
        if not (due or step >= total_steps or _validation(metrics)):
            return
        last_line = now
        parts = [f"step {step}/{total_steps}"]
        if values := _named(metrics, shown):
            parts.append(values)
        if "tokens_per_second" in timings:
            parts.append(f"{_short(timings['tokens_per_second'])} tokens/s")
        if spent := _parts(timings):
            parts.append(spent)
        if first[0] < step < total_steps:
            seconds = (now - first[1]) / (step - first[0]) * (total_steps - step)
            parts.append(f"ETA {int(seconds) // 3600}:{int(seconds) // 60 % 60:02d}:{int(seconds) % 60:02d}")
        if _validation(metrics):
            parts.append(_validation(metrics))
        print("  ".join(parts), file=sys.stderr, flush=True)

    return write


def _named(metrics: Metrics, names: Sequence[str]) -> str:
    return "  ".join(f"{name} {_short(metrics[name])}" for name in names if name in metrics)


def _validation(metrics: Metrics) -> str:
    return "  ".join(f"{name} {_short(rounded(value))}" for name, value in metrics.items() if name.startswith("val/"))


def _parts(timings: Timings) -> str:
    """Where the time of a step went, in the order of its parts."""
    spent = {name.removeprefix(SECONDS): value for name, value in timings.items() if name.startswith(SECONDS)}
    if "compile_seconds" in timings:
        spent["of which compiling"] = timings["compile_seconds"]
    return ", ".join(f"{name} {value:.2g} s" for name, value in spent.items())


def _short(value: float | int | str) -> str:
    if isinstance(value, str):
        return value
    return f"{value:,.0f}" if abs(value) >= 1000 else f"{value:.4g}"
