"""A small disk in memory, which can be made full: for root, on Linux."""

import contextlib
import os
import subprocess
from collections.abc import Iterator
from pathlib import Path

ROOMY = 1 << 30


@contextlib.contextmanager
def small_disk(folder: Path) -> Iterator[None]:
    """A disk of its own at `folder`, with room."""
    subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={ROOMY}", "tmpfs", str(folder)], check=True)
    try:
        yield
    finally:
        subprocess.run(["umount", "--lazy", str(folder)], check=True)


def resize(folder: Path, size: int = ROOMY) -> None:
    """Change how many bytes a small disk holds."""
    subprocess.run(["mount", "-o", f"remount,size={size}", str(folder)], check=True)


def used(folder: Path) -> int:
    """The bytes that are taken on the disk at `folder`."""
    status = os.statvfs(folder)
    return (status.f_blocks - status.f_bfree) * status.f_frsize
