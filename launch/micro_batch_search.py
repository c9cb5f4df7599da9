"""The most rows that a device can take, found by compiling a few sizes, and whether the search ended."""

from collections.abc import Callable
from typing import Any, NamedTuple

OUT_OF_TIME = "out of time"
SEARCH_SECONDS = 400.0  # of processor time, so that other work on the machine does not cut the search short


class Compiled(NamedTuple):
    """What the compiler says of one step; sizes are bytes of one device."""

    fits: bool
    total: int
    arguments: int
    temporary: int
    seconds: float
    processor_seconds: float = 0.0
    workspace: int = 0  # of `temporary`, what the compiler does not know of
    received: dict[str, int] | None = None  # from other devices in one run, by kind (`launch.collectives`)
    between: dict[str, int] | None = None  # of these, what comes from other nodes


def search_micro_batch(
    attempt: Callable[[int], Compiled], compiled: dict[int, Compiled], limit: int, seconds: float
) -> bool:
    """Look for the most rows a device can take by `attempt`, adding to `compiled` (which holds at least one).

    Returns whether it is known; False where another attempt would have taken more than `seconds` of processor time.
    """
    while (following := next_micro_batch(compiled, limit)) is not None:
        longest = max(one.processor_seconds for one in compiled.values())
        if longest > seconds:
            return False
        compiled[following] = attempt(following)
        seconds -= compiled[following].processor_seconds
    return True


def search_outcome(plan: dict[str, Any]) -> str:
    """What is known of the largest micro-batch after a search that ran out of time, and what to do."""
    fits, refused = plan["largest_that_fits"], plan["smallest_refused"]
    known = f"micro-batch {fits} fits" if fits else "none that was tried fits"
    known += f" and {refused} does not" if refused is not None else ""
    return f"{known}, what lies beyond is unknown; give more --search-seconds, or try one size with --micro-batch"


def next_micro_batch(compiled: dict[int, Compiled], limit: int) -> int | None:
    """Where the line through two of `compiled` reaches `limit` bytes; None once the largest that fits is known.

    The two are the largest that fits and the smallest that does not, or the two largest that fit; the line goes to at
    most four times the largest. Where what is refused has no size above the limit, halving takes its place.
    """
    fits = sorted(micro for micro, one in compiled.items() if one.fits)
    refused = min((micro for micro, one in compiled.items() if not one.fits), default=None)
    largest = fits[-1] if fits else 0
    if refused is not None and (not fits or compiled[refused].total <= limit):
        following = (largest + refused) // 2
    elif refused is None and len(fits) == 1:
        following = 4 * largest
    else:
        other = fits[-2] if refused is None else refused
        per_row = max((compiled[other].total - compiled[largest].total) // (other - largest), 1)
        room = (limit - compiled[largest].total) // per_row
        following = largest + min(max(room, 1), 3 * largest)
    if refused is not None:
        following = min(following, refused - 1)
    return following if following > largest else None
