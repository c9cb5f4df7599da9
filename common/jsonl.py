"""JSONL files: one JSON object a line, UTF-8. A bad line is named by file and number; a written file is whole."""

import contextlib
import fcntl
import hashlib
import json
import os
import re
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from types import UnionType
from typing import Any, TextIO

from common.config import differences
from common.errors import UserError
from common.files import written_aside
from common.io.inputs import read_bytes
from common.io.terminal import printable
from common.io.text import decode_text, json_text, parse_json
from common.stopping import held

INPUTS = "inputs"  # digests of what rows were made from, beside the options that made them
SURROGATE = re.compile("[\ud800-\udfff]")  # half of a character, which UTF-8 cannot write


def read_rows(path: str | Path, required: Mapping[str, type | UnionType]) -> list[dict[str, Any]]:
    """The rows of a file in order; blank lines are skipped.

    `required` maps a key that every row must have to its type (`str`, `int`, `str | int`, `list`, ...); other keys
    are kept unchecked. Where `id` is required, ids must differ. Raises UserError for a file that cannot be read,
    holds no row, or has a malformed line.
    """
    return parse_rows(read_bytes(path, "a JSONL file"), path, required)


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
            raise UserError(f"{where}: {key!r} holds an unpaired surrogate escape; expected Unicode text")
    return row


def write_rows(path: str | Path, rows: Iterable[Mapping[str, Any]]) -> None:
    """Write rows beside `path`, then rename: `path` holds either its old content or all the rows.

    Raises UserError where the disk or the folder refuses.
    """
    path = Path(path)
    try:
        with written_aside(path) as aside, aside.open("w", encoding="utf-8", newline="\n") as file:
            file.writelines(row_text(row, path) for row in rows)
    except OSError as error:
        raise UserError(f"{path}: cannot be written ({error.strerror})") from error


def row_text(row: Mapping[str, Any], path: str | Path) -> str:
    """A row as a line of JSONL. Raises UserError naming its id where a value is not finite."""
    return json_text(row, f"{path}, id {row['id']!r}" if "id" in row else path) + "\n"


def check_output(path: Path | None, *inputs: str | Path) -> None:
    """Raise UserError where a file cannot be written at the end of long work, or would take the place of an input."""
    if path is None:
        return
    if not path.parent.is_dir():
        raise UserError(f"{path}: its folder does not exist; make it first")
    if path.is_dir():
        raise UserError(f"{path}: is a directory; name a file for the output")
    if path.exists() and any(other.exists() and path.samefile(other) for other in map(Path, inputs)):
        raise UserError(f"{path}: is read as input and would be overwritten; choose another --output")


def rows_done(path: Path, ids: Sequence[str | int], required: Mapping[str, type | UnionType]) -> int:
    """How many rows a file to be continued holds already; a torn last row of ours is cut off.

    Raises UserError, and leaves every byte, where its folder is missing or its rows are not those of the first `ids`.
    """
    check_output(path)
    if not path.exists():
        return 0
    try:
        content = path.read_bytes()
    except OSError as error:
        raise UserError(f"{path}: cannot be continued ({error.strerror})") from error
    whole, newline, torn = content.rpartition(b"\n")
    written = [row["id"] for row in parse_rows(whole, path, {"id": str | int, **required})] if whole.strip() else []
    if written != list(ids[: len(written)]):
        raise UserError(f"{path}: its ids are not the first of the input's; choose another --output or remove it")
    first = json.dumps({"id": ids[0] if ids else ""}, ensure_ascii=False)[:-1].encode()
    if not written and torn[: len(first)] != first[: len(torn)]:
        raise UserError(f"{path}: holds something else than rows of this command; choose another --output or remove it")
    if torn:
        try:
            os.truncate(path, len(whole + newline))
        except OSError as error:
            raise UserError(f"{path}: cannot be continued ({error.strerror})") from error
    return len(written)


def claim_output(path: Path, settings: Mapping[str, Any], inputs: Sequence[Any] = ()) -> None:
    """Keep what decides the rows of `path` in `path`.config.json, so that they are not continued with something else.

    `settings` holds what JSON can, `inputs` what each row is made from, of which a short digest is kept; more of them
    may come later. Raises UserError, and writes nothing, where `path` holds rows of other settings or inputs; rows
    without such a file are taken as they are.
    """
    beside = path.with_name(f"{path.name}.config.json")
    digests = [hashlib.sha256(json.dumps(row).encode()).hexdigest()[:8] for row in inputs]
    try:
        fresh = not (path.exists() and path.stat().st_size)
        if not fresh and not beside.exists():
            return
        kept = dict(settings) if fresh else parse_json(beside.read_bytes(), beside)
    except OSError as error:
        raise UserError(f"{beside}: cannot be read ({error.strerror})") from error
    check_row(kept, {}, str(beside))
    known = str(kept.pop(INPUTS, "")).split()
    remedy = f"choose another --output, or remove it and {beside.name}"
    if different := differences(kept, json.loads(json.dumps(settings))):
        shown = "; ".join(map(str, different[:3]))
        raise UserError(
            f"{path}: holds rows made under other options ({shown}); give the same ones to continue it, {remedy}"
        )
    changed = (number for number, (old, new) in enumerate(zip(known, digests, strict=False), start=1) if old != new)
    if number := next(changed, 0):
        raise UserError(f"{path}: was made from other input, which differs from row {number} on; {remedy}")
    if not fresh and len(known) >= len(digests):
        return
    whole = {**settings, **({INPUTS: " ".join(digests)} if digests else {})}
    try:
        with written_aside(beside) as aside:
            aside.write_text(json.dumps(whole, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
    except OSError as error:
        raise UserError(f"{beside}: cannot be written ({error.strerror})") from error


@contextlib.contextmanager
def row_writer(path: Path | None) -> Iterator[Callable[[Mapping[str, Any]], None]]:
    """A function that adds one row, at once, to the end of `path` or to standard output.

    Raises UserError, also where another process is at work on `path`.
    """

    def write_to(file: TextIO) -> Callable[[Mapping[str, Any]], None]:
        def write(row: Mapping[str, Any]) -> None:
            with held():  # a row is written whole
                file.write(json.dumps(row, ensure_ascii=False) + "\n")
                file.flush()

        return write

    try:
        if path is None:
            yield write_to(sys.stdout)
        else:
            with path.open("a", encoding="utf-8", newline="\n") as file:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                yield write_to(file)
    except BrokenPipeError:
        raise
    except BlockingIOError as error:
        raise UserError(f"{path}: another process writes to it; wait for it, or choose another --output") from error
    except OSError as error:
        raise UserError(f"{path or 'standard output'}: cannot be written ({error.strerror})") from error


def parse_rows(content: bytes, path: str | Path, required: Mapping[str, type | UnionType]) -> list[dict[str, Any]]:
    """`read_rows` of what was read from `path`."""
    rows: list[dict[str, Any]] = []
    line_of_id: dict[str | int, int] = {}
    for number, line in enumerate(decode_text(content, path).split("\n"), start=1):
        if not line.strip():
            continue
        where = f"{path}, line {number}"
        row = check_row(parse_json(line, where, "one object a line"), required, where)
        if "id" in required and line_of_id.setdefault(row["id"], number) != number:
            first = line_of_id[row["id"]]
            raise UserError(f"{where}: id {printable(repr(row['id']))} duplicates line {first}; ids must differ")
        rows.append(row)
    if not rows:
        raise UserError(f"{path}: no rows; expected one JSON object a line with {_names(required)}")
    return rows


def _names(required: Mapping[str, type | UnionType]) -> str:
    return ", ".join(repr(key) for key in required) or "any keys"
