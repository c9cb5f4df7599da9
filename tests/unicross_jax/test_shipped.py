"""The weights that are shipped: a report for an image where no run is named, with a warning."""

import json

from PIL import Image

from common.phantoms.labels import label_report, positive_labels
from common.phantoms.phantom import make_phantom
from tests.unicross_jax.runs import unicross
from unicross_jax.config import EMBEDDED_CLIP, EMBEDDED_RUN


def test_the_shipped_model_sees_effusions_in_phantoms_and_warns(tmp_path, capsys):
    files, known = [], []
    for index in range(8):  # no study of these seeds was trained on
        phantom = make_phantom(123, index, 128)
        known.append("Pleural Effusion" in positive_labels(phantom.labels))
        for view, image in (("frontal", phantom.frontal), ("lateral", phantom.lateral)):
            files.append(str(tmp_path / f"{index}-{view}.png"))
            Image.fromarray(image).save(files[-1])
    assert 0 < sum(known) < len(known)
    output = tmp_path / "out.jsonl"
    assert unicross(["report", *files, "--study", r"\d(?=-(frontal|lateral))", "--output", str(output)]) == 0
    rows = [json.loads(line) for line in output.read_text().splitlines()]
    assert [row["images"] for row in rows] == [files[start : start + 2] for start in range(0, 16, 2)]
    found = ["Pleural Effusion" in positive_labels(label_report(row["report"])) for row in rows]
    assert sum(stated == true for stated, true in zip(found, known, strict=True)) >= 7
    assert any(found)
    assert "know nothing of patients" in capsys.readouterr().err
    assert "Where the model looked" in (tmp_path / "out.html").read_text()


def test_what_is_shipped_is_small():
    for directory in (EMBEDDED_CLIP, EMBEDDED_RUN):
        assert sum(file.stat().st_size for file in directory.iterdir()) < 8_000_000
