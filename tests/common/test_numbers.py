"""Scores are written with fixed decimals, and never with an exponent."""

import json
import math

import pytest

from common.io.numbers import interval_text, rounded, score_text
from common.report.page import Page, render
from common.report.plots import training_charts
from common.report.table import as_markdown


@pytest.mark.parametrize(
    ("value", "shown"),
    [(0.12345, "0.123"), (1.99e-21, "0.000"), (-1e-9, "0.000"), (None, "–"), (math.nan, "–"), (math.inf, "–")],
)
def test_people_see_three_decimals_or_a_dash(value, shown):
    assert score_text(value) == shown


def test_a_difference_has_its_sign_and_an_interval_its_brackets():
    assert interval_text({"value": 0.5, "low": 0.4, "high": 0.6}) == "0.500 [0.400, 0.600]"
    assert interval_text({"value": -0.5, "low": -0.6, "high": 1e-30}, sign=True) == "-0.500 [-0.600, +0.000]"
    assert interval_text({"value": 0.5}) == interval_text({"value": 0.5, "low": math.nan, "high": 1.0}) == "0.500"


@pytest.mark.parametrize("value", [1.99e-21, 9.9e-5, 1e-5, -3e-7, 0.1 + 0.2, 1 / 3, 12.5, 0.0001, 0.00012345678])
def test_json_holds_no_exponent_and_at_most_six_decimals(value):
    text = json.dumps(rounded({"scores": [{"value": value}], "count": 3, "name": "x", "none": None}))
    assert "e-" not in text
    found = json.loads(text)
    assert found["scores"][0]["value"] == pytest.approx(value, abs=5.1e-5 if abs(value) < 1e-4 else 5.1e-7)
    assert (found["count"], found["name"], found["none"]) == (3, "x", None)


def test_pages_tables_and_curves_show_a_bleu_of_nothing_as_0():
    tiny = {"value": 1.99e-21, "low": 1e-22, "high": 3e-20}
    html = render(Page("t", "v", "c", systems={"this run": {"nltk/BLEU-4": tiny}}, headline=["nltk/BLEU-4"]))
    assert "0.000 to 0.000" in html
    assert "e-2" not in as_markdown({"a": [{"BLEU": tiny}]}, ["BLEU"])
    rows = [{"step": step, "bleu2": value} for step, value in enumerate((1.99e-21, 0.2, 0.3))]
    (chart,) = training_charts(rows, {"Reward": {"BLEU-2": "bleu2"}})
    assert "e-" not in "".join(str(point) for line in chart.series for point in line.points)
    assert "e-2" not in chart.svg
