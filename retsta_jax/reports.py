"""Free-text reports from a file or standard input."""

from common.data.cleaning import clean_report
from common.errors import UserError
from common.io.inputs import read_bytes, read_standard_input
from common.io.jsonl import check_row
from common.io.terminal import printable
from common.io.text import decode_text, parse_json


def read_reports(source: str) -> list[tuple[str | int, str]]:
    """(id, report) of each row or line of a file, or of standard input ("-").

    JSONL where the name or the first line that is not blank says so, else text. Raises UserError naming the line of
    what is wrong.
    """
    name = "standard input" if source == "-" else source
    expected = "reports, one a line, or JSONL rows with id and report"
    text = decode_text(read_standard_input(expected) if source == "-" else read_bytes(source, expected), name)
    lines = [(number, line) for number, line in enumerate(text.split("\n"), start=1) if line.strip()]
    if not lines:
        raise UserError(f"{name}: holds no report; expected one a line, or JSONL rows with id and report")
    as_rows = source.endswith(".jsonl") or lines[0][1].lstrip().startswith("{")
    reports: dict[str | int, tuple[int, str]] = {}  # id -> line number and report
    for number, line in lines:
        id_, report = _row(line, f"{name}, line {number}") if as_rows else (number, line)
        if id_ in reports:
            raise UserError(
                f"{name}, line {number}: id {printable(repr(id_))} duplicates line {reports[id_][0]}; ids must differ"
            )
        if not clean_report(report):
            raise UserError(f"{name}, line {number}: report {id_!r} has no text; leave it out")
        reports[id_] = number, report
    return [(id_, report) for id_, (_, report) in reports.items()]


def _row(line: str, where: str) -> tuple[str | int, str]:
    row = check_row(parse_json(line, where, "one object a line"), {"id": str | int, "report": str}, where)
    return row["id"], row["report"]
