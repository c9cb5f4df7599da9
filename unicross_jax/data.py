"""From studies to batches: the splits of a data set, the tokens of its reports, its images as CLIP sees them."""

import dataclasses
import functools
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from jaxtyping import Int32, UInt8

from common.data.cleaning import CLEANING, chosen_cleaning, r2gen_clean_iu
from common.data.clip_tokenizer import CanEncode, token_rows
from common.data.images import Pixels, augment, resize_crop, resize_shorter
from common.data.packing import GlobalBatch
from common.data.readers import ImageStudy
from common.data.records import Quarantine
from common.data.splits import Split, load_splits
from common.data.summary import unknown_share
from common.data.tokenizers import WordTokenizer
from common.data.vocabulary import Corpus, merged_vocabulary
from unicross_jax.config import DataConfig, VocabularyConfig
from unicross_jax.model import ReportBatch, Studies

CONDITION_TOKENS = 32  # of the text known before the report

Square = UInt8[np.ndarray, "side side *rgb"]


def read_splits(config: DataConfig, quarantine: Quarantine) -> dict[str, Split]:
    """The splits of the data set, their images as large as `resize` says. Raises UserError."""
    shrink = functools.partial(resize_shorter, size=config.resize)
    return load_splits(config, config.resize, shrink, quarantine, colour=config.colour)


@dataclasses.dataclass(frozen=True, eq=False)
class Example:
    """What a batch needs of a study beside its images."""

    id: str
    tokens: Int32[np.ndarray, " n"]  # start, report, end
    condition: Int32[np.ndarray, " C"]
    condition_end: int


def build_vocabulary(config: VocabularyConfig, reports: Sequence[str]) -> WordTokenizer:
    """The words of training reports, and of a second corpus where one is named. Raises UserError."""
    corpora = [Corpus(reports, config.minimum_count)]
    if config.merged_with:
        # Of the second corpus only the texts are used: its images need not be there.
        texts = annotation_reports(config.merged_with)
        cleaning = CLEANING[chosen_cleaning(config.merged_cleaning, "annotation", texts)]
        corpora.append(Corpus([cleaning(text) for text in texts.values()], config.merged_minimum_count))
    return merged_vocabulary(*corpora)


def annotation_reports(annotation: str) -> dict[str, str]:
    """The training reports of R2Gen's annotation.json by id. Raises UserError for a file of another form."""
    from common.data.readers import annotation_entries

    entries = annotation_entries(annotation, {"id": str | int, "report": str})["train"]
    return {str(entry["id"]): entry["report"] for entry in entries}


def encode_studies(
    studies: Sequence[ImageStudy],
    report_tokenizer: CanEncode,
    clip_tokenizer: CanEncode,
    *,
    prompt: str,
    max_length: int,
    condition_length: int,
) -> tuple[list[Example], int]:
    """Examples, and how many reports were cut because they have more than `max_length` tokens, start and end included.

    A report that is cut has no end token: it would teach to stop too early.
    """
    known = [study.indication or prompt for study in studies]
    if isinstance(clip_tokenizer, WordTokenizer):  # whose words are lower case, without full stops
        known = [r2gen_clean_iu(text).removesuffix(" .") for text in known]
    conditions, ends = token_rows(clip_tokenizer, known, condition_length)
    conditions = conditions[:, : -(-int(ends.max() + 1) // 8) * 8]  # short indications cost what they are
    examples, cut = [], 0
    for study, condition, end in zip(studies, conditions, ends, strict=True):
        tokens = [report_tokenizer.bos_id, *report_tokenizer.encode(study.report), report_tokenizer.eos_id]
        cut += len(tokens) > max_length
        examples.append(Example(study.id, np.array(tokens[:max_length], np.int32), condition, int(end)))
    return examples, cut


def unknown_words(tokenizer: CanEncode, examples: Sequence[Example]) -> float | None:
    """The share of words in reports that a word vocabulary lacks; None of CLIP's pieces, which write all text."""
    return unknown_share(tokenizer, (example.tokens.tolist() for example in examples))


def training_view(config: DataConfig, side: int, seed: int) -> Callable[[Pixels, int, int, int], Square]:
    """A random view of an image: a function of the seed and its (epoch, study, view), whoever computes it."""

    def view(image: Pixels, *key: int) -> Square:
        rng = np.random.default_rng([seed, *key])
        return augment(
            image,
            rng,
            resize=config.resize,
            crop=side,
            degrees=config.degrees,
            brightness=config.brightness,
            mirror=config.mirror,
        )

    return view


def evaluation_crop(config: DataConfig, side: int) -> Callable[..., Square]:
    """The middle of an image, for evaluation."""
    return lambda image, *key: resize_crop(image, config.resize, side)


def report_batch(
    batch: GlobalBatch,
    examples: Sequence[Example],
    images: Sequence[tuple[Pixels, ...]],
    view: Callable[..., Square],
    *,
    side: int,
    views: int,
    pad_id: int,
    colour: bool = False,
) -> ReportBatch:
    """The arrays of some rows of a batch; a row without a study has no view and no token that counts."""
    rows = len(batch.rows)
    tokens = np.full((rows, batch.length + 1), pad_id, np.int32)
    weights = np.zeros((rows, batch.length), np.float32)
    for row, members in enumerate(batch.rows):
        for index in members:
            found = examples[index].tokens
            tokens[row, : len(found)] = found
            weights[row, : len(found) - 1] = 1
    studies = stack_studies(
        batch.rows, examples, images, view, side=side, views=views, epoch=batch.epoch, colour=colour
    )
    arrays: tuple[Any, ...] = (tokens[:, :-1], tokens[:, 1:], weights)  # numpy until placed on devices
    return ReportBatch(studies, *arrays)


def stack_studies(
    rows: Sequence[Sequence[int]],
    examples: Sequence[Example],
    images: Sequence[tuple[Pixels, ...]],
    view: Callable[..., Square],
    *,
    side: int,
    views: int,
    epoch: int = 0,
    colour: bool = False,
) -> Studies:
    """The images and conditions of rows of at most one study, as numpy; images have three channels with `colour`."""
    stacked = np.zeros((len(rows), views, side, side, *[3] * colour), np.uint8)
    mask = np.zeros((len(rows), views), bool)
    conditions = np.zeros((len(rows), len(examples[0].condition)), np.int32)
    ends = np.zeros(len(rows), np.int32)
    for row, members in enumerate(rows):
        for index in members:
            for number, image in enumerate(images[index]):
                stacked[row, number] = view(image, epoch, index, number)
                mask[row, number] = True
            conditions[row], ends[row] = examples[index].condition, examples[index].condition_end
    arrays: tuple[Any, ...] = (stacked, mask, conditions, ends)
    return Studies(*arrays)
