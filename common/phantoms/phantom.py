"""Phantom chest radiographs: drawn studies with reports, for demos and tests wherever no real data is at hand.

A study is a frontal and a lateral image, the findings drawn in them, a reason for the study and a report whose
CheXpert labels are known. It is a function of (seed, index): any study is made alone, on any machine, in any order, at
any size. `phantom_study` samples what is shown, `phantom_frontal` and `phantom_lateral` draw it, `phantom_text` words
it. Nothing here comes from a patient, and no measurement on it says how a model does on patients.

`medreport phantoms --sheet FILE.png` draws a sheet of studies to look at.
"""

import functools
import multiprocessing
import os
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from jaxtyping import UInt8
from PIL import Image, ImageDraw

from common.bounds import PHANTOMS, SEED, SIDE, Within, bounded
from common.errors import Parser, UserError
from common.io.terminal import say
from common.metrics.clinical import FINDINGS
from common.phantoms.frontal import draw_frontal
from common.phantoms.lateral import draw_lateral
from common.phantoms.study import Finding, Scanner, Study, sample_study
from common.phantoms.text import Labels, render_report
from common.scripts import run_former

__all__ = [
    "FINDINGS",
    "Finding",
    "Phantom",
    "Study",
    "draw_frontal",
    "draw_lateral",
    "make_phantom",
    "make_phantoms",
    "sample_study",
]

SMALLEST, LARGEST = 16, 2048
CAPTION = 34  # pixels
FEW = 64  # studies that are drawn sooner than processes start


@dataclass(frozen=True)
class Phantom:
    """A drawn study. labels: CheXbert's classes (0 blank, 1 positive, 2 negative, 3 uncertain), ordered as FINDINGS."""

    id: str
    frontal: UInt8[np.ndarray, "size size"]
    lateral: UInt8[np.ndarray, "size size"]
    findings: tuple[Finding, ...]
    indication: str
    report: str
    labels: Labels


def make_phantom(seed: int, index: int, size: int = 224, scanner: Scanner = "first") -> Phantom:
    """Study `index` of the endless set of a seed. The same study at another size shows the same.

    Raises UserError for a negative seed or index and for a size outside 16 to 2048 pixels.
    """
    if seed < 0 or index < 0:
        raise UserError(f"phantom study: seed {seed}, index {index}; expected 0 or more")
    if not SMALLEST <= size <= LARGEST:
        raise UserError(f"phantom study: image size {size}; expected {SMALLEST} to {LARGEST} pixels")
    study = sample_study(seed, index).on(scanner)
    report, labels = render_report(study)
    return Phantom(
        id=f"phantom-{seed}-{index:06d}",
        frontal=draw_frontal(study, size),
        lateral=draw_lateral(study, size),
        findings=study.findings,
        indication=study.indication,
        report=report,
        labels=labels,
    )


def make_phantoms(seed: int, indices: Sequence[int], size: int = 224, scanner: Scanner = "first") -> list[Phantom]:
    """Several studies of a seed, drawn by as many processes as there are processors. Raises UserError as above."""
    make = functools.partial(make_phantom, seed, size=size, scanner=scanner)
    workers = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    if len(indices) <= FEW or workers == 1:
        return [make(index) for index in indices]
    # Spawned, not forked: a fork of a process in which JAX has started threads can hang.
    with ProcessPoolExecutor(workers, multiprocessing.get_context("spawn")) as pool:
        return list(pool.map(make, indices, chunksize=16))


def draw_sheet(seed: int, start: int, rows: int, columns: int, size: int) -> Image.Image:
    """Studies side by side, frontal and lateral, with what they show underneath."""
    sheet = Image.new("L", (columns * 2 * size, rows * (size + CAPTION)))
    draw = ImageDraw.Draw(sheet)
    for index in range(rows * columns):
        phantom = make_phantom(seed, start + index, size)
        x, y = (index % columns) * 2 * size, (index // columns) * (size + CAPTION)
        sheet.paste(Image.fromarray(phantom.frontal), (x, y))
        sheet.paste(Image.fromarray(phantom.lateral), (x + size, y))
        caption = "\n".join(_lines([str(finding) for finding in phantom.findings] or ["normal"], 2 * size // 6))
        draw.multiline_text((x + 6, y + size + 3), caption, fill=220)
    return sheet


def _lines(findings: list[str], width: int) -> list[str]:
    """The findings, joined by semicolons into lines of about a width in characters."""
    lines = [findings[0]]
    for finding in findings[1:]:
        if len(lines[-1]) + len(finding) + 2 > width:
            lines.append(finding)
        else:
            lines[-1] += f"; {finding}"
    return lines


def main(argv: list[str]) -> None:
    """Write a sheet of studies as one image."""
    parser = Parser("medreport phantoms", description="Draw a sheet of phantom chest radiographs.")
    parser.add_argument("--sheet", type=Path, required=True, help="the image file to write (png)")
    parser.add_argument("--seed", type=bounded(SEED), default=0)
    parser.add_argument("--start", type=bounded(PHANTOMS), default=440, help="index of the first study")
    parser.add_argument("--rows", type=bounded(Within(1, 100)), default=4)
    parser.add_argument("--columns", type=bounded(Within(1, 100)), default=3)
    parser.add_argument("--size", type=bounded(SIDE), default=200, help="pixels of an image's side")
    arguments = parser.parse_args(argv)
    sheet = draw_sheet(arguments.seed, arguments.start, arguments.rows, arguments.columns, arguments.size)
    # 64 grey levels look the same on a page of small images and take half the space.
    try:
        sheet.quantize(64).save(arguments.sheet, "PNG", optimize=True)
    except OSError as error:
        raise UserError(f"sheet {arguments.sheet}: {error.strerror}; expected a file in an existing folder") from None
    say(f"{arguments.sheet}: {arguments.rows * arguments.columns} studies")


if __name__ == "__main__":
    run_former("common.phantoms.phantom", "phantoms", "common.phantoms.phantom:main")
