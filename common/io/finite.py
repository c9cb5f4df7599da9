"""Non-finite results: an error that names the row, never an output row."""

from collections.abc import Iterable, Sequence
from typing import Any

from common.errors import UserError


def check_finite(finite: Iterable[Any], ids: Sequence[object], what: str, remedy: str) -> None:
    """Raise UserError naming the first of `ids` that is not `finite` (a truth value each), and how many there are.

    `what` is what is not finite ("the model's logits"), `remedy` what the user can do.
    """
    bad = [id_ for id_, own in zip(ids, finite, strict=True) if not own]
    if bad:
        others = f" (and {len(bad) - 1} more)" if len(bad) > 1 else ""
        raise UserError(f"id {bad[0]!r}{others}: {what} are not finite (NaN or infinity); {remedy}")


def precision_remedy(dtype: str, option: str = "") -> str:
    """What to do about a model that computes in `dtype` and whose results are not finite.

    `option` is what chooses another dtype on the command line.
    """
    if dtype == "float16":
        return f"float16 ends at 65,504: compute in bfloat16 or float32{option and f' ({option})'}"
    return f"this was computed in {dtype}, so the weights are damaged or too large; take another checkpoint"
