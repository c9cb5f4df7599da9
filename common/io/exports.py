"""Directories of exported weights, which appear whole or not at all and take the place of an earlier export alone."""

import contextlib
import re
import shutil
from collections.abc import Collection, Iterator
from pathlib import Path

import jax

from common.errors import UserError
from common.io.locks import is_lock, locked_file
from common.io.safetensors import disk_errors
from common.io.terminal import printable
from common.process.stopping import held

CARD = "README.md"
CARD_MARK = "<!-- Written by medreport-jax; the next export replaces it. -->"


@contextlib.contextmanager
def atomic_directory(directory: str | Path) -> Iterator[Path]:
    """A directory to write into, which takes the name `directory` when the block ends well and vanishes otherwise.

    An earlier export of that name is replaced, but nothing else: UserError where `directory` holds a file that the
    new one does not. Under several processes only the first renames.
    """
    directory = Path(directory)
    aside = directory.with_name(f".{directory.name}.partial")
    if jax.process_index() != 0:
        yield aside
        return
    with disk_errors(directory):
        directory.parent.mkdir(parents=True, exist_ok=True)
    with locked_file(directory), _written_whole(directory, aside):
        yield aside


@contextlib.contextmanager
def _written_whole(directory: Path, aside: Path) -> Iterator[None]:
    with disk_errors(directory):
        shutil.rmtree(aside, ignore_errors=True)
        aside.mkdir()
    try:
        yield
        written = {_family(path.name) for path in aside.iterdir()}
        with disk_errors(directory), held():  # a signal between two renames would leave neither
            if directory.exists():
                check_export(directory, written)
                old = directory.with_name(f".{directory.name}.old")
                shutil.rmtree(old, ignore_errors=True)
                directory.rename(old)
                aside.rename(directory)
                shutil.rmtree(old)
            else:
                aside.rename(directory)
    finally:
        shutil.rmtree(aside, ignore_errors=True)


def is_card(path: Path) -> bool:
    """Whether a file is a card that was written beside an earlier export or data set."""
    return path.name == CARD and path.is_file() and CARD_MARK in path.read_text(encoding="utf-8", errors="replace")


def check_export(directory: Path, families: Collection[str]) -> None:
    """Raise UserError where a directory that is to be replaced holds files of other names than an export writes.

    `families` are names of files, those of weights without the number of the shard.
    """
    if directory.exists() and not directory.is_dir():
        raise UserError(f"{directory}: is not a directory; choose another for the export")
    entries = directory.iterdir() if directory.exists() else ()
    foreign = [
        path.name
        for path in entries
        if _family(path.name) not in families and not is_lock(path.name) and not is_card(path)
    ]
    if foreign:
        raise UserError(
            f"{directory}: contains {printable(sorted(foreign)[0])}, which does not belong to this export, and is left "
            "unchanged; choose a new or empty directory"
        )


def _family(file: str) -> str:
    """The name of a weights file without the number of its shard."""
    return re.sub(r"(-\d+-of-\d+)?\.safetensors(\.index\.json)?$", ".safetensors", file)
