"""Opening a user's input: a file, a pipe or standard input, without waiting forever."""

import contextlib
import errno
import io
import os
import select
import stat
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO

from common.errors import UserError

MOST_BYTES = 8 << 30  # of one input that is read whole
PIPE_SECONDS = 10.0  # until something must write to a named pipe
_CHUNK = 1 << 20


@contextlib.contextmanager
def open_input(path: str | Path) -> Iterator[BinaryIO]:
    """A file or pipe to read from. Raises OSError, also for a device and for a pipe that nothing writes to."""
    with open(path, "rb", opener=_opener) as file:
        is_pipe = stat.S_ISFIFO(os.fstat(file.fileno()).st_mode)
        yield io.BytesIO(_read_pipe(file.fileno())) if is_pipe else file


def read_bytes(path: str | Path, expected: str = "a readable file", limit: int = MOST_BYTES) -> bytes:
    """The content of a file or pipe of at most `limit` bytes. Raises UserError."""
    try:
        with open_input(path) as file:
            content = _read(file, limit + 1)
    except (OSError, ValueError) as error:  # ValueError: a path with a NUL
        raise UserError(f"{path}: cannot be read ({reason(error)}); expected {expected}") from error
    return _bounded(content, str(path), expected, limit)


def read_standard_input(expected: str = "text", limit: int = MOST_BYTES) -> bytes:
    """What standard input holds, at most `limit` bytes. Raises UserError."""
    if sys.stdin is None:  # a shell's `<&-`
        raise UserError(f"standard input: is closed; expected {expected}")
    try:
        content = _read(sys.stdin.buffer, limit + 1)
    except OSError as error:
        raise UserError(f"standard input: cannot be read ({reason(error)}); expected {expected}") from error
    return _bounded(content, "standard input", expected, limit)


def reason(error: Exception) -> str:
    """Why an operation on a file failed, without the path, which the message around it names."""
    return str(getattr(error, "strerror", None) or error)


def _read(file: BinaryIO, most: int) -> bytes:
    """Up to `most` bytes. Asked for all of them at once, Python would reserve as much memory."""
    chunks, size = [], 0
    while chunk := file.read(min(_CHUNK, most - size)):
        chunks.append(chunk)
        size += len(chunk)
    return b"".join(chunks)


def _bounded(content: bytes, name: str, expected: str, limit: int) -> bytes:
    if len(content) > limit:
        raise UserError(f"{name}: is larger than {limit:,} bytes; expected {expected}")
    return content


def _opener(path: str, flags: int) -> int:
    """A descriptor of a file, pipe, terminal or directory, which `open` refuses by itself.

    Without O_NONBLOCK a named pipe would be waited for here, where nothing could end it.
    """
    descriptor = os.open(path, flags | os.O_NONBLOCK)
    mode = os.fstat(descriptor).st_mode
    if stat.S_ISREG(mode) or stat.S_ISFIFO(mode) or stat.S_ISDIR(mode) or os.isatty(descriptor):
        os.set_blocking(descriptor, not stat.S_ISFIFO(mode))
        return descriptor
    os.close(descriptor)
    raise OSError(errno.EINVAL, "not a file but a device", path)


def _read_pipe(descriptor: int) -> bytes:
    """All that is written to a pipe, as far as `MOST_BYTES`; a writer may take its time, but must come.

    Of a pipe that does not block, a read gives b"" where nobody has it open for writing, and raises BlockingIOError
    where somebody has and is silent.
    """
    ready = select.poll()
    ready.register(descriptor, select.POLLIN)
    until = time.monotonic() + PIPE_SECONDS
    content, begun = bytearray(), False
    while len(content) <= MOST_BYTES:
        try:
            chunk = os.read(descriptor, _CHUNK)
        except BlockingIOError:
            begun = True
            ready.poll()
            continue
        if not chunk and (begun or time.monotonic() > until):
            break
        begun = begun or bool(chunk)
        content += chunk
        if not chunk:
            ready.poll(50)
    if not begun:
        raise OSError(errno.EPIPE, "a pipe that nothing writes to")
    return bytes(content)
