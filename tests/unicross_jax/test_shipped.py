"""The weights that are shipped: a report for an image where no run is named, with a warning."""

import json

from PIL import Image

from common.data.phantom import make_phantom
from tests.unicross_jax.runs import unicross
from unicross_jax.config import EMBEDDED_CLIP, EMBEDDED_RUN


def test_the_shipped_model_reports_a_phantom_and_warns(tmp_path, capsys):
    phantom = make_phantom(123, 7, 128)
    files = [str(tmp_path / "frontal.png"), str(tmp_path / "lateral.png")]
    for file, image in zip(files, (phantom.frontal, phantom.lateral), strict=True):
        Image.fromarray(image).save(file)
    output = tmp_path / "out.jsonl"
    assert unicross(["report", *files, "--study", "one", "--output", str(output)]) == 0
    (row,) = [json.loads(line) for line in output.read_text().splitlines()]
    assert row["images"] == files
    assert len(row["report"].split()) > 5
    assert "know nothing of patients" in capsys.readouterr().err
    assert "Where the model looked" in (tmp_path / "out.html").read_text()


def test_what_is_shipped_is_small():
    for directory in (EMBEDDED_CLIP, EMBEDDED_RUN):
        assert sum(file.stat().st_size for file in directory.iterdir()) < 8_000_000
