"""The page that shows what became of reports on their way to pairs: counts, losses with reasons, and examples."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

from common.io.outputs import check_own_page, write_whole
from common.report.page import REPORT_FILE
from common.report.template import render_template


class Stage(NamedTuple):
    """A step: what is left after it, and what it took away by reason."""

    name: str
    left: int
    losses: Mapping[str, int]
    note: str = ""


def write_funnel_page(
    directory: Path,
    title: str,
    stages: Sequence[Stage],
    examples: Sequence[Mapping[str, str]],
    notes: Sequence[str],
    environment: Mapping[str, str],
) -> Path:
    """Write `report.html` and return its path. Raises UserError."""
    path = directory / REPORT_FILE
    check_own_page(path)
    most = max((stage.left for stage in stages), default=1) or 1
    html = render_template(
        "funnel.html.j2",
        package="retsta_jax",
        folder="",
        title=title,
        stages=stages,
        most=most,
        examples=examples,
        notes=notes,
        environment=environment,
    )
    write_whole(path, html)
    return path
