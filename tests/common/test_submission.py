"""`medreport submission`: what ReXrank's evaluation script and RadEval read, from predictions."""

import json

import pytest

from common.data.submission_command import main
from common.errors import UserError

ROWS = [
    {"id": "s50051329", "prediction": "No acute process.", "reference": "Clear lungs."},
    {"id": 7, "prediction": "", "reference": "Ein Rundherd — 2,5 cm."},
    {"id": "other", "prediction": "x", "reference": "y"},
]
STUDIES = {
    "50051329": {
        "image_path": ["/p10/p10046166/s50051329/a.jpg"],
        "section_findings": "Clear lungs.",
        "section_impression": None,
        "subject_id": 10046166,
    },
    "7": {"image_path": ["b.jpg"], "section_findings": "F", "section_impression": "I"},
}


@pytest.fixture
def files(tmp_path):
    predictions, studies = tmp_path / "predictions.jsonl", tmp_path / "studies.json"
    predictions.write_text("\n".join(map(json.dumps, ROWS)))
    studies.write_text(json.dumps(STUDIES))
    return str(predictions), str(studies), tmp_path / "out.json"


def test_radeval_gets_two_lists_in_the_order_of_the_rows(files, capsys):
    predictions, _, output = files
    for _ in range(2):  # its own file is replaced
        main([predictions, "--format", "radeval", "--output", str(output)])
    assert json.loads(output.read_text("utf-8")) == {
        "references": [row["reference"] for row in ROWS],
        "hypotheses": [row["prediction"] for row in ROWS],
    }
    assert "reports 3" in capsys.readouterr().out


def test_rexrank_gets_each_of_its_studies_with_a_prediction(files):
    predictions, studies, output = files
    for _ in range(2):
        main([predictions, "--format", "rexrank", "--studies", studies, "--output", str(output)])
    assert json.loads(output.read_text("utf-8")) == {
        "50051329": {**STUDIES["50051329"], "model_prediction": "No acute process."},
        "7": {**STUDIES["7"], "model_prediction": ""},
    }


def test_what_cannot_be_submitted_is_one_line(files, tmp_path):
    predictions, studies, output = files
    more = tmp_path / "more.json"
    more.write_text(json.dumps(STUDIES | {"8": STUDIES["7"]}))
    for words, message in [
        (["rexrank", "--studies", str(more)], r"has no row of id '8' \(1 of 3 studies are missing\)"),
        (["rexrank"], "--studies is ReXrank's file"),
        (["radeval", "--studies", studies], "--studies is ReXrank's file"),
    ]:
        with pytest.raises(UserError, match=message):
            main([predictions, "--output", str(output), "--format", *words])
    assert not output.exists()
    with pytest.raises(UserError, match="is also an input"):
        main([predictions, "--output", studies, "--format", "rexrank", "--studies", studies])
    for words in (["radeval"], ["rexrank", "--studies", studies]):
        with pytest.raises(UserError, match="is left unchanged"):
            main([predictions, "--output", str(more), "--format", *words])
