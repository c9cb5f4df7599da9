"""The documented example: the picture of predicted scaling names what ends it."""

import json
from xml.etree import ElementTree

import pytest

from common.errors import UserError
from tests.examples import load_example


@pytest.fixture(scope="module")
def example():
    return load_example("draw_scaling")


def row(devices, work, links, network=0.0, preset="toy", chip="v6e"):
    """Work and links are seconds; a step has as many rows as devices."""
    return {
        "preset": preset, "topology": f"{chip}:{devices}", "devices": devices, "size": devices, "fits": True,
        "seconds": {"compute": work, "memory": 0.0, "links": links, "network": network},
        "seconds_at_least": max(work, links, network), "seconds_without_overlap": work + links + network,
        "bound_by": "compute" if work >= max(links, network) else "links" if links > network else "network",
        "costliest_collective": "all-gather" if links + network else None,
    }  # fmt: skip


def test_curves_are_percent_of_linear_scaling(example):
    rows = [row(1, 2.0, 0.0), row(2, 2.0, 2.0), row(4, 2.0, 6.0)]
    assert example.curve(rows, "seconds_at_least") == [(1, 100.0), (2, 100.0), (4, pytest.approx(100 / 3))]
    assert example.curve(rows, "seconds_without_overlap") == [(1, 100.0), (2, 50.0), (4, 25.0)]


def test_the_collective_that_ends_the_scaling_is_named(example):
    assert example.ending([row(256, 1.0, 3.0)]) == (
        "at 256: bound by links; exchange 75% without overlap, mostly all-gather"
    )
    assert example.ending([row(256, 1.0, 1.0, 2.0)]).endswith(
        "bound by network; exchange 75% without overlap, mostly all-gather between nodes"
    )
    assert "less than 1%" in example.ending([row(256, 1.0, 0.0)])


def test_the_picture_has_a_chart_for_each_chip(example, tmp_path):
    rows = [row(devices, 1.0, 0.1 * devices, chip=chip) for chip in ("v6e", "h100") for devices in (1, 8, 256)]
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(one) + "\n" for one in rows))
    example.main(["--rows", str(tmp_path / "rows.jsonl"), "--output", str(tmp_path / "scaling.svg")])
    drawn = ElementTree.parse(tmp_path / "scaling.svg")
    texts = [entry.text for entry in drawn.iter() if entry.tag.endswith("text")]
    assert {f"{chip}: percent of linear scaling, by devices" for chip in ("v6e", "h100")} <= set(texts)
    assert sum("mostly all-gather" in (text or "") for text in texts) == 2


def test_a_chip_without_rows_is_one_clear_line(example):
    with pytest.raises(UserError, match="no preset fits a100"):
        example.draw([row(1, 1.0, 0.0)], ["a100"])
