"""What is taken from an answer, by rule and no more; answers in the wrong language."""

import pytest

from common.data.records import ReportPair
from common.io.jsonl import read_jsonl
from retsta_jax.baselines.answers import MEASURES, answer_of, language_shares, language_table

REPORT = "Right eye: drusen; no haemorrhage."


@pytest.mark.parametrize(
    "output",
    [
        REPORT,
        f"  {REPORT}\n\n",
        f"Standard report: {REPORT}",
        f"**Standardized Report:**\n{REPORT}",
        f"### The standardised report: {REPORT}",
        f"标准报告：{REPORT}",
        f"```\n{REPORT}\n```",
        f"```text\nStandard report:\n{REPORT}```",
        f"Standard report:\n\n```\n{REPORT}\n```\n",
        f"```\n{REPORT}",
    ],
)
def test_a_label_before_and_a_fence_around_the_report_are_taken_away(output):
    assert answer_of(output) == REPORT


@pytest.mark.parametrize(
    "output",
    [
        f"Here is the report: {REPORT}",
        f"{REPORT} Standard report: {REPORT}",
        f"{REPORT}\nNote: the left eye is not mentioned.",
        "Right eye: `drusen`.",
        "Report: drusen",
        "",
    ],
)
def test_all_else_that_was_written_counts(output):
    assert answer_of(output) == output


def test_a_completion_ends_at_its_first_blank_line():
    assert answer_of(f"\n{REPORT}\n \nReport:\nOS", completion=True) == REPORT
    assert answer_of("Opacity/lung\nEdema\n\nReport:", completion=True) == "Opacity/lung\nEdema"
    assert answer_of(f"{REPORT}\n\nReport:") == f"{REPORT}\nReport:"


def pair(language, target):
    return ReportPair("x", "s", target, language)


def test_shares_of_constructed_answers():
    english = [
        "Right eye: drusen.",
        "右眼：玻璃膜疣。",
        "Right eye: drusen 玻璃膜疣 of the macula, small and large.",
        "12",
    ]
    chinese = ["右眼：玻璃膜疣。", "Right eye: drusen.", "右眼：OCT示黄斑水肿。", "", "左眼：0.6。"]
    pairs = [*(pair("en", "drusen") for _ in english), *(pair("zh", "右眼OCT") for _ in chinese)]
    found = language_shares([*english, *chinese], pairs)
    assert found["en"] == {
        "reports": 4,
        "wrong_language": 1 / 4,
        "other_script": 2 / 4,
        "other_script_references": 0,
        "no_text": 1 / 4,
    }
    assert found["zh"] == {
        "reports": 5,
        "wrong_language": 1 / 5,
        "other_script": 2 / 5,
        "other_script_references": 1,
        "no_text": 1 / 5,
    }
    table = language_table(found)
    assert table.columns == ("", "en", "zh")
    assert table.rows[1] == (MEASURES["wrong_language"][0], "25.0%", "20.0%")
    assert set(found["en"]) == set(MEASURES)


def test_references_are_in_their_own_language(material):
    rows = read_jsonl(material.data / "test.jsonl", {"target": str})
    targets = [row["target"] for row in rows]
    found = language_shares(targets, [pair("en", target) for target in targets])
    assert found["en"]["wrong_language"] == found["en"]["other_script"] == 0
