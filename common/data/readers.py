"""Studies of one or more radiographs and their report, from the layouts in which data sets are distributed.

Every reader returns the studies of each split. It checks paths, but does not open images: a study with an empty report
or missing image files is quarantined, and `common.data.builders` finds images that cannot be read. Data sets
with a format of their own have modules of their own: `mimic`, `chexpert_plus`, `padchest`, `ffa_ir` and `odir`.
"""

import hashlib
import os
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import UnionType
from typing import Any, get_args

from common.data.cleaning import clean_report
from common.data.openi import OpeniStudy, count_unknown_ids, openi_splits, read_openi, read_test_ids
from common.data.records import SPLITS, Language, Quarantine, check_splits
from common.data.sections import HeadingCounts, Wanted, report_and_indication, report_sections
from common.errors import UserError
from common.io.jsonl import check_row
from common.io.rows import Columns, read_rows
from common.io.table_batches import is_table
from common.io.table_files import EncodedImage
from common.io.terminal import printable
from common.io.text import read_json
from common.metrics.tokenize import language_of

# The names that data sets use, and ours.
SPLIT_NAMES = {
    "train": "train",
    "val": "validation",
    "validate": "validation",
    "validation": "validation",
    "valid": "validation",
    "test": "test",
}
ENTRY: dict[str, type | UnionType] = {"id": str | int, "report": str, "image_path": list}
ROW: dict[str, type | UnionType] = {"id": str | int, "images": list, "report": str, "split": str}
TABLE_ROW = ROW | {"images": list | str | EncodedImage}
VIEWS_LEFT_OUT = "views left out"
REPEATED = "an image named twice"
NO_FILE, NO_REPORT, NO_TEXT = "image file missing", "no readable report file", "report file is not UTF-8 text"
REMEDIES = {
    NO_FILE: "name the folder under which the images have the paths that the data gives them",
    NO_REPORT: "name the folder of the reports, the one that holds files/p10",
    NO_TEXT: "save the report files as UTF-8",
    REPEATED: "name each image of a study once",
}
OPTIONAL: dict[str, type | UnionType] = {"indication": str, "labels": list, "language": str}


@dataclass(frozen=True)
class ImageStudy:
    """The images of a study, in the order in which a model sees them, and its report.

    An image is a file, encoded bytes, or a place in a table.
    """

    id: str
    images: tuple[Path | bytes | EncodedImage, ...]
    report: str
    indication: str = ""
    labels: tuple[str, ...] = ()
    language: Language = "en"


StudySplits = dict[str, list[ImageStudy]]  # by the name of a split


def read_annotation(annotation: str | Path, image_dir: str | Path, quarantine: Quarantine) -> StudySplits:
    """R2Gen's `annotation.json`: {train, val, test: [{id, report, image_path: [...]}]}, for IU X-ray and MIMIC-CXR.

    Raises UserError for a file of another form, an id in two splits, or a split without a usable study.
    """
    splits: StudySplits = {}
    for name, entries in annotation_entries(annotation, ENTRY).items():
        studies = [
            ImageStudy(
                str(entry["id"]),
                _files(image_dir, entry["image_path"]),
                clean_report(entry["report"]),
                language=language_of(entry["report"]),
            )
            for entry in entries
        ]
        splits[name] = [study for study in studies if is_usable(study, quarantine)]
    return checked_splits(splits, annotation, quarantine)


def read_openi_images(
    reports: str | Path,
    image_dir: str | Path,
    split: str | Path,
    quarantine: Quarantine,
    *,
    validation: int = 200,
    seed: int = 0,
) -> StudySplits:
    """IU X-ray from Open-i's own XML (archive or directory): FINDINGS as report, INDICATION, codes as labels.

    `split` is R2Gen's split (.json: two images a study, R2Gen's ids) or a file of test ids, one per line (all images,
    ids such as CXR10; see `openi_splits` for `validation` and `seed`). Images may be named as R2Gen names them
    (CXR1000_IM-0003/0.png), Open-i (CXR1000_IM-0003-1001.png, or as DICOM 1000/1000_IM-0003-1001.dcm) or the collection
    on Kaggle (1000_IM-0003-1001.dcm.png).

    Raises UserError as `read_openi`, `read_test_ids` and `openi_splits` do, for a split file of another form or with
    an id that no report has, an id in two splits, or a split without a usable study.
    """
    studies = {study.id: study for study in read_openi(reports)}
    if Path(split).suffix != ".json":
        every = [_openi_image_study(study.id, study, _openi_files(image_dir, study)) for study in studies.values()]
        usable = [study for study in every if is_usable(study, quarantine)]
        if not usable:
            raise UserError(f"{reports}: no usable study, {quarantine.summary()}; {remedy(quarantine)}")
        test_ids = read_test_ids(split)
        count_unknown_ids(test_ids, studies, quarantine)
        return openi_splits(usable, test_ids, validation, seed)
    splits: StudySplits = {}
    for name, entries in annotation_entries(split, {"id": str, "image_path": list}).items():
        splits[name] = []
        for entry in entries:
            number = re.match(r"CXR\d+", entry["id"])
            if number is None or number[0] not in studies:
                raise UserError(
                    f"{split}: id {printable(entry['id'])} belongs to no report of {reports}; expected CXR<number>_..."
                )
            report = studies[number[0]]
            files = _files(image_dir, entry["image_path"])
            if repeats(files):
                quarantine.add(entry["id"], REPEATED)
                continue
            if not all(map(os.path.isfile, files)):
                files = _openi_files(image_dir, report)[: len(files)]
            study = _openi_image_study(entry["id"], report, files)
            if is_usable(study, quarantine):
                splits[name].append(study)
    return checked_splits(splits, split, quarantine)


def read_image_rows(
    rows: str | Path,
    image_dir: str | Path | None,
    quarantine: Quarantine,
    *,
    columns: Columns = (),
    maximum_images: int | None = None,
    sections: Wanted | None = None,
    headings: HeadingCounts | None = None,
) -> StudySplits:
    """Studies of any number of images, one a row, as JSONL, a JSON array (.json) or a table (`common.io.rows`).

    A row has `id`, `images` (paths under `image_dir`, by default the folder of `rows`; a table may hold the encoded
    images themselves, and a single one without a list), `report` and `split` (train, val or validation, test), and may
    have `indication`, `labels` (a list of texts) and `language` ("en" or "zh"; otherwise the report's characters tell).
    Of more than `maximum_images` images, as angiographies have, that many are taken at equal distances, the first and
    the last among them. With `sections`, a row's report is a whole one with headings, of which those sections are
    taken, and the indication where the row has none; `headings` counts the headings that no list has
    (`common.data.sections`).

    Raises UserError for a file of another form, an id that occurs twice, or a split without a usable study.
    """
    if Path(rows).suffix == ".json":
        found = _array(rows, ROW)
    else:
        found = read_rows(rows, TABLE_ROW if is_table(rows) else ROW, columns, optional=OPTIONAL)
    folder = image_dir or (rows if Path(rows).is_dir() else Path(rows).parent)
    splits: StudySplits = {}
    for row in found:
        where = f"{rows}: id {row['id']}"
        default = {"indication": "", "labels": [], "language": language_of(row["report"])}
        optional = check_row(default | row, OPTIONAL, where)
        for label in optional["labels"]:
            check_row({"label": label}, {"label": str}, where)
        if row["split"] not in SPLIT_NAMES:
            raise UserError(f"{where}: expected a split of {', '.join(SPLIT_NAMES)}; rename it")
        if optional["language"] not in get_args(Language):
            raise UserError(f"{where}: expected a language of {', '.join(get_args(Language))}")
        named = row["images"] if isinstance(row["images"], list) else [row["images"]]
        files = _files(folder, named)
        usable = splits.setdefault(SPLIT_NAMES[row["split"]], [])
        if repeats(files):
            quarantine.add(str(row["id"]), REPEATED)
            continue
        report, indication = row["report"], optional["indication"]
        if sections is not None:
            report, told = report_and_indication(report_sections(report, headings=headings), sections)
            indication = indication or told
            if not report:
                quarantine.add(str(row["id"]), f"no {sections.upper()} section")
                continue
        study = ImageStudy(
            str(row["id"]),
            at_equal_distances(files, maximum_images),
            clean_report(report),
            clean_report(indication),
            tuple(optional["labels"]),
            optional["language"],
        )
        if is_usable(study, quarantine):
            usable.append(study)
            quarantine.note(VIEWS_LEFT_OUT, len(files) - len(study.images))
    return checked_splits(splits, rows, quarantine)


def is_usable(study: ImageStudy, quarantine: Quarantine) -> bool:
    """Whether a study has a report and all its image files; one that has not goes into the quarantine."""
    if not any(map(str.isalpha, study.report)):  # nothing, or no more than "___" where a report was taken out
        quarantine.add(study.id, "empty report")
    elif not study.images:
        quarantine.add(study.id, "no image")
    elif repeats(study.images):
        quarantine.add(study.id, REPEATED)
    elif not all(isinstance(image, bytes | EncodedImage) or os.path.isfile(image) for image in study.images):
        quarantine.add(study.id, NO_FILE)
    else:
        return True
    return False


def first_present(*files: Path) -> Path:
    """The first of the places where an image may lie that has a file; the first one where none has."""
    return next((file for file in files if os.path.isfile(file)), files[0])


def split_by_patient(studies: Iterable[tuple[str, ImageStudy]]) -> StudySplits:
    """(patient, study) of a data set without a published split: a tenth of the patients each for validation and test.

    A hash of the patient decides, so that all studies of one are in one split, and a study more moves no other.
    """
    splits: StudySplits = {name: [] for name in SPLITS}
    for patient, study in studies:
        share = int.from_bytes(hashlib.sha256(patient.encode()).digest()[:8], "big") / 2**64
        splits["test" if share < 0.1 else "validation" if share < 0.2 else "train"].append(study)
    return splits


def repeats(images: Sequence[Path | bytes | EncodedImage]) -> bool:
    """Whether an image is there twice: a model would take it for two views."""

    def name(image: Path | bytes | EncodedImage) -> str | bytes | EncodedImage:
        if isinstance(image, EncodedImage):
            return image.digest or image  # which tells when it is read
        return image if isinstance(image, bytes) else os.path.normpath(image)

    return len(set(map(name, images))) < len(images)


def check_once(image: str, line: int, line_of_image: dict[str, int], table: Path) -> None:
    """Raise UserError where an earlier line of a published table is of the same image; remembers this line."""
    first = line_of_image.setdefault(image, line)
    if first != line:
        raise UserError(
            f"{table}, line {line}: image {printable(image)} duplicates line {first}; restore the published file"
        )


def checked_splits(splits: StudySplits, source: str | Path, quarantine: Quarantine) -> StudySplits:
    """The splits in the order train, validation, test. Raises UserError for an empty one or an id that repeats."""
    for name, studies in splits.items():
        if not studies:
            raise UserError(
                f"{source}: no usable study in the {name} split, {quarantine.summary()}; {remedy(quarantine)}"
            )
    check_splits(splits)
    return {name: splits[name] for name in SPLITS if name in splits}


def remedy(quarantine: Quarantine) -> str:
    """What to do where a split is left empty: by the most frequent reason in the quarantine."""
    reason = next(iter(quarantine.counts()), "")
    return REMEDIES.get(reason, "expected at least one study with a report and its images in each split")


def annotation_entries(file: str | Path, required: Mapping[str, type | UnionType]) -> dict[str, list[dict[str, Any]]]:
    """The entries of each split of R2Gen's `annotation.json`, with the required keys. Raises UserError."""
    splits = check_row(read_json(file), {"train": list, "val": list, "test": list}, str(file))
    return {
        SPLIT_NAMES[name]: [
            check_row(entry, required, f"{file}: entry {index} of {name}")
            for index, entry in enumerate(splits[name], start=1)
        ]
        for name in ("train", "val", "test")
    }


def _array(file: str | Path, required: Mapping[str, type | UnionType]) -> list[dict[str, Any]]:
    rows = read_json(file)
    if not isinstance(rows, list):
        raise UserError(f"{file}: expected an array of rows; save one row per line in a file with the suffix .jsonl")
    if not rows:
        raise UserError(f"{file}: no rows; expected an array of at least one")
    return [check_row(row, required, f"{file}: row {index}") for index, row in enumerate(rows, start=1)]


def _files(image_dir: str | Path, names: Sequence[Any]) -> tuple[Any, ...]:
    """Paths of images, and images in a table as they are."""
    return tuple(name if isinstance(name, EncodedImage) else Path(image_dir, str(name)) for name in names)


def _openi_image_study(id: str, study: OpeniStudy, files: tuple[Path, ...]) -> ImageStudy:
    return ImageStudy(id, files, study.findings, study.indication, study.codes)


def _openi_files(image_dir: str | Path, study: OpeniStudy) -> tuple[Path, ...]:
    """Each image as Open-i's PNG, the collection on Kaggle or Open-i's DICOM has it, whichever is there."""
    files = []
    for image in study.images:
        name = re.sub(r"^(\d+)_\1_", r"\1_", image.id.removeprefix("CXR"))  # of the first report: CXR1_1_IM-0001-3001
        number = study.id.removeprefix("CXR")
        names = f"{image.id}.png", f"{name}.dcm.png", f"{number}/{name}.dcm", f"{name}.dcm"
        files.append(first_present(*(Path(image_dir, each) for each in names)))
    return tuple(files)


def at_equal_distances(files: tuple[Any, ...], count: int | None) -> tuple[Any, ...]:
    """So many of the files at equal distances, the first and the last among them; all where there are no more."""
    if count is None:
        return files
    if len(files) <= count:
        return files
    return tuple(files[index * (len(files) - 1) // max(1, count - 1)] for index in range(count))
