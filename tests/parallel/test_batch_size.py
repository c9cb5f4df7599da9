"""`--batch-size` is the number of prompts at a time on each of the eight devices, in every command that writes."""

import re

import pytest
from PIL import Image

from common.io.jsonl import write_rows
from common.phantoms.phantom import make_phantom
from deer_jax.cli import dispatch as deer
from launch.cli import dispatch as medreport
from retsta_jax.cli import dispatch as retsta
from unicross_jax.cli import dispatch as unicross

ROWS = 17  # three on some device, if all of them were there at the same time


class Made(Exception):
    """The slots of a device, whose programs are not compiled."""


@pytest.fixture(autouse=True)
def slots(monkeypatch):
    def make_slots(decoder, settings, size, layout):
        assert layout.row_shards == 8
        raise Made(size)

    for module in ("common.generation.generate", "unicross_jax.generate", "deer_jax.sample"):
        monkeypatch.setattr(f"{module}.make_slots", make_slots)


def made(dispatch, command, batch_size):
    with pytest.raises(Made) as found:
        dispatch([*command, "--batch-size", str(batch_size)])
    return found.value.args[0]


def check(dispatch, command):
    assert made(dispatch, command, 2) == 2
    assert made(dispatch, command, 100) == 3


def test_decode(material, tmp_path):
    write_rows(tmp_path / "rows.jsonl", ({"id": number, "prompt": "no drusen"} for number in range(ROWS)))
    check(medreport, ["decode", "--model", str(material.base), "--prompts", str(tmp_path / "rows.jsonl")])


def test_standardize(retsta_run, tmp_path):
    write_rows(tmp_path / "rows.jsonl", ({"id": number, "report": "no drusen"} for number in range(ROWS)))
    check(retsta, ["standardize", str(tmp_path / "rows.jsonl"), "--run-dir", str(retsta_run)])


def test_report(tmp_path):
    images = [str(tmp_path / f"{number}.png") for number in range(ROWS)]
    for image in images:
        Image.fromarray(make_phantom(9, 0, 48).frontal).save(image)
    check(unicross, ["report", *images, "--page", str(tmp_path / "page.html")])


def test_sample(tmp_path):
    sizes = {"--data.train-size": ROWS, "--data.side": 56, "--data.validation-size": 1}
    words = [str(word) for option in sizes.items() for word in option]
    check(deer, ["sample", "--preset", "demo", "--output", str(tmp_path / "out.jsonl"), *words])


@pytest.mark.parametrize(
    ("dispatch", "command"),
    [
        (medreport, "decode"),
        *((retsta, command) for command in ("standardize", "evaluate", "baseline")),
        *((unicross, command) for command in ("evaluate", "report")),
        *((deer, command) for command in ("label", "evaluate", "sample")),
    ],
)
def test_help_says_so_everywhere(dispatch, command, capsys):
    with pytest.raises(SystemExit):
        dispatch([command, "--help"])
    said = re.sub(r"[\s│]+", " ", capsys.readouterr().out)
    assert re.search(r"--batch-size \S+ \w+ at a time on each device", said)
