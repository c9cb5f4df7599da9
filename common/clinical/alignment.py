"""The span of each sampled token in the text, and the transfer of scores from one tokenizer's tokens to another's.

Spans come from the bytes of the sampled tokens, not from tokenising the text again: a policy may sample
tokens that its tokenizer would never produce, and tokens that hold parts of a character.
"""

from collections.abc import Sequence

import numpy as np
from jaxtyping import Float, Int

Spans = Int[np.ndarray, "T 2"]


def text_and_spans(written: Sequence[bytes]) -> tuple[str, Spans]:
    """The text that tokens write, and of each token the characters [start, end) that hold any of its bytes.

    The text is that of `bytes.decode("utf-8", "replace")`; a run of bytes that is no UTF-8 is one U+FFFD. A character
    whose bytes come from several tokens is in the span of each. A token that writes nothing has an empty span.
    """
    text, first_byte = _decoded(b"".join(written))
    ends = np.cumsum([0, *map(len, written)])
    spans = np.zeros((len(written), 2), np.int64)
    spans[:, 0] = np.searchsorted(first_byte, ends[:-1], side="right") - 1
    spans[:, 1] = np.searchsorted(first_byte, ends[1:], side="left")
    empty = ends[1:] == ends[:-1]
    spans[empty] = np.searchsorted(first_byte, ends[:-1][empty], side="left")[:, None]
    return text, spans


def _decoded(data: bytes) -> tuple[str, Int[np.ndarray, " characters"]]:
    """Text, and the index of each character's first byte."""
    pieces: list[str] = []
    widths: list[int] = []
    start = 0
    while start < len(data):
        try:
            piece, bad = data[start:].decode("utf-8"), 0
        except UnicodeDecodeError as error:
            piece, bad = data[start : start + error.start].decode("utf-8"), error.end - error.start
        pieces.append(piece)
        widths += [len(character.encode()) for character in piece]
        if bad:
            pieces.append("\N{REPLACEMENT CHARACTER}")
            widths.append(bad)
        start += sum(widths[len(widths) - len(piece) - bool(bad) :])
    return "".join(pieces), np.cumsum([0, *widths])[:-1]


def transfer(
    scores: Float[np.ndarray, " J"], source: Int[np.ndarray, "J 2"], target: Spans, length: int
) -> Float[np.ndarray, " T"]:
    """For each target span the largest score of the source spans that share a character with it; 0 where none does.

    Both are spans in the same text of `length` characters (DEER, section 3.3: "taking the maximum"). Scores are at
    least 0.
    """
    of_character = np.zeros(length, np.float64)
    for (start, end), score in zip(source, scores, strict=True):
        of_character[start:end] = np.maximum(of_character[start:end], score)
    return np.array([of_character[start:end].max(initial=0.0) for start, end in target], np.float64)
