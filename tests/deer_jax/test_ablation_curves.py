"""`deer ablation proportion` draws Figure 1a from its table of scores."""

import re

import pytest

from deer_jax.ablation import PANELS, draw_proportions


def scores(*values: float):
    return [{name: {"value": value, "low": value - 0.1, "high": value + 0.1} for name in PANELS} for value in values]


def test_each_method_is_a_curve_over_its_shares_and_the_start_a_level(tmp_path):
    table = {
        "SFT": scores(0.3),
        "GRPO, 10%": scores(0.4, 0.5),
        "GRPO, 100%": scores(0.45, 0.5),
        "DEER, 20%": scores(0.6),
    }
    draw_proportions(table, tmp_path / "curve.svg", level="SFT")
    drawn = (tmp_path / "curve.svg").read_text()
    assert drawn.count("<!-- GRPO -->") == drawn.count("<!-- DEER -->") == drawn.count("<!-- SFT -->") == len(PANELS)
    again = tmp_path / "again.svg"
    draw_proportions({**table, "DEER, 20%": scores(0.7)}, again, level="SFT")
    assert points(again.read_text()) != points(drawn)


def points(svg: str) -> list[str]:
    return re.findall(r'<path d="[^"]*"', svg)


@pytest.mark.parametrize("known", [0, 1])
def test_scores_that_are_not_there_have_no_panel(tmp_path, known):
    names = list(PANELS)[:known]
    rows = [{name: {"value": 0.5} for name in names}]
    draw_proportions({"SFT": rows, "GRPO, 10%": rows}, tmp_path / "curve.svg", level="SFT")
    assert (tmp_path / "curve.svg").read_text().count("<!-- SFT -->") == known
