"""`live.html`: a training as it goes, with its curves and what the model writes for a few validation reports.

The page loads itself anew while the training goes on. It holds report text and images. Of all that a training writes
only this page, in the run directory, shows any, never the logs.
"""

import time
from collections.abc import Callable, Mapping, Sequence
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any, NamedTuple

from common.clinical.report_labeler import ReportLabeler
from common.data.images import Pixels
from common.data.splits import Split
from common.errors import UserError
from common.generation.evaluation import Keep
from common.io.files import atomic_file
from common.io.numbers import score_text
from common.io.terminal import say
from common.report.bands import Bands
from common.report.findings import Find, label_finder
from common.training.logs import METRICS_FILE, TIMINGS_FILE, read_metrics
from common.training.loop import LIVE_FILE, Watch

SHOWN = 4  # reports
REFRESH = 20  # seconds after which the page loads itself anew, and at least between two drawings
POINTS = 1000  # steps that curves are drawn through, beside those with an evaluation
RECENT = 50  # steps that speed is told by

Rows = Sequence[Mapping[str, Any]]
Curves = Mapping[str, Mapping[str, str] | Bands]  # as `common.report.plots` takes them


class Reference(NamedTuple):
    """A validation report that the model writes during training, with its free-text source or its images, if any."""

    id: str
    reference: str
    language: str = "en"
    source: str = ""
    images: Sequence[Pixels] = ()


class Live(NamedTuple):
    """What a training hands to a page: `keep` takes reports of an evaluation, `watch` draws."""

    keep: Keep
    watch: Watch


def live_page(
    run_dir: Path,
    title: str,
    reference: Callable[[int], Reference] | None = None,
    find: Find | None = None,
    curves: Curves | None = None,
    now: Callable[[], float] = time.monotonic,
) -> Live:
    """The page of a training in `run_dir`, which knows of no report at its start.

    Shown are, for the first studies that an evaluation writes reports for, the first report since the training was
    started and the latest, beside the `reference` of that number. `find` marks their findings; `curves` are drawn
    beside those that every training has. What cannot be drawn or written is said once, and the training goes on.
    """
    kept: dict[int, Mapping[int, tuple[str, float | None]]] = {}
    drawn, failed = float("-inf"), False

    def keep(step: int, written: Mapping[int, tuple[str, float | None]]) -> None:
        for other in [*kept][1:]:  # the first stays
            del kept[other]
        kept[step] = {number: written[number] for number in sorted(written)[:SHOWN]}

    def watch(step: int, total_steps: int, last: bool) -> None:
        nonlocal drawn, failed
        if not last and now() - drawn < REFRESH:
            return
        try:
            rows, timings = (read_metrics(run_dir / name) for name in (METRICS_FILE, TIMINGS_FILE))
            html = render_live(title, step, total_steps, last, rows, timings, reference, kept, find, curves)
            with atomic_file(run_dir / LIVE_FILE) as aside:
                aside.write_text(html, encoding="utf-8")
        except (UserError, OSError) as error:
            if not failed:
                reason = error.strerror if isinstance(error, OSError) else error
                say(f"warning: {run_dir / LIVE_FILE}: not written ({reason}); the training goes on", error=True)
            failed = True
        drawn = now()

    return Live(keep, watch)


def study_page(
    run_dir: Path,
    system: str,
    layout: str,
    split: Split,
    labeler: ReportLabeler | None,
    curves: Curves | None = None,
) -> Live:
    """The page of a training on images with this validation split; `labeler` finds the findings of its reports."""
    title = f"{system}: {'phantom radiographs' if layout == 'phantom' else layout}"

    def reference(number: int) -> Reference:
        study = split.studies[number]
        return Reference(study.id, study.report, study.language, images=split.images[number])

    find = label_finder(labeler, [study.report for study in split.studies])
    return live_page(run_dir, title, reference, find, curves)


def render_live(
    title: str,
    step: int,
    total_steps: int,
    finished: bool,
    rows: Rows,
    timings: Rows,
    reference: Callable[[int], Reference] | None,
    kept: Mapping[int, Mapping[int, tuple[str, float | None]]],
    find: Find | None,
    curves: Curves | None,
) -> str:
    """The page as HTML; `kept` are, after some steps, reports and their rewards by the number of their reference."""
    # matplotlib takes a second to import, before which the training would not begin.
    from common.report.differences import differences
    from common.report.page import Example
    from common.report.pictures import picture
    from common.report.plots import SERIES_COLOURS, training_charts
    from common.report.template import render_template

    shown = dict(sorted(kept.items(), reverse=True))
    marks: dict[tuple[int, int], Any] = {}
    if find is not None:
        asked = [(at, number) for at, written in shown.items() for number in written]
        texts = [shown[at][number][0] for at, number in asked]
        marks = dict(zip(asked, find([number for _, number in asked], texts), strict=True)) if asked else {}
    examples = []
    for number in next(iter(shown.values()), ()):
        assert reference is not None
        own = reference(number)
        names = {at: _name(at, written[number][1]) for at, written in shown.items() if number in written}
        examples.append(
            Example(
                own.id,
                own.source,
                own.reference,
                {name: shown[at][number][0] for at, name in names.items()},
                own.language,
                own.images,
                findings={name: marks[at, number] for at, name in names.items() if (at, number) in marks},
            )
        )
    return render_template(
        "live.html.j2",
        title=title,
        step=step,
        total_steps=total_steps,
        finished=finished,
        refresh=REFRESH,
        facts=_facts(step, total_steps, finished, timings),
        scores=_scores(rows),
        latest=next(iter(shown), None),
        examples=examples,
        charts=training_charts(thinned(rows), curves),
        differences=differences,
        looks=None,
        pictures=[[picture(image) for image in example.images] for example in examples],
        colours=SERIES_COLOURS,
    )


def _name(step: int, reward: float | None) -> str:
    return f"after step {step:,}" + ("" if reward is None else f" · reward {score_text(reward)}")


def thinned(rows: Rows) -> Rows:
    """The rows with an evaluation, the first and the last, and as many of the others as curves are drawn through."""
    every = max(1, len(rows) // POINTS)
    last = len(rows) - 1
    return [
        row
        for index, row in enumerate(rows)
        if index % every == 0 or index == last or any(name.startswith("val/") for name in row)
    ]


def _scores(rows: Rows) -> list[tuple[str, str, str]]:
    """Of the loss, the reward and each validation score the name, the latest value, and what says its steps."""
    names = ["loss", "reward", *dict.fromkeys(name for row in rows for name in row if name.startswith("val/"))]
    found = []
    for name in names:
        known = [(row["step"], row[name]) for row in rows if name in row]
        if known:
            (first, value), (last, latest) = known[0], known[-1]
            at = f"after step {last:,}"
            before = "" if first == last else f"; {score_text(value)} after {first:,}"
            found.append((name, score_text(latest), at + before))
    return found


def _facts(step: int, total_steps: int, finished: bool, timings: Rows) -> dict[str, str]:
    recent = timings[-RECENT:]
    facts = {"step": f"{step:,} of {total_steps:,}"}
    seconds = [row["step_seconds"] for row in recent if row.get("step_seconds")]
    tokens = [row["tokens_per_second"] for row in recent if row.get("tokens_per_second")]
    if tokens:
        facts["speed"] = f"{sorted(tokens)[len(tokens) // 2]:,.0f} tokens/s"
    if seconds and not finished:
        left = timedelta(seconds=round(sorted(seconds)[len(seconds) // 2] * (total_steps - step)))
        facts["updates left"] = f"about {left}, without evaluations"
    return facts | {"drawn": datetime.now(UTC).strftime("%Y-%m-%d %H:%M:%S UTC")}
