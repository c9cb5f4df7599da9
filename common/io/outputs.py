"""Files that a command writes at its end: checked before its work begins, and never over a foreign file."""

import os
from collections.abc import Sequence
from pathlib import Path

from common.errors import UserError
from common.io.files import atomic_file
from common.io.text import read_json_object

PAGE_MARK = b'<meta name="generator" content="medreport-jax">'  # of `common/report/base.html.j2`
PAGE_HEAD = 4096  # bytes at the start of a page that hold its mark


def check_output(path: Path | None, *inputs: str | Path) -> None:
    """Raise UserError where a file cannot be written at the end of long work, or would take the place of an input."""
    if path is None:
        return
    if not path.parent.is_dir():
        raise UserError(f"{path}: its folder does not exist; create it first")
    if path.is_dir():
        raise UserError(f"{path}: is a directory; name a file for the output")
    if path.exists() and any(other.exists() and path.samefile(other) for other in map(Path, inputs)):
        raise UserError(f"{path}: is also an input and would be overwritten; choose another output")
    if not os.access(path if path.exists() else path.parent, os.W_OK):
        raise UserError(f"{path}: cannot be written (no permission); choose another output")


def check_own_object(path: Path | None, keys: Sequence[str]) -> None:
    """Raise UserError where a file that is to be replaced holds something else than a JSON object with these keys."""
    if path is None or not path.is_file() or not path.stat().st_size:
        return
    try:
        missing = [key for key in keys if key not in read_json_object(path)]
    except UserError:
        missing = list(keys)
    if missing:
        raise refuse_foreign(path, "an earlier output of this command", f"no {missing[0]!r}")


def check_own_page(path: Path) -> None:
    """Raise UserError where a page is to be written in the place of something else than a page of ours."""
    if path.is_file() and path.stat().st_size:
        try:
            with path.open("rb") as file:
                head = file.read(PAGE_HEAD)
        except OSError as error:
            raise UserError(f"{path}: cannot be read ({error.strerror}); choose another file for the page") from error
        if PAGE_MARK not in head:
            raise refuse_foreign(path, "a page of this project", "no mark of one")


def write_whole(path: Path, text: str) -> None:
    """Write a text beside `path`, then rename. Raises UserError where the disk or the folder refuses."""
    try:
        with atomic_file(path) as aside:
            aside.write_text(text, encoding="utf-8")
    except OSError as error:
        raise UserError(f"{path}: cannot be written ({error.strerror}); choose another file") from error


def refuse_foreign(path: Path, expected: str, reason: str) -> UserError:
    """The error of a file that is not a command's own."""
    return UserError(
        f"{path}: contains something other than {expected} ({reason}), and is left unchanged; choose another "
        "output, or move the file away"
    )
