"""`medreport prepare`: prepare a data set of studies with images."""

import argparse
import logging
import sys
from pathlib import Path
from typing import get_args

import tensorflow_datasets as tfds

from common.data.builders import prepare
from common.data.chexpert_plus import read_chexpert_plus, shared_patients, without_shared_patients
from common.data.mimic import read_mimic_cxr
from common.data.readers import StudySplits, read_annotation, read_image_rows, read_openi_images
from common.data.records import Quarantine
from common.data.sections import HeadingCounts, Wanted
from common.data.summary import data_line, say_data
from common.errors import Parser, UserError
from common.io.terminal import say
from common.options import Needs, check_options

DESCRIPTION = """Read studies with images in one of five layouts and store them for training.

annotation: R2Gen's annotation.json. openi: IU X-ray as Open-i publishes it. mimic: MIMIC-CXR-JPG as PhysioNet publishes
it. chexpert-plus: its table and PNG folder, by its own split or MambaXray-VL's (--split). rows: JSONL or JSON rows of
any number of images. Studies that cannot be used are counted, and listed in quarantine.jsonl beside the data. Where
sections are taken from free text, the headings that no list of spellings has are counted and printed."""
PROGRAM = "medreport prepare"
NEEDS: dict[str, tuple[str, ...]] = {
    "annotation": ("images",),
    "chexpert-plus": (),
    "mimic": (),
    "openi": ("images", "split"),
    "rows": ("images",),
}


OPTION_NEEDS = (
    Needs("images", "layout", ("annotation", "chexpert-plus", "openi", "rows")),
    Needs("split", "layout", ("chexpert-plus", "openi")),
    Needs("patients_apart", "layout", ("chexpert-plus",)),
    Needs("sections", "layout", ("chexpert-plus", "mimic", "rows")),
    Needs("reports", "layout", ("mimic",)),
    Needs("maximum_images", "layout", ("rows",)),
)


def main(argv: list[str]) -> None:
    """Run the command. Raises UserError for whatever is wrong with its input."""
    arguments = _parse(argv)
    check_options(arguments, argv, OPTION_NEEDS, PROGRAM)
    quarantine = Quarantine()
    headings = HeadingCounts()
    splits = _read(arguments, quarantine, headings)
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
        beam_options=arguments.beam,
    )
    left_out = {id for id, _ in quarantine.entries}
    counts = (f"{name} {sum(study.id not in left_out for study in studies)}" for name, studies in splits.items())
    say(f"{folder}: {', '.join(counts)}; {quarantine.summary()}")
    if told := headings.summary():
        say(told)


def counts_of(splits: StudySplits) -> dict[str, int]:
    """How many studies each split has."""
    return {name: len(studies) for name, studies in splits.items()}


def _parse(argv: list[str]) -> argparse.Namespace:
    parser = Parser(PROGRAM, description=DESCRIPTION)
    parser.add_argument("--layout", required=True, choices=sorted(NEEDS), help="how the source is laid out")
    parser.add_argument(
        "--source",
        required=True,
        type=Path,
        help="annotation, reports, rows; root of MIMIC-CXR, CheXpert Plus",
    )
    parser.add_argument("--output", required=True, type=Path, help="folder for data sets")
    parser.add_argument("--images", type=Path, help="folder of images (all but mimic; chexpert-plus: if not PNG)")
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
    parser.add_argument("--maximum-images", type=_positive, help="images of a study (rows; all if not given)")
    parser.add_argument("--name", help="name of the data set (the layout if not given)")
    parser.add_argument("--shorter-side", type=_positive, help="pixels to store (full size if not given)")
    parser.add_argument(
        "--beam", nargs="*", metavar="OPTION", help="prepare with Apache Beam, with options such as runner=DirectRunner"
    )
    return parser.parse_args(argv)


def _read(arguments: argparse.Namespace, quarantine: Quarantine, headings: HeadingCounts) -> StudySplits:
    sections: Wanted | None = arguments.sections
    layout, source, images = arguments.layout, arguments.source, arguments.images
    missing = [f"--{name}" for name in NEEDS[layout] if getattr(arguments, name) is None]
    if missing:
        raise UserError(f"--layout {layout} also needs {' and '.join(missing)}; add it")
    if layout == "annotation":
        return read_annotation(source, images, quarantine)
    if layout == "chexpert-plus":
        splits = read_chexpert_plus(
            source,
            quarantine,
            images=images,
            split=arguments.split,
            report=sections or "findings",
            headings=headings,
        )
        if arguments.patients_apart:
            return without_shared_patients(splits, quarantine)
        if shared := sum(map(len, shared_patients(splits).values())):
            say(
                f"warning: {shared:,} of {sum(counts_of(splits).values()):,} studies have a patient who is in a later "
                "split too, so that scores there are of known patients; --patients-apart leaves these studies out",
                error=True,
            )
        return splits
    if layout == "openi":
        return read_openi_images(source, images, arguments.split, quarantine)
    if layout == "rows":
        return read_image_rows(
            source,
            images,
            quarantine,
            maximum_images=arguments.maximum_images,
            sections=sections,
            headings=headings,
        )
    return read_mimic_cxr(
        source, quarantine, reports=arguments.reports, report=sections or "findings", headings=headings
    )


def _positive(text: str) -> int:
    if int(text) < 1:
        raise ValueError
    return int(text)
