"""JSONL files: one JSON object per line, UTF-8. Errors name file and line; files are never written in part."""

import re
from collections.abc import Iterable, Mapping
from pathlib import Path
from types import UnionType
from typing import Any

from common.errors import UserError
from common.io.files import atomic_file
from common.io.inputs import read_bytes
from common.io.locks import warn_of_writer
from common.io.terminal import printable
from common.io.text import decode_text, json_text, parse_json

SURROGATE = re.compile("[\ud800-\udfff]")  # half of a character, which UTF-8 cannot write


def read_jsonl(path: str | Path, required: Mapping[str, type | UnionType]) -> list[dict[str, Any]]:
    """The rows of a file in order; blank lines are skipped.

    `required` maps a key that every row must have to its type (`str`, `int`, `str | int`, `list`, ...); other keys
    are kept unchecked. Where `id` is required, ids must differ. Raises UserError for a file that cannot be read,
    holds no row, or has a malformed line.
    """
    content = read_bytes(path, "a JSONL file")
    warn_of_writer(path)
    return parse_rows(content, path, required)


def check_row(row: Any, required: Mapping[str, type | UnionType], where: str) -> dict[str, Any]:
    """The row itself. Raises UserError naming `where` unless it is an object with the required keys and types."""
    if not isinstance(row, dict):
        raise UserError(f"{where}: expected a JSON object, found {type(row).__name__}")
    for key, kind in required.items():
        if key not in row:
            raise UserError(f"{where}: key {key!r} is missing; expected {_names(required)}")
        value = row[key]
        # JSON's true and false are ints in Python, and an unpaired \ud800 escape is no text that could be written.
        if not isinstance(value, kind) or (isinstance(value, bool) and kind is not bool):
            name = getattr(kind, "__name__", kind)
            raise UserError(f"{where}: {key!r} must be {name}, found {type(value).__name__}")
        if isinstance(value, str) and SURROGATE.search(value):
            raise UserError(f"{where}: {key!r} contains an unpaired surrogate escape; expected Unicode text")
    return row


def check_new_id(id: str | int, number: int, seen: dict[Any, int], where: str, unit: str) -> None:
    """Raise UserError where an earlier line or row (`unit`) has the id; `seen` gets the number of this one."""
    if seen.setdefault(id, number) != number:
        raise UserError(f"{where}: id {printable(repr(id))} duplicates {unit} {seen[id]}; ids must differ")


def write_rows(path: str | Path, rows: Iterable[Mapping[str, Any]]) -> None:
    """Write rows beside `path`, then rename: `path` holds either its old content or all the rows.

    Raises UserError where the disk or the folder refuses.
    """
    path = Path(path)
    try:
        with atomic_file(path) as aside, aside.open("w", encoding="utf-8", newline="\n") as file:
            file.writelines(row_text(row, path) for row in rows)
    except OSError as error:
        raise UserError(f"{path}: cannot be written ({error.strerror})") from error


def row_text(row: Mapping[str, Any], path: str | Path) -> str:
    """A row as a line of JSONL. Raises UserError naming its id where a value is not finite."""
    return json_text(row, f"{path}, id {row['id']!r}" if "id" in row else path) + "\n"


def parse_rows(content: bytes, path: str | Path, required: Mapping[str, type | UnionType]) -> list[dict[str, Any]]:
    """`read_jsonl` of what was read from `path`."""
    rows: list[dict[str, Any]] = []
    line_of_id: dict[str | int, int] = {}
    for number, line in enumerate(decode_text(content, path).split("\n"), start=1):
        if not line.strip():
            continue
        where = f"{path}, line {number}"
        row = check_row(parse_json(line, where, "one object a line"), required, where)
        if "id" in required:
            check_new_id(row["id"], number, line_of_id, where, "line")
        rows.append(row)
    if not rows:
        raise UserError(f"{path}: no rows; expected one JSON object per line with {_names(required)}")
    return rows


def _names(required: Mapping[str, type | UnionType]) -> str:
    return ", ".join(repr(key) for key in required) or "any keys"
