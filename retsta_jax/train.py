"""Fine-tuning Qwen2.5 to standardize reports: `train_run` puts the engine around `common.training.sft.sft_loss`."""

import dataclasses
import functools
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax
from jaxtyping import Array

from common.bounds import check_numbers
from common.config import owning_run_directory
from common.data.cleaning import clean_report
from common.data.encode import encode_examples
from common.data.exported_tokenizer import exported_files, reading_note
from common.data.packing import plan_epochs
from common.data.pipeline import evaluation_batches, text_batches
from common.data.records import Quarantine, ReportPair
from common.data.summary import say_data, unknown_share
from common.data.tokenizers import Tokenizer, check_vocabulary, load_tokenizer
from common.generation.draft_sources import TABLE_FILE, save_table
from common.generation.evaluation import Keep, report_evaluations
from common.generation.generate import padded, qwen2_decoder
from common.generation.loop import Generated
from common.generation.settings import DecodeSettings
from common.generation.slots import decode
from common.models.adapters import check_adapters, save_adapter
from common.models.attention_choice import Shape, Use, attention_lines, check_implementation, say_attention
from common.models.decoding import Prompts
from common.models.families import check_trainable
from common.models.lora import init_lora
from common.models.quantized import stored_as
from common.models.qwen2 import SHARDING_RULES, Qwen2Config
from common.models.qwen2_weights import config_from_directory, load_qwen2, param_shapes, save_qwen2
from common.report.findings import Marks
from common.report.live import Live, Reference, live_page
from common.report.model_card import ModelCard, results_in, training_of, write_cards
from common.training.evaluation import Evaluation
from common.training.flops import sft_flops
from common.training.logs import check_wandb
from common.training.loop import RUN_OUTPUTS
from common.training.parallel import DeviceLayout, check_heads, device_put_tree, make_device_layout, shardings
from common.training.run import accumulation, base_weights, run_training, stage, supervised, this_process
from common.training.sft import model_variables, sft_loss
from common.training.token_loss import named_loss
from common.types import PyTree
from retsta_jax.config import EMBEDDED_BASE, NEEDS, PRESETS, RetstaConfig, check_base, scored_as
from retsta_jax.data import augmented, load_splits, splits_line
from retsta_jax.finding_marks import report_marks
from retsta_jax.prompts import encode_pairs, prompt_tokens
from retsta_jax.terminology.check import load_terminology
from retsta_jax.terminology.terms import SHIPPED

OUTPUTS = (*RUN_OUTPUTS, "quarantine.jsonl", "adapter", "model", TABLE_FILE)  # of a run directory


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
    check_base(config.model)
    return Path(config.model.base)


def load_base(config: RetstaConfig, layout: DeviceLayout) -> Base:
    """The base model and its tokenizer, read straight into the shardings of `layout`. Raises UserError."""
    directory = base_directory(config)
    check_implementation(config.model.attention)
    sizes = config_from_directory(directory)
    check_heads(sizes.num_key_value_heads, layout)
    if config.model.tuning == "lora":
        check_adapters(sizes, config.lora)
    else:
        check_trainable(sizes, "full")
    tokenizer = load_tokenizer(directory)
    check_vocabulary(tokenizer, sizes)
    stored, bits = ("float32", None) if config.model.tuning == "full" else stored_as(config.model.param_dtype)
    targets = shardings(param_shapes(sizes), layout, SHARDING_RULES)
    sizes, params = load_qwen2(directory, dtype=config.model.dtype, param_dtype=stored, shardings=targets, bits=bits)
    sizes = dataclasses.replace(sizes, attention=config.model.attention, remat=config.model.remat)
    return Base(directory, sizes, params, tokenizer)


def initial_trees(config: RetstaConfig, base: Base, layout: DeviceLayout) -> tuple[PyTree, PyTree]:
    """(trainable, frozen) before the first step, placed."""
    if config.model.tuning == "full":
        return base.params, {}
    adapters = init_lora(param_shapes(base.config), config.lora, jax.random.key(config.seed), base.params)
    return device_put_tree(adapters, layout, SHARDING_RULES), {"params": base.params}


def export(config: RetstaConfig, base: Base, trainable: PyTree, run_dir: Path) -> None:
    """Write what was trained for others to use: `adapter/` as PEFT does, or a whole model in `model/`."""
    if config.model.tuning == "full":
        files = exported_files(base.directory, base.tokenizer)
        save_qwen2(run_dir / "model", base.config, trainable, source=base.directory, files=files)
        if jax.process_index() == 0 and (note := reading_note(run_dir / "model", base.tokenizer)):
            print(note, flush=True)
    else:
        save_adapter(run_dir / "adapter", base.config, trainable, config.lora, str(base.directory.resolve()))


def check_config(config: RetstaConfig) -> None:
    """Raise UserError for a number out of its bounds, a logger that is missing, or a terminology with errors."""
    check_numbers(config)
    check_wandb(config.wandb_project)
    if config.data.terminology:
        load_terminology(config.data.terminology)


def written_reports(
    config: RetstaConfig, layout: DeviceLayout, base: Base, frozen: PyTree, pairs: Sequence[ReportPair], keep: Keep
) -> list[Evaluation]:
    """Scores of the standard reports that the model writes for validation pairs, where `--metrics` names some.

    `keep` gets the reports.
    """
    prompts = [prompt_tokens(base.tokenizer, config.instruction, pair.source) for pair in pairs]
    length = max(map(len, prompts))
    settings = DecodeSettings(
        max_new_tokens=config.max_new_tokens,
        stop_ids=base.tokenizer.stop_ids,
        forbidden_ids=tuple(range(base.tokenizer.vocab_size, base.config.vocab_size)),
    )
    lora = dataclasses.replace(config.lora, dropout=0.0)

    def write(trainable: PyTree, frozen: PyTree, batch: Prompts, rng: Array) -> Generated:
        variables = model_variables(trainable, frozen, lora)
        keys = jax.random.split(rng, len(batch.mask))
        return decode(qwen2_decoder(base.config), variables, batch, keys, settings)

    def text(tokens: list[int]) -> str:
        return clean_report(base.tokenizer.decode([token for token in tokens if token not in base.tokenizer.stop_ids]))

    return report_evaluations(
        config,
        layout,
        frozen,
        write,
        lambda batch: jax.device_get(padded([prompts[number] for (number,) in batch.rows], length, left=True)),
        text,
        [pair.target for pair in pairs],
        layout.row_shards * config.micro_batch,
        keep,
    )


def live(config: RetstaConfig, run_dir: Path, pairs: Sequence[ReportPair]) -> Live:
    """The page of the training, with validation pairs."""
    form = scored_as(config.data)

    def find(numbers: Sequence[int], outputs: Sequence[str]) -> list[Marks]:
        own = [pairs[number] for number in numbers]
        terms = load_terminology(config.data.terminology or SHIPPED)
        return report_marks([pair.target for pair in own], outputs, [pair.language for pair in own], form, terms)

    def reference(number: int) -> Reference:
        pair = pairs[number]
        return Reference(pair.id, pair.target, pair.language, pair.source)

    return live_page(run_dir, f"RetSTA: {config.data.corpus} reports", reference, find)


@owning_run_directory
def train_run(config: RetstaConfig, run_dir: Path) -> PyTree:
    """Train, or continue, the run in `run_dir`, and export its best weights there. Returns them.

    Raises UserError for bad input before anything is written.
    """
    check_config(config)
    layout = make_device_layout(config.parallel, config.mesh)
    accumulate = accumulation(config.batch_size, config.micro_batch, layout)
    quarantine = Quarantine()
    splits = load_splits(config, quarantine)
    pairs = augmented(config, splits)
    stage(f"reading the base model {base_directory(config)}")
    base = load_base(config, layout)
    encode = functools.partial(encode_pairs, base.tokenizer, config.instruction)
    examples = encode_examples(encode(pairs), config.max_length, quarantine)
    held_out = encode_examples(encode(splits.validation), config.max_length, quarantine)
    lengths = {config.max_length} if config.packing else {*config.buckets, config.max_length}
    rows = [Shape(length, length, base.config.head_dim, base.config.dtype) for length in lengths]
    attention = attention_lines([Use("language", "rows", rows)], config.model.attention)

    @functools.cache
    def data_line() -> str:
        counts = {"train": len(examples), "validation": len(held_out), "test": len(splits.test)}
        unknown = unknown_share(base.tokenizer, (example.tokens.tolist() for example in (*examples, *held_out)))
        new = len(pairs) - len(splits.train)
        notes = [f"{new:,} of train made by augmentation of {len(splits.train):,}"] if new else []
        return splits_line(config, counts, quarantine, unknown, notes)

    def announce() -> None:
        say_data(data_line())
        say_attention(attention)

    trainable, frozen = initial_trees(config, base, layout)
    page = live(config, run_dir, splits.validation)
    options: dict[str, Any] = {"lora": config.lora, "chunk": config.model.loss_chunk, "packed": config.packing}
    loss = functools.partial(sft_loss, config=base.config, **options)
    training = supervised(
        config,
        layout,
        functools.partial(loss, loss=named_loss(config.loss)),
        trainable,
        frozen,
        plan=plan_epochs(
            [len(example.tokens) for example in examples],
            batch_rows=config.batch_size,
            epochs=config.epochs,
            max_length=config.max_length,
            packing=config.packing,
            buckets=config.buckets,
            seed=config.seed,
        ),
        to_batch=text_batches(examples, base.tokenizer.pad_id),
        validation=functools.partial(
            evaluation_batches,
            held_out,
            base.tokenizer.pad_id,
            batch_rows=layout.row_shards * config.micro_batch,
            buckets=[*[size for size in config.buckets if size < config.max_length], config.max_length],
            **this_process(),
        ),
        validation_loss=loss,
        max_steps=config.max_steps,
        accumulate=accumulate,
        evaluations=written_reports(config, layout, base, frozen, splits.validation, page.keep),
        watch=page.watch,
        base=base_weights(base.directory),
        learns_from=([pair.id, pair.source, pair.target] for pair in (*pairs, *splits.validation)),
        announce=announce,
        quarantine=quarantine,
        rules=SHARDING_RULES,
        flops=lambda batch, _: sft_flops(base.config, config.lora if frozen else None, batch),
    )
    best = run_training(config, run_dir, layout, training)
    results = results_in(run_dir)
    export(config, base, best, run_dir)
    card = ModelCard(
        f"RetSTA: {config.data.corpus} reports in standard form",
        training.base,
        data_line(),
        training_of("retsta train", PRESETS, config, NEEDS),
        languages=sorted({pair.language for pair in pairs}),
        tags=("medical", "report-standardization"),
    )
    write_cards(run_dir, card, results)
    targets = ([*base.tokenizer.encode(pair.target), base.tokenizer.eos_id] for pair in pairs)
    if jax.process_index() == 0:
        save_table(run_dir, list(targets), base.tokenizer)
    return best
