"""Standardizing reports with a trained model: the likeliest answer to each, on all devices of this process."""

import dataclasses
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from common.config import read_config
from common.data.cleaning import clean_report
from common.data.tokenizers import Tokenizer
from common.errors import UserError
from common.generation.draft_option import Draft
from common.generation.draft_sources import DRAFT_TOKENS, draft_sources, load_table
from common.generation.drafts import Table
from common.generation.generate import BATCHES_AT_ONCE, generate_rows, qwen2_slots
from common.generation.memory import halved, slot_memory, without_drafts
from common.generation.processes import in_parts, over_processes
from common.generation.settings import DecodeSettings
from common.io.fingerprints import DIGITS, fingerprint, model_record
from common.io.finite import check_finite, precision_remedy
from common.io.locks import warn_of_writer
from common.training.checkpoint import has_checkpoints, open_checkpoints, restore_trainable
from common.training.parallel import DeviceLayout, MeshConfig, all_row_shards, generation_layout
from common.training.run import base_weights
from common.training.sft import model_variables
from common.types import PyTree
from retsta_jax.config import RetstaConfig
from retsta_jax.expected import expected_texts
from retsta_jax.prompts import prompt_tokens
from retsta_jax.readable import PromptEncoder
from retsta_jax.terminology.check import load_terminology
from retsta_jax.terminology.terms import SHIPPED
from retsta_jax.train import Base, base_directory, initial_trees, load_base


class Trained(NamedTuple):
    """A run whose best weights have been read; `frozen` is empty where the whole model was trained."""

    config: RetstaConfig
    base: Base
    trainable: PyTree
    frozen: PyTree
    step: int
    layout: DeviceLayout

    @property
    def encoder(self) -> PromptEncoder:
        """What makes its prompts."""
        return PromptEncoder(self.config, self.base.directory, self.base.tokenizer)

    @property
    def variables(self) -> PyTree:
        """The trained model, as `Qwen2.apply` takes it."""
        return model_variables(self.trainable, self.frozen, dataclasses.replace(self.config.lora, dropout=0.0))

    @property
    def untrained(self) -> PyTree:
        """The model before training, in the shape of the trained one: its adapters, if any, are zero."""
        if not self.frozen:
            return {"params": self.base.params}
        return model_variables(jax.tree.map(jnp.zeros_like, self.trainable), self.frozen, self.config.lora)


class Standardized(NamedTuple):
    """A report in standard form; `complete` is false where it ran into the limit on new tokens."""

    text: str
    complete: bool
    tokens: int = 0
    drafted: int = 0  # tokens that were drafts; the others took a pass each


def config_of_trained(run_dir: Path) -> RetstaConfig:
    """The config of a run directory that holds weights. Raises UserError where there are none."""
    config = read_config(RetstaConfig, run_dir)
    if not has_checkpoints(run_dir):
        raise UserError(f"{run_dir}: contains no checkpoint; train first")
    return config


def load_trained(run_dir: Path, mesh: MeshConfig | None = None) -> Trained:
    """The best weights of a run directory, whole on each device of this process, or split over them as `mesh` says.

    Raises UserError where they are missing or do not fit.
    """
    config = dataclasses.replace(config_of_trained(run_dir), parallel="jit")
    # This machine may not have the attention of the one that trained.
    config = dataclasses.replace(config, model=dataclasses.replace(config.model, attention="auto"))
    warn_of_writer(run_dir)
    layout = generation_layout(mesh, devices=jax.local_devices())
    base = load_base(config, layout)
    start, frozen = initial_trees(config, base, layout)
    checkpoints = open_checkpoints(run_dir, base_weights(base_directory(config)).note(), config)
    step, trainable = restore_trainable(checkpoints, start)
    checkpoints.close()
    return Trained(config, base, trainable, frozen, step, layout)


def standardize(
    trained: Trained,
    variables: PyTree,
    reports: Sequence[str],
    batch_size: int = 32,
    ids: Sequence[object] | None = None,
    draft: Draft = "auto",
    table: Table | None = None,
    *,
    together: bool = False,
) -> Iterator[Standardized]:
    """The standard form of each report, in order, some batches at a time, with white space as in training targets.

    `draft` and `table` (`draft_table`) change the time it takes. With several processes, each has reports of its own;
    those that work `together` have the same ones, must all exhaust it, and each writes a share. Raises UserError naming
    a report whose logits are not finite, by its entry in `ids` or by its number from 1.
    """
    sources = draft_sources(draft)
    terms = load_terminology(trained.config.data.terminology or SHIPPED)
    ids = range(1, len(reports) + 1) if ids is None else ids
    remedy = precision_remedy(trained.base.config.dtype)
    tokenizer: Tokenizer = trained.base.tokenizer
    settings = decode_settings(trained, DRAFT_TOKENS if sources else 0)
    layout, rows = trained.layout, range(len(reports))
    parts = all_row_shards(layout) if together else layout.row_shards
    count = max(min(batch_size, -(-len(reports) // parts)), 1)
    slots = qwen2_slots(trained.base.config, settings, count, layout)
    at_once = count * layout.row_shards

    def written(numbers: Sequence[int]) -> Iterator[list[Any]]:
        for part in in_parts(numbers, at_once * BATCHES_AT_ONCE):
            texts = [clean_report(reports[number]) for number in part]
            prompts = [prompt_tokens(tokenizer, trained.config.instruction, text) for text in texts]
            expected = (expected_texts(reports[number], terms) for number in part if "prompt" in sources)
            references = [[tokenizer.encode(text) for text in texts] for texts in expected] or None
            own = table if "reports" in sources else None
            for (found,) in generate_rows(slots, variables, prompts, part, references=references, table=own):
                tokens = found.token_ids[:-1] if found.stopped else found.token_ids
                text = clean_report(tokenizer.decode(tokens)) if found.finite else ""
                yield [found.finite, text, found.stopped, len(found.token_ids), sum(found.drafted)]

    results = over_processes(rows, written, at_once, layout) if together else written(rows)
    with slot_memory(halved("--batch-size", batch_size, used=count), without_drafts(settings.drafts)):
        for id_, (finite, *written_of_row) in zip(ids, results, strict=True):
            check_finite([finite], [id_], "the model's logits", remedy)
            yield Standardized(*written_of_row)


def decode_settings(trained: Trained, drafts: int = 0) -> DecodeSettings:
    """Greedy decoding with the tokens of the tokenizer."""
    tokenizer: Tokenizer = trained.base.tokenizer
    return DecodeSettings(
        max_new_tokens=trained.config.max_new_tokens,
        stop_ids=tokenizer.stop_ids,
        forbidden_ids=tuple(range(tokenizer.vocab_size, trained.base.config.vocab_size)),
        drafts=drafts,
    )


def draft_table(trained: Trained, run_dir: Path, draft: Draft) -> Table | None:
    """The table of a run's training targets, where `draft` asks for it. Raises UserError where it is unusable."""
    if "reports" not in draft_sources(draft):
        return None
    return load_table(run_dir, trained.base.tokenizer, trained.base.config.vocab_size)


def made_with(trained: Trained) -> dict[str, Any]:
    """What decides the standard form of a report, by content."""
    config = trained.config
    adapters = {name: value for name, value in dataclasses.asdict(config.lora).items() if name != "dropout"}
    return {
        "trained": fingerprint(trained.trainable)[:DIGITS],
        "base": model_record(trained.base.directory),
        "lora": adapters if trained.frozen else None,
        **{name: getattr(config.model, name) for name in ("tuning", "dtype", "param_dtype")},
        **{name: getattr(config, name) for name in ("instruction", "max_new_tokens")},
    }
