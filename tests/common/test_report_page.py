"""The run page: complete, self-contained, and harmless whatever a report contains."""

import math
import random
import re
from html.parser import HTMLParser
from pathlib import Path

import pytest

from common.errors import UserError
from common.report.differences import differences
from common.report.page import Example, Page, Table, render, save_run_page
from common.report.plots import training_charts

VOID = {"meta", "link", "br", "img", "input", "hr"}
HOSTILE = (
    "<script>alert(1)</script> ]]> \" ' & </style></title><img src=x onerror=alert(1)> {{ 7 * 7 }} --> \u202eleft\u202c"
)


class Reader(HTMLParser):
    """Tags, ids, attributes and text of a page; fails on a tag that closes another than the open one."""

    def __init__(self, html: str) -> None:
        super().__init__(convert_charrefs=True)
        self.open: list[str] = []
        self.tags: list[str] = []
        self.attributes: list[tuple[str, str | None]] = []
        self.text: list[str] = []
        self.feed(html)
        self.close()
        assert self.open == []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.attributes += attrs
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.attributes += attrs

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        if self.open and self.open[-1] != "style":
            self.text.append(data)

    def words(self) -> str:
        return " ".join(" ".join(self.text).split())


def training_rows(steps: int) -> list[dict[str, float | None]]:
    rows: list[dict[str, float | None]] = []
    for step in range(1, steps + 1):
        row: dict[str, float | None] = {"step": step, "loss": 3 / step, "learning_rate": 1e-4, "grad_norm": 1.0}
        if step % 10 == 0:
            row |= {"val/loss": 3.1 / step, "val/F1": 1 - 1 / step}
        rows.append(row)
    return rows


def full_page(text: str = "plain") -> Page:
    return Page(
        title=text,
        verdict=text,
        command=text,
        config={"preset": text, text: 1, "optim": {"learning_rate": 1e-4, "betas": [0.9, 0.95]}, "weights": None},
        environment={"devices": text, text: "x"},
        rows=training_rows(30),
        systems={
            text: {"F1": {"value": 0.75, "low": 0.5, "high": 0.875}, text: {"value": 0.1}},
            "constant report": {"F1": {"value": 0.25}},
        },
        headline=["F1"],
        examples=[Example(text, text, text, {text: "other " + text, "before": text}, text)] * 6,
        notes=[text],
        tables=[Table(text, text, ("", text), [(text, "1.5%"), ("second", text)])],
    )


def test_nothing_from_outside_becomes_markup() -> None:
    harmless, hostile = Reader(render(full_page())), Reader(render(full_page(HOSTILE)))
    added = [tag for tag in set(hostile.tags) if hostile.tags.count(tag) != harmless.tags.count(tag)]
    assert set(added) <= {"ins", "del"}
    assert "script" not in hostile.tags
    assert not [name for name, _ in hostile.attributes if name.startswith("on")]
    assert "<script>alert(1)</script> ]]> \" ' & </style></title>" in hostile.words()
    assert "{{ 7 * 7 }}" in hostile.words()


def test_marks_that_reorder_or_hide_text_are_shown() -> None:
    html = render(full_page("a\u202eb\u2066c\u200fd\x00e\ud800f"))
    assert "a[U+202E]b[U+2066]c[U+200F]d[U+0000]e[U+D800]f" in html
    assert not re.search("[\u200e\u200f\u202a-\u202e\u2066-\u2069\x00\ud800-\udfff]", html)


def test_every_page_has_the_one_frame() -> None:
    root = Path(__file__).parents[2]
    packages = ("common", "retsta_jax", "unicross_jax", "deer_jax", "launch")
    templates = [file.read_text(encoding="utf-8") for name in packages for file in (root / name).rglob("*.j2")]
    documents = [text for text in templates if "<h1" in text or "<html" in text]
    assert sum("<html" in text for text in documents) == 1
    frames = ('{% extends "base.html.j2" %}', '{% extends "frame.html.j2" %}', "Content-Security-Policy")
    assert all(any(frame in text for frame in frames) for text in documents)
    (frame,) = (root / "launch").rglob("frame.html.j2")
    assert '{% extends "base.html.j2" %}' in frame.read_text(encoding="utf-8")


def test_the_page_loads_nothing_and_its_ids_and_links_agree() -> None:
    html = render(full_page())
    reader = Reader(html)
    assert not re.search(r"https?:|//[a-z]|@import", html)
    assert not {"link", "script", "img", "iframe", "object"} & set(reader.tags)
    ids = [value for name, value in reader.attributes if name == "id"]
    assert len(ids) == len(set(ids))
    targets = re.findall(r'href="([^"]+)"', html) + re.findall(r"url\(([^)]+)\)", html)
    assert targets
    assert {target.removeprefix("#") for target in targets} <= set(ids)


def test_the_page_shows_every_part() -> None:
    words = Reader(render(full_page())).words()
    for part in ("0.750", "0.500 to 0.875", "0.250", "constant report", "optim.learning_rate 0.0001", "0.9, 0.95"):
        assert part in words
    assert "1.5%" in words
    for section in ("Results", "Side by side", "Show 2 more", "Training", "Notes", "5 settings", "Reproduce"):
        assert section in words


def test_a_page_without_data_is_still_a_page() -> None:
    words = Reader(render(Page("Title", "Verdict", "retsta demo"))).words()
    assert "Verdict" in words
    assert "Results Every" not in words
    assert "Training From" not in words


def test_bars_and_intervals_stand_on_the_scale_of_their_metric() -> None:
    systems = {
        "model": {"F1": {"value": 0.75, "low": 0.5, "high": 0.875}, "CIDEr": {"value": 2.0}},
        "other": {"F1": {"value": math.nan}, "CIDEr": {"value": 1.0}},
    }
    html = render(Page("t", "v", "c", systems=systems))
    own, other, cider, half = re.findall(
        r'<div class="track(?: own)?"><i style="left:([\d.]+)%;width:([\d.]+)%"></i>'
        r'(?:<b style="left:([\d.]+)%;width:([\d.]+)%"></b>)?',
        html,
    )
    assert [float(number) for number in own] == [0, 75, 50, 37.5]
    assert [float(number) for number in other[:2]] == [0, 0]
    assert 90 < float(cider[1]) <= 100
    assert float(half[1]) == pytest.approx(float(cider[1]) / 2, abs=0.01)
    assert ">–<" in html


def test_curves_leave_gaps_and_skip_what_was_never_logged() -> None:
    rows = [{"step": step, "loss": None if step == 2 else float(step)} for step in range(1, 4)]
    (chart,) = training_charts(rows)
    assert chart.title == "Loss"
    assert chart.series[0].last == 3.0
    assert training_charts([{"step": 1, "loss": None}, {"step": 2, "loss": math.nan}]) == []
    assert training_charts([]) == []


def test_a_system_names_the_curves_that_it_has_beside_those_of_every_training() -> None:
    rows = [{"step": step, "loss": 1.0, "reward": 0.5, "val/loss": 0.7, "other": 1.0} for step in (1, 2)]
    loss, reward = training_charts(rows, {"Reward": {"mean": "reward", "never logged": "bonus"}})
    assert [line.name for line in loss.series] == ["training", "validation"]
    assert (reward.title, [line.name for line in reward.series]) == ("Reward", ["mean"])


def test_curves_are_the_same_text_every_time_and_take_the_colours_of_the_page() -> None:
    rows = training_rows(400)
    charts = training_charts(rows)
    assert [chart.title for chart in charts] == ["Loss", "Validation", "Learning rate", "Gradient norm"]
    assert charts == training_charts(rows)
    loss = charts[0].svg
    assert "var(--series-0)" in loss
    assert "var(--series-1)" in loss
    assert not re.search(r"#0[ab]0", loss)
    assert "mathdefault" not in loss  # 3 to 0.0075: the axis is logarithmic, its labels plain numbers


def joined(reference: str, output: str, kinds: set[str]) -> str:
    return "".join("".join(piece.text for piece in differences(reference, output) if piece.kind in kinds).split())


def test_both_texts_can_be_read_off_the_marks() -> None:
    chance = random.Random(0)
    words = ["left ", "right\n", "lung, ", "1.5 cm ", "no", "-", "双肺", "纹理。", "清晰 ", "é", "_", "\n"]
    for _ in range(300):
        reference, output = ("".join(chance.choices(words, k=chance.randrange(12))) for _ in range(2))
        assert joined(reference, output, {"same", "extra"}) == "".join(output.split())
        assert joined(reference, output, {"same", "missing"}) == "".join(reference.split())


def test_differences_are_whole_words_and_numbers_and_single_chinese_characters() -> None:
    assert differences("effusion 1.5 cm left", "effusion 1.6 cm left") == [
        ("same", "effusion "),
        ("missing", "1.5"),
        ("same", " "),
        ("extra", "1.6"),
        ("same", " cm left"),
    ]
    assert differences("非增殖期病变。", "增殖期病变。") == [("missing", "非"), ("same", "增殖期病变。")]
    assert differences("a b", " a\n b ") == [("same", "a\n b ")]


def test_a_missing_line_stands_on_its_own_line() -> None:
    assert differences("Mass\nNodule", "Mass") == [("same", "Mass\n"), ("missing", "Nodule")]
    assert differences("Mass/mild\nScar", "Mass\nScar") == [("same", "Mass"), ("missing", "/mild"), ("same", "\nScar")]


def test_the_page_is_written_whole_or_not_at_all(tmp_path: Path) -> None:
    path = save_run_page(tmp_path / "run", full_page("plain"))
    assert path == tmp_path / "run" / "report.html"
    assert path.read_text(encoding="utf-8") == render(full_page("plain"))
    assert [file.name for file in path.parent.iterdir()] == ["report.html"]
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(UserError, match="cannot write"):
        save_run_page(tmp_path / "file", full_page())


@pytest.mark.parametrize(("metrics", "opened"), [(12, True), (13, False)])
def test_a_long_table_is_folded_so_that_examples_are_near(metrics, opened):
    scores = {f"metric {number}": {"value": 0.5} for number in range(metrics)}
    reader = Reader(render(Page("title", "verdict", "command", systems={"this run": scores})))
    assert (("open", None) in reader.attributes) == opened
    assert f"{metrics} metrics" in reader.words()
