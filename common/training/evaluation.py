"""Evaluations as values: what is measured during training, and which measurement chooses the best checkpoint."""

import math
from collections.abc import Callable, Collection, Iterable, Sequence
from typing import Any, NamedTuple

import jax
from jaxtyping import Array

from common.errors import UserError
from common.training.parallel import DeviceLayout, compile_evaluation, device_put_tree, place_batch
from common.training.step import LossFn
from common.types import Batch, LossSum, PyTree, TrainState

LOSS = "val/loss"

# Raises `Stopped` where the run is to end; to be called before each batch of an evaluation.
Check = Callable[[], None]


class Evaluation(NamedTuple):
    """What `measure(state, check) -> {name: number}` says of a state every so many updates, and after the last one.

    `names` are those that it measures, as far as they are known beforehand. A name without a slash is one of training.
    """

    every: int
    measure: Callable[[TrainState, Check], dict[str, float]]
    names: Collection[str] = ()


class Best(NamedTuple):
    """The measurement by which the best checkpoint is chosen."""

    name: str = LOSS
    highest: bool = False  # the best one; else the lowest
    patience: int = 0  # training ends after so many of its evaluations without a better one; 0: it does not


BY_LOSS = Best()


def loss_evaluation(
    every: int,
    loss: LossFn,
    frozen: PyTree,
    batches: Callable[[], Iterable[Batch]],
    layout: DeviceLayout,
    name: str = LOSS,
) -> Evaluation:
    """The mean of a loss, without dropout, over the batches that `batches()` begins anew each time."""

    def sums(trainable: PyTree, frozen: PyTree, batch: PyTree, rng: Array) -> LossSum:
        return loss(trainable, frozen, batch, rng)[0]

    evaluate = compile_evaluation(sums, layout)
    rng = device_put_tree(jax.random.key(0), layout)

    def measure(state: TrainState, check: Check) -> dict[str, float]:
        def loss_of(batch: Any) -> LossSum:
            return evaluate(state.trainable, frozen, place_batch(batch, layout), rng)

        return {name: mean_loss(batches(), loss_of, check)}

    return Evaluation(every, measure, (name,))


def mean_loss(batches: Iterable[Batch], loss: Callable[[Any], LossSum], check: Check) -> float:
    """The mean of `loss` over batches: one batch ahead at most, so that a signal is heard soon."""
    total = weight = 0.0
    waiting: list[LossSum] = []

    def add() -> None:
        nonlocal total, weight
        part = waiting.pop(0)
        total, weight = total + float(part.total), weight + float(part.weight)

    for batch in batches:
        check()
        waiting.append(loss(batch))
        if len(waiting) > 1:
            add()
    if waiting:
        add()
    return total / weight if weight else math.nan


def due(evaluations: Sequence[Evaluation], step: int, last: bool) -> list[Evaluation]:
    """The evaluations that are to be done after a step."""
    return [evaluation for evaluation in evaluations if last or step % evaluation.every == 0]


def check_best(best: Best, evaluations: Sequence[Evaluation]) -> None:
    """Raise UserError where it is known beforehand that nothing measures what is to choose the best checkpoint."""
    names = [name for evaluation in evaluations for name in evaluation.names]
    if best.name not in names and all(evaluation.names for evaluation in evaluations):
        raise UserError(f"best_by: {best.name} is not measured while training; expected {', '.join(names)}")


def best_every(best: Best, evaluations: Sequence[Evaluation]) -> int:
    """After how many updates the measurement of `best` is made again."""
    known = [evaluation for evaluation in evaluations if best.name in evaluation.names]
    return (known or [evaluation for evaluation in evaluations if not evaluation.names])[0].every
