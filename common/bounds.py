"""Bounds of numbers in options, configs and files: declared with each number, checked before work begins.

A field of a config declares its bounds in its type (`batch_size: Count = 16`), an option of a command in the `type` of
its parser (`type=bounded(COUNT)`).
"""

import argparse
import dataclasses
import math
import typing
from collections.abc import Callable
from typing import Annotated, Any

from common.errors import UserError
from common.io.terminal import printable

MOST = 1 << 20  # rows, tokens, layers or pixels of one kind; no machine holds so many at a time
MOST_STEPS = 10**12  # of anything that is only counted
LARGEST = 1e30  # so that float32 holds it


@dataclasses.dataclass(frozen=True)
class Within:
    """The numbers from `least` to `most`; `above` and `below` leave out the end itself. None is infinite or NaN."""

    least: float = -math.inf
    most: float = math.inf
    above: bool = False
    below: bool = False

    def __contains__(self, value: float) -> bool:
        low = value > self.least if self.above else value >= self.least
        high = value < self.most if self.below else value <= self.most
        return low and high and -math.inf < value < math.inf

    def __str__(self) -> str:
        low = f"above {self.least:,}" if self.above else f"at least {self.least:,}"
        high = f"below {self.most:,}" if self.below else f"at most {self.most:,}"
        parts = [part for part, end in ((low, self.least), (high, self.most)) if abs(end) < LARGEST]
        return " and ".join(parts) or "a finite number"


COUNT = Within(1, MOST)
FEW = Within(1, 1024)  # layers, heads, beams, images of a study
SIDE = Within(1, 1 << 14)  # pixels of an image's side
PHANTOMS = Within(0, 1_000_000)  # of a split; those of the next have the following numbers
COUNT_OR_NONE = Within(0, MOST)
STEPS = Within(1, MOST_STEPS)
STEPS_OR_ALL = Within(0, MOST_STEPS)
SEED = Within(0, 2**32 - 1)  # that JAX and NumPy both take as it is
FINITE = Within(-LARGEST, LARGEST)
NOT_NEGATIVE = Within(0, LARGEST)
POSITIVE = Within(0, LARGEST, above=True)
PROBABILITY = Within(0, 1)
RATE = Within(0, 1, below=True)
SHARE = Within(0, 1, above=True)

Count = Annotated[int, COUNT]
Few = Annotated[int, FEW]
Side = Annotated[int, SIDE]
Phantoms = Annotated[int, PHANTOMS]
CountOrNone = Annotated[int, COUNT_OR_NONE]
Steps = Annotated[int, STEPS]
StepsOrAll = Annotated[int, STEPS_OR_ALL]
Seed = Annotated[int, SEED]
Finite = Annotated[float, FINITE]
NotNegative = Annotated[float, NOT_NEGATIVE]
Positive = Annotated[float, POSITIVE]
Probability = Annotated[float, PROBABILITY]
Rate = Annotated[float, RATE]
Share = Annotated[float, SHARE]


def check_number(name: str, value: float, bounds: Within) -> None:
    """Raise UserError naming `name` where `value` is not within `bounds`."""
    if value not in bounds:
        raise UserError(f"{name} must be {bounds}, found {printable(value, 40)}")


def check_numbers(config: Any, prefix: str = "") -> None:
    """Raise UserError for the first number in a config, or in a config within it, that is out of its bounds."""
    hints = typing.get_type_hints(type(config), include_extras=True)
    for field in dataclasses.fields(config):
        value, bounds = getattr(config, field.name), bounds_of(hints[field.name])
        if dataclasses.is_dataclass(value):
            check_numbers(value, f"{prefix}{field.name}.")
        elif bounds is not None:
            for number in value if isinstance(value, tuple) else (value,):
                check_number(f"{prefix}{field.name}", number, bounds)


def bounds_of(hint: Any) -> Within | None:
    """The bounds that the type of a field declares, or that of its items."""
    if typing.get_origin(hint) is tuple:
        hint = typing.get_args(hint)[0]
    return next((extra for extra in getattr(hint, "__metadata__", ()) if isinstance(extra, Within)), None)


def bounded(bounds: Within, kind: Callable[[str], float] = int) -> Callable[[str], Any]:
    """The `type` of an option of argparse that takes the numbers within `bounds`."""

    def number(text: str) -> float:
        try:
            value = kind(text)
        except ValueError:
            expected = "a whole number" if kind is int else "a number"
            raise argparse.ArgumentTypeError(f"expected {expected}, found {printable(text, 40)!r}") from None
        if value not in bounds:
            raise argparse.ArgumentTypeError(f"must be {bounds}, found {printable(text, 40)}")
        return value

    return number
