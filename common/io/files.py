"""Files that are written completely or not at all."""

import contextlib
import glob
import os
from collections.abc import Iterator
from pathlib import Path


@contextlib.contextmanager
def atomic_file(path: Path) -> Iterator[Path]:
    """A file beside `path` to write, which takes its name when the block ends well and vanishes otherwise.

    A device or a pipe, whose place no file may take, is written itself. What a killed process left of writing `path`
    is removed; on several machines, a lock is to say that one of them writes.
    """
    if path.exists() and not (path.is_file() or path.is_dir()):
        yield path
        return
    aside = path.with_name(f".{path.name}.{os.getpid()}.partial")
    _sweep(path)
    try:
        yield aside
        aside.replace(path)
    finally:
        aside.unlink(missing_ok=True)


def _sweep(path: Path) -> None:
    """Remove what processes that are gone have left beside `path`."""
    for left in path.parent.glob(f".{glob.escape(path.name)}.*.partial"):
        number = left.name.removeprefix(f".{path.name}.").removesuffix(".partial")
        if number.isdecimal():
            try:
                os.kill(int(number), 0)
            except (ProcessLookupError, OverflowError):
                with contextlib.suppress(OSError):
                    left.unlink()
            except PermissionError:  # of another user, and alive
                pass
