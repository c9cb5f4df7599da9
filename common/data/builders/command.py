"""`medreport prepare`: prepare a data set of studies with images."""

import argparse
import logging
import sys
from pathlib import Path
from typing import get_args

import tensorflow_datasets as tfds

from common.data.builders import prepare
from common.data.builders.layouts import LAYOUTS, OPTION_NEEDS, counts_of, read_layout
from common.data.dicom import DicomContrast
from common.data.images import Reading
from common.data.records import Language, Quarantine
from common.data.sections import HeadingCounts, Wanted
from common.data.summary import data_line, say_data
from common.errors import Parser
from common.io.rows import add_columns
from common.io.terminal import say
from common.options import check_options

DESCRIPTION = """Read studies with images in one of eight layouts and store them for training.

annotation: R2Gen's annotation.json. openi: IU X-ray as Open-i publishes it. mimic: MIMIC-CXR-JPG or MIMIC-CXR as
PhysioNet publishes them. chexpert-plus: its table and PNG or DICOM folder, by its own split or MambaXray-VL's
(--split). padchest: its table and 16-bit PNG files. ffa-ir: its annotation and angiographies. odir: its table and
pairs of eyes. rows: JSONL, JSON or Parquet rows of any number of images, or a data set of Hugging Face on disk.
Images are PNG, JPEG or DICOM. Studies that cannot be used are counted, and listed in quarantine.jsonl beside the
data. Where sections are taken from free text, the headings that no list has are counted and printed."""
PROGRAM = "medreport prepare"


def main(argv: list[str]) -> None:
    """Run the command. Raises UserError for whatever is wrong with its input."""
    arguments = _parse(argv)
    check_options(arguments, argv, OPTION_NEEDS, PROGRAM)
    quarantine = Quarantine()
    headings = HeadingCounts()
    splits = read_layout(arguments, quarantine, headings)
    files = [file for file in (arguments.source, arguments.images, arguments.split, arguments.reports) if file]
    say_data(data_line(files, f"{arguments.layout}, cleaning lossless", counts_of(splits), quarantine=quarantine))
    logging.getLogger("absl").setLevel(logging.ERROR)  # TFDS warns of every configuration that it did not define
    if not sys.stderr.isatty():
        tfds.disable_progress_bar()
    folder = prepare(
        splits,
        arguments.output,
        arguments.name or arguments.layout,
        quarantine,
        layout=arguments.layout,
        shorter_side=arguments.shorter_side,
        reading=Reading(arguments.colour, contrast_of(arguments)),
        beam_options=arguments.beam,
    )
    left_out = {id for id, _ in quarantine.entries}
    counts = (f"{name} {sum(study.id not in left_out for study in studies)}" for name, studies in splits.items())
    say(f"{folder}: {', '.join(counts)}; {quarantine.summary()}")
    if told := headings.summary():
        say(told)


def contrast_of(arguments: argparse.Namespace) -> DicomContrast:
    """What is made of the values of DICOM files: of MIMIC-CXR what was made of them for MIMIC-CXR-JPG, if not given."""
    return arguments.dicom_contrast or ("mimic-cxr-jpg" if arguments.layout == "mimic" else "window")


def _parse(argv: list[str]) -> argparse.Namespace:
    parser = Parser(PROGRAM, description=DESCRIPTION)
    parser.add_argument("--layout", required=True, choices=sorted(LAYOUTS), help="how the source is laid out")
    parser.add_argument(
        "--source",
        required=True,
        type=Path,
        help="annotation, table, reports, rows; root of MIMIC-CXR-JPG, CheXpert Plus, PadChest",
    )
    parser.add_argument("--output", required=True, type=Path, help="folder for data sets")
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
    parser.add_argument("--maximum-images", type=_positive, help="images of a study (ffa-ir, rows; all if not given)")
    add_columns(parser)
    parser.add_argument("--language", choices=get_args(Language), help="of the reports (ffa-ir; en if not given)")
    parser.add_argument("--name", help="name of the data set (the layout if not given)")
    parser.add_argument("--shorter-side", type=_positive, help="pixels to store (full size if not given)")
    parser.add_argument("--colour", action="store_true", help="store three channels (grey if not given)")
    parser.add_argument(
        "--dicom-contrast",
        choices=get_args(DicomContrast),
        help="grey DICOM files: as a viewer shows them, or made as MIMIC-CXR-JPG was (mimic: the latter if not given)",
    )
    parser.add_argument(
        "--beam", nargs="*", metavar="OPTION", help="prepare with Apache Beam, with options such as runner=DirectRunner"
    )
    return parser.parse_args(argv)


def _positive(text: str) -> int:
    if int(text) < 1:
        raise ValueError
    return int(text)
