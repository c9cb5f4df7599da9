"""`medreport compare A.jsonl B.jsonl ...`: which differences between systems hold, on the same studies.

Rows are those of `medreport score`; every file has the same ids and references. Each pair of systems is compared by
each score, with a paired bootstrap over reports, and Holm's correction over all comparisons that are made: choose a few
scores (`--scores`) beforehand, as every further one makes it harder for the others.
"""

import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from common.clinical.labeler import load_labeler
from common.clinical.report_labeler import ReportLabeler
from common.data.summary import data_line, say_data
from common.errors import Parser, UserError
from common.io.jsonl import read_jsonl
from common.io.outputs import check_output, check_own_object, check_own_page
from common.io.terminal import printable, say
from common.report.comparison import TEXT_SCORES, Result, as_table, compare_measured, measure, summary

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
    result = compare_measured(measured, len(first), chosen.scores)
    print(as_table(result.differences), flush=True)
    say(summary(result.differences), error=True)
    result.save(chosen.output, chosen.page)
    if chosen.page is not None:
        say(f"page: {chosen.page.absolute()}", error=True)


def compare_files(files: Mapping[str, Path], labeler: ReportLabeler | None = None) -> Result:
    """Compare systems by their files, as the command does with the leading scores. Raises UserError."""
    rows = {name: read_jsonl(file, ROW) for name, file in files.items()}
    systems = same_studies(rows, list(files.values()))
    return compare_measured(measure(systems, labeler).measures, len(next(iter(systems.values()))), None)


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
