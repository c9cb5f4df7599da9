"""Reports for images with a trained model, and where it looked as it wrote each word."""

import dataclasses
import functools
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np
from jaxtyping import Array, Float, Int

from common.data.cleaning import clean_report
from common.data.images import Pixels
from common.errors import UserError
from common.generation.draft_option import Draft
from common.generation.draft_sources import DRAFT_TOKENS, TABLE_FILE, draft_sources, load_table
from common.generation.drafts import Table
from common.generation.generate import PROGRAMS, continuations
from common.generation.processes import over_processes
from common.generation.slots import Request, in_order, run_slots
from common.io.finite import check_finite, precision_remedy
from common.training.parallel import all_row_shards, device_put_tree, generation_layout
from common.types import PyTree
from unicross_jax.backbone import (
    ReportTokenizer,
    decode_settings,
    without_dropout,
)
from unicross_jax.data import Example, evaluation_crop, stack_studies
from unicross_jax.generate import report_slots
from unicross_jax.model import Net, Studies, UniCrossConfig, decoder_inputs, part_modules
from unicross_jax.trained import Trained

LENGTHS = 16  # tokens; reports whose attention is read are padded to a multiple of it


class Written(NamedTuple):
    """A generated report; `complete` is false where it ran into the limit on tokens."""

    text: str
    token_ids: list[int]
    complete: bool


def generate_reports(
    trained: Trained,
    examples: Sequence[Example],
    images: Sequence[tuple[Pixels, ...]],
    *,
    batch_size: int = 32,
    ids: Sequence[object] | None = None,
    table: Table | None = None,
) -> Iterator[Written]:
    """A report for each study, in order. A table of drafts speeds up greedy ones, except with `published` conditioning.

    Under several processes all must exhaust it; each writes the reports of a share of the studies. Raises UserError
    naming a study whose logits are not finite, by its entry in `ids` or by its number from 1.
    """
    task, tokenizer = trained.task, trained.task.tokenizer
    settings = decode_settings(trained.config, tokenizer)
    if table is not None and settings.beams == 1 and trained.config.model.conditioning == "causal":
        settings = dataclasses.replace(settings, drafts=DRAFT_TOKENS)
    ids = range(1, len(examples) + 1) if ids is None else ids
    remedy = precision_remedy(trained.config.model.dtype)
    layout = generation_layout()
    count = max(min(batch_size, -(-len(examples) // all_row_shards(layout))), 1)
    slots = report_slots(without_dropout(task.model), settings, tokenizer.bos_id, count, layout)
    weights = device_put_tree((trained.trainable, task.frozen), layout)
    views = max([trained.config.data.views, *map(len, images)])

    def queue(rows: Sequence[int]) -> Iterator[Request]:
        for row in rows:
            study = studies_of(trained, examples, images, [row], 1, views)
            yield Request(np.int32(row), jax.tree.map(lambda leaf: np.asarray(leaf)[0], study))

    def written(rows: Sequence[int]) -> Iterator[list[Any]]:
        for found in in_order(run_slots(slots, weights, queue(rows), table=table)):
            (report,) = continuations(found)
            yield [report.finite, report.token_ids]

    rows = range(len(examples))
    for row, (finite, own) in zip(rows, over_processes(rows, written, count * layout.row_shards, layout), strict=True):
        check_finite([finite], ids[row : row + 1], "the model's logits", remedy)
        complete = bool(own) and own[-1] == tokenizer.eos_id
        own = own[:-1] if complete else own
        yield Written(clean_report(tokenizer.decode(own)), own, complete)


def draft_table(trained: Trained, run_dir: Path, draft: Draft) -> Table | None:
    """The table of a run's training reports, where `draft` asks for it and reports are written greedily.

    The table of an exported model is in the run directory that contains the model.

    Raises UserError where it is unusable, and where `draft` asks for drafts although reports are written with beams.
    """
    if trained.config.beams > 1:
        if draft == "reports":
            raise UserError("--draft reports: beam search takes no drafts; give --draft none")
        return None
    if "reports" not in draft_sources(draft):
        return None
    tokenizer = trained.task.tokenizer
    around = run_dir.absolute().parent
    where = around if not (run_dir / TABLE_FILE).exists() and (around / TABLE_FILE).exists() else run_dir
    return load_table(where, tokenizer, trained.task.model.vocabulary)


def studies_of(
    trained: Trained,
    examples: Sequence[Example],
    images: Sequence[tuple[Pixels, ...]],
    indices: Sequence[int],
    rows: int,
    views: int | None = None,
) -> Studies:
    """The studies at some indices as a batch of `rows`, the rest of them empty; as many views as they need."""
    config = trained.config.data
    side = trained.task.model.clip.image_size
    chosen = [*([index] for index in indices), *([] for _ in range(rows - len(indices)))]
    views = views or max(config.views, *(len(images[index]) for index in indices))
    view = evaluation_crop(config, side)
    return stack_studies(chosen, examples, images, view, side=side, views=views, colour=config.colour)


def attention_of(
    trained: Trained,
    examples: Sequence[Example],
    images: Sequence[tuple[Pixels, ...]],
    written: Sequence[Written],
    batch_size: int = 32,
    ids: Sequence[object] | None = None,
) -> list[list[tuple[str, Float[np.ndarray, "V h w"]]]]:
    """For each study the words of its report, and how much the model looked at each position of each view for them.

    The decoder's attention to the images as it wrote the word, a mean over layers and heads and over the pieces of a
    word; the class token's share is left out. Under `published` the images see the report, so that each token has a
    pass of its own over what came before it. Raises UserError where it is not finite, as `generate_reports` does.
    """
    ids = range(1, len(written) + 1) if ids is None else ids
    tokenizer, grid = trained.task.tokenizer, trained.task.model.clip.image_size // 16
    longest = max(1, *(len(report.token_ids) for report in written))
    if trained.config.model.conditioning == "causal":  # few programs; otherwise each token takes a pass
        longest = max(longest, min(-(-longest // LENGTHS) * LENGTHS, trained.config.max_length - 1))
    rows = min(batch_size, len(written))
    remedy = precision_remedy(trained.config.model.dtype)
    program = _memory_attention(without_dropout(trained.task.model))
    found = []
    for start in range(0, len(written), rows):
        chosen = range(start, min(start + rows, len(written)))
        studies = studies_of(trained, examples, images, chosen, rows)
        tokens = np.full((rows, longest), tokenizer.pad_id, np.int32)
        tokens[:, 0] = tokenizer.bos_id
        reports = [written[number] for number in chosen]
        for row, report in enumerate(reports):
            tokens[row, 1 : len(report.token_ids)] = report.token_ids[:-1]
        weights = program(trained.trainable, trained.task.frozen, studies, tokens)
        maps = weights.reshape(*weights.shape[:2], -1, grid, grid)
        for row, report in enumerate(reports):
            views = np.asarray(studies.view_mask[row])
            words = words_of(tokenizer, report)
            seen = maps[row, : len(report.token_ids)]
            check_finite([np.isfinite(seen).all()], ids[start + row : start + row + 1], "the attention weights", remedy)
            found.append([(word, maps[row, first:end].mean(0)[views]) for word, first, end in words])
    return found


def words_of(tokenizer: ReportTokenizer, report: Written) -> Iterator[tuple[str, int, int]]:
    """The words of a report, each with the range of its tokens. A token continues a word unless a space parts them."""
    start, before = 0, ""
    for number in range(len(report.token_ids)):
        after = tokenizer.decode(report.token_ids[: number + 2])
        now = tokenizer.decode(report.token_ids[: number + 1])
        ends = number + 1 == len(report.token_ids) or after[len(now) :].startswith(" ")
        if ends:
            if word := now[len(before) :].strip():
                yield word, start, number + 1
            start, before = number + 1, now


@functools.lru_cache(maxsize=PROGRAMS)
def _memory_attention(config: UniCrossConfig) -> Callable[..., Float[np.ndarray, "B T V*N"]]:
    """The decoder's attention to each position of the images, for trainable and frozen trees, studies and tokens."""

    @jax.jit
    def read(trainable: PyTree, frozen: PyTree, studies: Studies, tokens: Array, mask: Array) -> Array:
        inputs = decoder_inputs(Net(trainable, frozen, config), studies, tokens, mask)
        variables = {"params": trainable["decoder"]}
        _, seen = part_modules(config)["decoder"].apply(variables, *inputs, mutable=["intermediates"])
        (weights,) = seen["intermediates"]["layers"]["cross_attention"]["weights"]  # [L B H T M]
        return weights.mean((0, 2))[..., 1:]

    def run(trainable: PyTree, frozen: PyTree, studies: Studies, tokens: Int[np.ndarray, "B T"]) -> np.ndarray:
        inputs = trainable, frozen, studies, tokens
        if config.conditioning == "causal":
            return np.asarray(read(*inputs, np.ones(tokens.shape, bool)))
        positions = np.arange(tokens.shape[1])
        prefixes = (np.broadcast_to(positions <= last, tokens.shape) for last in positions)
        return np.stack([np.asarray(read(*inputs, mask))[:, i] for i, mask in enumerate(prefixes)], axis=1)

    return run
