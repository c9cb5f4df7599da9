"""Curves of a run as inline SVG whose colours and fonts come from the page around it.

matplotlib draws with stand-in colours that are replaced by CSS variables (`--ink-soft`, `--line`, `--series-0`
to `--series-5`), so one drawing serves the light and the dark page.
"""

import io
import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import matplotlib
from markupsafe import Markup
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, MaxNLocator, NullFormatter

from common.io.numbers import rounded

SERIES_COLOURS = 6
_LINE, _INK = "#0b0b01", "#0b0b02"
_SERIES = [f"#0a0a0{index}" for index in range(SERIES_COLOURS)]
VALIDATION, LEARNING_RATE = "val/", "learning_rate"  # names in `metrics.jsonl`
_SMOOTH_FROM = 60  # points; a shorter curve is shown as it is
_MARK_UP_TO = 40


Curves = Mapping[str, Mapping[str, str]]  # title of a chart -> label of a line -> its name in `metrics.jsonl`


@dataclass(frozen=True)
class Series:
    """One line: `points` are (step, value), with None where a value was not finite.

    A `noisy` one is drawn faint under its moving average when it is long.
    """

    name: str
    points: Sequence[tuple[int, float | None]]
    noisy: bool = False

    @property
    def last(self) -> float | None:
        """The last finite value."""
        return next((value for _, value in reversed(self.points) if value is not None), None)


@dataclass(frozen=True)
class Chart:
    """A titled drawing; the page writes the legend, colour `--series-i` for line i (modulo 6)."""

    title: str
    series: Sequence[Series]
    svg: Markup


def training_charts(rows: Sequence[Mapping[str, Any]], curves: Curves | None = None) -> list[Chart]:
    """What the rows of `metrics.jsonl` have of loss, a system's own `curves`, validation, rate and gradient norm."""
    own = curves or {}
    scores = sorted({name for row in rows for name in row if name.startswith(VALIDATION)} - {f"{VALIDATION}loss"})
    wanted = {
        "Loss": {"training": "loss", "validation": f"{VALIDATION}loss"},
        **own,
        "Validation": {name.removeprefix(VALIDATION): name for name in scores},
        "Learning rate": {"learning rate": LEARNING_RATE},
        "Gradient norm": {"gradient norm": "grad_norm"},
    }
    charts = []
    for title, names in wanted.items():
        of_scores = title == "Validation" or title in own
        series = [Series(label, _points(rows, name, of_scores), _is_noisy(name)) for label, name in names.items()]
        drawn = [line for line in series if line.last is not None]
        if drawn:
            charts.append(Chart(title, drawn, line_chart(title, drawn, (rows[0]["step"], rows[-1]["step"]))))
    return charts


def _is_noisy(name: str) -> bool:
    """Whether a number is that of a single batch."""
    return name != LEARNING_RATE and not name.startswith(VALIDATION)


def _points(rows: Sequence[Mapping[str, Any]], name: str, scores: bool) -> list[tuple[int, float | None]]:
    values = [(row["step"], row[name]) for row in rows if name in row]
    known = [(step, value if value is not None and math.isfinite(value) else None) for step, value in values]
    # A BLEU of 1e-21 is 0, and would stretch a logarithmic axis over twenty decades.
    return [(step, rounded(value)) for step, value in known] if scores else known


def line_chart(title: str, series: Sequence[Series], steps: tuple[int, int], doubling: bool = False) -> Markup:
    """Lines over the training steps, or other whole numbers, from the first to the last of `steps`.

    The title is not drawn; it keeps the ids in the drawing apart from those of other charts on a page. The value
    axis is logarithmic when positive values span more than two orders of magnitude, that of steps where they are
    `doubling`: one mark for each power of two.
    """
    values = [value for line in series for _, value in line.points if value is not None]
    with matplotlib.rc_context({"svg.fonttype": "none", "svg.hashsalt": title, "font.size": 9}):
        figure = Figure(figsize=(5.8, 2.7), layout="constrained")
        axes = figure.add_subplot()
        for index, line in enumerate(series):
            _draw(axes, line, _SERIES[index % SERIES_COLOURS], dashed=index >= SERIES_COLOURS)
        if min(values) > 0 and max(values) > 100 * min(values) and len(values) > 2:
            axes.set_yscale("log")
            axes.yaxis.set_minor_formatter(NullFormatter())
        else:
            axes.yaxis.set_major_locator(MaxNLocator(5))
        axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:.4g}".replace("e-0", "e-")))
        if doubling:
            axes.set_xscale("log", base=2)
            axes.xaxis.set_minor_formatter(NullFormatter())
        else:
            axes.xaxis.set_major_locator(MaxNLocator(6, integer=True))
        axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:,.0f}"))
        axes.grid(axis="y", color=_LINE, linewidth=0.8)
        axes.tick_params(length=0, labelcolor=_INK, pad=5, which="both")
        axes.set_axisbelow(True)
        for side, spine in axes.spines.items():
            spine.set(visible=side == "bottom", color=_LINE)
        axes.margins(y=0.08)
        room = max(1, steps[1] - steps[0]) * 0.02
        if doubling:
            axes.set_xlim(steps[0] / 1.1, steps[1] * 1.1)
        else:
            axes.set_xlim(steps[0] - room, steps[1] + room)
        text = io.StringIO()
        # Without metadata matplotlib writes no block of addresses into the drawing.
        figure.savefig(
            text,
            format="svg",
            transparent=True,
            metadata=dict.fromkeys(("Creator", "Date", "Format", "Type")),
        )
    return Markup(_for_page(text.getvalue()))


def _draw(axes: Any, line: Series, colour: str, dashed: bool) -> None:
    steps = [step for step, _ in line.points]
    values = [math.nan if value is None else value for _, value in line.points]
    style = "--" if dashed else "-"
    if line.noisy and len(values) >= _SMOOTH_FROM:
        axes.plot(steps, values, color=colour, linewidth=0.9, alpha=0.28)
        axes.plot(steps, _moving_average(values), style, color=colour, linewidth=1.9)
    else:
        mark = "o" if len(values) <= _MARK_UP_TO else None
        axes.plot(steps, values, style, marker=mark, markersize=3.4, color=colour, linewidth=1.9)


def _moving_average(values: Sequence[float]) -> list[float]:
    """Centred mean over about a thirtieth of the curve, or what there is of it near an end or a gap."""
    reach = max(1, len(values) // 60)
    averages = []
    for index in range(len(values)):
        near = values[max(0, index - reach) : index + reach + 1]
        finite = [value for value in near if math.isfinite(value)]
        averages.append(sum(finite) / len(finite) if finite else math.nan)
    return averages


def _for_page(svg: str) -> str:
    """Only the <svg> element, without fixed size, namespaces or ids that another drawing could have too."""
    svg = svg[svg.index("<svg") :]
    view_box = re.search(r'viewBox="[^"]+"', svg)
    assert view_box is not None
    svg = re.sub(r"<svg[^>]*>", f"<svg {view_box[0]} aria-hidden='true'>", svg, count=1)
    svg = re.sub(r"<style.*?</style>", "", svg, flags=re.DOTALL)
    svg = svg.replace("xlink:href", "href")
    used = set(re.findall(r"#([\w-]+)", svg))
    svg = re.sub(r' id="([^"]*)"', lambda name: name[0] if name[1] in used else "", svg)
    for index, colour in enumerate(_SERIES):
        svg = svg.replace(colour, f"var(--series-{index})")
    return svg.replace(_LINE, "var(--line)").replace(_INK, "var(--ink-soft)")
