"""From studies to batches: the parts of a data set, the tokens of its reports, its images as CLIP sees them."""

import dataclasses
import functools
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, NamedTuple

import grain
import numpy as np
from jaxtyping import Int32, UInt8

from common.data.builders import open_split
from common.data.cleaning import clean_report, r2gen_clean_iu, r2gen_clean_mimic
from common.data.clip_tokenizer import CanEncode, token_rows
from common.data.images import GreyImage, augment, read_image, resize_crop, resize_shorter
from common.data.packing import GlobalBatch
from common.data.phantom import make_phantoms
from common.data.phantom_labels import positive_labels
from common.data.records import Quarantine
from common.data.studies import ImageStudy, Splits, read_annotation, read_image_rows, read_openi_images
from common.data.tokenizers import WordTokenizer
from common.data.vocabulary import Corpus, merged_vocabulary
from common.errors import UserError
from unicross_jax.config import DataConfig, VocabularyConfig
from unicross_jax.model import ReportBatch, Studies

CLEANING: dict[str, Callable[[str], str]] = {
    "lossless": clean_report,
    "r2gen-iu": r2gen_clean_iu,
    "r2gen-mimic": r2gen_clean_mimic,
}
PHANTOM_PLACES = {"train": 0, "validation": 1_000_000, "test": 2_000_000}  # index of each part's first study
MOST_IN_MEMORY = 20_000  # studies
CONDITION_TOKENS = 32  # of the text known before the report

Square = UInt8[np.ndarray, "side side"]


class Part(NamedTuple):
    """The studies of a split with cleaned reports, and apart from them their images, by the same index."""

    studies: list[ImageStudy]
    images: Sequence[tuple[GreyImage, ...]]


@dataclasses.dataclass(frozen=True, eq=False)
class Example:
    """What a batch needs of a study beside its images."""

    id: str
    tokens: Int32[np.ndarray, "n"]  # start, report, end
    condition: Int32[np.ndarray, "C"]
    condition_end: int


def load_parts(config: DataConfig, quarantine: Quarantine) -> dict[str, Part]:
    """The parts of the data set that a config names: train, validation and test, as far as it has them.

    Studies with an image that cannot be read are quarantined. Raises UserError for whatever makes the data unusable.
    """
    if config.layout == "phantom":
        return {name: phantom_part(config, name) for name in PHANTOM_PLACES if getattr(config, f"{name}_size")}
    for field in ("source",) if config.layout == "prepared" else ("source", "images"):
        if not getattr(config, field):
            raise UserError(f"data.{field}: not given; the {config.layout} layout needs --data.{field} PATH")
    if config.layout == "prepared":
        return {name: prepared_part(config, name) for name in prepared_names(config.source)}
    splits = read_splits(config, quarantine)
    count = sum(map(len, splits.values()))
    if count > MOST_IN_MEMORY:
        raise UserError(
            f"{config.source}: {count} studies are too many to hold their images in memory; prepare them once with "
            "python -m common.data.builders and use --data.layout prepared"
        )
    return {name: in_memory(config, name, studies, quarantine) for name, studies in splits.items()}


@functools.lru_cache(maxsize=len(PHANTOM_PLACES))  # training and its evaluation draw the same
def phantom_part(config: DataConfig, name: str) -> Part:
    """Phantom studies, drawn at the size to which images are resized."""
    start = PHANTOM_PLACES[name]
    drawn = make_phantoms(
        config.phantom_seed, range(start, start + getattr(config, f"{name}_size")), size=config.resize
    )
    studies = [
        ImageStudy(
            phantom.id,
            (),
            CLEANING[config.cleaning](phantom.report),
            phantom.indication,
            positive_labels(phantom.labels),
        )
        for phantom in drawn
    ]
    return Part(studies, [(phantom.frontal, phantom.lateral)[: config.views] for phantom in drawn])


def read_splits(config: DataConfig, quarantine: Quarantine) -> Splits:
    """The studies of the layouts whose images are files."""
    if config.layout == "annotation":
        return read_annotation(config.source, config.images, quarantine)
    if config.layout == "rows":
        return read_image_rows(config.source, config.images, quarantine, maximum_images=config.views)
    if not config.split:
        raise UserError("data.split: not given; the openi layout needs --data.split FILE")
    return read_openi_images(config.source, config.images, config.split, quarantine)


def in_memory(config: DataConfig, name: str, studies: Sequence[ImageStudy], quarantine: Quarantine) -> Part:
    """Studies whose images are decoded once and kept, small."""

    def read(study: ImageStudy) -> tuple[GreyImage, ...] | None:
        try:
            return tuple(resize_shorter(read_image(image), config.resize) for image in study.images[: config.views])
        except UserError:
            return None

    with ThreadPoolExecutor() as pool:  # Pillow decodes without Python's lock
        images = list(pool.map(read, studies))
    kept = Part([], [])
    found: list[tuple[GreyImage, ...]] = []
    for study, views in zip(studies, images, strict=True):
        if views is None:
            quarantine.add(study.id, "image cannot be read")
        else:
            kept.studies.append(cleaned(study, config))
            found.append(views)
    if not found:
        raise UserError(f"{config.source}: no study of the {name} split has images that can be read")
    return Part(kept.studies, found)


def prepared_names(folder: str) -> list[str]:
    """The splits of a prepared data set. Raises UserError where there is none."""
    names = [name for name in PHANTOM_PLACES if any(Path(folder).glob(f"*-{name}.array_record*"))]
    if not names:
        raise UserError(f"{folder}: no data set there; make it by python -m common.data.builders")
    return names


def prepared_part(config: DataConfig, name: str) -> Part:
    """A split of a prepared data set, its images read when they are needed."""
    stored = open_split(config.source, name)
    studies = [cleaned(stored[place], config) for place in range(len(stored))]
    return Part(studies, PreparedImages(stored, config))


class PreparedImages(Sequence[tuple[GreyImage, ...]]):
    """The images of a prepared split, by the index of their study."""

    def __init__(self, stored: grain.MapDataset[ImageStudy], config: DataConfig):
        self._stored, self._config = stored, config

    def __len__(self) -> int:
        return len(self._stored)

    def __getitem__(self, place: Any) -> Any:
        images = self._stored[place].images[: self._config.views]
        return tuple(resize_shorter(read_image(image), self._config.resize) for image in images)


def cleaned(study: ImageStudy, config: DataConfig) -> ImageStudy:
    """The study with its report cleaned and without its images."""
    return dataclasses.replace(study, images=(), report=CLEANING[config.cleaning](study.report))


def build_vocabulary(config: VocabularyConfig, reports: Sequence[str]) -> WordTokenizer:
    """The words of training reports, and of a second corpus where one is named. Raises UserError."""
    corpora = [Corpus(reports, config.minimum_count)]
    if config.merged_with:
        # Of the second corpus only the texts are used: its images need not be there.
        texts = annotation_reports(config.merged_with)
        cleaning = CLEANING[config.merged_cleaning]
        corpora.append(Corpus([cleaning(text) for text in texts], config.merged_minimum_count))
    return merged_vocabulary(*corpora)


def annotation_reports(annotation: str) -> list[str]:
    """The training reports of R2Gen's annotation.json. Raises UserError for a file of another form."""
    from common.data.studies import annotation_entries

    return [entry["report"] for entry in annotation_entries(annotation, {"report": str})["train"]]


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
    conditions, ends = token_rows(clip_tokenizer, known, condition_length)
    conditions = conditions[:, : -(-int(ends.max() + 1) // 8) * 8]  # short indications cost what they are
    examples, cut = [], 0
    for study, condition, end in zip(studies, conditions, ends, strict=True):
        tokens = [report_tokenizer.bos_id, *report_tokenizer.encode(study.report), report_tokenizer.eos_id]
        cut += len(tokens) > max_length
        examples.append(Example(study.id, np.array(tokens[:max_length], np.int32), condition, int(end)))
    return examples, cut


def training_view(config: DataConfig, side: int, seed: int) -> Callable[[GreyImage, int, int, int], Square]:
    """A random view of an image: a function of the seed and its (epoch, study, view), whoever computes it."""

    def view(image: GreyImage, *place: int) -> Square:
        rng = np.random.default_rng([seed, *place])
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


def still_view(config: DataConfig, side: int) -> Callable[..., Square]:
    """The middle of an image, for evaluation."""
    return lambda image, *place: resize_crop(image, config.resize, side)


def report_batch(
    batch: GlobalBatch,
    examples: Sequence[Example],
    images: Sequence[tuple[GreyImage, ...]],
    view: Callable[..., Square],
    *,
    side: int,
    views: int,
    pad_id: int,
) -> ReportBatch:
    """The arrays of some rows of a batch; a row without a study has no view and no token that counts."""
    rows = len(batch.rows)
    tokens = np.full((rows, batch.length + 1), pad_id, np.int32)
    weights = np.zeros((rows, batch.length), np.float32)
    for place, row in enumerate(batch.rows):
        for index in row:
            found = examples[index].tokens
            tokens[place, : len(found)] = found
            weights[place, : len(found) - 1] = 1
    studies = stack_studies(batch.rows, examples, images, view, side=side, views=views, epoch=batch.epoch)
    arrays: tuple[Any, ...] = (tokens[:, :-1], tokens[:, 1:], weights)  # numpy until placed on devices
    return ReportBatch(studies, *arrays)


def stack_studies(
    rows: Sequence[Sequence[int]],
    examples: Sequence[Example],
    images: Sequence[tuple[GreyImage, ...]],
    view: Callable[..., Square],
    *,
    side: int,
    views: int,
    epoch: int = 0,
) -> Studies:
    """The images and conditions of rows of at most one study, as numpy."""
    stacked = np.zeros((len(rows), views, side, side), np.uint8)
    mask = np.zeros((len(rows), views), bool)
    conditions = np.zeros((len(rows), len(examples[0].condition)), np.int32)
    ends = np.zeros(len(rows), np.int32)
    for place, row in enumerate(rows):
        for index in row:
            for number, image in enumerate(images[index]):
                stacked[place, number] = view(image, epoch, index, number)
                mask[place, number] = True
            conditions[place], ends[place] = examples[index].condition, examples[index].condition_end
    arrays: tuple[Any, ...] = (stacked, mask, conditions, ends)
    return Studies(*arrays)
