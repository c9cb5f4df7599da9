"""The table of drafts: what follows each context of 1 to 6 tokens in a collection of reports."""

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Int, UInt32, UInt64

from common.generation.drafts import LONGEST, PROBES, START, Table, context_hashes, hash_mark, hash_place

MOST_TOKENS = 1 << 18  # that a table is made of: about 5,000 reports; more of them hardly add contexts that recur
TABLE_TOKENS = 8  # drafts of a context


class _Known(NamedTuple):
    """The contexts of one length."""

    keys: UInt64[np.ndarray, " C"]  # in increasing order
    following: Int[np.ndarray, " C"]  # the token that follows most often
    at: Int[np.ndarray, " C"]  # where in the texts one of them ends


def build_table(texts: Sequence[Sequence[int]], longest: int = TABLE_TOKENS) -> Table | None:
    """The table of token lists, which should end with what ends a report; None where they hold too little.

    The first texts are used, up to `MOST_TOKENS` tokens. A draft is what follows most often, token by token. Contexts
    whose drafts are those of a shorter context are left out.
    """
    tokens, starts = _joined(texts)
    if not starts.any():
        return None
    last = np.lib.stride_tricks.sliding_window_view(tokens, LONGEST)
    ends = np.flatnonzero(starts) - 1  # of the contexts before each token
    contexts = last[ends - LONGEST + 1]
    following = tokens[ends + 1]
    known = [_count(_keys(words), following, ends) for words in context_hashes(contexts)]
    kept: list[tuple[UInt32[np.ndarray, " C"], np.ndarray]] = []
    shorter: np.ndarray | None = None
    for length, own in enumerate(known, start=1):
        of_length = last[own.at - LONGEST + 1]
        drafts = _chains(of_length, length, own.following, known, longest)
        words = context_hashes(of_length)
        new = np.ones(len(drafts), bool)
        if shorter is not None:
            new = (drafts != shorter[_find(known[length - 2].keys, _keys(words[length - 2]))[0]]).any(axis=1)
        kept.append((words[length - 1][new], drafts[new]))
        shorter = drafts
    return _placed(*(np.concatenate(parts) for parts in zip(*kept[::-1], strict=True)))


def _joined(texts: Sequence[Sequence[int]]) -> tuple[Int[np.ndarray, " N"], np.ndarray]:
    """Texts one after the other, each behind six START; and where a token stands that another comes before."""
    parts: list[np.ndarray] = []
    total = 0
    for text in texts:
        if total + len(text) > MOST_TOKENS:
            break
        total += len(text)
        parts.append(np.array([START] * LONGEST + list(text), np.int32))
    tokens = np.concatenate(parts) if parts else np.zeros(0, np.int32)
    return tokens, (tokens != START) & (np.roll(tokens, 1) != START)


def _keys(words: UInt32[np.ndarray, " C"]) -> UInt64[np.ndarray, " C"]:
    return (words.astype(np.uint64) << np.uint64(32)) | hash_mark(words).astype(np.uint64)


def _count(keys: np.ndarray, following: np.ndarray, ends: np.ndarray) -> _Known:
    """Each key once, with what follows it most often."""
    order = np.lexsort((following, keys))
    keys, following, ends = keys[order], following[order], ends[order]
    first = np.flatnonzero(np.r_[True, (keys[1:] != keys[:-1]) | (following[1:] != following[:-1])])
    counts = np.diff(np.r_[first, len(keys)])
    by_count = first[np.lexsort((-counts, keys[first]))]
    best = by_count[np.r_[True, keys[by_count][1:] != keys[by_count][:-1]]]
    return _Known(keys[best], following[best], ends[best])


def _find(keys: np.ndarray, wanted: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Where each wanted key stands among the sorted ones, and whether it does."""
    at = np.minimum(np.searchsorted(keys, wanted), len(keys) - 1)
    return at, keys[at] == wanted


def _chains(
    contexts: np.ndarray, length: int, following: np.ndarray, known: Sequence[_Known], longest: int
) -> Int[np.ndarray, "C K"]:
    """The drafts after contexts of which `length` tokens are known: each is what follows the longest known context."""
    drafts = np.zeros((len(contexts), longest), np.int32)
    drafts[:, 0] = following
    for number in range(1, longest):
        contexts = np.concatenate([contexts[:, 1:], drafts[:, number - 1 : number]], axis=1)
        open_ = np.ones(len(contexts), bool)
        words = context_hashes(contexts)
        for order in range(min(length + number, LONGEST), 0, -1):
            rows = np.flatnonzero(open_)
            at, hit = _find(known[order - 1].keys, _keys(words[order - 1][rows]))
            drafts[rows[hit], number] = known[order - 1].following[at[hit]]
            open_[rows[hit]] = False
    return drafts


def _placed(words: UInt32[np.ndarray, " C"], drafts: Int[np.ndarray, "C K"]) -> Table:
    """Contexts at their places, the longest first; what finds none of its places free is left out."""
    places = places_of(len(words))
    marks = np.zeros(places, np.uint32)
    tokens = np.zeros((places, drafts.shape[1]), np.int32)
    waiting = np.arange(len(words))
    for probe in range(PROBES):
        at = (hash_place(words[waiting], places) + probe) & (places - 1)
        free = marks[at] == 0
        taken, first = np.unique(at[free], return_index=True)
        rows = waiting[free][first]
        marks[taken], tokens[taken] = hash_mark(words[rows]), drafts[rows]
        waiting = np.setdiff1d(waiting, rows, assume_unique=True)
    arrays: tuple[Any, ...] = (marks, tokens)  # numpy until placed on devices
    return Table(*arrays)


def places_of(contexts: int) -> int:
    """Places of the table that holds so many contexts: a power of 2, at most a quarter of them taken."""
    return 1 << int(np.ceil(np.log2(max(4 * contexts, 16))))
