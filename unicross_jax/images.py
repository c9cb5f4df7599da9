"""`unicross report`: reports for the user's own images."""

import re
import shlex
import sys
from collections.abc import Sequence
from pathlib import Path

import jax

from common.data.images import FORMATS, Pixels, Reading, resize_shorter
from common.data.readers import ImageStudy
from common.data.summary import data_line, say_data
from common.errors import UserError
from common.generation.draft_option import Draft
from common.generation.memory import halved, slot_memory, without_drafts
from common.io.jsonl import write_rows
from common.io.locks import locked_file, owning
from common.io.outputs import check_output, check_own_page, write_whole
from common.io.resumable import row_writer
from common.io.terminal import say
from common.report.environment import environment
from common.report.page import Example as Shown
from common.report.page import Page, render
from unicross_jax.config import EMBEDDED_RUN
from unicross_jax.data import evaluation_crop
from unicross_jax.report import attention_of, draft_table, generate_reports
from unicross_jax.task import encode
from unicross_jax.trained import Trained, load_trained

PHANTOMS_ONLY = (
    "warning: these weights were trained on drawn phantoms alone and know nothing of patients; "
    "name a run of your own with --checkpoint"
)


def group_images(images: Sequence[str], study: str) -> list[tuple[str, ...]]:
    """The images of each study: each image alone, or all in one ("one"), or by what their names have in common.

    `study` is then a regular expression; images in whose paths it finds the same text are one study, in the order
    given. Raises UserError where it finds nothing, or an empty text, which all paths have in common.
    """
    if not images:
        raise UserError("unicross report: no image; name one or more PNG, JPEG or DICOM files")
    if study == "each":
        return [(image,) for image in images]
    if study == "one":
        return [tuple(images)]
    groups: dict[str, list[str]] = {}
    try:
        pattern = re.compile(study)
    except re.error as error:
        raise UserError(
            f"--study {study}: not a valid regular expression ({error}); expected each, one or such an expression"
        ) from error
    for image in images:
        found = pattern.search(image)
        if found is None or not found[0]:
            raise UserError(f"{image}: --study {study} matches nothing in it; expected text that names the study")
        groups.setdefault(found[0], []).append(image)
    return [tuple(group) for group in groups.values()]


@owning("output", locked_file)
@owning("page", locked_file)
def report_images(
    images: Sequence[str],
    study: str,
    checkpoint: Path | None,
    indication: str,
    output: Path | None,
    page: Path,
    batch_size: int = 32,
    draft: Draft = "auto",
) -> None:
    """Write a row {"images", "report"} for each study, and a page with them. Raises UserError before writing a row.

    `batch_size`, the studies at a time on each device, and `draft` change the time alone. With several processes, each
    reads all images and reports a share of them; the first one writes.
    """
    first = jax.process_index() == 0
    if twice := next((image for number, image in enumerate(images) if image in images[:number]), None):
        raise UserError(f"{twice}: is named twice; name each image once")
    groups = group_images(images, study)
    for group in groups:
        for image in group:
            if Path(image).is_dir():
                raise UserError(f"{image}: is a folder; expected {FORMATS}, name the images in it ({image}/*.png)")
            if not Path(image).is_file():
                raise UserError(f"{image}: no such file; expected {FORMATS}")
            if image.encode(errors="replace").decode() != image:
                raise UserError(f"{image!a}: its name is not UTF-8; rename the file")
    check_outputs(output, page, [Path(image) for group in groups for image in group])
    trained = load_trained(EMBEDDED_RUN if checkpoint is None else checkpoint)
    if indication and trained.config.model.conditioning == "published":
        raise UserError("--indication: not read by a model of --model.conditioning published; leave it out")
    table = None
    if checkpoint is not None or draft != "auto":  # the shipped model comes without one
        table = draft_table(trained, checkpoint or EMBEDDED_RUN, draft)
    if first and checkpoint is None:
        print(PHANTOMS_ONLY, file=sys.stderr, flush=True)
    say_data(images_line(groups), rows_on_stdout=True)
    resize = trained.config.data.resize
    reading = Reading(trained.config.data.colour, trained.config.data.dicom_contrast)
    read: list[tuple[Pixels, ...]] = [
        tuple(resize_shorter(reading.image(image), resize) for image in group) for group in groups
    ]
    studies = [ImageStudy(" ".join(group), (), "", indication) for group in groups]
    examples, _ = encode(trained.config, trained.task, studies)
    ids = [study.id for study in studies]
    fewer = halved("--batch-size", batch_size, used=-(-len(examples) // jax.device_count()))
    with slot_memory(fewer, without_drafts(table is not None)):
        written = list(generate_reports(trained, examples, read, batch_size=batch_size, ids=ids, table=table))
    if not first:
        return
    rows = [{"images": list(group), "report": report.text} for group, report in zip(groups, written, strict=True)]
    if output is None:
        with row_writer(None) as write:
            for row in rows:
                write(row)
    attention = attention_of(trained, examples, read, written, batch_size, ids)
    view = evaluation_crop(trained.config.data, trained.task.model.clip.image_size)
    shown = [
        Shown(
            ", ".join(Path(image).name for image in group),
            "",
            None,
            {"report": report.text},
            images=[view(image) for image in read[row]],
            attention=attention[row],
        )
        for row, (group, report) in enumerate(zip(groups, written, strict=True))
    ]
    html = render(_page(trained, shown))
    write_whole(page, html)
    if output is not None:
        write_rows(output, rows)  # last: where it stands, the command is not done again
    say(f"page: {page.absolute()}", error=True)


def images_line(groups: Sequence[Sequence[str]]) -> str:
    """The line that names the folders of the images: a file's own name may be that of a patient."""
    folders = list(dict.fromkeys(str(Path(image).parent) for group in groups for image in group))
    return data_line(folders, "images", {"images": sum(map(len, groups)), "studies": len(groups)})


def check_outputs(output: Path | None, page: Path, images: Sequence[Path]) -> None:
    """Raise UserError for files that could not be written in the end, or would take an image's place."""
    check_output(output, *images)
    if output is not None and output.is_file():
        raise UserError(f"{output}: already exists; remove it, or give another --output")
    check_output(page, *images)
    check_own_page(page)
    if output is not None and output.resolve() == page.resolve():
        raise UserError(f"{output}: --output and the page are the same file; give another --page")


def _page(trained: Trained, shown: Sequence[Shown]) -> Page:
    notes = ["Written by a model, not by a physician. It shows where the model looked, not why it wrote a word."]
    if trained.config.data.layout == "phantom":
        notes.append("This model was trained on drawn phantoms alone and knows nothing of patients.")
    return Page(
        title="Reports by UniCrossAdapter",
        verdict=f"{len(shown)} {'study' if len(shown) == 1 else 'studies'}.",
        command=shlex.join(["unicross", *sys.argv[1:]]),
        environment=environment(),
        examples=shown,
        notes=notes,
    )
