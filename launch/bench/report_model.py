"""The set-up of `medreport bench slots` and `medreport bench speculation`: a small Qwen2 that has learned to write the
reports of the Open-i collection from their indications, for it is templates that these benchmarks are about.

It is trained once, by this project's own loss and step, and stays in a directory as a Hugging Face checkpoint, which
the peer loads too. The texts are those of patients: nothing here prints any.
"""

import dataclasses
import functools
import hashlib
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any, Literal, NamedTuple

import jax
import numpy as np

from common.bounds import Count, Positive, Within, check_numbers
from common.errors import UserError
from common.generation.drafts import Table
from common.generation.ngrams import build_table
from common.models.lora import LoraConfig
from common.models.qwen2 import Qwen2Config, init_params
from common.types import PyTree
from launch.bench.rl_policy import decoder_config

END, PAD = "<|im_end|>", "<|endoftext|>"
MADE_WITH = "bench.json"  # what decides the weights
TRAINING = ("hidden", "layers", "heads", "kv_heads", "intermediate", "vocabulary", "epochs", "rows", "length",
            "learning_rate", "studies")  # fmt: skip


@dataclasses.dataclass(frozen=True)
class Shape:
    """What is measured. The default model is trained in a few minutes of two cores."""

    hidden: Count = 256
    layers: Count = 4
    heads: Count = 4
    kv_heads: Count = 2
    intermediate: Count = 704
    vocabulary: Annotated[int, Within(300, 1 << 18)] = 4096
    dtype: Literal["float32", "bfloat16"] = "float32"
    remat: Literal["none", "dots", "full"] = "none"
    epochs: Count = 4
    rows: Count = 4  # of a training batch, packed
    length: Count = 384  # of a row; longer reports are left out
    learning_rate: Positive = 1e-3
    studies: Count = 512  # held out, whose reports are written
    new_tokens: Count = 256
    batch: Count = 32  # of the static batches
    slots: Count = 16
    drafts: tuple[int, ...] = (2, 4, 8)  # tokens proposed at a time, each measured
    single: Count = 64  # of the studies, written one at a time
    prompts: Count = 8  # of the rollouts
    group: Count = 8  # rollouts of each prompt
    repetitions: Count = 2


class ReportModel(NamedTuple):
    """A trained model, and what it is measured with."""

    config: Qwen2Config
    params: PyTree
    stop_id: int
    pad_id: int
    prompts: list[list[int]]  # of the held-out studies
    written_by_people: list[list[int]]  # the reports of the training studies with the token that ends them
    table: Table  # of these


class Pair(NamedTuple):
    """What a study is asked for with, and its report."""

    id: str
    prompt: str
    report: str


def report_model(shape: Shape, reports: Path, directory: Path) -> ReportModel:
    """The model in `directory`, trained there first where it is not. Raises UserError."""
    from tokenizers import Tokenizer

    from common.models.qwen2_weights import load_qwen2

    check_numbers(shape)
    training, held_out = split_pairs(read_pairs(reports), shape.studies)
    _check_heads(shape)
    made_with = {name: getattr(shape, name) for name in TRAINING}
    made_with["reports"] = hashlib.sha256(repr((training, held_out)).encode()).hexdigest()
    if directory.exists():
        _check_made_with(directory, made_with)
    else:
        _train(shape, training, directory, made_with)
    tokenizer = Tokenizer.from_file(str(directory / "tokenizer.json"))
    config, params = load_qwen2(directory, dtype=shape.dtype, param_dtype=shape.dtype)
    stop_id, pad_id = _id(tokenizer, END), _id(tokenizer, PAD)
    written = [[*_encode(tokenizer, pair.report), stop_id] for pair in training]
    table = build_table(written)
    assert table is not None
    prompts = [_encode(tokenizer, pair.prompt) for pair in held_out]
    return ReportModel(config, params, stop_id, pad_id, prompts, written, table)


def read_pairs(reports: Path) -> list[Pair]:
    """The studies of an Open-i archive or directory that have all of indication, findings and impression."""
    from common.data.openi import read_openi

    pairs = [
        Pair(
            study.id,
            f"INDICATION: {study.indication}\nFINDINGS:",
            f" {study.findings}\nIMPRESSION: {study.impression}",
        )
        for study in read_openi(reports)
        if study.indication and study.findings and study.impression
    ]
    if not pairs:
        raise UserError(f"--reports: {reports} has no report with INDICATION, FINDINGS and IMPRESSION")
    return pairs


def split_pairs(pairs: Sequence[Pair], studies: int) -> tuple[list[Pair], list[Pair]]:
    """Training and held-out pairs; the `studies` held out are those whose hash is smallest."""
    if studies >= len(pairs):
        raise UserError(f"--studies: found {studies}, expected fewer than the {len(pairs)} whole reports")
    order = sorted(pairs, key=lambda pair: hashlib.sha256(pair.id.encode()).digest())
    held_out = {pair.id for pair in order[:studies]}
    return [pair for pair in pairs if pair.id not in held_out], order[:studies]


def _check_heads(shape: Shape) -> None:
    if shape.hidden % (2 * shape.heads):
        raise UserError(f"--hidden: expected an even multiple of --heads {shape.heads}")
    if shape.heads % shape.kv_heads:
        raise UserError(f"--heads: expected a multiple of --kv-heads {shape.kv_heads}")


def _check_made_with(directory: Path, made_with: dict[str, Any]) -> None:
    from common.io.text import read_json_object

    if not (directory / MADE_WITH).is_file():
        raise UserError(f"--directory: {directory} is not a model of this benchmark; name one that does not exist")
    found = read_json_object(directory / MADE_WITH)
    differing = [name for name, value in made_with.items() if found.get(name) != value]
    if differing:
        raise UserError(
            f"--directory: the model in {directory} was trained with another --{differing[0].replace('_', '-')}; "
            "name one that does not exist"
        )


def _train(shape: Shape, pairs: Sequence[Pair], directory: Path, made_with: dict[str, Any]) -> None:
    """Train tokenizer and model, and write `directory`, whole or not at all."""
    from common.io.text import json_text
    from common.models.qwen2_weights import save_qwen2

    started = time.perf_counter()
    tokenizer = _train_tokenizer([pair.prompt + pair.report for pair in pairs], shape.vocabulary)
    stop_id, pad_id = _id(tokenizer, END), _id(tokenizer, PAD)
    config = decoder_config(dataclasses.replace(shape, dtype="float32"))
    encoded = [
        (pair.id, _encode(tokenizer, pair.prompt), [*_encode(tokenizer, pair.report), stop_id]) for pair in pairs
    ]
    params = train(shape, config, encoded, pad_id)
    ends = {"eos_token_id": stop_id, "pad_token_id": pad_id}
    made_with = {**made_with, "seconds": round(time.perf_counter() - started)}
    files = {
        "tokenizer.json": tokenizer.to_str(pretty=True),
        "generation_config.json": json_text(ends, directory, 2) + "\n",
        MADE_WITH: json_text(made_with, directory, 2) + "\n",
    }
    save_qwen2(directory, config, params, files=files)


def train(
    shape: Shape, config: Qwen2Config, encoded: Sequence[tuple[str, list[int], list[int]]], pad_id: int
) -> PyTree:
    """Parameters after `epochs` epochs over (id, prompt, report), from random ones. Says how far it is."""
    from common.data.encode import encode_examples
    from common.data.packing import assemble, plan_epochs
    from common.data.records import Quarantine
    from common.training.optim import OptimConfig, make_optimizer
    from common.training.parallel import MeshConfig, compile_step, device_put_tree, make_device_layout, place_batch
    from common.training.sft import sft_loss
    from common.training.step import init_state, make_train_step

    examples = encode_examples(encoded, shape.length, Quarantine())
    plan = plan_epochs(
        [len(example.tokens) for example in examples],
        batch_rows=shape.rows,
        epochs=shape.epochs,
        max_length=shape.length,
        packing=True,
    )
    layout = make_device_layout("jit", MeshConfig())
    loss = functools.partial(sft_loss, config=config, lora=LoraConfig(dropout=0.0), chunk=shape.length)
    tx = make_optimizer(OptimConfig(learning_rate=shape.learning_rate), len(plan))
    state = device_put_tree(init_state(init_params(config, jax.random.key(0)), tx), layout)
    step = compile_step(lambda axis: make_train_step(loss, tx, 1, axis), layout)
    rng = device_put_tree(jax.random.key(1), layout)
    started = time.perf_counter()
    for number, batch in enumerate(plan.batches, start=1):
        state, metrics = step(state, {}, place_batch(assemble(batch.rows, examples, batch.length, pad_id), layout), rng)
        if number % 100 == 0 or number == len(plan):
            seconds = time.perf_counter() - started
            print(f"trained {number} of {len(plan)} updates, {seconds:.0f} s", file=sys.stderr, flush=True)
        jax.block_until_ready(metrics)
    return state.trainable


def _train_tokenizer(texts: Sequence[str], size: int) -> Any:
    """Byte-level BPE as Qwen2's."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

    tokenizer: Any = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        vocab_size=size, special_tokens=[PAD, END], initial_alphabet=alphabet, show_progress=False
    )
    tokenizer.train_from_iterator(texts, trainer)
    return tokenizer


def _encode(tokenizer: Any, text: str) -> list[int]:
    return tokenizer.encode(text, add_special_tokens=False).ids


def _id(tokenizer: Any, token: str) -> int:
    found = tokenizer.token_to_id(token)
    if found is None:
        raise UserError(f"--directory: its tokenizer has no {token}; name one that does not exist")
    return found


def lengths(rows: Sequence[Sequence[int]]) -> dict[str, float]:
    """Mean and longest, in tokens."""
    counts = np.array([len(row) for row in rows])
    return {"mean": float(counts.mean()), "longest": int(counts.max())}
