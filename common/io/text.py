"""The one way in which this project reads text, JSON and CSV, and writes JSON.

Text is UTF-8 with or without a byte order mark and with any line ends; JSON is what the standard says, so NaN and
infinity are neither read nor written; sizes are bounded. Whatever is wrong is one UserError that names the file.
"""

import csv
import gzip
import io
import json
import math
import zlib
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NoReturn

from common.errors import UserError
from common.io.terminal import is_visible, printable

MOST_BYTES = 8 << 30  # of one file that is read whole
LONGEST_FIELD = 16 << 20  # characters of one CSV field
_MARK = b"\xef\xbb\xbf"
_UTF16 = (b"\xff\xfe", b"\xfe\xff")


def read_bytes(path: str | Path, expected: str = "a readable file", limit: int = MOST_BYTES) -> bytes:
    """The content of a file of at most `limit` bytes. Raises UserError."""
    try:
        with open(path, "rb") as file:
            content = file.read(limit + 1)
    except OSError as error:
        raise UserError(f"{path}: cannot be read ({error.strerror}); expected {expected}") from error
    if len(content) > limit:
        raise UserError(f"{path}: is larger than {limit:,} bytes; expected {expected}")
    return content


def decode_text(content: bytes, where: str | Path) -> str:
    """Text of UTF-8 bytes: without a byte order mark, every line end as a newline. Raises UserError naming `where`."""
    if content.startswith(_UTF16):
        raise UserError(f"{where}: is UTF-16; save it as UTF-8")
    try:
        text = content.removeprefix(_MARK).decode("utf-8")
    except UnicodeDecodeError as error:
        line = content[: error.start].count(b"\n") + 1
        raise UserError(f"{where}: not UTF-8 (line {line}, byte {error.start + 1}); save it as UTF-8") from error
    return text.replace("\r\n", "\n").replace("\r", "\n")


def read_text(path: str | Path, expected: str = "a text file", limit: int = MOST_BYTES) -> str:
    """The text of a file, as `decode_text` gives it. Raises UserError."""
    return decode_text(read_bytes(path, expected, limit), path)


def parse_json(content: str | bytes, where: str | Path, expected: str = "JSON") -> Any:
    """The value of a JSON text. Raises UserError, also for NaN, infinity and numbers too large for a float."""
    text = decode_text(content, where) if isinstance(content, bytes) else content
    try:
        return json.loads(text, parse_constant=_not_json, parse_float=_finite)
    except (ValueError, RecursionError) as error:
        reason = "nested too deeply" if isinstance(error, RecursionError) else printable(error)
        raise UserError(f"{where}: not JSON ({reason}); expected {expected}") from error


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
        raise UserError(f"{where}: a value is not finite (NaN or infinity), which JSON cannot hold") from error
    if text.isprintable():
        return text
    return "".join(mark if mark == "\n" or is_visible(mark) else json.dumps(mark)[1:-1] for mark in text)


def read_csv(path: str | Path, columns: Sequence[str]) -> Iterator[tuple[int, dict[str, str]]]:
    """(line number, {column: value}) of the rows of a CSV file, plain or .gz; of each row only `columns`.

    Raises UserError for a file that is not whole, another encoding, a missing column or a short row.
    """
    csv.field_size_limit(LONGEST_FIELD)
    try:
        with gzip.open(path, "rb") if Path(path).suffix == ".gz" else open(path, "rb") as stream:
            content = stream.read(MOST_BYTES)
    except (OSError, EOFError, zlib.error) as error:
        raise UserError(f"{path}: not a whole CSV file ({error}); fetch it again") from error
    rows = csv.DictReader(io.StringIO(decode_text(content, path)))
    try:
        missing = [name for name in columns if name not in (rows.fieldnames or ())]
        if missing:
            raise UserError(f"{path}: no column {', '.join(missing)}; expected {', '.join(columns)}")
        for row in rows:
            values = {name: row[name] for name in columns}
            if None in values.values():
                raise UserError(f"{path}, line {rows.line_num}: too few columns; fetch the file again")
            yield rows.line_num, values
    except csv.Error as error:
        raise UserError(f"{path}, line {rows.line_num}: not CSV ({error}); fetch it again") from error


def _not_json(constant: str) -> NoReturn:
    raise ValueError(f"{constant} is not a JSON number")


def _finite(digits: str) -> float:
    value = float(digits)
    if not math.isfinite(value):
        raise ValueError(f"the number {printable(digits, 20)} is too large")
    return value
