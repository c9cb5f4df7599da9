"""`medreport prepare`: prepare a data set of studies with images."""

import logging
import sys
from pathlib import Path

import tensorflow_datasets as tfds

from common.data.builders import MadeBy, prepare
from common.data.builders.layouts import OPTION_NEEDS, add_layout_options, contrast_of, counts_of, positive, read_layout
from common.data.card import own_command
from common.data.identifiers import warn_of_identifiers
from common.data.images import Reading
from common.data.records import Quarantine
from common.data.sections import HeadingCounts
from common.data.summary import data_line, say_data
from common.errors import Parser
from common.io.terminal import say
from common.options import check_options

DESCRIPTION = """Read studies with images in one of eight layouts and store them for training.

annotation: R2Gen's annotation.json. openi: IU X-ray as Open-i publishes it. mimic: MIMIC-CXR-JPG or MIMIC-CXR as
PhysioNet publishes them. chexpert-plus: its table and PNG or DICOM folder, by its own split or MambaXray-VL's
(--split). padchest: its table and 16-bit PNG files. ffa-ir: its annotation and angiographies. odir: its table and
pairs of eyes. rows: JSONL, JSON or Parquet rows of any number of images, or a data set of Hugging Face
or TFDS on disk. Images are PNG, JPEG or DICOM. Studies that cannot be used are counted, and listed in
quarantine.jsonl beside the data. Where sections are taken from free text, the headings that no list has are counted and
printed."""
PROGRAM = "medreport prepare"


def main(argv: list[str]) -> None:
    """Run the command. Raises UserError for whatever is wrong with its input."""
    parser = _parser()
    arguments = parser.parse_args(argv)
    check_options(arguments, argv, OPTION_NEEDS, PROGRAM)
    quarantine = Quarantine()
    headings = HeadingCounts()
    splits = read_layout(arguments, quarantine, headings)
    files = [file for file in (arguments.source, arguments.images, arguments.split, arguments.reports) if file]
    say_data(data_line(files, f"{arguments.layout}, cleaning lossless", counts_of(splits), quarantine=quarantine))
    texts = (f"{study.indication}\n{study.report}" for studies in splits.values() for study in studies)
    made_by = MadeBy(
        f"{', '.join(map(str, files))} ({arguments.layout})",
        own_command(PROGRAM, parser, arguments, output="FOLDER"),
        warn_of_identifiers(texts, "reports to be written"),
    )
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
        made_by=made_by,
    )
    left_out = {id for id, _ in quarantine.entries}
    counts = (f"{name} {sum(study.id not in left_out for study in studies)}" for name, studies in splits.items())
    say(f"{folder}: {', '.join(counts)}; {quarantine.summary()}")
    if told := headings.summary():
        say(told)


def _parser() -> Parser:
    parser = Parser(PROGRAM, description=DESCRIPTION)
    add_layout_options(parser)
    parser.add_argument("--output", required=True, type=Path, help="folder for data sets")
    parser.add_argument("--name", help="name of the data set (the layout if not given)")
    parser.add_argument("--shorter-side", type=positive, help="pixels to store (full size if not given)")
    parser.add_argument("--colour", action="store_true", help="store three channels (grey if not given)")
    parser.add_argument(
        "--beam", nargs="*", metavar="OPTION", help="prepare with Apache Beam, with options such as runner=DirectRunner"
    )
    return parser
