"""Rows of JSONL, of Parquet, and of data sets that Hugging Face's `datasets` or TFDS saved: one reader for all.

Which paths are tables, and how little of them is held, is in `common.io.table_files`. Rows of tables that have no `id`
are numbered.
"""

import argparse
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from types import UnionType
from typing import Any

from common.errors import UserError
from common.io.jsonl import check_new_id, check_row, read_jsonl
from common.io.locks import warn_of_writer
from common.io.table_batches import is_table
from common.io.table_files import EncodedImage, table_rows
from common.io.terminal import printable

COLUMNS_HELP = "columns that are read under other names, such as report=findings"
Columns = Sequence[str]  # "name=column" each: which column is read as which key
Kinds = Mapping[str, type | UnionType]


def read_rows(
    path: str | Path, required: Kinds, columns: Columns = (), optional: Collection[str] = ()
) -> list[dict[str, Any]]:
    """The rows of a file or folder in order, with the checks of `common.io.jsonl.read_jsonl`.

    `columns` gives keys the values of columns with other names. Of a table only what `required`, `optional` and
    `columns` name is read, and `id` and `split`. Rows of tables have no key where a value is null, a `split` by the
    name of their file or folder unless they have one, and their number as `id` where there is no such column. Where
    `required` takes an EncodedImage, an encoded image, alone or in a list, is one, or the path where only that is
    stored. Raises UserError.
    """
    renamed = _renamed(columns)
    if not is_table(path):
        if not renamed:
            return read_jsonl(path, required)
        theirs = {renamed.get(key, key): kind for key, kind in required.items()}
        return [_with_keys(row, renamed) for row in read_jsonl(path, theirs)]
    warn_of_writer(path)
    rows: list[dict[str, Any]] = []
    seen: dict[Any, int] = {}
    wanted = {renamed.get(key, key) for key in ("id", "split", *required, *optional, *renamed)}
    images = {renamed.get(key, key) for key, kind in required.items() if issubclass(EncodedImage, kind)}
    for number, (split, names, found) in enumerate(table_rows(Path(path), wanted, images), start=1):
        where = f"{path}, row {number}"
        if absent := [column for column in renamed.values() if column not in names]:
            there = ", ".join(map(printable, names))
            raise UserError(f"{path}: has no column {printable(absent[0])!r}; there are {there}")
        row = {key: _plain(value) for key, value in _with_keys(found, renamed).items() if value is not None}
        row.setdefault("id", f"{split}-{number}" if split else str(number))
        if split:
            row.setdefault("split", split)
        if missing := [key for key in required if key not in row and renamed.get(key, key) not in names]:
            there = ", ".join(map(printable, names))
            raise UserError(
                f"{path}: has no column {missing[0]!r}; name one of its columns with --columns (in training "
                f"--data.columns) {missing[0]}=COLUMN; there are {there}"
            )
        check_row(row, required, where)
        if "id" in required:
            check_new_id(row["id"], number, seen, where, "row")
        rows.append(row)
    if not rows:
        raise UserError(f"{path}: no rows; expected at least one")
    return rows


def add_columns(parser: argparse.ArgumentParser) -> None:
    """The option that gives keys the values of columns with other names."""
    parser.add_argument("--columns", nargs="+", default=(), metavar="NAME=COLUMN", help=COLUMNS_HELP)


def check_one_split(path: str | Path, rows: Sequence[Mapping[str, Any]]) -> None:
    """Raise UserError for the rows of a table with more than one split, where one is wanted."""
    if is_table(path) and len(splits := sorted({str(row.get("split", "")) for row in rows})) > 1:
        raise UserError(f"{path}: holds the splits {', '.join(map(printable, splits))}; name the folder or file of one")


def _renamed(columns: Columns) -> dict[str, str]:
    """Keys, and the columns that they are read from. Raises UserError."""
    pairs = [text.partition("=") for text in columns]
    for key, equals, column in pairs:
        if not (key and equals and column):
            raise UserError(f"columns: {printable(key)!r} is not of the form name=column, such as report=findings")
    if len({key for key, _, _ in pairs}) < len(pairs):
        raise UserError(f"columns: a name is given twice in {printable(' '.join(columns))}")
    return {key: column for key, _, column in pairs}


def _with_keys(row: Mapping[str, Any], renamed: Mapping[str, str]) -> dict[str, Any]:
    """A row with the chosen keys in place of the columns that they are read from."""
    taken = set(renamed.values())
    others = {key: value for key, value in row.items() if key not in taken and key not in renamed}
    return others | {key: row[column] for key, column in renamed.items() if column in row}


def _plain(value: Any) -> Any:
    """A value as JSON would have it, without nulls in lists; of an image, its path."""
    if isinstance(value, dict) and {"bytes", "path"} >= {*value} and value:
        return value.get("bytes") or value.get("path")
    if isinstance(value, list):
        return [_plain(one) for one in value if one is not None]
    return value
