"""The layouts that `medreport prepare` reads: one function for each, and which options belong to it."""

import argparse
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import get_args

from common.data.chexpert_plus import read_chexpert_plus, shared_patients, without_shared_patients
from common.data.dicom import DicomContrast
from common.data.ffa_ir import read_ffa_ir
from common.data.mimic import read_mimic_cxr
from common.data.odir import read_odir
from common.data.padchest import read_padchest
from common.data.readers import StudySplits, read_annotation, read_image_rows, read_openi_images
from common.data.records import Language, Quarantine
from common.data.sections import HeadingCounts, Wanted
from common.errors import UserError
from common.io.rows import add_columns
from common.io.terminal import say
from common.options import Needs

Options = argparse.Namespace
Read = Callable[[Options, Quarantine, HeadingCounts], StudySplits]


def add_layout_options(parser: argparse.ArgumentParser, others: Sequence[str] = ()) -> None:
    """The options that name a data set of studies; layouts are those of this module, and `others`."""
    parser.add_argument(
        "--layout", required=True, choices=sorted([*LAYOUTS, *others]), help="how the source is laid out"
    )
    parser.add_argument(
        "--source",
        required=not others,
        type=Path,
        help="annotation, table, reports, rows; root of MIMIC-CXR-JPG, CheXpert Plus, PadChest",
    )
    parser.add_argument(
        "--images", type=Path, help="folder of images (mimic, chexpert-plus, padchest, rows: if not under the source)"
    )
    parser.add_argument("--split", type=Path, help="R2Gen's or MambaXray-VL's split (.json), or test ids (openi)")
    parser.add_argument(
        "--patients-apart",
        action="store_true",
        help="leave out studies whose patient is in a later split too (chexpert-plus with --split)",
    )
    parser.add_argument(
        "--sections",
        choices=get_args(Wanted),
        help="sections that form the report (mimic, chexpert-plus: findings if not given; rows: the report as it is)",
    )
    parser.add_argument("--reports", type=Path, help="root of the reports, if separate from the images (mimic)")
    parser.add_argument("--maximum-images", type=positive, help="images of a study (ffa-ir, rows; all if not given)")
    add_columns(parser)
    parser.add_argument("--language", choices=get_args(Language), help="of the reports (ffa-ir; en if not given)")
    parser.add_argument(
        "--dicom-contrast",
        choices=get_args(DicomContrast),
        help="grey DICOM files: as a viewer shows them, or made as MIMIC-CXR-JPG was (mimic: the latter if not given)",
    )


def positive(text: str) -> int:
    """A number of at least 1."""
    if int(text) < 1:
        raise ValueError
    return int(text)


def contrast_of(options: Options) -> DicomContrast:
    """What is made of the values of DICOM files: of MIMIC-CXR what was made of them for MIMIC-CXR-JPG, if not given."""
    return options.dicom_contrast or ("mimic-cxr-jpg" if options.layout == "mimic" else "window")


def read_layout(options: Options, quarantine: Quarantine, headings: HeadingCounts) -> StudySplits:
    """The studies that the options of `medreport prepare` name. Raises UserError."""
    required = REQUIRED.get(options.layout, ())
    missing = [f"--{name}" for name in required if getattr(options, name) is None]
    if missing:
        raise UserError(f"--layout {options.layout} also needs {' and '.join(missing)}; add it")
    return LAYOUTS[options.layout](options, quarantine, headings)


def counts_of(splits: StudySplits) -> dict[str, int]:
    """How many studies each split has."""
    return {name: len(studies) for name, studies in splits.items()}


def _annotation(options: Options, quarantine: Quarantine, headings: HeadingCounts) -> StudySplits:
    return read_annotation(options.source, options.images, quarantine)


def _chexpert_plus(options: Options, quarantine: Quarantine, headings: HeadingCounts) -> StudySplits:
    splits = read_chexpert_plus(
        options.source,
        quarantine,
        images=options.images,
        split=options.split,
        report=options.sections or "findings",
        headings=headings,
    )
    if options.patients_apart:
        return without_shared_patients(splits, quarantine)
    if shared := sum(map(len, shared_patients(splits).values())):
        say(
            f"warning: {shared:,} of {sum(counts_of(splits).values()):,} studies have a patient who is in a later "
            "split too, so that scores there are of known patients; --patients-apart leaves these studies out",
            error=True,
        )
    return splits


def _ffa_ir(options: Options, quarantine: Quarantine, headings: HeadingCounts) -> StudySplits:
    return read_ffa_ir(
        options.source,
        options.images,
        quarantine,
        language=options.language or "en",
        maximum_images=options.maximum_images,
    )


def _mimic(options: Options, quarantine: Quarantine, headings: HeadingCounts) -> StudySplits:
    return read_mimic_cxr(
        options.source,
        quarantine,
        images=options.images,
        reports=options.reports,
        report=options.sections or "findings",
        headings=headings,
    )


def _odir(options: Options, quarantine: Quarantine, headings: HeadingCounts) -> StudySplits:
    return read_odir(options.source, options.images, quarantine)


def _openi(options: Options, quarantine: Quarantine, headings: HeadingCounts) -> StudySplits:
    return read_openi_images(options.source, options.images, options.split, quarantine)


def _padchest(options: Options, quarantine: Quarantine, headings: HeadingCounts) -> StudySplits:
    return read_padchest(options.source, quarantine, images=options.images)


def _rows(options: Options, quarantine: Quarantine, headings: HeadingCounts) -> StudySplits:
    return read_image_rows(
        options.source,
        options.images,
        quarantine,
        columns=options.columns,
        maximum_images=options.maximum_images,
        sections=options.sections,
        headings=headings,
    )


LAYOUTS: dict[str, Read] = {
    "annotation": _annotation,
    "chexpert-plus": _chexpert_plus,
    "ffa-ir": _ffa_ir,
    "mimic": _mimic,
    "odir": _odir,
    "openi": _openi,
    "padchest": _padchest,
    "rows": _rows,
}
REQUIRED: dict[str, tuple[str, ...]] = {
    "annotation": ("images",),
    "ffa-ir": ("images",),
    "odir": ("images",),
    "openi": ("images", "split"),
}  # options that a layout cannot do without
OPTION_LAYOUTS: Mapping[str, tuple[str, ...]] = {
    "columns": ("rows",),
    "split": ("chexpert-plus", "openi"),
    "patients_apart": ("chexpert-plus",),
    "sections": ("chexpert-plus", "mimic", "rows"),
    "reports": ("mimic",),
    "maximum_images": ("ffa-ir", "rows"),
    "language": ("ffa-ir",),
}  # layouts that read an option
OPTION_NEEDS = tuple(Needs(name, "layout", layouts) for name, layouts in OPTION_LAYOUTS.items())
