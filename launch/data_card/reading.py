"""The records of any data set that a training or `medreport prepare` reads, by the same readers."""

import argparse
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple

from common.data.builders import open_split
from common.data.builders.layouts import LAYOUTS, OPTION_LAYOUTS, contrast_of, read_layout
from common.data.chexpert_plus import patient_of
from common.data.images import Pixels, Reading
from common.data.readers import ImageStudy, StudySplits
from common.data.records import Quarantine, ReportPair
from common.data.sections import HeadingCounts
from common.data.source import StudySource
from common.data.splits import MOST_IN_MEMORY, in_memory, phantom_split, prepared_names, prepared_split
from common.errors import UserError
from common.io.rows import read_rows
from common.io.terminal import printable
from common.options import Needs
from common.phantoms.source import draw_again
from retsta_jax.config import DataConfig, RetstaConfig
from retsta_jax.data import load_splits

PAIRS = ("pairs", "openi-codes", "fundus")  # of reports, for RetSTA
DRAWN = ("phantom", "fundus")  # which read no file
FILES = ("train", "validation", "test")  # of pairs
PATIENT = "patient"  # the column that says whose a row is
APART = ("mimic", "odir", "padchest")  # whose readers let no patient be in two splits
PIXELS = 320  # of a drawn picture
ALL_VIEWS = 1_000_000

ALSO_READ = {"columns": ("pairs",), "split": ("openi-codes",)}  # by layouts beside those of prepare
NEEDS = (
    *(Needs(name, "layout", ("pairs",)) for name in FILES),
    Needs("source", "layout", (*LAYOUTS, "prepared", "openi-codes")),
    Needs("images", "layout", tuple(LAYOUTS)),
    *(Needs(name, "layout", (*own, *ALSO_READ.get(name, ()))) for name, own in OPTION_LAYOUTS.items()),
    Needs("dicom_contrast", "layout", tuple(LAYOUTS)),
    Needs("labeler", "layout", tuple(name for name in (*LAYOUTS, "prepared", "phantom"))),
    Needs("labeler_tokenizer", "labeler", bool, "--labeler PATH"),
    Needs("targets", "layout", ("pairs",)),
)  # fmt: skip


class Record(NamedTuple):
    """A report, with the standard form where it has one. `labels` are the source's own."""

    id: str
    report: str
    standard: str = ""
    language: str = "en"
    indication: str = ""
    labels: tuple[str, ...] = ()
    images: int = 0

    @property
    def text(self) -> str:
        """All of it."""
        return "\n".join(filter(None, (self.indication, self.report, self.standard)))


@dataclass(frozen=True)
class DataSet:
    """The records of each split, their images, and what was left out.

    `patients` has the patient of each record's id, as far as the source says; `pictures` reads the images of a record
    by its split and index.
    """

    splits: Mapping[str, Sequence[Record]]
    quarantine: Quarantine
    files: Sequence[Path] = ()
    patients: Mapping[str, str] = field(default_factory=dict)
    pictures: Callable[[str, int], Sequence[Pixels]] = lambda split, index: ()
    notes: Sequence[str] = ()


def read_data(chosen: argparse.Namespace) -> DataSet:
    """The data set that the options name. Raises UserError."""
    quarantine = Quarantine(cleaning="lossless")
    if chosen.layout in PAIRS:
        return _pairs(chosen, quarantine)
    if chosen.layout == "phantom":
        return _phantoms(quarantine)
    if chosen.source is None:
        raise UserError(f"--layout {chosen.layout} also needs --source; add it")
    if chosen.layout == "prepared":
        return _prepared(chosen, quarantine)
    return _studies(chosen, quarantine)


def _pairs(chosen: argparse.Namespace, quarantine: Quarantine) -> DataSet:
    if chosen.layout == "fundus":
        data, files = DataConfig(), []
    elif chosen.layout == "openi-codes":
        if missing := [f"--{name}" for name in ("source", "split") if getattr(chosen, name) is None]:
            raise UserError(f"--layout openi-codes also needs {' and '.join(missing)}; add it")
        files = [chosen.source, chosen.split]
        data = DataConfig("openi", archive=str(chosen.source), test_ids=str(chosen.split), validation_size=200)
    else:
        named = {name: getattr(chosen, name) for name in FILES}
        if missing := [f"--{name}" for name, file in named.items() if file is None]:
            raise UserError(f"--layout pairs also needs {' and '.join(missing)}; add it")
        files = list(named.values())
        columns = tuple(column for column in chosen.columns if not column.startswith(f"{PATIENT}="))
        train, validation, test = map(str, files)
        data = DataConfig("jsonl", columns=columns, train=train, validation=validation, test=test)
    found = load_splits(RetstaConfig(data=data), quarantine)._asdict()
    patients = _patients(files, chosen.columns) if chosen.layout == "pairs" else {}
    splits = {name: [_of_pair(pair) for pair in pairs] for name, pairs in found.items()}
    return DataSet(splits, quarantine, files, patients)


def _of_pair(pair: ReportPair) -> Record:
    return Record(pair.id, pair.source, pair.target, pair.language)


def _of_study(study: ImageStudy, images: int | None = None) -> Record:
    count = len(study.images) if images is None else images
    return Record(
        study.id, study.report, language=study.language, indication=study.indication, labels=study.labels, images=count
    )


def _phantoms(quarantine: Quarantine) -> DataSet:
    data = StudySource()
    counts = {name: getattr(data, f"{name}_size") for name in FILES}
    found = {name: phantom_split(data, 32, name, count) for name, count in counts.items()}
    splits = {
        name: [_of_study(study, len(views)) for study, views in zip(*split, strict=True)]
        for name, split in found.items()
    }

    def pictures(split: str, index: int) -> list[Pixels]:
        drawn = draw_again(data.phantom_seed, split, index, PIXELS, data.phantom_scanner)
        return [drawn.frontal, drawn.lateral]

    return DataSet(splits, quarantine, pictures=pictures)


def _prepared(chosen: argparse.Namespace, quarantine: Quarantine) -> DataSet:
    folder, data = str(chosen.source), StudySource("prepared", str(chosen.source), views=ALL_VIEWS)
    reading = Reading(chosen.colour)
    names = prepared_names(folder)
    found = {name: prepared_split(data, reading.image, name, quarantine).studies for name in names}
    stored = {name: open_split(folder, name) for name in names}
    splits = {
        name: [_of_study(study, len(stored[name][index].images)) for index, study in enumerate(studies)]
        for name, studies in found.items()
    }
    for row in read_rows(chosen.source / "quarantine.jsonl", {"id": str, "reason": str}) if _has_rows(chosen) else ():
        quarantine.add(row["id"], row["reason"])

    def pictures(split: str, index: int) -> list[Pixels]:
        return [reading.image(image) for image in stored[split][index].images]

    return DataSet(splits, quarantine, [chosen.source], pictures=pictures)


def _has_rows(chosen: argparse.Namespace) -> bool:
    file = chosen.source / "quarantine.jsonl"
    return file.is_file() and file.stat().st_size > 0


def _studies(chosen: argparse.Namespace, quarantine: Quarantine) -> DataSet:
    headings = HeadingCounts()
    columns = [column for column in chosen.columns if not column.startswith(f"{PATIENT}=")]
    options = argparse.Namespace(**{**vars(chosen), "columns": columns})
    found = read_layout(options, quarantine, headings)
    patients = {}
    if chosen.layout == "chexpert-plus":
        patients = {study.id: patient_of(study) for studies in found.values() for study in studies}
    elif chosen.layout == "rows" and chosen.source.suffix != ".json":
        patients = _patients([chosen.source], chosen.columns)
    notes = [told] if (told := headings.summary()) else []
    reading = Reading(chosen.colour, contrast_of(chosen))
    count = sum(map(len, found.values()))
    if count <= MOST_IN_MEMORY:
        found = _readable(chosen, found, reading, quarantine)
    else:
        notes.append(f"More than {MOST_IN_MEMORY:,} studies: their images were not opened.")

    def pictures(split: str, index: int) -> list[Pixels]:
        return [reading.image(image) for image in found[split][index].images]

    splits = {name: [_of_study(study) for study in studies] for name, studies in found.items()}
    named = [file for file in (chosen.source, chosen.images, chosen.split, chosen.reports) if file]
    return DataSet(splits, quarantine, named, patients, pictures, notes)


def _readable(chosen: argparse.Namespace, splits: StudySplits, reading: Reading, quarantine: Quarantine) -> StudySplits:
    """The studies whose images can be read, as trainings do; the images themselves are not kept."""
    data = StudySource("rows", str(chosen.source), views=ALL_VIEWS)
    kept = {}
    for name, studies in splits.items():
        split = in_memory(data, lambda image: reading.image(image)[:1, :1], name, studies, quarantine)
        ids = {study.id for study in split.studies}
        kept[name] = [study for study in studies if study.id in ids]
    return kept


def _patients(files: Sequence[Path], columns: Sequence[str]) -> dict[str, str]:
    """The patient of each row that names one."""
    named = tuple(column for column in columns if column.startswith((f"{PATIENT}=", "id=")))
    rows = [row for file in files for row in read_rows(file, {"id": str | int}, named, optional=[PATIENT])]
    for row in rows:
        if not isinstance(row.get(PATIENT, ""), str | int):
            raise UserError(f"{files[0]}: id {printable(row['id'])}: {PATIENT!r} must be a text or a number")
    return {str(row["id"]): str(row[PATIENT]) for row in rows if PATIENT in row}
