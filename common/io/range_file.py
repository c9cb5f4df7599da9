"""A file of which each range of bytes that is read is fetched from somewhere else."""

import io
from collections.abc import Callable
from typing import Any


class RangeFile(io.RawIOBase):
    """A file of `size` bytes for reading; `fetch` gives those from a first byte to an end."""

    def __init__(self, size: int, fetch: Callable[[int, int], bytes]):
        self._size, self._get, self._position = size, fetch, 0

    def readable(self) -> bool:
        """True."""
        return True

    def seekable(self) -> bool:
        """True."""
        return True

    def tell(self) -> int:
        """The position."""
        return self._position

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        """The new position."""
        base = {io.SEEK_SET: 0, io.SEEK_CUR: self._position}.get(whence, self._size)
        self._position = base + offset
        return self._position

    def readinto(self, buffer: Any) -> int:
        """How many bytes were read into the buffer. Raises what `fetch` does."""
        begin, end = self._position, min(self._position + len(buffer), self._size)
        if begin >= end:
            return 0
        buffer[: end - begin] = self._get(begin, end)
        self._position = end
        return end - begin
