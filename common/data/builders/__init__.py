"""Studies with images as a data set that Grain reads at random, through TFDS without TensorFlow (array_record).

`medreport prepare --layout rows --source rows.jsonl --images pictures --output data` decodes every image
once, quarantines the studies with one that cannot be read, and stores the rest as 8-bit PNG, grey or in colour
(`--colour`), at full size or (for training many epochs) at `--shorter-side 256`. Large collections can be prepared with
Apache Beam (`--beam`).
"""

import contextlib
import functools
import itertools
import json
import re
import shutil
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import grain
import numpy as np
import tensorflow_datasets as tfds

from common.data.card import DataCard, card_text
from common.data.identifiers import Identifiers
from common.data.images import AS_GREY, Reading, encode_png, resize_shorter
from common.data.readers import ImageStudy, StudySplits
from common.data.records import Quarantine
from common.errors import ChangedInput, MissingPackage, UserError
from common.io.exports import CARD
from common.io.jsonl import read_jsonl, write_rows
from common.io.locks import locked_file
from common.io.outputs import write_whole
from common.io.safetensors import disk_errors
from common.io.table_files import EncodedImage

LAYOUT_FILE = "layout.jsonl"
BYTES = tfds.features.Tensor(shape=(), dtype=np.object_)  # encoded images: TFDS's Image would decode every one
FIELDS = {
    "id": "unique in the data set",
    "images": "encoded as PNG, of 8 bits",
    "report": "the text that a model learns to write",
    "indication": "what was known before, or nothing",
    "labels": "those that the source has",
    "language": "of the report",
}
# What TFDS says of it, without Beam and with it.
EMPTY_SPLIT = re.compile(r'split "(\w+)": No examples were|examples is 0 for split (\w+)')


@dataclass
class StudiesConfig(tfds.core.BuilderConfig):
    """What `ImageStudies` writes: the splits of a reader, with images of that shorter side (None: as they are).

    `reading` says how their files become pixels.
    """

    splits: StudySplits = field(default_factory=dict, repr=False)  # TFDS logs the config, and reports are patient data
    shorter_side: int | None = None
    reading: Reading = AS_GREY
    studies_in: Path | None = None  # for Beam: a folder that all workers see


class ImageStudies(tfds.core.GeneratorBasedBuilder):
    """Studies as rows of id, images (PNG), report, indication, labels and language; its config holds the splits."""

    VERSION = tfds.core.Version("1.0.0")
    builder_config: StudiesConfig

    def _info(self) -> tfds.core.DatasetInfo:
        text = tfds.features.Text()
        texts = {"id": text, "report": text, "indication": text, "language": text}
        lists = {"images": tfds.features.Sequence(BYTES), "labels": tfds.features.Sequence(text)}
        return tfds.core.DatasetInfo(
            builder=self,
            features=tfds.features.FeaturesDict(texts | lists),
            description="Radiology studies with their images.",
        )

    def _split_generators(self, dl_manager: Any) -> dict[str, Any]:
        return {name: self._generate_examples(name, studies) for name, studies in self.builder_config.splits.items()}

    def _generate_examples(self, split: str, studies: Sequence[ImageStudy]) -> Any:
        """Keys and rows, or the Beam transform that makes them."""
        to_rows = functools.partial(
            _rows, shorter_side=self.builder_config.shorter_side, reading=self.builder_config.reading
        )
        if self.builder_config.studies_in is None:
            return itertools.chain.from_iterable(map(to_rows, studies))
        import apache_beam

        # By way of a file: a pipeline that held the reports of a large collection would be too large to submit.
        file = self.builder_config.studies_in / f"{split}.jsonl"
        write_rows(file, ({**vars(study), "images": list(map(_to_json, study.images))} for study in studies))
        read = apache_beam.io.ReadFromText(str(file)) | apache_beam.Map(_from_line) | apache_beam.Reshuffle()
        return read | apache_beam.FlatMap(to_rows)


class MadeBy(NamedTuple):
    """What the card of a data set says of how it was made."""

    source: str = "studies in memory"
    command: str = "common.data.builders.prepare"
    identifiers: Identifiers | None = None


UNKNOWN = MadeBy()


def prepare(
    splits: StudySplits,
    output: str | Path,
    name: str,
    quarantine: Quarantine,
    *,
    layout: str = "",
    shorter_side: int | None = None,
    reading: Reading = AS_GREY,
    beam_options: Sequence[str] | None = None,
    made_by: MadeBy = UNKNOWN,
) -> Path:
    """Write a data set `name` under `output`, with its quarantine and card; its folder is image_studies/name/1.0.0.

    `layout` is the one that the studies came in, for `prepared_layout` to tell; the card tells `made_by`. Studies with
    an image that cannot be read are quarantined. The folder appears when everything is written. With `beam_options`,
    such as "runner=DirectRunner", Beam does the work. Raises UserError where the name is unfit, the folder exists
    already, the disk refuses, no study of a split can be read, or Beam is asked for and not installed.
    """
    if not re.fullmatch(r"\w[\w.-]*", name):
        raise UserError(f"{name!r} cannot name a data set; expected letters, digits, dots and dashes")
    folder = Path(output) / "image_studies" / name / str(ImageStudies.VERSION)
    options = tfds.download.DownloadConfig(beam_options=_beam_options(beam_options))
    config = StudiesConfig(name=name, splits=splits, shorter_side=shorter_side, reading=reading)
    try:
        with disk_errors(Path(output)), contextlib.redirect_stdout(sys.stderr), _aside(Path(output), name) as aside:
            if folder.exists():
                raise UserError(f"{folder}: already exists; remove it, or choose another folder or name")
            config.studies_in = None if beam_options is None else aside
            builder = ImageStudies(data_dir=str(aside), config=config, file_format="array_record")
            builder.download_and_prepare(download_dir=str(aside), download_config=options)
            made = Path(builder.data_dir)
            for split, studies in splits.items():
                if builder.info.splits[split].num_examples < len(studies):
                    written = {study.id for study in open_split(made, split)}
                    for study in studies:
                        if study.id not in written:
                            quarantine.add(study.id, "image cannot be read")
            quarantine.write(made / "quarantine.jsonl")
            write_rows(made / LAYOUT_FILE, [{"layout": layout}] if layout else [])
            counts = {split: builder.info.splits[split].num_examples for split in splits}
            write_whole(made / CARD, _card(name, splits, counts, quarantine, layout, made_by))
            folder.parent.mkdir(parents=True, exist_ok=True)
            made.rename(folder)
    except (AssertionError, ValueError) as error:
        empty = EMPTY_SPLIT.search(str(error))
        if empty is None:
            raise
        split = empty[1] or empty[2]
        raise UserError(f"{folder}: no images of the {split} split can be read; check the image files") from error
    return folder


def _card(
    name: str, splits: StudySplits, counts: Mapping[str, int], quarantine: Quarantine, layout: str, made_by: MadeBy
) -> str:
    languages = {study.language for studies in splits.values() for study in studies}
    return card_text(
        DataCard(
            title=name,
            **made_by._asdict(),
            counts=counts,
            left_out=quarantine.counts(),
            notes=quarantine.notes,
            languages=["es"] if layout == "padchest" else sorted(languages),  # whose words are counted as English ones
            tasks=["image-to-text"],
            fields=FIELDS,
        )
    )


def prepared_layout(folder: str | Path) -> str:
    """The layout that a prepared data set came in; "prepared" where it does not say. Raises UserError."""
    file = Path(folder, LAYOUT_FILE)
    rows = read_jsonl(file, {"layout": str}) if file.is_file() and file.stat().st_size else []
    return rows[0]["layout"] if rows else "prepared"


def open_split(folder: str | Path, split: str) -> grain.MapDataset[ImageStudy]:
    """The studies of a split, as `prepare` wrote them, for Grain to shuffle, map and batch; images are PNG bytes.

    Raises UserError where there is no such data set or split.
    """
    try:
        builder = tfds.builder_from_directory(str(folder))
        source = builder.as_data_source(split=split)
    except Exception as error:  # TFDS, protobuf and array_record have no closed list of what damaged files raise
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise UserError(
            f"{folder}: no data set with a split {split} ({reason}); make one with medreport prepare"
        ) from error
    return grain.MapDataset.source(source).map(_study)


def _beam_options(options: Sequence[str] | None) -> Any:
    if options is None:
        return None
    try:
        from apache_beam.options.pipeline_options import PipelineOptions
    except ImportError as error:
        raise UserError("apache_beam is not installed; pip install apache-beam, or prepare without Beam") from error
    return PipelineOptions([f"--{option}" for option in options])


@contextlib.contextmanager
def _aside(output: Path, name: str) -> Iterator[Path]:
    """A folder in `output` while the data set is made, which does not outlive it; of a killed command neither."""
    output.mkdir(parents=True, exist_ok=True)
    aside = output / f".{name}.partial"
    with locked_file(output / name):
        shutil.rmtree(aside, ignore_errors=True)
        aside.mkdir()
        try:
            yield aside
        finally:
            shutil.rmtree(aside, ignore_errors=True)


def _to_json(image: Any) -> Any:
    """An image as the file for Beam has it: a path, or the place in a table as a list."""
    return image if isinstance(image, EncodedImage) else str(image)


def _from_line(line: str) -> ImageStudy:
    """A study as the file for Beam has it."""
    row = json.loads(line)
    images = (Path(image) if isinstance(image, str) else EncodedImage(*image) for image in row["images"])
    return ImageStudy(**{**row, "images": tuple(images), "labels": tuple(row["labels"])})


def _rows(study: ImageStudy, shorter_side: int | None, reading: Reading) -> Iterator[tuple[str, dict[str, Any]]]:
    """The row of a study under its key; none where an image cannot be read."""
    try:
        images = [reading.image(image) for image in study.images]
    except (MissingPackage, ChangedInput):
        raise
    except UserError:
        return
    if shorter_side is not None:
        images = [resize_shorter(image, shorter_side) for image in images]
    yield (
        study.id,
        {
            "id": study.id,
            "images": [encode_png(image) for image in images],
            "report": study.report,
            "indication": study.indication,
            "labels": list(study.labels),
            "language": study.language,
        },
    )


def _study(row: Mapping[str, Any]) -> ImageStudy:
    return ImageStudy(
        row["id"].decode(),
        tuple(row["images"]),
        row["report"].decode(),
        row["indication"].decode(),
        tuple(label.decode() for label in row["labels"]),
        row["language"].decode(),
    )
