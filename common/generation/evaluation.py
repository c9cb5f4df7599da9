"""Scores of the reports that a model generates during training, as an evaluation for the training loop."""

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import numpy as np
from jaxtyping import Array

from common.data.packing import GlobalBatch, Plan
from common.data.pipeline import make_iterator
from common.errors import UserError
from common.generation.loop import Generated
from common.io.functions import load_function
from common.io.terminal import printable
from common.training.config import ReportTrainingConfig
from common.training.evaluation import Check, Evaluation
from common.training.parallel import DeviceLayout, compile_rows, device_put_tree, fetch_rows, place_batch
from common.training.run import this_process
from common.types import PyTree, TrainState

# metrics(predictions, references) -> numbers by name
ReportMetrics = Callable[[Sequence[str], Sequence[str]], Mapping[str, float]]
# write(trainable, frozen, batch, rng) -> what is generated for the rows of a batch
Write = Callable[[PyTree, PyTree, PyTree, Array], Generated]
# keep(step, {number of a study: (its report, the reward of that)}): takes reports that were written, to show them
Keep = Callable[[int, Mapping[int, tuple[str, float | None]]], None]


def report_evaluations(
    config: ReportTrainingConfig,
    layout: DeviceLayout,
    frozen: PyTree,
    write: Write,
    to_batch: Callable[[GlobalBatch], PyTree],
    decode: Callable[[list[int]], str],
    references: Sequence[str],
    rows: int,
    keep: Keep = lambda step, written: None,
) -> list[Evaluation]:
    """The evaluation by `metrics`, where a config names some: scores of written reports, as "val/NAME".

    The first `metrics_reports` references are compared with what is generated for rows 0, 1, ... of `to_batch`, `rows`
    at a time over all devices; `keep` gets the reports. Raises UserError where the metrics cannot be imported.
    """
    if not config.metrics:
        return []
    metrics: ReportMetrics = load_function(config.metrics, "metrics")
    references = references[: config.metrics_reports]
    plan = plan_rows(len(references), rows)
    run = compile_rows(write, layout)
    rng = device_put_tree(jax.random.key(0), layout)

    def measure(state: TrainState, check: Check) -> dict[str, float]:
        texts: list[str] = []
        finite = True
        for batch in make_iterator(plan, to_batch, **this_process()):
            check()
            written = fetch_rows(run(state.trainable, frozen, place_batch(batch, layout), rng), layout)
            columns = of_all_processes((written.tokens[:, 0], written.lengths[:, 0], written.finite[:, 0]))
            texts += [decode(row[:length].tolist()) for row, length, _ in zip(*columns, strict=True)]
            finite &= bool(columns[2].all())
        texts = texts[: len(references)]
        keep(int(state.step), {number: (text, None) for number, text in enumerate(texts)})
        found = checked_metrics(metrics(texts, references), f"metrics {config.metrics}")
        return {f"val/{name}": value if finite else math.nan for name, value in found.items()}

    return [Evaluation(config.metrics_every or config.evaluate_every, measure)]


def plan_rows(count: int, rows: int) -> Plan:
    """Batches of `rows` of the numbers 0, 1, ... below `count`; the last number fills up the last batch."""
    numbers = [min(number, count - 1) for number in range(-(-count // rows) * rows)]
    parts = [numbers[start : start + rows] for start in range(0, len(numbers), rows)]
    return Plan([GlobalBatch(1, [[number] for number in part], rows, 0) for part in parts])


def checked_metrics(found: Any, where: str) -> dict[str, float]:
    """The numbers that a user's metrics returned. Raises UserError where these are something else."""
    try:
        return {str(name): float(value) for name, value in found.items()}
    except (AttributeError, TypeError, ValueError) as error:
        raise UserError(
            f"{where}: returned {printable(type(found).__name__)} ({printable(error)}); expected a dictionary of "
            'numbers by name, such as {"F1": 0.5}'
        ) from error


def of_all_processes(arrays: tuple[np.ndarray, ...]) -> tuple[np.ndarray, ...]:
    """The rows of every process, in the order of the processes."""
    if jax.process_count() == 1:
        return arrays
    from jax.experimental import multihost_utils

    return tuple(np.concatenate(multihost_utils.process_allgather(array)) for array in arrays)
