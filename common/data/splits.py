"""The splits of a data set of images and reports, whatever its layout: drawn, in files, or prepared once.

Reports are cleaned as the config says. Images are small: `shrink` makes of each image what a model needs to see of it,
when it is read.
"""

import collections
import dataclasses
import functools
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

import grain

from common.bounds import check_numbers
from common.data.builders import open_split, prepared_layout
from common.data.cleaning import CLEANING, altered_number, chosen_cleaning
from common.data.images import Pixels, Reading, Source, read_image
from common.data.readers import (
    REPEATED,
    VIEWS_LEFT_OUT,
    ImageStudy,
    StudySplits,
    read_annotation,
    read_image_rows,
    read_openi_images,
)
from common.data.records import SPLITS, Quarantine
from common.data.source import StudySource, check_source
from common.errors import MissingPackage, RepeatedImage, UserError
from common.io.fingerprints import digest_of
from common.io.table_files import EncodedImage
from common.io.terminal import say
from common.phantoms.labels import positive_labels
from common.phantoms.source import draw_split

MOST_IN_MEMORY = 20_000  # studies
AHEAD = 64  # studies whose images wait to be decoded

T = TypeVar("T")
R = TypeVar("R")

Shrink = Callable[[Pixels], Pixels]
Load = Callable[[Source], Pixels]  # reads and shrinks


class Split(NamedTuple):
    """The studies of a split, and apart from them their images, by the same index."""

    studies: list[ImageStudy]
    images: Sequence[tuple[Pixels, ...]]


def load_splits(
    config: StudySource, side: int, shrink: Shrink, quarantine: Quarantine, *, colour: bool = False
) -> dict[str, Split]:
    """The splits of the data set that a config names: train, validation and test, as far as it has them.

    Phantoms are drawn at `side` pixels, in grey; other images are read, in grey or with `colour`, and go through
    `shrink`. Studies with an image that cannot be read are quarantined. Raises UserError for whatever makes the data
    unusable.
    """
    check_numbers(config, "data.")
    check_source(config)
    if config.layout == "phantom":
        return phantom_splits(config, side, quarantine)
    quarantine.note(VIEWS_LEFT_OUT, 0)
    reading = Reading(colour, config.dicom_contrast)

    def load(image: Source) -> Pixels:
        return shrink(reading.image(image))

    if config.layout == "prepared":
        return prepared_splits(config, side, load, quarantine)
    return file_splits(config, load, quarantine)


def clean_splits(
    config: StudySource, layout: str, splits: Mapping[str, Split], quarantine: Quarantine
) -> dict[str, Split]:
    """The splits with their reports cleaned, and a warning where a lossy cleaning that was asked for alters numbers.

    `quarantine` is told which cleaning was done.
    """
    ids = (study.id for split in splits.values() for study in split.studies)
    cleaning = chosen_cleaning(config.cleaning, layout, ids)
    clean, quarantine.cleaning = CLEANING[cleaning], cleaning
    cleaned: dict[str, Split] = {}
    altered: list[str] = []
    reports = 0
    for name, split in splits.items():
        studies = [dataclasses.replace(study, report=clean(study.report)) for study in split.studies]
        cleaned[name] = split._replace(studies=studies)
        if cleaning != "lossless" and cleaning == config.cleaning:
            pairs = zip(split.studies, studies, strict=True)
            altered += filter(None, (altered_number(before.report, after.report) for before, after in pairs))
            reports += len(studies)
    if altered:
        quarantine.note("reports with an altered number", len(altered))
        say(
            f"warning: data.cleaning {cleaning} alters numbers in {len(altered):,} of {reports:,} reports, such as "
            f"{altered[0]}; data.cleaning lossless keeps them",
            error=True,
        )
    return cleaned


def phantom_splits(config: StudySource, side: int, quarantine: Quarantine) -> dict[str, Split]:
    """Phantom studies, drawn at `side` pixels."""
    quarantine.cleaning = chosen_cleaning(config.cleaning, config.layout)
    counts = {name: getattr(config, f"{name}_size") for name in SPLITS}
    return {name: phantom_split(config, side, name, count) for name, count in counts.items() if count}


@functools.lru_cache(maxsize=len(SPLITS))  # training and its evaluation draw the same
def phantom_split(config: StudySource, side: int, name: str, count: int) -> Split:
    """The first `count` phantom studies of a split."""
    clean = CLEANING[chosen_cleaning(config.cleaning, config.layout)]
    drawn = draw_split(config.phantom_seed, name, count, side, config.phantom_scanner)
    studies = [
        ImageStudy(phantom.id, (), clean(phantom.report), phantom.indication, positive_labels(phantom.labels))
        for phantom in drawn
    ]
    return Split(studies, [(phantom.frontal, phantom.lateral)[: config.views] for phantom in drawn])


def file_splits(config: StudySource, load: Load, quarantine: Quarantine) -> dict[str, Split]:
    """The splits of the layouts whose images are files. Raises UserError."""
    found = read_studies(config, quarantine)
    count = sum(map(len, found.values()))
    if count > MOST_IN_MEMORY:
        raise UserError(
            f"{config.source}: {count} studies are too many to hold their images in memory; prepare them once with "
            "medreport prepare and use data.layout prepared"
        )
    splits = {name: in_memory(config, load, name, studies, quarantine) for name, studies in found.items()}
    return clean_splits(config, config.layout, splits, quarantine)


def prepared_splits(config: StudySource, side: int, load: Load, quarantine: Quarantine) -> dict[str, Split]:
    """The splits of a prepared data set. Raises UserError."""
    splits = {name: prepared_split(config, load, name, quarantine) for name in prepared_names(config.source)}
    warn_of_enlarged(config, side)
    return clean_splits(config, prepared_layout(config.source), splits, quarantine)


def read_studies(config: StudySource, quarantine: Quarantine) -> StudySplits:
    """The studies of the layouts whose images are files."""
    if config.layout == "annotation":
        return read_annotation(config.source, config.images, quarantine)
    if config.layout == "rows":
        return read_image_rows(
            config.source, config.images or None, quarantine, columns=config.columns, maximum_images=config.views
        )
    return read_openi_images(config.source, config.images, config.split, quarantine)


def in_memory(
    config: StudySource, load: Load, name: str, studies: Sequence[ImageStudy], quarantine: Quarantine
) -> Split:
    """Studies whose images are decoded once and kept, small."""

    def decode(views: Sequence[Source] | None) -> tuple[Pixels, ...] | str:
        """The images, or why there are none."""
        if views is None:
            return REPEATED
        try:
            return tuple(map(load, views))
        except MissingPackage:
            raise
        except UserError:
            return "image cannot be read"

    images = list(_ahead(decode, (at_hand(study.images[: config.views]) for study in studies)))
    kept = Split([], [])
    found: list[tuple[Pixels, ...]] = []
    for study, views in zip(studies, images, strict=True):
        if isinstance(views, str):
            quarantine.add(study.id, views)
        else:
            kept.studies.append(without_images(study))
            found.append(views)
            quarantine.note(VIEWS_LEFT_OUT, len(study.images) - len(views))
    if not found:
        raise UserError(f"{config.source}: no study of the {name} split has images that can be read")
    return Split(kept.studies, found)


def at_hand(images: Iterable[Source]) -> list[Source] | None:
    """Images, those in tables as their bytes: they are read in their order, whatever threads decode them.

    None where a study turns out to have an image twice.
    """
    try:
        return [image.read() if isinstance(image, EncodedImage) else image for image in images]
    except RepeatedImage:
        return None


def _ahead(function: Callable[[T], R], items: Iterable[T]) -> Iterator[R]:
    """`map` by threads, which take at most `AHEAD` items more than are asked for."""
    with ThreadPoolExecutor() as pool:  # Pillow decodes without Python's lock
        waiting: collections.deque[Future[R]] = collections.deque()
        for item in items:
            waiting.append(pool.submit(function, item))
            if len(waiting) > AHEAD:
                yield waiting.popleft().result()
        yield from (future.result() for future in waiting)


def prepared_names(folder: str) -> list[str]:
    """The splits of a prepared data set. Raises UserError where there is none."""
    names = [name for name in SPLITS if any(Path(folder).glob(f"*-{name}.array_record*"))]
    if not names:
        depths = ("*", "*/*", "*/*/*")  # TFDS puts it three folders below the one that was named as output
        below = sorted(file for depth in depths for file in Path(folder).glob(f"{depth}/*.array_record*"))
        remedy = f"name {below[0].parent}" if below else "make one with medreport prepare"
        raise UserError(f"{folder}: no data set there; {remedy}")
    return names


def warn_of_enlarged(config: StudySource, side: int) -> None:
    """Say where a prepared data set was stored smaller than a model sees it, by its first image."""
    stored = open_split(config.source, prepared_names(config.source)[0])
    try:
        shorter = min(read_image(stored[0].images[0]).shape[:2])
    except (UserError, RuntimeError, ValueError, LookupError):  # told where the images are used
        return
    if shorter < side:
        say(
            f"warning: {config.source}: its first image has {shorter} pixels on the shorter side and is enlarged to "
            f"{side}; prepare the data with a shorter side of {side} or more",
            error=True,
        )


def prepared_split(config: StudySource, load: Load, name: str, quarantine: Quarantine) -> Split:
    """A split of a prepared data set, its images read when they are needed."""
    stored = open_split(config.source, name)
    try:
        studies = []
        for index in range(len(stored)):
            study = stored[index]
            studies.append(without_images(study))
            quarantine.note(VIEWS_LEFT_OUT, max(len(study.images) - config.views, 0))
    except (RuntimeError, ValueError) as error:  # array_record's, and those of a record that is cut
        raise UserError(f"{config.source}: its {name} split is damaged ({error}); prepare the data again") from error
    return Split(studies, PreparedImages(stored, load, config.views))


class PreparedImages(Sequence[tuple[Pixels, ...]]):
    """The images of a prepared split, by the index of their study."""

    def __init__(self, stored: grain.MapDataset[ImageStudy], load: Load, views: int):
        self._stored, self._load, self._views = stored, load, views

    def __len__(self) -> int:
        return len(self._stored)

    def __getitem__(self, index: Any) -> Any:
        return tuple(self._load(image) for image in self._stored[index].images[: self._views])

    def encoded(self, index: int) -> list[Any]:
        """The images of a study as they are stored, which takes no decoding."""
        return list(self._stored[index].images[: self._views])


def images_record(images: Sequence[tuple[Pixels, ...]], index: int) -> str:
    """A digest of the images of a study: of their pixels, or of the files that hold them."""
    if isinstance(images, PreparedImages):
        return digest_of(*images.encoded(index))
    return digest_of(*(f"{image.shape}".encode() + image.tobytes() for image in images[index]))


def without_images(study: ImageStudy) -> ImageStudy:
    """The study without its images."""
    return dataclasses.replace(study, images=())
