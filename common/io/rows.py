"""Rows of JSONL, of Parquet, and of data sets that Hugging Face's `datasets` saved: one reader for all.

Parquet is a file, or a folder of files named by their splits (`train-00000-of-00002.parquet`), as the hub has them. A
saved data set is a folder of Arrow files, with a folder for each split of a `DatasetDict`. Nothing but the data is read
of either: no script, no pickle. Rows of these formats that have no `id` are numbered.
"""

import argparse
import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from types import UnionType
from typing import Any

from common.errors import MissingPackage, UserError
from common.io.inputs import MOST_BYTES, reason
from common.io.jsonl import check_new_id, check_row, read_jsonl
from common.io.locks import warn_of_writer
from common.io.terminal import printable

INSTALL = "pip install 'medreport-jax[tables]'"
PARQUET = ".parquet"
COLUMNS_HELP = "columns that are read under other names, such as report=findings"
SAVED = ("dataset_dict.json", "dataset_info.json")  # of `datasets`, in a folder of its own
ROWS = 256  # of Parquet that are decoded at a time
Columns = Sequence[str]  # "name=column" each: which column is read as which key
Kinds = Mapping[str, type | UnionType]


def is_table(path: str | Path) -> bool:
    """Whether a path is Parquet, or a folder of Parquet or of a saved data set."""
    path = Path(path)
    if path.suffix.lower() == PARQUET:
        return True
    return path.is_dir() and (any((path / name).is_file() for name in SAVED) or bool(_parquet_files(path)))


def read_rows(path: str | Path, required: Kinds, columns: Columns = ()) -> list[dict[str, Any]]:
    """The rows of a file or folder in order, with the checks of `common.io.jsonl.read_jsonl`.

    `columns` gives keys the values of columns with other names. Rows of tables have no key where a value is null, a
    `split` by the name of their file or folder unless they have one, and their number as `id` where there is no such
    column. An encoded image, alone or in a list, is its bytes, or the path where only that is stored. Raises UserError.
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
    for number, (split, found) in enumerate(_table_rows(Path(path)), start=1):
        where = f"{path}, row {number}"
        if absent := [column for column in renamed.values() if column not in found]:
            there = ", ".join(map(printable, found))
            raise UserError(f"{path}: has no column {printable(absent[0])!r}; there are {there}")
        row = {key: _plain(value) for key, value in _with_keys(found, renamed).items() if value is not None}
        row.setdefault("id", f"{split}-{number}" if split else str(number))
        if split:
            row.setdefault("split", split)
        if missing := [key for key in required if key not in row and renamed.get(key, key) not in found]:
            there = ", ".join(map(printable, found))
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
    """A value as JSON would have it; images as bytes."""
    if isinstance(value, dict) and {"bytes", "path"} >= {*value} and value:
        return value.get("bytes") or value.get("path")
    if isinstance(value, list):
        return [_plain(one) for one in value if one is not None]
    return value


def _parquet_files(folder: Path) -> list[Path]:
    return sorted([*folder.glob(f"*{PARQUET}"), *folder.glob(f"*/*{PARQUET}")])


def _table_rows(path: Path) -> Iterator[tuple[str, dict[str, Any]]]:
    """The split, "" where nothing names it, and the columns of each row. Raises UserError."""
    try:
        import pyarrow as pa
    except ImportError as error:
        raise MissingPackage(f"{path}: needs pyarrow; install it: {INSTALL}") from error
    for split, file in _files(path):
        try:
            for batch in _batches(file):
                batch.validate(full=True)  # of a damaged file, whose offsets would be followed anywhere
                yield from ((split, row) for row in batch.to_pylist())
        except (pa.ArrowException, OSError, UnicodeDecodeError) as error:
            why = printable(reason(error)).splitlines()[0][:200]
            raise UserError(f"{file}: cannot be read as a table ({why}); write it again") from error


def _files(path: Path) -> Iterator[tuple[str, Path]]:
    """The files of a table, in order, and the split of each."""
    if path.is_file() or not path.is_dir():
        yield "", path
        return
    if (path / "dataset_dict.json").is_file():
        for folder in sorted(folder for folder in path.iterdir() if folder.is_dir()):
            yield from ((folder.name, file) for file in sorted(folder.glob("data-*.arrow")))
    elif (path / "dataset_info.json").is_file():
        yield from (("", file) for file in sorted(path.glob("data-*.arrow")))
    else:
        for file in _parquet_files(path):
            named = re.match(r"(train|val|valid|validation|validate|test)\b", file.name.replace("_", "-"))
            yield (named[1] if named else file.parent.name if file.parent != path else ""), file


def _batches(file: Path) -> Iterator[Any]:
    """Parts of a table, some rows at a time. Raises UserError for one that is too large to be read whole."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    if file.suffix.lower() == PARQUET:
        with pq.ParquetFile(file) as stored:
            groups = (stored.metadata.row_group(number) for number in range(stored.metadata.num_row_groups))
            check_size(file, sum(group.total_byte_size for group in groups))
            yield from stored.iter_batches(batch_size=ROWS)
    else:
        check_size(file, file.stat().st_size)
        with pa.OSFile(str(file)) as source, pa.ipc.open_stream(source) as stream:
            yield from stream


def check_size(file: Path, size: int) -> None:
    """Raise UserError for a table that is too large to be read whole."""
    if size > MOST_BYTES:
        raise UserError(f"{file}: holds {size:,} bytes, more than {MOST_BYTES:,}; split it, or keep images as files")
