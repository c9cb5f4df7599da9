"""From studies to input arrays of Qwen2.5-VL: images at one size, prompts, and target reports."""

import functools
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import flax.struct
import numpy as np
from jaxtyping import Array, Float, Int, UInt8

from common.data.images import GreyImage
from common.data.packing import GlobalBatch
from common.data.qwen_images import resize
from common.data.records import Quarantine
from common.data.splits import PreparedImages, Split, load_splits
from common.data.summary import Cut, study_line
from common.data.tokenizers import Tokenizer
from common.errors import UserError
from common.models.qwen2_vl import Qwen2VLConfig, StudyRows
from common.models.qwen2_vl_layout import Grid, expand_images, study_rows
from common.models.qwen2_vl_vision import VisionConfig
from deer_jax.config import DataConfig
from deer_jax.select import read_ids

IMAGE_MARKS = "<|vision_start|><|image_pad|><|vision_end|>"
TOKEN_SIZE = VisionConfig().token_size  # of every published model
MULTIPLE = 16  # of the length of prompts, so that few programs are compiled


class StudyPrompts(flax.struct.PyTreeNode):
    """Left-padded prompts and the grey images in them, all of one size; an image that a study lacks is black."""

    rows: StudyRows
    images: UInt8[Array, "B M side side"]


class ReportRows(flax.struct.PyTreeNode):
    """Prompts with their reports, padded on the right, as `common.types.TextBatch` has targets and weights."""

    prompts: StudyPrompts
    targets: Int[Array, "B S"]
    weights: Float[Array, "B S"]

    @property
    def real_tokens(self) -> Int[Array, ""]:
        """Tokens of prompts, images and reports."""
        return self.prompts.rows.mask.sum()


class Encoder(NamedTuple):
    """What turns studies into rows: the model's sizes, its tokenizer, the size of images and the instruction."""

    config: Qwen2VLConfig
    tokenizer: Tokenizer
    side: int
    instruction: str

    @property
    def grid(self) -> Grid:
        """Patches of every image."""
        patches = self.side // self.config.vision.patch_size
        return patches, patches


def read_splits(config: DataConfig, quarantine: Quarantine) -> dict[str, Split]:
    """The splits of the data set, their images as large as `side` says; of the training split what `ids` names.

    Raises UserError.
    """
    if config.side < 1 or config.side % TOKEN_SIZE:
        raise UserError(f"data.side: {config.side} pixels; expected a multiple of {TOKEN_SIZE}, preferably of 112")
    splits = load_splits(config, config.side, functools.partial(resize, side=config.side), quarantine)
    if config.ids and "train" in splits:
        splits["train"] = chosen_split(splits["train"], config.ids)
    return splits


def splits_line(config: DataConfig, splits: Mapping[str, Split], quarantine: Quarantine, cut: Cut | None = None) -> str:
    """The line that names the data of a config and its splits."""
    counts = {name: len(split.studies) for name, split in splits.items()}
    return study_line(config, counts, quarantine, cut=cut, files=[config.ids])


def chosen_split(split: Split, file: str) -> Split:
    """The studies whose ids `deer select` wrote. Raises UserError where the file or one of its ids is not there."""
    try:
        wanted = read_ids(file)
    except UserError as error:
        raise UserError(f"data.ids: {error}") from error
    index_of = {study.id: index for index, study in enumerate(split.studies)}
    if missing := [id_ for id_ in wanted if id_ not in index_of]:
        raise UserError(f"data.ids: {file}: {len(missing)} ids, such as {missing[0]!r}, are not in the training split")
    indices = sorted(index_of[id_] for id_ in wanted)
    return Split([split.studies[index] for index in indices], Chosen(split.images, indices))


class Chosen(Sequence[tuple[GreyImage, ...]]):
    """Some of the images of a split, in an order of their own."""

    def __init__(self, images: Sequence[tuple[GreyImage, ...]], indices: Sequence[int]):
        self.of, self.indices = images, indices

    def __len__(self) -> int:
        return len(self.indices)

    def __getitem__(self, index: Any) -> Any:
        return self.of[self.indices[index]]


def image_count(images: Sequence[tuple[GreyImage, ...]], index: int) -> int:
    """How many images a study has; those that are stored encoded are not decoded for it."""
    if isinstance(images, Chosen):
        return image_count(images.of, images.indices[index])
    return len(images.encoded(index) if isinstance(images, PreparedImages) else images[index])


def prompt_tokens(encoder: Encoder, images: int) -> list[int]:
    """The tokens that ask for the report of a study with so many images."""
    message = {"role": "user", "content": IMAGE_MARKS * images + encoder.instruction}
    row = encoder.tokenizer.chat([message], add_generation_prompt=True)
    return expand_images(encoder.config, row, [encoder.grid] * images)


def prompt_length(encoder: Encoder, views: int) -> int:
    """Columns that hold the prompts of studies with up to `views` images."""
    return -(-len(prompt_tokens(encoder, views)) // MULTIPLE) * MULTIPLE


def report_tokens(encoder: Encoder, report: str, max_length: int) -> tuple[list[int], bool]:
    """The tokens of a report with its end, and whether it was cut, which leaves no end: it would teach to stop."""
    tokens = [*encoder.tokenizer.encode(report), encoder.tokenizer.eos_id]
    return tokens[:max_length], len(tokens) > max_length


def study_prompts(
    studies: Sequence[int], images: Sequence[tuple[GreyImage, ...]], encoder: Encoder, views: int, length: int
) -> StudyPrompts:
    """Prompts of the studies of these numbers, as numpy."""
    own = [images[study][:views] for study in studies]
    rows = [prompt_tokens(encoder, len(views)) for views in own]
    return _with_images(rows, own, encoder, views, length, left=True)


def report_rows(
    batch: GlobalBatch,
    images: Sequence[tuple[GreyImage, ...]],
    reports: Sequence[Sequence[int]],
    encoder: Encoder,
    views: int,
    length: int,
) -> ReportRows:
    """Prompts with reports for a planned batch, `length` columns, as numpy; a row without a study counts nothing."""
    shape = len(batch.rows), length
    targets, weights = np.zeros(shape, np.int32), np.zeros(shape, np.float32)
    rows: list[list[int]] = []
    own: list[tuple[GreyImage, ...]] = []
    for index, row in enumerate(batch.rows):
        study = row[0] if row else 0
        own.append(images[study][:views])
        prompt, report = prompt_tokens(encoder, len(own[-1])), reports[study]
        rows.append([*prompt, *report])
        targets[index, : len(rows[-1]) - 1] = rows[-1][1:]
        if row:
            weights[index, len(prompt) - 1 : len(rows[-1]) - 1] = 1
    arrays: tuple[Any, ...] = (targets, weights)  # numpy until placed on devices
    return ReportRows(_with_images(rows, own, encoder, views, length, left=False), *arrays)


def _with_images(
    rows: Sequence[Sequence[int]],
    own: Sequence[tuple[GreyImage, ...]],
    encoder: Encoder,
    views: int,
    length: int,
    *,
    left: bool,
) -> StudyPrompts:
    stacked: Any = np.zeros((len(rows), views, encoder.side, encoder.side), np.uint8)
    for index, images in enumerate(own):
        for number, image in enumerate(images):
            stacked[index, number] = image
    grids = [[encoder.grid] * len(images) for images in own]
    return StudyPrompts(study_rows(encoder.config, rows, grids, length=length, left=left), stacked)
