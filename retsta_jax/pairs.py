"""Report pairs from files."""

from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any, get_args

from common.data.cleaning import clean_report
from common.data.records import Language, Quarantine, ReportPair
from common.errors import UserError
from common.io.rows import Columns, check_one_split, read_rows
from common.io.terminal import printable
from retsta_jax.reports import pair_language

PAIR = {
    "id": str | int,
    "source": str,
    "target": str,
}  # what a row of report pairs must have


def read_pairs(file: Path, quarantine: Quarantine, columns: Columns = ()) -> list[ReportPair]:
    """Pairs from rows {"id", "source", "target"} with an optional "language" (en or zh; else by its characters).

    Rows are JSONL or a table (`common.io.rows`). An id that is a number is kept as its text. A row without text on
    either side is quarantined. Raises UserError naming the line of a malformed row.
    """
    rows = read_rows(file, PAIR, columns, optional=["language"])
    check_one_split(file, rows)
    return pairs_of(rows, file, quarantine)


def pairs_of(rows: Iterable[Mapping[str, Any]], file: Path, quarantine: Quarantine) -> list[ReportPair]:
    """`read_pairs` of rows that were read from `file`."""
    pairs: list[ReportPair] = []
    ids: set[str] = set()
    for row in rows:
        id_ = str(row["id"])
        if id_ in ids:
            raise UserError(f"{file}: id {printable(id_)} occurs both as a number and as text; ids must differ")
        ids.add(id_)
        language = row.get("language", pair_language(row["source"], row["target"]))
        if language not in get_args(Language):
            raise UserError(f"{file}: row {row['id']}: language is {language!r}, expected en or zh")
        source, target = clean_report(row["source"]), clean_report(row["target"])
        if source and target:
            pairs.append(ReportPair(id_, source, target, language))
        else:
            quarantine.add(id_, "no source text" if target else "no target text")
    return pairs


def apart_from(held_out: Iterable[ReportPair]) -> Callable[[ReportPair], bool]:
    """Whether a pair has neither source nor target of one that is held out; white space does not count."""
    texts = {" ".join(text.split()) for pair in held_out for text in (pair.source, pair.target)}
    return lambda pair: not texts & {" ".join(pair.source.split()), " ".join(pair.target.split())}
