"""Fine-tuning Qwen2.5 to standardize reports: `train_run` puts the engine around `common.training.sft.sft_loss`."""

import dataclasses
import functools
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import jax
from jaxtyping import Array

from common.bounds import check_numbers
from common.config import check_run_directory, claim_run_directory, owning_run_directory
from common.data.encode import Example, encode_examples
from common.data.exported_tokenizer import exported_files, reading_note
from common.data.packing import plan_epochs
from common.data.pipeline import evaluation_batches, make_iterator, text_batches
from common.data.records import Quarantine
from common.data.summary import say_data, unknown_share
from common.data.tokenizers import Tokenizer, check_vocabulary, load_tokenizer
from common.errors import UserError
from common.io.fingerprints import data_record, fingerprint_directory
from common.models.adapters import save_adapter
from common.models.attention import attention_line, check_implementation
from common.models.families import check_trainable
from common.models.lora import init_lora
from common.models.qwen2 import SHARDING_RULES, Qwen2Config
from common.models.qwen2_weights import config_from_directory, load_qwen2, param_shapes, save_qwen2
from common.training.checkpoint import open_checkpoints, restore_trainable
from common.training.flops import peak_flops, sft_flops
from common.training.logs import check_wandb
from common.training.loop import RUN_OUTPUTS, Validation, mean_loss, train
from common.training.optim import make_optimizer, make_schedule
from common.training.parallel import (
    DeviceLayout,
    check_rows,
    compile_evaluation,
    compile_step,
    device_put_tree,
    make_device_layout,
    place_batch,
    shardings,
)
from common.training.sft import sft_loss
from common.training.step import LossFn, init_state, make_train_step
from common.types import LossSum, PyTree, TextBatch, TrainState
from retsta_jax.config import EMBEDDED_BASE, RetstaConfig
from retsta_jax.data import augmented, load_splits, splits_line
from retsta_jax.prompts import encode_pairs
from retsta_jax.terminology.check import load_terminology

OUTPUTS = (*RUN_OUTPUTS, "quarantine.jsonl", "adapter", "model")  # of a run directory


class Base(NamedTuple):
    """A base model that has been read: where it lies, its sizes, parameters on the devices, and its tokenizer."""

    directory: Path
    config: Qwen2Config
    params: PyTree
    tokenizer: Tokenizer


def base_directory(config: RetstaConfig) -> Path:
    """Where the base model lies. Raises UserError where none is named."""
    if config.model.base == "embedded":
        return EMBEDDED_BASE
    if not config.model.base:
        raise UserError("model.base: not given; name the directory of Qwen2.5-7B-Instruct with --model.base DIR")
    return Path(config.model.base)


def load_base(config: RetstaConfig, layout: DeviceLayout) -> Base:
    """The base model and its tokenizer, read straight into the shardings of `layout`. Raises UserError."""
    directory = base_directory(config)
    check_implementation(config.model.attention)
    sizes = config_from_directory(directory)
    check_trainable(sizes, config.model.tuning)
    tokenizer = load_tokenizer(directory)
    check_vocabulary(tokenizer, sizes)
    stored = "float32" if config.model.tuning == "full" else config.model.param_dtype
    targets = shardings(param_shapes(sizes), layout, SHARDING_RULES)
    sizes, params = load_qwen2(directory, dtype=config.model.dtype, param_dtype=stored, shardings=targets)
    sizes = dataclasses.replace(sizes, attention=config.model.attention, remat=config.model.remat)
    return Base(directory, sizes, params, tokenizer)


def initial_trees(config: RetstaConfig, base: Base, layout: DeviceLayout) -> tuple[PyTree, PyTree]:
    """(trainable, frozen) before the first step, placed."""
    if config.model.tuning == "full":
        return base.params, {}
    adapters = init_lora(param_shapes(base.config), config.lora, jax.random.key(config.seed))
    return device_put_tree(adapters, layout, SHARDING_RULES), {"params": base.params}


def make_validation(
    config: RetstaConfig, base: Base, examples: list[Example], frozen: PyTree, loss: LossFn, layout: DeviceLayout
) -> Validation:
    """A function of the state: mean cross-entropy of the answer tokens of `examples`, without dropout."""

    def sums(trainable: PyTree, frozen: PyTree, batch: TextBatch, rng: Array) -> LossSum:
        return loss(trainable, frozen, batch, rng)[0]

    evaluate = compile_evaluation(sums, layout)
    rng = device_put_tree(jax.random.key(0), layout)
    here = {"process_index": jax.process_index(), "process_count": jax.process_count()}
    rows = layout.row_shards * config.micro_batch

    def validation_loss(state: TrainState, check: Callable[[], None]) -> float:
        def loss_of(batch: TextBatch) -> LossSum:
            return evaluate(state.trainable, frozen, place_batch(batch, layout), rng)

        buckets = [*[size for size in config.buckets if size < config.max_length], config.max_length]
        batches = evaluation_batches(examples, base.tokenizer.pad_id, batch_rows=rows, buckets=buckets, **here)
        return mean_loss(batches, loss_of, check)

    return validation_loss


def export(config: RetstaConfig, base: Base, trainable: PyTree, run_dir: Path) -> None:
    """Write what was trained for others to use: `adapter/` as PEFT does, or a whole model in `model/`."""
    if config.model.tuning == "full":
        files = exported_files(base.directory, base.tokenizer)
        save_qwen2(run_dir / "model", base.config, trainable, source=base.directory, files=files)
        if jax.process_index() == 0 and (note := reading_note(run_dir / "model", base.tokenizer)):
            print(note, flush=True)
    else:
        save_adapter(run_dir / "adapter", base.config, trainable, config.lora, str(base.directory.resolve()))


def checkpoint_note(directory: Path) -> dict[str, Any]:
    """What every checkpoint says about the base weights it belongs to."""
    return {"base": {"name": directory.resolve().name, "sha256": fingerprint_directory(directory)}}


def check_config(config: RetstaConfig) -> None:
    """Raise UserError for a number out of its bounds, a logger that is missing, or a terminology with errors."""
    check_numbers(config)
    check_wandb(config.wandb_project)
    if config.data.terminology:
        load_terminology(config.data.terminology)


@owning_run_directory
def train_run(config: RetstaConfig, run_dir: Path) -> PyTree:
    """Train, or continue, the run in `run_dir`, and export its best weights there. Returns them.

    Raises UserError for bad input before anything is written.
    """
    check_config(config)
    first_process = jax.process_index() == 0
    if first_process:
        check_run_directory(run_dir, config)
    layout = make_device_layout(config.parallel, config.mesh)
    accumulate = max(config.batch_size // (layout.row_shards * config.micro_batch), 1)
    check_rows(config.batch_size, accumulate, layout)
    quarantine = Quarantine()
    splits = load_splits(config, quarantine)
    pairs = augmented(config, splits)
    directory = base_directory(config)
    note = checkpoint_note(directory)
    learnt = ([pair.id, pair.source, pair.target] for pair in (*pairs, *splits.validation))
    trained_on = {"base": note["base"]["sha256"], "data": data_record(learnt)}
    base = load_base(config, layout)
    encode = functools.partial(encode_pairs, base.tokenizer, config.instruction)
    examples = encode_examples(encode(pairs), config.max_length, quarantine)
    held_out = encode_examples(encode(splits.validation), config.max_length, quarantine)
    plan = plan_epochs(
        [len(example.tokens) for example in examples],
        batch_rows=config.batch_size,
        epochs=config.epochs,
        max_length=config.max_length,
        packing=config.packing,
        buckets=config.buckets,
        seed=config.seed,
    )
    total_steps = min(len(plan), config.max_steps or len(plan))
    here = {"process_index": jax.process_index(), "process_count": jax.process_count()}
    loss = functools.partial(sft_loss, config=base.config, lora=config.lora, chunk=config.model.loss_chunk)
    tx = make_optimizer(config.optim, total_steps)
    trainable, frozen = initial_trees(config, base, layout)
    if first_process:
        claim_run_directory(run_dir, config, trained_on)
        quarantine.write(run_dir / "quarantine.jsonl")
        counts = {"train": len(examples), "validation": len(held_out), "test": len(splits.test)}
        unknown = unknown_share(base.tokenizer, (example.tokens.tolist() for example in (*examples, *held_out)))
        new = len(pairs) - len(splits.train)
        notes = [f"{new:,} of train made by augmentation of {len(splits.train):,}"] if new else []
        say_data(splits_line(config, counts, quarantine, unknown, notes))
        lengths = {*config.buckets, config.max_length}
        print(attention_line(base.config.attention, lengths, base.config.head_dim, base.config.dtype), flush=True)
    checkpoints = open_checkpoints(run_dir, note, config)
    state = train(
        device_put_tree(init_state(trainable, tx), layout, SHARDING_RULES),
        frozen,
        make_iterator(plan, text_batches(examples, base.tokenizer.pad_id), **here),
        compile_step(lambda axis: make_train_step(loss, tx, accumulate, axis), layout),
        run_dir=run_dir,
        total_steps=total_steps,
        rng=device_put_tree(jax.random.key(config.seed), layout),
        layout=layout,
        checkpoints=checkpoints,
        schedule=make_schedule(config.optim, total_steps),
        validation_loss=make_validation(config, base, held_out, frozen, loss, layout),
        flops_per_batch=functools.partial(sft_flops, base.config, config.lora if frozen else None),
        peak_flops=peak_flops(jax.devices()[0]),
        checkpoint_every=config.checkpoint_every,
        evaluate_every=config.evaluate_every,
        tensorboard=config.tensorboard,
        wandb_project=config.wandb_project,
    )
    _, best = restore_trainable(checkpoints, state.trainable)
    checkpoints.close()
    export(config, base, best, run_dir)
    return best
