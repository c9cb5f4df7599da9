"""The charts of a training: curves of what each step logs, and bands of what it logs the distribution of."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from jaxtyping import Float
from markupsafe import Markup
from matplotlib.ticker import FuncFormatter, MaxNLocator, NullFormatter

from common.io.numbers import rounded
from common.report.bands import Band, Bands, legend, shares
from common.report.drawing import LINE, SERIES, SERIES_COLOURS, drawing

VALIDATION, LEARNING_RATE = "val/", "learning_rate"  # names in `metrics.jsonl`
_SMOOTH_FROM = 60  # points; a shorter curve is shown as it is
_MARK_UP_TO = 40
_COLUMNS = 100  # bands over more steps are drawn as means of as many columns


Curves = Mapping[str, Mapping[str, str] | Bands]  # title of a chart -> label of a line -> its name in `metrics.jsonl`


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
    """A titled drawing; the page writes the legend, colour `--series-i` for line i (modulo 6), or that of bands."""

    title: str
    series: Sequence[Series]
    svg: Markup
    bands: Sequence[Band] = ()


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
        if isinstance(names, Bands):
            charts += _bands_of(title, rows, names)
            continue
        of_scores = title == "Validation" or title in own
        series = [Series(label, _points(rows, name, of_scores), _is_noisy(name)) for label, name in names.items()]
        drawn = [line for line in series if line.last is not None]
        if drawn:
            charts.append(Chart(title, drawn, line_chart(title, drawn, (rows[0]["step"], rows[-1]["step"]))))
    return charts


def _bands_of(title: str, rows: Sequence[Mapping[str, Any]], bands: Bands) -> list[Chart]:
    """The chart of a distribution; none where all steps have all of it in one band."""
    steps, own = shares(rows, bands)
    known = own[~np.isnan(own[:, 0])]
    if len(known) == 0 or (known > 0).any(0).sum() < 2:
        return []
    drawn = legend(bands, known[-1].tolist())
    return [Chart(title, (), band_chart(title, steps, own, drawn), drawn)]


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

    def draw(axes: Any) -> None:
        for index, line in enumerate(series):
            _draw(axes, line, SERIES[index % SERIES_COLOURS], dashed=index >= SERIES_COLOURS)
        if min(values) > 0 and max(values) > 100 * min(values) and len(values) > 2:
            axes.set_yscale("log")
            axes.yaxis.set_minor_formatter(NullFormatter())
        else:
            axes.yaxis.set_major_locator(MaxNLocator(5))
        axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:.4g}".replace("e-0", "e-")))
        axes.margins(y=0.08)

    return drawing(title, steps, draw, doubling)


def band_chart(title: str, steps: Sequence[int], own: Float[np.ndarray, "N K"], drawn: Sequence[Band]) -> Markup:
    """The shares of N steps as K bands, one on the other from 0 to 100%, in at most `_COLUMNS` columns.

    A column is the mean of its steps and as wide as they are; one without a share is left out.
    """
    columns = np.array_split(np.arange(len(steps)), min(len(steps), _COLUMNS))
    starts = [steps[column[0]] for column in columns]
    gap = max(np.diff(steps).min(), 1) if len(steps) > 1 else 1
    edges = np.array([*starts, steps[-1] + gap]) - gap / 2
    known = [own[column][~np.isnan(own[column, 0])] for column in columns]
    means = np.array([rows.mean(0) if len(rows) else np.full(own.shape[1], math.nan) for rows in known])
    tops = np.repeat(np.hstack([np.zeros((len(means), 1)), means.cumsum(1)]), 2, axis=0)
    x = np.repeat(edges, 2)[1:-1]

    def draw(axes: Any) -> None:
        for index, band in enumerate(drawn):
            if np.nanmax(means[:, index], initial=0) > 0:
                colour = LINE if band.colour is None else SERIES[band.colour]
                low, high = tops[:, index], tops[:, index + 1]
                axes.fill_between(x, low, high, color=colour, alpha=band.opacity, linewidth=0)
        axes.set_ylim(0, 1)
        axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:.0%}"))

    return drawing(title, (edges[0], edges[-1]), draw)


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
