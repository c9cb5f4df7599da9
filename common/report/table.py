"""A table of systems by scores, as Markdown."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import scipy.stats

from common.io.numbers import interval_text, score_text
from common.io.tables import markdown_table


def as_markdown(table: Mapping[str, Sequence[Mapping[str, Any]]], names: Sequence[str]) -> str:
    """A row for each system, whose scores (`value`, and `low` and `high` where known) stand there once a seed.

    Means over seeds, and behind them the 95% interval: of several seeds the t interval of their mean; of one, that
    which came with the score. Scores that no system has are left out.
    """
    names = [name for name in names if any(_known(scores, name) for rows in table.values() for scores in rows)]
    cells = (
        (system, *(_cell([row[name] for row in rows if _known(row, name)]) for name in names))
        for system, rows in table.items()
    )
    return markdown_table(("", *names), cells)


def _known(scores: Mapping[str, Any], name: str) -> bool:
    return name in scores and scores[name]["value"] is not None


def mean_interval(scores: Sequence[Mapping[str, float]]) -> tuple[float, float, float]:
    """(mean, low, high) of one score, once a seed: the 95% t interval of several, of one its own."""
    values = np.array([score["value"] for score in scores], float)
    if len(values) == 1:
        return values[0], scores[0].get("low", np.nan), scores[0].get("high", np.nan)
    half = scipy.stats.t.ppf(0.975, len(values) - 1) * values.std(ddof=1) / np.sqrt(len(values))
    return values.mean(), values.mean() - half, values.mean() + half


def _cell(scores: Sequence[Any]) -> str:
    if not scores:
        return ""
    mean, low, high = mean_interval(scores)
    if len(scores) > 1:
        return f"{score_text(mean)} ± {score_text(high - mean)}"
    return interval_text({"value": mean, "low": low, "high": high})
