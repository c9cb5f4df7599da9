"""`unicross rexrank`: ReXrank's files in, and the same with a prediction for each study out."""

import json

import numpy as np
import pytest

from common.data.images import encode_png
from common.data.rexrank import indication_of, read_studies
from common.errors import UserError
from tests.unicross_jax.runs import unicross
from unicross_jax.config import EMBEDDED_RUN
from unicross_jax.rexrank import images_of

# As ReXrank publishes IU X-ray (ReXRank_IUXray_valid.json), with the report shortened.
STUDY = {
    "key_image_path": "CXR2056_IM-0694-1001/1.png",
    "image_path": ["CXR2056_IM-0694-1001/0.png", "CXR2056_IM-0694-1001/1.png"],
    "report": "Findings: The heart size is upper limits of normal. Impression: No acute cardiopulmonary disease.",
    "section_findings": "The heart size is upper limits of normal.",
    "section_impression": "No acute cardiopulmonary disease.",
    "split": "val",
    "frontal_lateral": ["Lateral", "Frontal"],
    "context": "Indication: XXXX-year-old with nausea. Shortness of breath. Comparison: None.",
}


@pytest.fixture
def published(tmp_path):
    """A file of two studies, and their images."""
    studies = {
        "CXR2056_IM-0694-1001": STUDY,
        "CXR1_IM-1": STUDY | {"image_path": ["a/0.png"], "key_image_path": "a/0.png"},
    }
    draw = np.random.default_rng(0)
    for study in studies.values():
        for path in study["image_path"]:
            (tmp_path / path).parent.mkdir(exist_ok=True)
            (tmp_path / path).write_bytes(encode_png(draw.integers(0, 256, (90, 80), dtype=np.uint8)))
    file = tmp_path / "input.json"
    file.write_text(json.dumps(studies), "utf-8")
    return file, studies


@pytest.mark.parametrize("names", [("",) * 3, ("--input_json_file=", "--save_json_file=", "--img_root_dir=")])
def test_every_study_gets_a_prediction_and_keeps_the_rest(published, tmp_path, names):
    file, studies = published
    output = tmp_path / "output.json"
    words = [f"{name}{path}" for name, path in zip(names, (file, output, tmp_path), strict=True)]
    assert unicross(["rexrank", *words, "--checkpoint", str(EMBEDDED_RUN)]) == 0
    found = json.loads(output.read_text("utf-8"))
    assert [*found] == [*studies]
    for name, study in found.items():
        prediction = study.pop("model_prediction")
        assert study == studies[name]
        assert prediction.strip()


def test_the_key_image_comes_first_and_the_indication_without_the_comparison(tmp_path):
    assert [path.name for path in images_of(STUDY, tmp_path, 1)] == ["1.png"]
    assert [path.name for path in images_of(STUDY, tmp_path, 2)] == ["1.png", "0.png"]
    assert indication_of(STUDY) == "XXXX-year-old with nausea. Shortness of breath."
    assert indication_of({"context": "Indication: Cough"}) == "Cough"
    assert indication_of({"context": "Comparison: None."}) == indication_of({}) == ""
    # As in the files of MIMIC-CXR and CheXpert Plus, and in the guideline's example.
    assert (
        indication_of({"context": "Age:50-60.Gender:M.Indication: ___ with fever.Comparison: ___."})
        == "___ with fever."
    )
    assert indication_of({"context": "Age:77.0.Gender:F.Indication:nanComparison: None."}) == ""
    assert indication_of({"context": "<context>Gender:M.Indication: Cough.</context>"}) == "Cough."


@pytest.mark.parametrize(
    ("studies", "said"),
    [
        ({}, "holds no study"),
        ({"a": []}, "study a: expected a JSON object"),
        ({"a": {}}, "key 'image_path' is missing"),
        ({"a": {"image_path": []}}, "image_path must list"),
        ({"a": {"image_path": [1]}}, "image_path must list"),
        ({"a": {"image_path": ["x.png"], "context": 3}}, "'context' must be str"),
    ],
)
def test_what_is_wrong_with_a_file_is_one_line(tmp_path, studies, said):
    file = tmp_path / "input.json"
    file.write_text(json.dumps(studies))
    with pytest.raises(UserError, match=said):
        read_studies(file)


def test_missing_images_are_said_before_anything_is_written(published, tmp_path, capsys):
    file, _ = published
    words = [
        "rexrank",
        str(file),
        str(tmp_path / "out.json"),
        str(tmp_path / "elsewhere"),
        "--checkpoint",
        str(EMBEDDED_RUN),
    ]
    assert unicross(words) == 2
    assert "no such file, of study CXR2056_IM-0694-1001 (" in capsys.readouterr().err
    assert not (tmp_path / "out.json").exists()


@pytest.mark.parametrize("words", [["a", "b"], [], ["a", "b", "c", "--img_root_dir", "d"], ["--img_root_dir", "d"]])
def test_all_three_paths_are_named_or_none(words, capsys):
    assert unicross(["rexrank", *words, "--checkpoint", str(EMBEDDED_RUN)]) == 2
    assert "expected INPUT.json OUTPUT.json IMAGES, or all of them by --input_json_file" in capsys.readouterr().err
