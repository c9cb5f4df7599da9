"""Distributions on a page: the bands are as high as the shares that were logged, and the legend names them."""

import re

import numpy as np
import pytest

from common.report.bands import Bands, legend, shares
from common.report.live import render_live
from common.report.plots import training_charts
from tests.common.test_report_page import Reader

BOUNDS = (-1, 0.5, 2)
BANDS = Bands("size", BOUNDS, 0)
TITLE = "Sizes of things"


def rows_of(values) -> list[dict]:
    """A log of a value for each thing [steps, things]."""
    return [
        {"step": step, **{f"size_below_{bound}": float((own < bound).mean()) for bound in BOUNDS}}
        for step, own in enumerate(np.asarray(values, float), start=1)
    ]


def chart_of(rows):
    return next(iter(training_charts(rows, {TITLE: BANDS})), None)


def polygons(svg: str) -> list[np.ndarray]:
    """The corners of what is filled, from the lowest band on."""
    paths = re.findall(
        r'<path (?:id="[^"]+" )?d="([^"]+z\s*)"(?: clip-path="[^"]+" style="fill: var|/>\s*</defs>)', svg
    )
    return [np.array(re.findall(r"(-?[\d.]+) (-?[\d.]+)", path), float) for path in paths]


def heights(svg: str, across: float) -> list[float]:
    """The height of each band that is crossed at a share of the width, as a share of the height of all."""
    drawn = polygons(svg)
    x, y = np.concatenate(drawn).T
    at, found = x.min() + across * np.ptp(x), []
    for corners in drawn:
        ends = zip(corners, np.roll(corners, -1, axis=0), strict=True)
        crossed = [a[1] for a, b in ends if min(a[0], b[0]) < at < max(a[0], b[0])]
        found += [np.ptp(crossed) / np.ptp(y)] if crossed else []
    return found


def test_shares_are_the_histogram_of_what_was_logged():
    values = np.random.default_rng(0).normal(size=(7, 50))
    values[0, :3] = BOUNDS  # a value on a bound belongs to what is above it
    steps, own = shares([{"step": 0, "loss": 1.0}, *rows_of(values)], BANDS)
    assert steps == [*range(1, 8)]
    for found, value in zip(own, values, strict=True):
        counts, _ = np.histogram(value, [-np.inf, *BOUNDS, np.inf])
        np.testing.assert_allclose(found, counts / 50, atol=1e-12)


def test_the_legend_names_each_band_and_colours_both_sides_of_the_middle():
    drawn = legend(BANDS, [0.1, 0.2, 0.3, 0.4])
    assert [band.name for band in drawn] == ["below −1", "−1 to 0.5", "0.5 to 2", "2 and above"]
    assert [band.bound for band in drawn] == ["−1", "0.5", "2", None]
    assert [band.colour for band in drawn] == [1, None, 0, 0]
    assert drawn[2].opacity < drawn[3].opacity == 1
    above = legend(Bands("size", BOUNDS, 5), [0.25] * 4)
    assert [band.colour for band in above] == [1, 1, 1, None]
    assert above[0].opacity == 1
    assert [band.colour for band in legend(Bands("size", BOUNDS, -1), [0.25] * 4)] == [1, None, 0, 0]


def test_bands_are_as_high_as_their_shares_and_columns_as_wide_as_their_steps():
    chart = chart_of(rows_of([[-2, 0, 0, 1], [-2, -2, 0, 3], [0, 0, 1, 3]]))
    assert [band.last for band in chart.bands] == [0, 0.5, 0.25, 0.25]
    for column, own in enumerate([[0.25, 0.5, 0.25, 0], [0.5, 0.25, 0, 0.25], [0, 0.5, 0.25, 0.25]]):
        for within in (0.02, 0.5, 0.98):
            np.testing.assert_allclose(heights(chart.svg, (column + within) / 3), own, atol=1e-4)


def test_a_long_run_is_drawn_in_columns_of_means():
    rows = rows_of([[0, 0] if step % 2 else [3, 3] for step in range(1000)])
    svg = chart_of(rows).svg
    assert all(heights(svg, (column + 0.5) / 100) == pytest.approx([0.5, 0.5], abs=1e-4) for column in range(100))


def test_a_step_over_nothing_is_a_gap():
    rows = rows_of([[0, 3], [0, 3], [0, 3]])
    rows[1] |= {name: None for name in rows[1] if name != "step"}
    chart = chart_of(rows)
    assert heights(chart.svg, 0.3) == heights(chart.svg, 0.7) == pytest.approx([0.5, 0.5], abs=1e-4)
    assert heights(chart.svg, 0.36) == heights(chart.svg, 0.64) == []
    assert [band.last for band in chart.bands] == [0, 0.5, 0, 0.5]
    rows[2] |= {name: None for name in rows[2] if name != "step"}
    assert [band.last for band in chart_of(rows).bands] == [0, 0.5, 0, 0.5]


def test_what_is_always_in_one_band_or_never_logged_is_not_drawn():
    assert chart_of(rows_of([[0, 0], [0.1, 0.2]])) is None
    assert chart_of([{"step": 1, "other": 0.5}]) is None
    assert chart_of([]) is None
    assert chart_of([{**row, "size_below_2": None, "size_below_-1": None} for row in rows_of([[0, 3]])]) is None


def test_the_page_has_the_bounds_and_the_last_shares():
    rows = rows_of([[-2, 0, 0, 1]] * 2)
    pages = [
        render_live("Title", 2, 2, True, rows, [], None, {}, None, {TITLE: BANDS, "Loss": {"loss": "loss"}})
        for _ in range(2)
    ]
    drawn = re.compile(r"<figure.*?</figure>", re.DOTALL)
    assert drawn.findall(pages[0]) == drawn.findall(pages[1]) != []
    reader = Reader(pages[0])
    assert "Sizes of things −1 25% 0.5 50% 2 25% 0%" in reader.words()
    assert ("title", "−1 to 0.5") in reader.attributes
    assert not re.search("#0[ab]0", pages[0])
