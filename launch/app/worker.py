"""One thread that computes, one request after the other: programs are compiled once, and memory is that of one."""

import asyncio
import sys
import traceback
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

from common.errors import UserError

MOST_WAITING = 8  # requests, the one under way among them

Result = TypeVar("Result")


class Worker:
    """A queue of work for a thread of its own."""

    def __init__(self) -> None:
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="app")
        self._waiting = 0

    async def run(self, work: Callable[[], Result]) -> Result:
        """The result of `work`. Raises what it raises, and UserError where too much waits already."""
        if self._waiting >= MOST_WAITING:
            raise UserError("The app is busy with other requests; try again in a moment.")
        self._waiting += 1
        try:
            return await asyncio.get_running_loop().run_in_executor(self._thread, work)
        finally:
            self._waiting -= 1

    def close(self) -> None:
        """Drop what waits; what is under way is not waited for."""
        self._thread.shutdown(wait=False, cancel_futures=True)


def say_fault(error: BaseException) -> None:
    """Name the type and the places of an unexpected error on standard error, without its message or any value.

    Either may hold text of a report.
    """
    frames = traceback.extract_tb(error.__traceback__)[-6:]
    places = " < ".join(f"{frame.filename.rsplit('/', 1)[-1]}:{frame.lineno}" for frame in reversed(frames))
    print(f"error: {type(error).__name__} at {places}", file=sys.stderr, flush=True)
