"""Write `report.html`: the config, curves and results of a run, in one self-contained file.

The page takes plain data and computes no metric. Everything in it that came from outside (reports, names,
configuration) passes jinja2's escaping, and no script can run in it.
"""

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, NamedTuple

from common.data.images import Pixels
from common.errors import UserError
from common.io.files import atomic_file
from common.io.numbers import NONE, score_text
from common.options import Needs, changed_options, command_line, training_command, used_settings
from common.report.differences import differences
from common.report.findings import Marks, Tally
from common.report.pictures import WordAttention, check_attention, looks, picture
from common.report.plots import SERIES_COLOURS, Curves, training_charts
from common.report.template import render_template

REPORT_FILE = "report.html"


@dataclass(frozen=True)
class Example:
    """One report side by side: `outputs` maps a system's name to what it wrote, the model of the run first.

    An empty `source` is not shown, nor are differences where `reference` is None. `images` are the V views of the
    study. `attention` has, for each word that the model wrote, its text and what it attended to: weights of 0 or
    more, on any scale, over a grid of h x w cells that covers the whole of each view. Raises ValueError where a
    word's maps are not finite or not one for each view. `findings` are the marks of some systems' outputs.
    """

    id: str
    source: str
    reference: str | None
    outputs: Mapping[str, str]
    language: str = "en"
    images: Sequence[Pixels] = ()
    attention: Sequence[WordAttention] = ()
    findings: Mapping[str, Marks] = field(default_factory=dict)

    def __post_init__(self) -> None:
        check_attention(self.id, self.images, self.attention)


class Table(NamedTuple):
    """A table of texts under a title and a sentence; the first column names its rows."""

    title: str
    lead: str
    columns: Sequence[str]
    rows: Sequence[Sequence[str]]


class Stage(NamedTuple):
    """A step of a funnel: how much is left after it, and what it took away, by reason."""

    name: str
    left: int
    losses: Mapping[str, int] = {}
    note: str = ""


@dataclass(frozen=True)
class Page:
    """What the page shows; an empty field leaves its section out.

    `systems[system][metric]` holds `value` and, where there is an interval, `low` and `high` (95%); the first
    system is the one that the run made. `headline` names the metrics drawn large, `rows` are those of
    `metrics.jsonl`, of which `curves` are drawn beside those that every training has; `notes` say what a reader should
    know (for example how many records went to quarantine); `findings` counts those of the first system in all reports.
    """

    title: str
    verdict: str
    command: str
    config: Mapping[str, Any] = field(default_factory=dict)
    environment: Mapping[str, str] = field(default_factory=dict)
    rows: Sequence[Mapping[str, Any]] = ()
    curves: Curves = field(default_factory=dict)
    systems: Mapping[str, Mapping[str, Mapping[str, float | None]]] = field(default_factory=dict)
    headline: Sequence[str] = ()
    examples: Sequence[Example] = ()
    notes: Sequence[str] = ()
    funnel: Sequence[Stage] = ()
    tables: Sequence[Table] = ()
    findings: Tally | None = None


class Bar(NamedTuple):
    """A score as it is drawn; lengths are percent of the track, `low` is None without an interval."""

    text: str
    interval: str
    start: float
    length: float
    low: float | None
    spread: float


def save_run_page(run_dir: Path, page: Page) -> Path:
    """Write the page into the run directory and return its path. Raises UserError if that cannot be written."""
    path = run_dir / REPORT_FILE
    html = render(page)
    try:
        run_dir.mkdir(parents=True, exist_ok=True)
        with atomic_file(path) as aside:
            aside.write_text(html, encoding="utf-8")
    except OSError as error:
        raise UserError(f"cannot write {path}: {error.strerror}; choose another run directory") from error
    return path


def reproducible(
    page: Page,
    system: str,
    config: Any,
    presets: Mapping[str, Any],
    needs: Sequence[Needs],
    run_dir: Path,
    chosen: Mapping[str, Any],
) -> Page:
    """The page with the commands that train the run and evaluate it with these options, and what had an effect."""
    own = changed_options(chosen, {"split": "test", "limit": 0, "batch_size": 32})
    training = training_command(f"{system} train", presets, config, run_dir, needs)
    evaluation = command_line(f"{system} evaluate", {"run_dir": run_dir, **own})
    return replace(page, command=f"{training}\n{evaluation}", config=used_settings(config, needs))


def render(page: Page) -> str:
    """The page as HTML text."""
    metrics = list(dict.fromkeys(name for scores in page.systems.values() for name in scores))
    return render_template(
        "page.html.j2",
        page=page,
        settings=list(_flatten(page.config)),
        charts=training_charts(page.rows, page.curves),
        scores={name: _bars(page.systems, name) for name in dict.fromkeys([*page.headline, *metrics])},
        differences=differences,
        pictures=[[picture(image) for image in example.images] for example in page.examples],
        looks=looks,
        colours=SERIES_COLOURS,
    )


def _flatten(config: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, str]]:
    for name, value in config.items():
        if isinstance(value, Mapping):
            yield from _flatten(value, f"{prefix}{name}.")
        elif isinstance(value, list | tuple):
            yield prefix + name, ", ".join(str(item) for item in value) or "–"
        else:
            yield prefix + name, "–" if value is None or value == "" else str(value)


def _bars(systems: Mapping[str, Mapping[str, Mapping[str, float | None]]], metric: str) -> dict[str, Bar]:
    """One metric of every system on a common scale: 0 to 1 where all fit in it, else to the largest."""
    scores = {name: metrics.get(metric, {}) for name, metrics in systems.items()}
    ends = [end for score in scores.values() for end in score.values() if end is not None and math.isfinite(end)]
    bottom, top = min([0.0, *ends]), max([1.0, *ends])
    if top > 1:
        top = max(ends) * 1.05
    return {name: _bar(score, bottom, top) for name, score in scores.items()}


def _bar(score: Mapping[str, float | None], bottom: float, top: float) -> Bar:
    def place(number: float) -> float:
        return round(100 * (number - bottom) / (top - bottom), 2)

    value, low, high = (score.get(name) for name in ("value", "low", "high"))
    if value is None or not math.isfinite(value):
        return Bar(NONE, "", 0, 0, None, 0)
    digits = 3 if top <= 1 else 2
    start, end = sorted((place(0), place(value)))
    if low is None or high is None:
        return Bar(score_text(value, digits), "", start, end - start, None, 0)
    interval = f"{score_text(low, digits)} to {score_text(high, digits)}"
    return Bar(
        score_text(value, digits),
        interval,
        start,
        end - start,
        place(low),
        place(high) - place(low),
    )
