"""Which studies a config names; `common.data.splits` reads them."""

import dataclasses
from pathlib import Path
from typing import Any, Literal

from common.bounds import Few, Phantoms, Seed
from common.config import Incidental, MovablePath
from common.data.cleaning import CleaningName
from common.data.dicom import DicomContrast
from common.errors import UserError
from common.options import Needs
from common.phantoms.study import Scanner


@dataclasses.dataclass(frozen=True)
class StudySource:
    """Which studies to learn from."""

    layout: Literal["phantom", "annotation", "openi", "rows", "prepared"] = "phantom"  # drawn; R2Gen; Open-i; your own
    source: MovablePath = ""  # annotation.json; Open-i's reports; JSONL or Parquet rows; folder of medreport prepare
    images: MovablePath = ""  # annotation, openi, rows: folder of the images; rows: that of the source if not given
    split: MovablePath = ""  # openi: R2Gen's split (.json), or a file with the ids of the test split
    train_size: Phantoms = 1600  # phantom studies
    validation_size: Phantoms = 64  # phantom studies
    test_size: Incidental[Phantoms] = 200  # phantom studies
    phantom_seed: Seed = 0  # which phantom studies: other seeds draw others
    phantom_scanner: Scanner = "first"  # of phantom studies; images of the second are darker, with half the contrast
    columns: tuple[str, ...] = ()  # rows: columns under other names, such as report=findings
    views: Few = 2  # images of a study that are used, at most
    dicom_contrast: DicomContrast = "window"  # of DICOM files: as a viewer shows them, or made as MIMIC-CXR-JPG was
    cleaning: CleaningName = "lossless"  # of reports; iu-xray, mimic-cxr: R2Gen's of that data set, lossless of others


REQUIRED: dict[str, tuple[str, ...]] = {
    "phantom": (),
    "annotation": ("source", "images"),
    "openi": ("source", "images", "split"),
    "rows": ("source",),
    "prepared": ("source",),
}  # the paths that each layout reads, and cannot do without
OPTIONAL: dict[str, tuple[str, ...]] = {"rows": ("images",)}  # paths that a layout reads where they are given


def check_source(config: StudySource) -> None:
    """Raise UserError where a path that the layout needs is not given."""
    for field in REQUIRED[config.layout]:
        if not getattr(config, field):
            raise UserError(f"data.{field}: not given; the {config.layout} layout needs it")


HELP = """Data by --data.layout; every path that is named here must be given, but for those in brackets:
  phantom     drawn; no file
  annotation  --data.source annotation.json --data.images FOLDER              R2Gen's split
  openi       --data.source NLMCXR_reports.tgz --data.images FOLDER --data.split FILE
  rows        --data.source rows.jsonl [--data.images FOLDER]                 rows {"id", "images", "report", "split"}
  prepared    --data.source FOLDER                                            made by medreport prepare
"""


def likely_layouts(config: Any) -> tuple[str, ...]:
    """The layouts that `config.data` is probably of, by what was given."""
    source, images, split = (getattr(config.data, name) for name in ("source", "images", "split"))
    if split:
        return ("openi",)
    if Path(source).suffix in (".jsonl", ".parquet"):
        return ("rows",)
    if Path(source).suffix == ".json":
        return ("annotation", "rows")
    if source.endswith((".tgz", ".tar.gz")):
        return ("openi",)
    return ("prepared",) if source and not images else tuple(REQUIRED)


STUDY_NEEDS = (
    *(
        Needs(
            f"data.{path}",
            "data.layout",
            tuple(layout for layout, paths in REQUIRED.items() if path in (*paths, *OPTIONAL.get(layout, ()))),
            likely=likely_layouts,
        )
        for path in ("source", "images", "split")
    ),
    *(
        Needs(f"data.{name}", "data.layout", ("phantom",))
        for name in ("train_size", "validation_size", "test_size", "phantom_seed", "phantom_scanner")
    ),
    Needs("data.columns", "data.layout", ("rows",)),
    Needs("data.dicom_contrast", "data.layout", tuple(layout for layout in REQUIRED if layout != "phantom")),
)  # of a config whose `data` is a StudySource
