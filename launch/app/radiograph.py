"""The page that reports a radiograph, and shows for each word where in the images the decoder attended."""

import functools
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np

from common.clinical.report_labeler import ReportLabeler
from common.data.images import Pixels, Reading, resize_crop, resize_shorter
from common.data.readers import ImageStudy
from common.errors import UserError
from common.metrics.clinical import BLANK, NEGATIVE, POSITIVE, UNCERTAIN
from common.phantoms.phantom import Phantom
from common.phantoms.source import draw_again
from common.report.differences import differences
from common.report.pictures import Picture, looks, picture
from launch.app.forms import File, Form
from launch.app.models import Models
from unicross_jax.report import attention_of, generate_reports
from unicross_jax.task import encode
from unicross_jax.trained import Trained

SEED, SPLIT = 0, "test"  # of the phantoms that are examples
EXAMPLES = {
    27: "Consolidation",
    13: "Pleural effusion",
    23: "Pacemaker",
    17: "Pneumothorax",
    6: "Nothing abnormal",
    22: "A nodule, which it misses",
}
THUMBNAIL, DRAWN = 112, 512  # pixels of a phantom's side
SHOWN, LARGEST = 480, 90_000  # pixels and bytes of an image on the page
MOST_WORDS = 200  # that can be chosen; reports are shorter
MOST_VIEWS = 4
STATES = {POSITIVE: "present", UNCERTAIN: "suspected", NEGATIVE: "absent"}


class Word(NamedTuple):
    """A word of a report, and for each view the data URI of its attention, to lay over the image."""

    text: str
    overlays: Sequence[str]


def blank(models: Models) -> dict[str, Any]:
    """The page before an image is given."""
    own = models.sources.unicross is not None
    return {"examples": thumbnails(), "own": own, "indication": "", "result": None, "most": MOST_VIEWS}


def answer(models: Models, form: Form) -> dict[str, Any]:
    """The page with the report of the images. Raises UserError where they are none."""
    number, indication, truth = form.text("example"), form.text("indication").strip(), None
    trained: Trained = models.unicross
    if number.isdecimal() and int(number) in EXAMPLES:
        phantom = draw_again(SEED, SPLIT, int(number), DRAWN)
        truth, indication, images = phantom.report, phantom.indication, [phantom.frontal, phantom.lateral]
    else:
        images = read_files(trained, form.files.get("images", []))
    causal = trained.config.model.conditioning == "causal"
    words, chosen, pictures, text, complete = reported(trained, images, indication if causal else "")
    texts = [text] if truth is None else [text, truth]
    return {
        **blank(models),
        "indication": indication,
        "result": {
            "words": words,
            "chosen": chosen,
            "pictures": pictures,
            "text": text,
            "complete": complete,
            "truth": truth,
            "differences": [] if truth is None else differences(truth, text),
            "findings": [states(models.labeler, one) for one in texts],
            "indication": indication if causal else "",
        },
    }


def read_files(trained: Trained, files: Sequence[File]) -> list[Pixels]:
    """The images of one study. Raises UserError for none, too many, or what is no image."""
    if not files:
        raise UserError("There is no image yet: drop one, or choose an example.")
    if len(files) > MOST_VIEWS:
        raise UserError(f"These are {len(files)} images; a study here has at most {MOST_VIEWS}.")
    reading = Reading(trained.config.data.colour, trained.config.data.dicom_contrast)
    return [reading.image(file.content, f"Image {place}") for place, file in enumerate(files, start=1)]


def reported(
    trained: Trained, images: Sequence[Pixels], indication: str
) -> tuple[list[Word], int, list[Picture], str, bool]:
    """The words of a report with their attention, the one to show first, the images, the report, and if it ended."""
    study = ImageStudy("study", (), "", indication)
    examples, _ = encode(trained.config, trained.task, [study])
    seen = [tuple(resize_shorter(image, trained.config.data.resize) for image in images)]
    written = list(generate_reports(trained, examples, seen, batch_size=1, ids=["study"]))
    (attention,) = attention_of(trained, examples, seen, written, 1, ["study"])
    words = [Word(look.word, look.overlays) for look in looks(attention[:MOST_WORDS])]
    pictures = [picture(shown(trained, image), SHOWN, LARGEST) for image in images]
    chosen = max(range(len(words)), key=lambda place: len(words[place].text), default=0)  # often names a finding
    return words, chosen, pictures, written[0].text, written[0].complete


def shown(trained: Trained, image: Pixels) -> Pixels:
    """What the model sees of an image, the same square of it, as finely as a page shows it."""
    side = trained.task.model.clip.image_size
    factor = max(1, SHOWN // side)
    return resize_crop(image, trained.config.data.resize * factor, side * factor)


def states(labeler: ReportLabeler, text: str) -> dict[str, str]:
    """What the labeler finds in a report: of each finding that it mentions, whether it is present."""
    (classes,) = labeler.label([text], ["report"]).classes
    found = {labeler.labels[index]: int(classes[index]) for index in np.flatnonzero(classes != BLANK)}
    return {name: STATES.get(own, "present") for name, own in sorted(found.items(), key=lambda item: item[1])}


@functools.cache
def thumbnails() -> list[tuple[int, str, Picture]]:
    """The examples: number, name, and a small picture."""
    small: list[Phantom] = [draw_again(SEED, SPLIT, number, THUMBNAIL) for number in EXAMPLES]
    return [(number, EXAMPLES[number], picture(own.frontal)) for number, own in zip(EXAMPLES, small, strict=True)]
