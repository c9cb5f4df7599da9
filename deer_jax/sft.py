"""`deer sft`: the supervised stage. The language model is frozen; vision tower and projector learn to report."""

import functools
from collections.abc import Callable
from pathlib import Path

import jax
from jaxtyping import Array

from common.config import check_run_directory, claim_run_directory, owning_run_directory
from common.config_options import preset_parser, read_preset_options
from common.data.packing import plan_epochs, plan_in_order
from common.data.pipeline import make_iterator
from common.data.records import Quarantine
from common.data.splits import Split
from common.data.summary import Cut, say_data
from common.io.fingerprints import data_record
from common.models.qwen2_vl import SHARDING_RULES
from common.training.checkpoint import open_checkpoints, restore_trainable
from common.training.loop import Validation, mean_loss, train
from common.training.optim import make_optimizer, make_schedule
from common.training.parallel import (
    DeviceLayout,
    compile_evaluation,
    compile_step,
    device_put_tree,
    make_device_layout,
    place_batch,
)
from common.training.step import LossFn, init_state, make_train_step
from common.types import LossSum, PyTree, TrainState
from deer_jax.config import HELP, NEEDS, SFT_PRESETS, SftConfig
from deer_jax.prompts import ReportRows, prompt_length, report_rows, report_tokens, splits_line
from deer_jax.setup import (
    Base,
    accumulation,
    attention_of,
    check_run,
    checkpoint_note,
    export,
    initial_trees,
    load_base,
    load_studies,
)
from deer_jax.vision_policy import sft_loss


def main(arguments: list[str]) -> None:
    """The command line."""
    options = preset_parser("deer sft", SFT_PRESETS, HELP)
    config, chosen = read_preset_options(options, SFT_PRESETS, arguments, NEEDS)
    train_run(config, chosen.run_dir)
    model = chosen.run_dir / "model"
    print(f"trained: {chosen.run_dir}; next: deer sample, or deer rl --model.base {model}", flush=True)


def batch_maker(config: SftConfig, base: Base, part: Split) -> tuple[Callable[..., ReportRows], int]:
    """What turns planned rows into arrays, and how many reports were cut."""
    found = [report_tokens(base.encoder, study.report, config.max_length) for study in part.studies]
    length = prompt_length(base.encoder, config.data.views) + config.max_length
    reports = [tokens for tokens, _ in found]
    make = functools.partial(
        report_rows, images=part.images, reports=reports, encoder=base.encoder, views=config.data.views, length=length
    )
    return make, sum(cut for _, cut in found)


def make_validation(
    config: SftConfig, base: Base, part: Split, frozen: PyTree, loss: LossFn, layout: DeviceLayout
) -> Validation:
    """A function of the state: mean cross-entropy of the reports of a part."""

    def sums(trainable: PyTree, frozen: PyTree, batch: ReportRows, rng: Array) -> LossSum:
        return loss(trainable, frozen, batch, rng)[0]

    evaluate = compile_evaluation(sums, layout)
    rng = device_put_tree(jax.random.key(0), layout)
    here = {"process_index": jax.process_index(), "process_count": jax.process_count()}
    plan = plan_in_order([1] * len(part.studies), batch_rows=layout.row_shards * config.micro_batch, buckets=(1,))
    make, _ = batch_maker(config, base, part)

    def validation_loss(state: TrainState, check: Callable[[], None]) -> float:
        def loss_of(batch: PyTree) -> LossSum:
            return evaluate(state.trainable, frozen, place_batch(batch, layout), rng)

        return mean_loss(make_iterator(plan, make, **here), loss_of, check)

    return validation_loss


@owning_run_directory
def train_run(config: SftConfig, run_dir: Path) -> PyTree:
    """Train, or continue, the run in `run_dir`, and export its best weights there. Returns what was trained.

    Raises UserError for bad input before anything is written.
    """
    check_run(config)
    first_process = jax.process_index() == 0
    if first_process:
        check_run_directory(run_dir, config)
    layout = make_device_layout(config.parallel, config.mesh)
    accumulate = accumulation(config, layout)
    quarantine = Quarantine()
    parts = load_studies(config.data, quarantine)
    base = load_base(config.model, config.data.side, config.instruction, layout)
    note = checkpoint_note(base.directory)
    learnt = ([study.id, study.report] for name in ("train", "validation") for study in parts[name].studies)
    trained_on = {"base": note["base"]["sha256"], "data": data_record(learnt)}
    make, cut = batch_maker(config, base, parts["train"])
    cut += batch_maker(config, base, parts["validation"])[1]
    plan = plan_epochs(
        [1] * len(parts["train"].studies), batch_rows=config.batch_size, epochs=config.epochs, max_length=1,
        packing=False, seed=config.seed,
    )  # fmt: skip
    total_steps = min(len(plan), config.max_steps or len(plan))
    loss = functools.partial(
        sft_loss, config=base.config, layout=base.layout, lora=config.lora, chunk=config.model.loss_chunk
    )
    tx = make_optimizer(config.optim, total_steps)
    trainable, frozen = initial_trees(config, base, layout)
    if first_process:
        claim_run_directory(run_dir, config, trained_on)
        quarantine.write(run_dir / "quarantine.jsonl")
        say_data(splits_line(config.data, parts, quarantine, Cut(cut, config.max_length)))
        print(attention_of(base, prompt_length(base.encoder, config.data.views) + config.max_length), flush=True)
    checkpoints = open_checkpoints(run_dir, note, config)
    state = train(
        device_put_tree(init_state(trainable, tx), layout, SHARDING_RULES),
        frozen,
        make_iterator(plan, make, process_index=jax.process_index(), process_count=jax.process_count()),
        compile_step(lambda axis: make_train_step(loss, tx, accumulate, axis), layout),
        run_dir=run_dir,
        total_steps=total_steps,
        rng=device_put_tree(jax.random.key(config.seed), layout),
        layout=layout,
        checkpoints=checkpoints,
        schedule=make_schedule(config.optim, total_steps),
        validation_loss=make_validation(config, base, parts["validation"], frozen, loss, layout),
        checkpoint_every=config.checkpoint_every,
        evaluate_every=config.evaluate_every,
        tensorboard=config.tensorboard,
        wandb_project=config.wandb_project,
    )
    _, best = restore_trainable(checkpoints, state.trainable)
    checkpoints.close()
    export(config, base, best, frozen, run_dir)
    return best
