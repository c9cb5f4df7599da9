"""Progress of long work."""

import sys
import threading
from collections.abc import Iterable, Iterator
from typing import TypeVar

from common.process.first import is_first_process

SECONDS = 5.0  # between two lines

Item = TypeVar("Item")


def counted(items: Iterable[Item], total: int, what: str) -> Iterator[Item]:
    """The items; where they take long, how many of `total` there are so far is said on standard error now and then.

    A line comes by the clock, not with an item: where many come at once, the first says nothing of the others. Of
    several processes the first one speaks.
    """
    if not is_first_process():
        yield from items
        return
    number = 0
    ended = threading.Event()

    def tell() -> None:
        if ended.wait(SECONDS):
            return
        said, last = 0, False
        while True:
            if number > said:
                said = number
                print(f"{what}: {said:,} of {total:,}", file=sys.stderr, flush=True)
            if last:
                return
            last = ended.wait(SECONDS)

    teller = threading.Thread(target=tell, daemon=True)
    teller.start()
    try:
        for item in items:
            number += 1
            yield item
    finally:
        ended.set()
        teller.join()
