"""How far long work is, for those who wait for it."""

import sys
import time
from collections.abc import Iterable, Iterator
from typing import TypeVar

SECONDS = 5.0  # between two lines

Item = TypeVar("Item")


def counted(items: Iterable[Item], total: int, what: str) -> Iterator[Item]:
    """The items; where they take long, how many of `total` there are so far is said on standard error now and then."""
    said = time.monotonic()
    for number, item in enumerate(items, start=1):
        yield item
        now = time.monotonic()
        if now - said >= SECONDS and number < total:
            said = now
            print(f"{what}: {number:,} of {total:,}", file=sys.stderr, flush=True)
