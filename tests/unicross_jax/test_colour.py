"""Colour fundus photographs of both eyes, three channels from the file to CLIP and to the page."""

import base64
import io
import json
import re
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from common.data.images import read_image
from common.data.readers import ImageStudy
from tests.dicom_files import IDENTIFIERS, dicom_bytes
from tests.unicross_jax.runs import arguments, log, make_clip, unicross
from unicross_jax.backbone import without_dropout
from unicross_jax.model import report_hidden
from unicross_jax.report import studies_of
from unicross_jax.task import encode
from unicross_jax.trained import load_trained

RED, GREEN = (150, 40, 20), (20, 102, 54)  # of one luma
REPORTS = {RED: "Red eye with drusen.", GREEN: "Green eye without drusen."}


def fundus(colour: tuple[int, int, int], seed: int) -> Image.Image:
    """A disc of a colour on black, with some noise that is alike in all channels."""
    rows, columns = np.mgrid[:48, :56]
    disc = np.hypot(rows - 24, columns - 28) < 20
    noise = np.random.default_rng(seed).integers(0, 9, disc.shape)
    return Image.fromarray(((np.array(colour) + noise[..., None]) * disc[..., None]).astype(np.uint8))


@pytest.fixture(scope="module")
def pairs(tmp_path_factory) -> Path:
    """Rows of pairs of eyes, left and right, of which the colour alone tells the report."""
    folder = tmp_path_factory.mktemp("eyes")
    rows = []
    for number in range(10):
        colour = (RED, GREEN)[number % 2]
        names = [f"{number}_{side}.{'png' if number < 6 else 'dcm'}" for side in ("left", "right")]
        for side, name in enumerate(names):
            eye = fundus(colour, 2 * number + side)
            if number < 6:
                eye.save(folder / name)
            else:
                (folder / name).write_bytes(dicom_bytes(np.asarray(eye)))
        split = "train" if number < 6 else "val" if number < 8 else "test"
        rows.append({"id": str(number), "images": names, "report": REPORTS[colour], "split": split})
    (folder / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return folder


@pytest.fixture(scope="module")
def run(pairs, tmp_path_factory) -> Path:
    clip = make_clip(tmp_path_factory.mktemp("clip") / "clip")
    run_dir = tmp_path_factory.mktemp("runs") / "run"
    options = {
        "data__layout": "rows", "data__source": pairs / "rows.jsonl", "data__images": pairs,
        "vocabulary__minimum_count": 1,  "max_length": 8,
    }  # fmt: skip
    words = [*arguments(run_dir, clip, **options), "--data.colour", "True"]
    assert unicross(words) == 0
    return run_dir


def test_a_colour_alone_changes_what_the_model_sees(run, pairs):
    assert len(log(run)) > 0
    grey = [read_image(pairs / f"{number}_left.png") for number in (0, 1)]
    assert abs(float(grey[0].mean()) - float(grey[1].mean())) < 1  # nothing to see without colours
    trained = load_trained(run)
    studies = [ImageStudy(str(number), (), REPORTS[RED]) for number in (0, 1)]
    examples, _ = encode(trained.config, trained.task, studies)
    images = [(np.asarray(fundus(colour, 1)),) for colour in (RED, GREEN)]
    batch = studies_of(trained, examples, images, [0, 1], 2)
    assert batch.images.shape == (2, 2, 32, 32, 3)
    tokens = np.stack([examples[0].tokens] * 2)
    hidden = report_hidden(
        trained.trainable, trained.task.frozen, batch, tokens, np.ones(tokens.shape, bool),
        without_dropout(trained.task.model),
    )  # fmt: skip
    assert np.abs(np.asarray(hidden[0] - hidden[1])).max() > 1e-3


def test_pairs_of_eyes_are_evaluated_and_reported_from_png_and_dicom_alike(run, pairs, tmp_path, capsys):
    assert unicross(["evaluate", "--run-dir", str(run)]) == 0
    assert json.loads((run / "metrics.json").read_text())["studies"] == 2
    written = {}
    for kind in ("png", "dcm"):
        names = []
        for side in (0, 1):
            eye = fundus(RED, side)
            file = tmp_path / f"eye{side}.{kind}"
            eye.save(file) if kind == "png" else file.write_bytes(dicom_bytes(np.asarray(eye)))
            names.append(str(file))
        output = tmp_path / f"{kind}.jsonl"
        assert unicross(["report", *names, "--study", "one", "--checkpoint", str(run), "--output", str(output)]) == 0
        (row,) = map(json.loads, output.read_text().splitlines())
        written[kind] = row["report"]
    assert written["png"] == written["dcm"]
    page = (tmp_path / "dcm.html").read_text()
    assert not any(value in page for value in IDENTIFIERS.values())
    shown = re.findall(r"data:image/jpeg;base64,([A-Za-z0-9+/=]+)", page)
    assert len(shown) == 2
    red, green, _ = np.asarray(Image.open(io.BytesIO(base64.b64decode(shown[0])))).mean((0, 1))
    assert red > 2 * green


def test_colour_of_phantoms_is_refused(tmp_path, refused):
    words = ["train", "--preset", "small", "--run-dir", str(tmp_path / "run"), "--data.colour", "True"]
    assert "data.colour" in refused(words)
