"""The training driver shared by all systems: from two trees, batches, a step and evaluations to the best weights.

A system reads its data and its base model, and says by a `Training` what is its own. `run_training` claims the run
directory, records what the run learns from, opens checkpoints and logs, trains or continues, and returns the weights
that the evaluations chose, for the system to export.
"""

import dataclasses
import functools
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax
import optax

from common.config import claim_run_directory
from common.data.packing import GlobalBatch, Plan
from common.data.pipeline import make_iterator
from common.data.records import Quarantine
from common.io.fingerprints import data_record, fingerprint_directory
from common.io.terminal import say
from common.training.checkpoint import Checkpoints, open_checkpoints, restore_trainable
from common.training.config import TrainingConfig
from common.training.evaluation import Best, Evaluation, loss_evaluation
from common.training.flops import peak_flops
from common.training.loop import Batches, Flops, Watch, train, unwatched
from common.training.optim import OptimConfig, make_optimizer, make_schedule, with_average
from common.training.parallel import (
    DeviceLayout,
    Rules,
    check_rows,
    compile_step,
    device_put_tree,
    make_device_layout,
)
from common.training.step import LossFn, TrainStep, init_state, make_train_step
from common.training.traced_flops import Runs, shapes_of, update_flops
from common.types import Batch, PyTree, TrainState


class BaseWeights(NamedTuple):
    """The weights that a training starts from, as every checkpoint records them."""

    name: str
    sha256: str

    def note(self) -> dict[str, Any]:
        """What a checkpoint says of them."""
        return {"base": self._asdict()}


def base_weights(directory: Path) -> BaseWeights:
    """Those of a model's directory."""
    return BaseWeights(directory.resolve().name, fingerprint_directory(directory))


@dataclasses.dataclass(frozen=True, kw_only=True)
class Training:
    """One training, as values and functions; `trainable` and `frozen` are placed, `step` is compiled."""

    trainable: PyTree
    frozen: PyTree
    batches: Batches
    step: TrainStep  # step(state, frozen, batch, rng) -> (state, metrics)
    tx: optax.GradientTransformation
    total_steps: int
    schedule: optax.Schedule  # the learning rate of each step, for the log
    evaluations: Sequence[Evaluation]
    base: BaseWeights
    learns_from: Iterable[Any]  # rows of JSON values, of which a run records a digest
    also_from: Mapping[str, str] = dataclasses.field(default_factory=dict)  # digests of what else decides its weights
    announce: Callable[[], None] = lambda: None  # says what the run learns from, once its directory is claimed
    quarantine: Quarantine = dataclasses.field(default_factory=Quarantine)
    rules: Rules = ()
    flops: Flops | None = None
    shown: Sequence[str] = ("loss",)  # metrics of a step that the console shows
    watch: Watch = unwatched  # shows the run as it goes; nothing depends on it


def run_training(config: TrainingConfig, run_dir: Path, layout: DeviceLayout, training: Training) -> PyTree:
    """Do a training, or continue it, in a directory that this process owns; its best trainable tree.

    Raises UserError for a directory of another run.
    """
    if jax.process_index() == 0:
        trained_on = {"base": training.base.sha256, "data": data_record(training.learns_from), **training.also_from}
        claim_run_directory(run_dir, config, trained_on)
        training.quarantine.write(run_dir / "quarantine.jsonl")
        training.announce()
    checkpoints = open_checkpoints(run_dir, training.base.note(), config)
    stage(begins(training.total_steps, checkpoints.latest.latest_step()))
    state = _trained(config, run_dir, layout, training, checkpoints)
    _, best = restore_trainable(checkpoints, state.trainable)
    checkpoints.close()
    return best


def begins(total_steps: int, done: int | None) -> str:
    """What a log says where a training begins, or continues after the step `done`."""
    if not done:
        return f"training: {total_steps:,} updates; the first one compiles the step"
    if done >= total_steps:
        return f"training: all {total_steps:,} updates are done"
    return f"training: continuing after step {done:,} of {total_steps:,}; the next update compiles the step"


def train_from_scratch(
    optim: OptimConfig, seed: int, work: Path, loss: LossFn, params: PyTree, **planned: Any
) -> PyTree:
    """Train `params`, made by `seed`, on one device; the tree after the last update. For the models that are shipped.

    `planned` are further arguments of `supervised`. `work` can be continued, but is not claimed as that of a config.
    """
    config, layout = TrainingConfig(optim=optim, seed=seed, tensorboard=False), make_device_layout("jit")
    base = BaseWeights("random", str(seed))
    training = supervised(config, layout, loss, params, {}, base=base, learns_from=(), **planned)
    checkpoints = open_checkpoints(work, base.note(), config)
    state = _trained(config, work, layout, training, checkpoints)
    checkpoints.close()
    return state.trainable


def _trained(
    config: TrainingConfig, run_dir: Path, layout: DeviceLayout, training: Training, checkpoints: Checkpoints
) -> TrainState:
    return train(
        device_put_tree(init_state(training.trainable, training.tx), layout, training.rules),
        training.frozen,
        training.batches,
        training.step,
        run_dir=run_dir,
        total_steps=training.total_steps,
        rng=device_put_tree(jax.random.key(config.seed), layout),
        layout=layout,
        checkpoints=checkpoints,
        schedule=training.schedule,
        evaluations=training.evaluations,
        best=Best(config.best_by, config.best_is == "highest", config.patience),
        flops=training.flops,
        peak_flops=peak_flops(jax.devices()[0]),
        checkpoint_every=config.checkpoint_every,
        tensorboard=config.tensorboard,
        wandb_project=config.wandb_project,
        shown=training.shown,
        profile=config.profile,
        watch=training.watch,
    )


def stage(what: str) -> None:
    """Say, once for all processes, what a run does before it trains."""
    if jax.process_index() == 0:
        say(what)


def supervised(
    config: TrainingConfig,
    layout: DeviceLayout,
    loss: LossFn,
    trainable: PyTree,
    frozen: PyTree,
    *,
    plan: Plan,
    to_batch: Callable[[GlobalBatch], Batch],
    validation: Callable[[], Iterable[Batch]],
    validation_loss: LossFn | None = None,
    max_steps: int = 0,
    accumulate: int = 1,
    then: optax.GradientTransformation | None = None,
    evaluations: Sequence[Evaluation] = (),
    threads: int = 1,
    chunk: int = 0,
    true_share: float | None = None,
    **own: Any,
) -> Training:
    """The training of a loss on planned batches, evaluated by its mean over `validation()`, and by `evaluations`.

    `validation_loss` is the loss without dropout, where that is another function; `then` follows the optimizer; `own`
    are the other fields of `Training`. Model FLOPs are counted in a trace of the loss, in which `chunk` positions of a
    row go through the head at a time (0: all) and a `cond` is true as often as `true_share` says, unless `own` has a
    formula for them.
    """
    total_steps = min(len(plan), max_steps or len(plan))
    tx = make_optimizer(config.optim, total_steps)
    tx = with_average(tx if then is None else optax.chain(tx, then), config.optim.average)
    own.setdefault("flops", traced(validation_loss or loss, trainable, frozen, chunk, true_share))
    return Training(
        trainable=trainable,
        frozen=frozen,
        batches=make_iterator(plan, to_batch, **this_process(), threads=threads),
        step=compile_step(lambda axis: make_train_step(loss, tx, accumulate, axis), layout),
        tx=tx,
        total_steps=total_steps,
        schedule=make_schedule(config.optim, total_steps),
        evaluations=(
            loss_evaluation(config.evaluate_every, validation_loss or loss, frozen, validation, layout),
            *evaluations,
        ),
        **own,
    )


def traced(loss: LossFn, trainable: PyTree, frozen: PyTree, chunk: int, true_share: float | None) -> Flops:
    """Model FLOPs of an update by a trace of the loss, one for each shape of a batch."""
    trees = shapes_of(trainable), shapes_of(frozen)  # the arrays themselves belong to the training

    @functools.cache
    def of_shapes(structure: Any, shapes: tuple[jax.ShapeDtypeStruct, ...]) -> float:
        batch = jax.tree.unflatten(structure, shapes)
        runs = Runs(-(-batch.targets.shape[1] // chunk) if chunk else 1, true_share)

        def total(trainable: PyTree, frozen: PyTree, batch: PyTree) -> jax.Array:
            return loss(trainable, frozen, batch, jax.random.key(0))[0].total

        return update_flops(total, *trees, batch, runs=runs)

    def flops(batch: Any, _: Mapping[str, float]) -> float:
        leaves, structure = jax.tree.flatten(batch)
        return of_shapes(structure, tuple(shapes_of(leaves)))

    return flops


def accumulation(batch_size: int, micro_batch: int, layout: DeviceLayout) -> int:
    """How many micro-batches an update has. Raises UserError where its rows cannot be cut evenly."""
    accumulate = max(batch_size // (layout.row_shards * micro_batch), 1)
    check_rows(batch_size, accumulate, layout)
    return accumulate


def this_process() -> dict[str, int]:
    """Which part of every batch this process reads."""
    return {"process_index": jax.process_index(), "process_count": jax.process_count()}
