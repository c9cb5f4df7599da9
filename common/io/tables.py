"""Tables of texts in Markdown, and lines of scores. rich draws tables for terminals: it breaks cells at their width."""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from common.io.numbers import interval_text, score_text


def markdown_table(columns: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """A table in Markdown, without a last line end."""
    head, *lines = (f"| {' | '.join(cells)} |" for cells in (columns, *rows))
    return "\n".join([head, "|---" * len(columns) + "|", *lines])


def score_lines(systems: Mapping[str, Mapping[str, Any]], names: Sequence[str], intervals: bool = False) -> str:
    """A line for each system with those of its scores that are named and known."""
    lines = []
    for system, scores in systems.items():
        known = [(name, scores[name]) for name in names if name in scores and scores[name]["value"] is not None]
        texts = (f"{name} {interval_text(score) if intervals else score_text(score['value'])}" for name, score in known)
        lines.append(f"{system:>24}  " + "  ".join(texts))
    return "\n".join(lines)
