"""Which differences between systems hold on the same reports: scores, paired bootstrap, table and page."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Int

from common.clinical.report_labeler import ReportLabeler, label_lists
from common.clinical.scores import leading_scores
from common.errors import UserError, did_you_mean
from common.io.numbers import interval_text, rounded, score_text
from common.io.outputs import write_whole
from common.io.safetensors import write_json
from common.io.tables import markdown_table
from common.io.terminal import printable
from common.metrics.bootstrap import Measure, values
from common.metrics.clinical import clinical_measures
from common.metrics.comparison import RESAMPLES, Difference, compare
from common.metrics.text import measures_by_language, one_line
from common.metrics.tokenize import languages_of
from common.report.template import render_template

COLUMNS = ("score", "systems", "difference (95%)", "p", "p, corrected", "holds")  # of a table of differences
TEXT_SCORES = ("coco/BLEU-4", "coco/ROUGE-L", "nltk/METEOR")


class Compared(NamedTuple):
    """Each system's measures, what a reader should know of them, and of each system the classes of its reports.

    The classes come after those of the references; without a labeler there are none.
    """

    measures: dict[str, list[Measure]]
    notes: list[str]
    classes: list[Int[np.ndarray, "N 14"]]


def measure(systems: Mapping[str, Sequence[Mapping[str, Any]]], labeler: ReportLabeler | None) -> Compared:
    """What each system's reports are scored by. Raises UserError as `label_lists` does."""
    rows = next(iter(systems.values()))
    references, languages = [row["reference"] for row in rows], languages_of(list(rows))
    texts = {name: [row["prediction"] for row in own] for name, own in systems.items()}
    clinical: dict[str, list[Measure]] = {name: [] for name in systems}
    notes: list[str] = []
    classes: list[Any] = []
    if labeler is not None:
        classes, labelled = label_lists(labeler, [references, *texts.values()], [row["id"] for row in rows])
        notes += labelled.notes().values()
        expected, *found = classes
        clinical = {name: clinical_measures(own, expected) for name, own in zip(texts, found, strict=True)}
    lines = [*map(one_line, references)]
    told = {name: measures_by_language([*map(one_line, own)], lines, languages, "all") for name, own in texts.items()}
    absent = {name: reason for _, reasons in told.values() for name, reason in reasons.items()}
    notes += [f"{name} is absent: {reason}" for name, reason in absent.items()]
    told_of_all = {
        name: [own for own in measures if not {*own.names} & absent.keys()] for name, (measures, _) in told.items()
    }
    return Compared({name: [*clinical[name], *measures] for name, measures in told_of_all.items()}, notes, classes)


def chosen_scores(measured: Mapping[str, Sequence[Measure]], wanted: Sequence[str] | None) -> list[str]:
    """The names of the scores to compare. Raises UserError for one that no system has."""
    known = [name for one in next(iter(measured.values())) for name in one.names]
    if wanted is None:
        leading = leading_scores(known)
        return [*leading, *(name for name in known if name.removeprefix("en/").removeprefix("zh/") in TEXT_SCORES)]
    for name in wanted:
        if name not in known:
            near = did_you_mean(name, known) or f"; expected some of {', '.join(known)}"
            raise UserError(f"--scores {printable(name)}: no such score{near}")
    return list(dict.fromkeys(wanted))


def as_object(row: Difference) -> dict[str, Any]:
    """A difference for JSON."""
    return {**row._asdict(), "holds": row.holds}


def table_rows(differences: Sequence[Difference]) -> list[tuple[str, ...]]:
    """The cells of a table of differences, under COLUMNS."""
    return [
        (
            row.score, f"{row.first} - {row.second}",
            difference_text(row), p_text(row.p), p_text(row.corrected), "yes" if row.holds else "no",
        )
        for row in differences
    ]  # fmt: skip


def as_table(differences: Sequence[Difference]) -> str:
    """The differences as a table in Markdown."""
    return markdown_table(COLUMNS, table_rows(differences))


def difference_text(row: Difference) -> str:
    """A difference with its interval."""
    return interval_text({"value": row.value, "low": row.low, "high": row.high}, sign=True)


def p_text(p: float) -> str:
    """A p as it is written."""
    return f"{p:.4f}" if p >= 0.0001 else "< 0.0001"


def summary(differences: Sequence[Difference]) -> str:
    """How many differences hold."""
    held = sum(row.holds for row in differences)
    return (
        f"{held} of {len(differences)} differences hold at 5% after Holm's correction over all of them "
        f"({RESAMPLES:,} paired resamples of the reports)"
    )


def page(systems: Mapping[str, Mapping[str, float]], differences: Sequence[Difference], reports: int) -> str:
    """The page: the scores of each system, and a picture of the differences by each score."""
    scores = list(dict.fromkeys(row.score for row in differences))
    return render_template(
        "comparison.html.j2",
        scores=scores,
        systems=[(name, [score_text(own.get(score)) for score in scores]) for name, own in systems.items()],
        charts=[
            {"score": score, "rows": drawn([row for row in differences if row.score == score])} for score in scores
        ],
        summary=summary(differences),
        reports=reports,
        count=len(differences),
        colours=0,
    )


def drawn(differences: Sequence[Difference]) -> list[dict[str, Any]]:
    """Differences by one score as the page draws them: places in percent of an axis with 0 in its middle."""
    reach = max(max(abs(row.low), abs(row.high), abs(row.value)) for row in differences) or 1.0

    def place(value: float) -> float:
        return round(50 + 48 * value / reach, 2)

    return [
        {
            "first": row.first,
            "second": row.second,
            "holds": row.holds,
            "low": place(row.low),
            "width": round(place(row.high) - place(row.low), 2),
            "middle": place(row.value),
            "text": difference_text(row),
            "p": p_text(row.corrected),
        }
        for row in differences
    ]


class Result(NamedTuple):
    """The chosen scores of each system, and how the systems differ by them."""

    systems: dict[str, dict[str, float]]
    differences: list[Difference]
    reports: int

    def save(self, file: Path | None = None, page_file: Path | None = None) -> None:
        """Write the differences as JSON, and their page. Raises UserError."""
        if file is not None:
            rows = [as_object(row) for row in self.differences]
            write_json(file, rounded({"systems": self.systems, "differences": rows}))
        if page_file is not None:
            write_whole(page_file, page(self.systems, self.differences, self.reports))


def compare_measured(measured: Mapping[str, Sequence[Measure]], reports: int, wanted: Sequence[str] | None) -> Result:
    """Compare systems by the scores that are `wanted`, by default the leading ones. Raises UserError."""
    names = chosen_scores(measured, wanted)
    own = {
        name: {score: value for one in measures for score, value in values(one).items() if score in names}
        for name, measures in measured.items()
    }
    return Result(own, compare(measured, names), reports)


def compare_texts(
    outputs: Mapping[str, Sequence[str]], references: Sequence[str], languages: Sequence[str],
    labeler: ReportLabeler | None,
) -> Result:  # fmt: skip
    """Compare systems by what each wrote for the same studies, with the leading scores."""
    systems = {
        name: [
            {"id": number, "prediction": text, "reference": reference, "language": language}
            for number, (text, reference, language) in enumerate(zip(texts, references, languages, strict=True))
        ]
        for name, texts in outputs.items()
    }
    return compare_measured(measure(systems, labeler).measures, len(references), None)
