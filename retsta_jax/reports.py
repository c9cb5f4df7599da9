"""Free-text reports from a file or standard input."""

import re
import unicodedata

from common.data.cleaning import clean_report
from common.data.records import Language
from common.errors import UserError
from common.io.inputs import read_bytes, read_standard_input
from common.io.jsonl import check_row
from common.io.rows import Columns, read_rows
from common.io.table_batches import is_table
from common.io.terminal import printable
from common.io.text import decode_text, parse_json
from common.metrics.tokenize import language_of

TABLES = (".csv", ".tsv", ".xls", ".xlsx", ".ods")  # names of files that hold no report as a line

# What tells the language of a text: Chinese, small letters, a long word, or a short one of English.
WORD = re.compile(
    r"[㐀-鿿]|[a-z]{2,}|[A-Z]{6,}|\b(?:AND|ARE|AT|EYES?|FOR|HAS|IN|IS|LEFT|NIL|NO|NOT|OF|OR|RIGHT|THE|WITH)\b"
)


def read_reports(source: str, columns: Columns = ()) -> list[tuple[str | int, str]]:
    """(id, report) of each row or line of a file, or of standard input ("-").

    A table (`common.io.rows`) where it is one, JSONL where the name or the first line that is not blank says so, else
    text. Raises UserError naming the line of what is wrong.
    """
    if source.lower().endswith(TABLES):
        raise UserError(
            f"{source}: is a table; expected reports, one per line in a text file, or JSONL rows with id and report"
        )
    if columns or (source != "-" and is_table(source)):
        rows = read_rows(source, {"id": str | int, "report": str}, columns)
        for row in rows:
            if not clean_report(row["report"]):
                raise UserError(f"{source}: report {row['id']!r} has no text; leave it out")
        return [(row["id"], row["report"]) for row in rows]
    name = "standard input" if source == "-" else source
    expected = "reports, one per line, or JSONL rows with id and report"
    text = decode_text(read_standard_input(expected) if source == "-" else read_bytes(source, expected), name)
    lines = [(number, line) for number, line in enumerate(text.split("\n"), start=1) if line.strip()]
    if not lines:
        raise UserError(f"{name}: contains no report; expected one per line, or JSONL rows with id and report")
    as_rows = source.lower().endswith((".jsonl", ".json")) or lines[0][1].lstrip().startswith(("{", "[{"))
    reports: list[tuple[str | int, str]] = []
    line_of_id: dict[str, int] = {}  # 1 and "1" are one id
    for number, line in lines:
        id_, report = _row(line, f"{name}, line {number}") if as_rows else (number, line)
        if line_of_id.setdefault(str(id_), number) != number:
            raise UserError(
                f"{name}, line {number}: id {printable(repr(id_))} duplicates line {line_of_id[str(id_)]}; ids must "
                "differ"
            )
        if not clean_report(report):
            raise UserError(f"{name}, line {number}: report {id_!r} has no text; leave it out")
        reports.append((id_, report))
    return reports


def pair_language(report: str, standard: str) -> Language:
    """The language of a report and its standard form: of abbreviations alone ("OD: DR"), the standard form says it."""
    has_words = WORD.search(unicodedata.normalize("NFKC", report))
    return language_of(report if has_words else f"{report} {standard}")


def _row(line: str, where: str) -> tuple[str | int, str]:
    row = check_row(parse_json(line, where, "one object a line"), {"id": str | int, "report": str}, where)
    return row["id"], row["report"]
