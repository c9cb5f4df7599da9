"""Figure 1a: how reports score by the share of the training studies that reinforcement learning was given."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.figure import Figure

from common.io.safetensors import disk_errors
from common.report.table import mean_interval

SHOWN = {"sampled/promptmrg/F1": "one report drawn at temperature 1", "promptmrg/F1": "the likeliest report"}

Table = Mapping[str, Sequence[Mapping[str, Any]]]


def draw_proportions(table: Table, file: Path, *, level: str) -> None:
    """Write an SVG: a panel for each score that there is, in it a curve for each method and the system `level`, dashed.

    Curves are of the systems whose names end in a share, as "GRPO, 20%". Bars are 95% intervals.
    """
    curves: dict[str, dict[int, Sequence[Mapping[str, Any]]]] = {}
    for name, rows in table.items():
        method, _, share = name.rpartition(", ")
        if share.removesuffix("%").isdecimal():
            curves.setdefault(method, {})[int(share.removesuffix("%"))] = rows
    shown = [name for name in SHOWN if name in table[level][0]]
    figure = Figure(figsize=(4.6 * max(len(shown), 1), 3.4), layout="constrained")
    for number, name in enumerate(shown, start=1):
        axes = figure.add_subplot(1, len(shown), number)
        for method, points in curves.items():
            shares = sorted(points)
            mean, low, high = np.array([mean_interval([row[name] for row in points[one]]) for one in shares]).T
            axes.errorbar(shares, mean, [mean - low, high - mean], marker="o", capsize=3, label=method)
        axes.axhline(mean_interval([row[name] for row in table[level]])[0], linestyle="--", color="grey", label=level)
        axes.set(title=SHOWN[name], xlabel="share of the training studies (%)", ylabel="label F1")
        axes.legend(frameon=False)
    with disk_errors(file.parent):
        figure.savefig(file, metadata={"Date": None})
