"""`medreport compare A.jsonl B.jsonl ...`: which differences between systems hold, on the same studies.

Rows are those of `medreport score`; every file has the same ids and references. Each pair of systems is compared by
each score, with a paired bootstrap over reports, and Holm's correction over all comparisons that are made: choose a few
scores (`--scores`) beforehand, as every further one makes it harder for the others.
"""

import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Int

from common.clinical.labeler import load_labeler
from common.clinical.report_labeler import ReportLabeler, label_lists
from common.clinical.scores import leading_scores
from common.data.summary import data_line, say_data
from common.errors import Parser, UserError, did_you_mean
from common.io.jsonl import read_jsonl
from common.io.numbers import interval_text, rounded, score_text
from common.io.outputs import check_output, check_own_object, check_own_page, write_whole
from common.io.safetensors import write_json
from common.io.tables import markdown_table
from common.io.terminal import printable, say
from common.metrics.bootstrap import Measure, values
from common.metrics.clinical import clinical_measures
from common.metrics.comparison import RESAMPLES, Difference, compare
from common.metrics.text import measures_by_language, one_line
from common.metrics.tokenize import languages_of
from common.report.template import render_template

TEXT_SCORES = ("coco/BLEU-4", "coco/ROUGE-L", "nltk/METEOR")
ROW = {"id": str | int, "prediction": str, "reference": str}


def main(argv: list[str]) -> None:
    """Print the differences. Raises UserError for whatever is wrong with the files."""
    parser = Parser("medreport compare", description=__doc__.split(":", 1)[1].strip())
    parser.add_argument("files", nargs="+", type=Path, metavar="FILE.jsonl", help="predictions of one system each")
    parser.add_argument(
        "--labeler", metavar="PATH", help="adds clinical scores: chexbert.pth, a trained labeler, or 'phantom'"
    )
    parser.add_argument("--tokenizer", type=Path, metavar="DIR", help="of the labeler, with vocab.txt")
    scores = f"scores to compare (default: {', '.join(TEXT_SCORES)}, and the labeler's F1)"
    parser.add_argument("--scores", nargs="+", metavar="NAME", help=scores)
    parser.add_argument("--page", type=Path, metavar="FILE.html", help="page with a picture of the differences")
    parser.add_argument("--output", type=Path, metavar="FILE.json", help="file for the differences as JSON")
    chosen = parser.parse_args(argv)
    if len(chosen.files) < 2:
        raise UserError("medreport compare: one file; name those of two or more systems")
    for output in (chosen.page, chosen.output):
        check_output(output, *chosen.files)
    if chosen.page is not None:
        check_own_page(chosen.page)
    check_own_object(chosen.output, ["differences", "systems"])
    systems = read_systems(chosen.files)
    first = next(iter(systems.values()))
    say_data(data_line(chosen.files, "rows", {"reports": len(first), "systems": len(systems)}), rows_on_stdout=True)
    labeler = None if chosen.labeler is None else load_labeler(chosen.labeler, chosen.tokenizer, option="--tokenizer")
    measured, notes, _ = measure(systems, labeler)
    for note in notes:
        say(f"note: {note}", error=True)
    names = chosen_scores(measured, chosen.scores)
    differences = compare(measured, names)
    print(as_table(differences), flush=True)
    say(summary(differences), error=True)
    own = {
        name: {score: value for one in measures for score, value in values(one).items() if score in names}
        for name, measures in measured.items()
    }
    if chosen.output is not None:
        write_json(chosen.output, rounded({"systems": own, "differences": [as_object(row) for row in differences]}))
    if chosen.page is not None:
        write_whole(chosen.page, page(own, differences, len(first)))
        say(f"page: {chosen.page.absolute()}", error=True)


def read_systems(files: Sequence[Path]) -> dict[str, list[dict[str, Any]]]:
    """The rows of each file by its system's name, all in the order of the first. Raises UserError where they differ."""
    return same_studies(
        {name: read_jsonl(file, ROW) for name, file in zip(system_names(files), files, strict=True)}, files
    )


def same_studies(
    systems: Mapping[str, Sequence[dict[str, Any]]], files: Sequence[object]
) -> dict[str, list[dict[str, Any]]]:
    """The rows of each system in the order of the first. Raises UserError, naming one of `files`, where they differ."""
    ordered: dict[str, list[dict[str, Any]]] = {}
    expected: dict[Any, dict[str, Any]] = {}
    for (name, own), file in zip(systems.items(), files, strict=True):
        rows = {row["id"]: row for row in own}
        expected = expected or rows
        if missing := [id_ for id_ in expected if id_ not in rows]:
            raise UserError(f"{file}: has no row of id {printable(repr(missing[0]))}, which {files[0]} has")
        if other := [id_ for id_ in rows if id_ not in expected]:
            raise UserError(f"{file}: id {printable(repr(other[0]))} is not in {files[0]}; compare the same studies")
        if differing := [id_ for id_, row in expected.items() if row["reference"] != rows[id_]["reference"]]:
            raise UserError(
                f"{file}: the reference of id {printable(repr(differing[0]))} is another one than in {files[0]}; the "
                "scores of different references cannot be compared"
            )
        ordered[name] = [rows[id_] for id_ in expected]
    return ordered


def system_names(files: Sequence[Path]) -> list[str]:
    """What tells the files apart: their names, or where these are the same, the parts of their paths that differ."""
    parts = [file.absolute().with_suffix("").parts for file in files]
    if len({*parts}) < len(parts):
        raise UserError(f"{files[0]}: two files are the same, or differ in their suffix only; name each system once")
    while len({*parts}) == len(parts) and len({own[-1] for own in parts}) == 1:
        parts = [own[:-1] for own in parts]
    length = next(length for length in range(1, 99) if len({own[-length:] for own in parts}) == len(parts))
    return [os.sep.join(own[-length:]) for own in parts]


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
    notes += [f"{name} is absent: {reason}" for name, reason in next(iter(told.values()))[1].items()]
    return Compared({name: [*clinical[name], *measures] for name, (measures, _) in told.items()}, notes, classes)


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


def as_table(differences: Sequence[Difference]) -> str:
    """A Markdown table, a line for each comparison."""
    cells = [
        (
            row.score, f"{row.first} - {row.second}",
            difference_text(row), p_text(row.p), p_text(row.corrected), "yes" if row.holds else "no",
        )
        for row in differences
    ]  # fmt: skip
    return markdown_table(("score", "systems", "difference (95%)", "p", "p, corrected", "holds"), cells)


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
