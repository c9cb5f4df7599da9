"""Rows of JSONL that a later run of the same command continues, and the record of how they were made.

`OUTPUT.config.json` records what determines the rows, by content and never by path: fingerprints of weights, tokenizers
and configs, the options, and a digest of what each row is made from. It is written before the first row. So a model, a
run or an input that has moved continues an output, and one that has changed is refused with the name of what differs.
"""

import contextlib
import hashlib
import json
import os
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from types import UnionType
from typing import Any, TextIO

from common.errors import UserError
from common.io.differences import differences
from common.io.files import atomic_file
from common.io.jsonl import parse_rows, row_text
from common.io.locks import locked_file
from common.io.outputs import check_output, refuse_foreign
from common.io.text import json_text, parse_json, read_json_object
from common.process.stopping import held

MADE_WITH, INPUTS = "made_with", "inputs"  # keys of the record
ROW_DIGITS = 8  # of the digest of what a row is made from


def rows_done(path: Path, ids: Sequence[str | int], required: Mapping[str, type | UnionType]) -> int:
    """How many rows a file to be continued holds already; a torn last row of ours is none. Changes nothing.

    Raises UserError where its folder is missing or its rows are not those of the first `ids`.
    """
    check_output(path)
    if not path.is_file():
        return 0
    try:
        content = path.read_bytes()
    except OSError as error:
        raise UserError(f"{path}: cannot be continued ({error.strerror})") from error
    whole, _, torn = content.rpartition(b"\n")
    try:
        written = [row["id"] for row in parse_rows(whole, path, {"id": str | int, **required})] if whole.strip() else []
    except UserError as error:
        reason = str(error).removeprefix(str(path)).lstrip(":, ")
        raise refuse_foreign(path, "rows of this command", reason) from error
    if written != list(ids[: len(written)]):
        raise UserError(f"{path}: its ids are not the first ids of the input; choose another output or remove it")
    first = json.dumps({"id": ids[0] if ids else ""}, ensure_ascii=False)[:-1].encode()
    if not written and torn[: len(first)] != first[: len(torn)]:
        raise refuse_foreign(path, "rows of this command", "no whole row")
    return len(written)


def continue_rows(
    path: Path,
    inputs: Mapping[str | int, Any],
    required: Mapping[str, type | UnionType],
    settings: Callable[[], Mapping[str, Any]],
) -> int:
    """`rows_done`, of a file whose rows were made with these `settings` from these `inputs` (of each id).

    Raises UserError where they were not. `settings` are asked for where there are rows: fingerprints take a while.
    """
    check_output(path)
    rows = list(inputs.values())
    if _has_content(path) and _record_of(path).exists():  # says better what differs than a key that a row lacks
        _check_claim(path, settings(), rows)
    done = rows_done(path, list(inputs), required)
    if done:
        claim_output(path, settings(), rows)
    return done


def claim_output(path: Path, settings: Mapping[str, Any], inputs: Sequence[Any] = ()) -> None:
    """Record what decides the rows of `path` beside it, so that they are not continued with something else.

    `settings` holds what JSON can, by content; of each of the `inputs` a short digest is kept; more of them may come
    later. Raises UserError, and writes nothing, where `path` holds rows of other settings or inputs, or rows of which
    nothing is recorded.
    """
    if path.exists() and not path.is_file():  # a device or a pipe keeps nothing
        return
    known = _check_claim(path, settings, inputs)
    if known is not None and known >= len(inputs):
        return
    record = _record_of(path)
    whole = {MADE_WITH: settings, INPUTS: " ".join(_digests(inputs))}
    try:
        with atomic_file(record) as aside:
            aside.write_text(json_text(whole, record, indent=2) + "\n", encoding="utf-8")
    except OSError as error:
        raise UserError(f"{record}: cannot be written ({error.strerror})") from error


def _check_claim(path: Path, settings: Mapping[str, Any], inputs: Sequence[Any]) -> int | None:
    """How many inputs the record of `path` knows; None where there are no rows yet. Raises UserError."""
    if not _has_content(path):
        return None
    record = _record_of(path)
    kept = _recorded(path, record)
    remedy = f"choose another output, or remove it and {record.name}"
    if different := differences(kept[MADE_WITH], parse_json(json.dumps(settings), record)):
        shown = "; ".join(map(str, different[:3]))
        raise UserError(
            f"{path}: holds rows made with other options or files ({shown}); give the same ones to continue it, "
            f"{remedy}"
        )
    known, given = str(kept.get(INPUTS, "")).split(), _digests(inputs)
    changed = (number for number, (old, new) in enumerate(zip(known, given, strict=False), start=1) if old != new)
    if number := next(changed, 0):
        raise UserError(f"{path}: was made from other input, which differs from row {number} on; {remedy}")
    return len(known)


def _digests(inputs: Sequence[Any]) -> list[str]:
    return [hashlib.sha256(json.dumps(row).encode()).hexdigest()[:ROW_DIGITS] for row in inputs]


def _record_of(path: Path) -> Path:
    return path.with_name(f"{path.name}.config.json")


def _has_content(path: Path) -> bool:
    return path.is_file() and path.stat().st_size > 0


@contextlib.contextmanager
def row_writer(path: Path | None) -> Iterator[Callable[[Mapping[str, Any]], None]]:
    """A function that adds one row, at once, to the end of `path` or to standard output; a torn last row is cut off.

    What ends before the first row leaves no file, and no record of what the rows would have been made with. Raises
    UserError, also where another process is at work on `path`.
    """

    def write_to(file: TextIO) -> Callable[[Mapping[str, Any]], None]:
        def write(row: Mapping[str, Any]) -> None:
            with held():  # a row is written whole
                file.write(row_text(row, path or "standard output"))
                file.flush()

        return write

    with locked_file(path), _no_empty_file(path):
        try:
            if path is None:
                yield write_to(sys.stdout)
            else:
                _cut_torn_row(path)
                with path.open("a", encoding="utf-8", newline="\n") as file:
                    yield write_to(file)
        except BrokenPipeError:
            raise
        except OSError as error:
            raise UserError(f"{path or 'standard output'}: cannot be written ({error.strerror})") from error


@contextlib.contextmanager
def _no_empty_file(path: Path | None) -> Iterator[None]:
    """Take a file that was not there before away again, with its record, where an error leaves it without a row."""
    is_new = path is not None and not path.exists()
    try:
        yield
    except BaseException:
        if path is not None and is_new and not _has_content(path):
            path.unlink(missing_ok=True)
            _record_of(path).unlink(missing_ok=True)
        raise


def _cut_torn_row(path: Path) -> None:
    """Cut off what stands behind the last newline."""
    if path.is_file():
        content = path.read_bytes()
        os.truncate(path, content.rfind(b"\n") + 1)


def _recorded(path: Path, beside: Path) -> dict[str, Any]:
    if not beside.exists():
        raise UserError(
            f"{path}: holds rows, but {beside.name}, the record of how they were made, is missing; restore "
            "it, choose another output, or remove the rows"
        )
    record = read_json_object(beside)
    if not isinstance(record.get(MADE_WITH), dict):
        raise UserError(
            f"{path}: was written by an earlier version, which did not record the content of its inputs; choose "
            f"another output, or remove it and {beside.name}"
        )
    return record
