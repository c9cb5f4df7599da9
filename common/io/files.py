"""Files that are written completely or not at all."""

import contextlib
import os
from collections.abc import Iterator
from pathlib import Path


@contextlib.contextmanager
def atomic_file(path: Path) -> Iterator[Path]:
    """A file beside `path` to write, which takes its name when the block ends well and vanishes otherwise.

    A device or a pipe, whose place no file may take, is written itself.
    """
    if path.exists() and not (path.is_file() or path.is_dir()):
        yield path
        return
    aside = path.with_name(f".{path.name}.{os.getpid()}.partial")
    try:
        yield aside
        aside.replace(path)
    finally:
        aside.unlink(missing_ok=True)
