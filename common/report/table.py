"""A table of systems by scores, as Markdown."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np


def as_markdown(table: Mapping[str, Sequence[Mapping[str, Any]]], names: Sequence[str]) -> str:
    """A row for each system, whose scores (`value`, and `low` and `high` where known) stand there once a seed.

    Means over seeds, and behind them the 95% interval: of several seeds the t interval of their mean; of one, that
    which came with the score. Scores that no system has are left out.
    """
    names = [name for name in names if any(_known(scores, name) for rows in table.values() for scores in rows)]
    lines = ["| | " + " | ".join(names) + " |", "|---" * (len(names) + 1) + "|"]
    for system, rows in table.items():
        cells = [_cell([row[name] for row in rows if _known(row, name)]) for name in names]
        lines.append(f"| {system} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


def _known(scores: Mapping[str, Any], name: str) -> bool:
    return name in scores and scores[name]["value"] is not None


def _cell(scores: Sequence[Any]) -> str:
    if not scores:
        return ""
    values = np.array([score["value"] for score in scores], float)
    if len(values) == 1:
        low, high = scores[0].get("low"), scores[0].get("high")
        return f"{values[0]:.3f}" + ("" if low is None else f" [{low:.3f}, {high:.3f}]")
    from scipy.stats import t

    half = t.ppf(0.975, len(values) - 1) * values.std(ddof=1) / np.sqrt(len(values))
    return f"{values.mean():.3f} ± {half:.3f}"
