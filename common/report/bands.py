"""Distributions over the steps of a training: of each step the shares between fixed bounds."""

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Float

FAINTEST = 0.25  # opacity of the bands next to the middle one
ABOVE, BELOW = 0, 1  # their series' colours


class Bands(NamedTuple):
    """A distribution of which `metrics.jsonl` has, under `{name}_below_{bound}`, the shares below increasing bounds.

    The band with the `middle` is grey; those below and above it have a colour each, the stronger the farther.
    """

    name: str
    bounds: Sequence[float]
    middle: float


class Band(NamedTuple):
    """What lies between two bounds, for the legend: `colour` is None in the middle, `bound` None above the last."""

    name: str
    bound: str | None
    colour: int | None
    opacity: float
    last: float  # share in the last step that has one


Rows = Sequence[Mapping[str, Any]]


def shares(rows: Rows, bands: Bands) -> tuple[list[int], Float[np.ndarray, "N K"]]:
    """The steps that have the distribution, and of each the share in every band; NaN where it is over nothing."""
    names = [f"{bands.name}_below_{bound}" for bound in bands.bounds]
    known = [row for row in rows if all(name in row for name in names)]
    below = np.array([[row[name] for name in names] for row in known], float).reshape(-1, len(names))
    ends = np.where(np.isnan(below[:, :1]), np.nan, [[0.0, 1.0]])
    return [row["step"] for row in known], np.diff(np.hstack([ends[:, :1], below, ends[:, 1:]]))


def legend(bands: Bands, last: Sequence[float]) -> list[Band]:
    """The bands from the lowest to the highest, with their shares in the last step."""
    texts = [f"{bound:g}".replace("-", "\N{MINUS SIGN}") for bound in bands.bounds]
    names = [f"below {texts[0]}", *map("{} to {}".format, texts, texts[1:]), f"{texts[-1]} and above"]
    middle = sum(bound <= bands.middle for bound in bands.bounds)
    found = []
    for index, (name, bound, share) in enumerate(zip(names, [*texts, None], last, strict=True)):
        reach = max(middle, 1) if index < middle else max(len(texts) - middle, 1)
        opacity = 1 - (1 - FAINTEST) * (1 - (abs(index - middle) - 1) / max(reach - 1, 1))
        colour = None if index == middle else BELOW if index < middle else ABOVE
        found.append(Band(name, bound, colour, round(1 if colour is None else opacity, 3), share))
    return found
