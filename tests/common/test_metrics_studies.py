"""Reports of studies are scored in the language of each study, whatever reads them."""

import pytest

from common.clinical.scores import difference, in_each_language, measure_systems, score_systems
from common.data.readers import ImageStudy, read_annotation, read_image_rows
from common.data.records import Quarantine
from common.metrics.baselines import constant_report, constant_reports
from common.metrics.tokenize import language_of, languages_of
from deer_jax.rewards import bleu2
from tests.common.test_studies import touch, write_json

CHINESE, ENGLISH = "双肺纹理清晰，心影不大。", "the lungs are clear ."


def test_identical_reports_score_1_in_either_language_and_in_both():
    studies = [ImageStudy("zh", (), CHINESE, language="zh"), ImageStudy("en", (), ENGLISH)]
    texts = [CHINESE, ENGLISH]
    assert score_systems({"one": texts[:1]}, studies[:1], None)["one"]["coco/ROUGE-L"]["value"] == 1
    both = score_systems({"both": texts}, studies, None)["both"]
    names = ["en/coco/ROUGE-L", "zh/coco/ROUGE-L"]
    assert [both[name]["value"] for name in names] == [1, 1]
    assert in_each_language(["coco/ROUGE-L", "distinct_outputs"], both) == [*names, "distinct_outputs"]
    systems, _ = measure_systems({"own": texts, "constant": [ENGLISH, ENGLISH]}, studies, None)
    less = difference(systems["own"], systems["constant"])
    assert less["zh/coco/ROUGE-L"]["value"] == 1
    assert less["en/coco/ROUGE-L"]["value"] == 0


def test_a_constant_report_is_in_the_language_of_the_row():
    known, languages = [ENGLISH, ENGLISH, CHINESE, CHINESE + "无"], ["en", "en", "zh", "zh"]
    assert constant_reports(known, languages, ["zh", "en"]) == [CHINESE, ENGLISH]
    assert constant_reports([ENGLISH], ["en"], ["zh"]) == [ENGLISH]
    # Every sentence is one token between white space, so as English no report is closer to the others than another.
    assert constant_report(["甲状腺", "双肺清晰心影大", "双肺清晰心影不大", "双肺清晰"]) != "甲状腺"


@pytest.mark.parametrize(
    ("text", "language"),
    [
        (CHINESE, "zh"),
        (ENGLISH, "en"),
        ("", "en"),
        ("OD: NPDR", "en"),
        ("右眼 NPDR", "zh"),
        ("see 见 the rest here", "en"),
    ],
)
def test_a_fifth_of_the_letters_decides(text, language):
    assert language_of(text) == language


def test_rows_without_letters_are_in_the_language_of_most():
    rows = [{"reference": text, "prediction": "1"} for text in ("", "1.5", CHINESE, CHINESE, ENGLISH)]
    assert languages_of(rows) == ["zh", "zh", "zh", "zh", "en"]
    assert languages_of([{"reference": "", "prediction": CHINESE}, {"reference": "", "prediction": ""}]) == ["zh"] * 2


def test_readers_of_own_rows_tell_the_language(tmp_path):
    touch(tmp_path, "a.png", "b.png")
    rows = [
        {"id": name, "images": [f"{name}.png"], "report": text, "split": split}
        for name, text, split in (("a", CHINESE, "train"), ("b", ENGLISH, "test"))
    ]
    found = read_image_rows(write_json(tmp_path / "rows.json", rows), tmp_path, Quarantine())
    assert [found[name][0].language for name in ("train", "test")] == ["zh", "en"]
    entries = [{"id": name, "report": CHINESE, "image_path": ["a.png"]} for name in "abc"]
    file = write_json(
        tmp_path / "annotation.json", dict(zip(("train", "val", "test"), ([own] for own in entries), strict=True))
    )
    assert read_annotation(file, tmp_path, Quarantine())["train"][0].language == "zh"


def test_the_reward_of_a_chinese_report_counts_characters():
    first, same, english = bleu2(["双肺清晰", CHINESE, "no edema"], [CHINESE, CHINESE, "no edema"])
    assert 0 < first < 1
    assert same == pytest.approx(1, abs=1e-6) == english
