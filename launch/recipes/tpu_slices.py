"""The TPU slices that Google Cloud has, by the shapes and accelerator types of Cloud TPU's documentation.

https://cloud.google.com/tpu/docs/v6e, .../v5e, .../v5p and .../v4. v6e and v5e have eight shapes. Those of v5p and v4
are a few small ones, and AxBxC with A <= B <= C, all multiples of four.
"""

import math
import re

from common.errors import UserError

FLAT = ("1x1", "2x2", "2x4", "4x4", "4x8", "8x8", "8x16", "16x16")
SMALL = ("2x2x1", "2x2x2", "2x2x4", "2x4x4")
MOST_CHIPS = {"v4": 4096, "v5p": 6144}  # of a slice
TYPES = {"v4": "v4", "v5p": "v5p", "v5e": "v5litepod", "v6e": "v6e"}  # what accelerator types begin with
RUNTIMES = {
    "v4": "tpu-ubuntu2204-base",
    "v5p": "v2-alpha-tpuv5",
    "v5e": "v2-alpha-tpuv5-lite",
    "v6e": "v2-alpha-tpuv6e",
}


def check_shape(kind: str, shape: str) -> None:
    """Raise UserError for a shape that no slice of this chip has."""
    if kind not in MOST_CHIPS:
        if shape not in FLAT:
            raise UserError(f"--topology {kind}:{shape}: no such slice; {kind} has {', '.join(FLAT)}")
        return
    sides = [int(side) for side in shape.split("x")]
    cubes = len(sides) == 3 and sides == sorted(sides) and not any(side % 4 for side in sides)
    if shape not in SMALL and not (cubes and math.prod(sides) <= MOST_CHIPS[kind]):
        raise UserError(
            f"--topology {kind}:{shape}: no such slice; {kind} has {', '.join(SMALL)}, and AxBxC of multiples of 4 in "
            f"increasing order, such as 4x4x8, up to {MOST_CHIPS[kind]:,} chips"
        )


def check_chips_per_host(kind: str, shape: str, chips: int) -> None:
    """Raise UserError for hosts that a slice does not have: they have 4 chips, a single chip 1, and 2x4 also 8."""
    known = {"1x1": [1], "2x4": [4, 8]}.get(shape, [4])
    if chips not in known:
        raise UserError(
            f"--chips-per-host {chips}: the hosts of {kind}:{shape} have {' or '.join(map(str, known))} chips; give "
            "that, or leave it out"
        )


def slice_chips(accelerator: str) -> tuple[str, int]:
    """The kind of an accelerator type such as v6e-16, and its number of chips.

    The number in a type counts chips for v5e and v6e, TensorCores, of which a chip has two, for v4 and v5p.
    Raises UserError for what is not such a type.
    """
    found = re.fullmatch(r"(v4|v5p|v5litepod|v6e)-([1-9]\d*)", accelerator)
    if found is None:
        raise UserError(
            f"--accelerator {accelerator}: expected v6e-N or v5litepod-N with the number of chips, v5p-N or v4-N with "
            "twice that; v6e:4x4 of `medreport plan` is v6e-16, v5e:4x4 is v5litepod-16, v5p:2x2x4 is v5p-32"
        )
    kind = next(kind for kind, begin in TYPES.items() if begin == found[1])
    number = int(found[2])
    if kind not in MOST_CHIPS:
        known = [math.prod(map(int, shape.split("x"))) for shape in FLAT]
        if number not in known:
            names = ", ".join(f"{found[1]}-{chips}" for chips in known)
            raise UserError(f"--accelerator {accelerator}: no such slice; there are {names}")
        return kind, number
    if number not in (8, 16, 32, 64) and (number % 128 or number > 2 * MOST_CHIPS[kind]):
        raise UserError(
            f"--accelerator {accelerator}: no such slice; there are {kind}-8, {kind}-16, {kind}-32, {kind}-64, and "
            f"multiples of 128 up to {kind}-{2 * MOST_CHIPS[kind]}"
        )
    return kind, number // 2


def check_runtime(runtime: str, accelerator: str) -> None:
    """Raise UserError for a runtime that is named after another chip. Others are not known here."""
    kind, _ = slice_chips(accelerator)
    made_for = next((of for of, name in RUNTIMES.items() if name == runtime and "tpuv" in name), kind)
    if made_for != kind:
        raise UserError(f"--runtime {runtime}: is for {made_for}, not for {accelerator}; use {RUNTIMES[kind]}")
