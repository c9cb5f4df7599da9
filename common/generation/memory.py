"""Running out of device memory while reports are written: one line with the options to lower, and their new values."""

import contextlib
from collections.abc import Iterator

from common.devices import is_out_of_memory, memory_shortage
from common.errors import UserError


@contextlib.contextmanager
def slot_memory(*remedies: str) -> Iterator[None]:
    """Turn XLA's out-of-memory error into a UserError that says what to try, in this order. "" is left out."""
    try:
        yield
    except RuntimeError as error:  # JAX's own kind is one
        if not is_out_of_memory(error):
            raise
        known = [remedy for remedy in remedies if remedy] or ["a device with more memory"]
        raise UserError(f"{memory_shortage(str(error))} to write reports; try {', then '.join(known)}") from error


def halved(option: str, value: int, *, used: int | None = None, multiple: int = 1) -> str:
    """The remedy of halving an option, or the part of it `used`, to a multiple of `multiple`; "" if that is 0."""
    half = (value if used is None else min(value, used)) // 2 // multiple * multiple
    return f"{option} {half} in place of {value}" if half else ""


def without_drafts(drafts: int | bool) -> str:
    """The remedy of writing without drafts; "" where there are none."""
    return "--draft none" if drafts else ""
