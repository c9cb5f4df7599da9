"""Reading of text, JSON and CSV, and writing of JSON, for the whole project.

Text is UTF-8 with or without a byte order mark and with any line ends; JSON is what the standard says, so NaN and
infinity are neither read nor written, and no key is there twice in an object; sizes and depths are bounded. Whatever is
wrong is one UserError that names the file.
"""

import csv
import gzip
import io
import json
import math
import zlib
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, BinaryIO, NoReturn

from common.errors import UserError
from common.io.inputs import MOST_BYTES, open_input, read_bytes, reason
from common.io.terminal import is_visible, printable

LONGEST_LINE = 16 << 20  # characters of a line of a CSV file, and of one of its fields
DEEPEST = 100  # arrays and objects within each other
MOST_DIGITS = 1000  # of a whole number
_MARK = "\ufeff"
_UTF16 = (b"\xff\xfe", b"\xfe\xff")
_GZIP = b"\x1f\x8b"


def decode_text(content: bytes, where: str | Path) -> str:
    """Text of UTF-8 bytes: without a byte order mark, every line end as a newline. Raises UserError naming `where`."""
    if content.startswith(_UTF16):
        raise UserError(f"{where}: is UTF-16; save the file as UTF-8")
    try:
        text = content.decode("utf-8").lstrip(_MARK)
    except UnicodeDecodeError as error:
        line, byte = content.count(b"\n", 0, error.start) + 1, error.start - content.rfind(b"\n", 0, error.start)
        raise UserError(f"{where}, line {line}: not UTF-8 at byte {byte}; save the file as UTF-8") from error
    if "\0" in text:  # as every second byte of ASCII in UTF-16 is, whose mark may be missing
        line = text.count("\n", 0, text.index("\0")) + 1
        raise UserError(
            f"{where}, line {line}: contains a NUL character, as UTF-16 does; remove it, or save the file as UTF-8"
        )
    return text.replace("\r\n", "\n").replace("\r", "\n")


def read_text(path: str | Path, expected: str = "a text file", limit: int = MOST_BYTES) -> str:
    """The text of a file, as `decode_text` gives it. Raises UserError."""
    return decode_text(read_bytes(path, expected, limit), path)


def parse_json(content: str | bytes, where: str | Path, expected: str = "JSON") -> Any:
    """The value of a JSON text. Raises UserError, also for NaN, infinity, too large a number, and a key there twice."""
    text = decode_text(content, where) if isinstance(content, bytes) else content.lstrip(_MARK)
    try:
        value = _DECODER.decode(text)
        if text.count("[") + text.count("{") > DEEPEST and _is_deeper(value, DEEPEST):
            raise RecursionError
    except (ValueError, RecursionError) as error:
        problem = f"nested more than {DEEPEST} deep" if isinstance(error, RecursionError) else printable(error)
        raise UserError(f"{where}: not JSON ({problem}); expected {expected}") from error
    return value


def read_json(path: str | Path, expected: str = "a JSON file") -> Any:
    """The value in a JSON file. Raises UserError."""
    return parse_json(read_bytes(path, expected), path, expected)


def read_json_object(path: str | Path, expected: str = "a JSON object") -> dict[str, Any]:
    """The object in a JSON file. Raises UserError where it is something else."""
    content = read_json(path, expected)
    if not isinstance(content, dict):
        raise UserError(f"{path}: expected {expected}, found {type(content).__name__}")
    return content


def json_text(value: Any, where: str | Path, indent: int | None = None) -> str:
    """`value` as JSON: Chinese as it is, characters that do not show as their escapes, so that a terminal may have it.

    Raises UserError naming `where` for a number that is not finite.
    """
    try:
        text = json.dumps(value, ensure_ascii=False, allow_nan=False, indent=indent)
    except ValueError as error:
        raise UserError(f"{where}: a value is not finite (NaN or infinity), which JSON cannot represent") from error
    if text.isprintable():
        return text
    return "".join(mark if mark == "\n" or is_visible(mark) else json.dumps(mark)[1:-1] for mark in text)


def read_csv(path: str | Path, columns: Sequence[str]) -> Iterator[tuple[int, dict[str, str]]]:
    """(line number, {column: value}) of the rows of a CSV file, plain or gzipped; of each row only `columns`.

    Raises UserError as `csv_rows` does, and for a column that is missing or there twice.
    """
    rows = csv_rows(path)
    _, header = next(rows, (1, []))
    if missing := [name for name in columns if name not in header]:
        raise UserError(f"{path}: no column {', '.join(missing)}; expected {', '.join(columns)}")
    if repeated := [name for name in columns if header.count(name) > 1]:
        raise UserError(f"{path}: column {repeated[0]} occurs {header.count(repeated[0])} times; keep one")
    index = {name: header.index(name) for name in columns}
    for line, row in rows:
        yield line, {name: row[column] for name, column in index.items()}


def csv_rows(
    path: str | Path, delimiter: str = ",", remedy: str = "fetch the file again"
) -> Iterator[tuple[int, list[str]]]:
    """(line number, values without white space around them) of each row of a CSV file, its header first.

    A gzipped file is unpacked; blank lines are skipped. Raises UserError for a file that is not whole, another
    encoding, and with the remedy for what is no CSV, or a row that has more or fewer values than the header.
    """
    csv.field_size_limit(LONGEST_LINE)
    width = 0
    try:
        with open_input(path) as file:
            start = file.read(2)
            file.seek(0)
            if start in _UTF16:
                raise UserError(f"{path}: is UTF-16; save the file as UTF-8")
            zipped = start == _GZIP or Path(path).suffix == ".gz"
            rows = csv.reader(
                _lines(gzip.GzipFile(fileobj=file) if zipped else file, path), strict=True, delimiter=delimiter
            )
            for row in rows:
                values = [value.strip() for value in row]
                if not any(values):
                    continue
                width = width or len(values)
                if len(values) != width:
                    amount = "few" if len(values) < width else "many"
                    raise UserError(f"{path}, line {rows.line_num}: too {amount} columns; {remedy}")
                yield rows.line_num, values
    except csv.Error as error:
        raise UserError(f"{path}: not CSV ({error} on line {rows.line_num}); {remedy}") from error
    except (gzip.BadGzipFile, EOFError, zlib.error) as error:
        raise UserError(f"{path}: not a complete CSV file ({reason(error)}); fetch it again") from error
    except (OSError, ValueError) as error:  # ValueError: a path with a NUL
        raise UserError(f"{path}: cannot be read ({reason(error)}); expected a CSV file") from error


def _lines(stream: BinaryIO | gzip.GzipFile, path: str | Path) -> Iterator[str]:
    """The lines of a text, read as they are asked for, with the checks of `decode_text`."""
    text = io.TextIOWrapper(stream, encoding="utf-8-sig")
    number = size = 0
    try:
        while line := text.readline(LONGEST_LINE):
            number += 1
            size += len(line)
            if size > MOST_BYTES:
                raise UserError(f"{path}: has more than {MOST_BYTES:,} characters; is it the right file?")
            if len(line) == LONGEST_LINE:
                raise UserError(
                    f"{path}, line {number}: longer than {LONGEST_LINE:,} characters; is it the right file?"
                )
            if "\0" in line:
                raise UserError(
                    f"{path}, line {number}: contains a NUL character, as UTF-16 does; remove it, or save the file as "
                    "UTF-8"
                )
            yield line.lstrip(_MARK) if number == 1 else line
    except UnicodeDecodeError as error:
        raise UserError(f"{path}: not UTF-8, after line {number}; save the file as UTF-8") from error


def _is_deeper(value: Any, levels: int) -> bool:
    """Whether arrays and objects stand within each other on more than so many levels."""
    level = [value]
    for _ in range(levels + 1):
        level = [outer for outer in level if isinstance(outer, list | dict)]
        if not level:
            return False
        level = [inner for outer in level for inner in (outer.values() if isinstance(outer, dict) else outer)]
    return True


def _object(items: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(items)
    if len(found) < len(items):
        [(twice, _)] = Counter(name for name, _ in items).most_common(1)
        raise ValueError(f"the key {printable(repr(twice))} is there twice in an object")
    return found


def _not_json(constant: str) -> NoReturn:
    raise ValueError(f"{constant} is not a JSON number")


def _finite(digits: str) -> float:
    value = float(digits)
    if not math.isfinite(value):
        raise ValueError(f"the number {printable(digits, 20)} is too large")
    return value


def _whole(digits: str) -> int:
    if len(digits) > MOST_DIGITS:
        raise ValueError(f"the number {printable(digits, 20)} is too large")
    return int(digits)


_DECODER = json.JSONDecoder(object_pairs_hook=_object, parse_constant=_not_json, parse_float=_finite, parse_int=_whole)
