"""Reading the options of a command without running it, so that they can be checked on another machine."""

import contextlib
import contextvars
from collections.abc import Iterator

_ONLY = contextvars.ContextVar("only_options", default=False)


class OptionsRead(Exception):
    """The options of a command have been read and are in order; nothing else was done."""


@contextlib.contextmanager
def only_options() -> Iterator[None]:
    """Within this, a command that is run raises OptionsRead where it would begin its work."""
    token = _ONLY.set(True)
    try:
        yield
    finally:
        _ONLY.reset(token)


def end_of_options() -> None:
    """What reads options calls this at its end. Raises OptionsRead within `only_options`."""
    if _ONLY.get():
        raise OptionsRead
