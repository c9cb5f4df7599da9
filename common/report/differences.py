"""Differences between an output and its reference, as pieces of text to mark on a page."""

import difflib
import itertools
import re
from typing import NamedTuple

# One Chinese character, one number with its decimals, one word of another script, or one other sign;
# each with the white space that follows it.
_HAN = r"\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff"
_UNIT = re.compile(rf"([{_HAN}]|\d+(?:[.,]\d+)*|[^\W\d{_HAN}]+|[^\w\s])(\s*)")


class Piece(NamedTuple):
    """`kind` is "same", "extra" (only in the output) or "missing" (only in the reference)."""

    kind: str
    text: str


def differences(reference: str, output: str) -> list[Piece]:
    """The output with what the reference has besides it, in reading order.

    Units are words and numbers, and single characters in Chinese; white space is never a difference.
    """
    expected, found = _UNIT.findall(reference), _UNIT.findall(output)
    matcher = difflib.SequenceMatcher(a=[unit for unit, _ in expected], b=[unit for unit, _ in found], autojunk=False)
    pieces: list[Piece] = []
    operations = matcher.get_opcodes()
    for index, (kind, start_a, end_a, start_b, end_b) in enumerate(operations):
        left, left_space = _text(expected[start_a:end_a])
        right, right_space = _text(found[start_b:end_b])
        if kind == "equal":
            # Before missing text the reference's space, so that a missing line starts on a line of its own.
            before_missing = index + 1 < len(operations) and operations[index + 1][0] != "insert"
            pieces += [Piece("same", right + (left_space if before_missing else right_space))]
        elif kind == "delete":
            pieces += [Piece("missing", left), Piece("same", left_space)]
        elif kind == "insert":
            pieces += [Piece("extra", right), Piece("same", right_space)]
        else:
            gap = " " if left_space or left[-1].isascii() else ""
            pieces += [Piece("missing", left), Piece("same", gap)]
            pieces += [Piece("extra", right), Piece("same", right_space)]
    runs = itertools.groupby((piece for piece in pieces if piece.text), key=lambda piece: piece.kind)
    return [Piece(kind, "".join(piece.text for piece in run)) for kind, run in runs]


def _text(units: list[tuple[str, str]]) -> tuple[str, str]:
    """The units as text, and apart from it the space after the last one."""
    whole = "".join(unit + space for unit, space in units)
    return whole.rstrip(), whole[len(whole.rstrip()) :]
