"""Which of many similar texts are kept: the first of them in order, found through shared bands.

A text is removed if it is similar to an earlier one that is kept; it names the first of those. So a chain a - b - c,
in which only neighbours are similar, loses b and keeps c: a removed text is always similar to the one kept for it.
"""

from collections.abc import Callable, Iterator
from typing import NamedTuple

import numpy as np
from jaxtyping import Float, Int, UInt

from retsta_jax.labelling.minhash import CHUNK, FOLD, NgramSets, distinct, may_be_similar, ranges, similarities

BLOCK = 512  # items that are compared with each other, after each was compared with the earlier ones that stay


class Kept(NamedTuple):
    """For each item the item that stays for it, itself where it stays, and their similarity."""

    stays: Int[np.ndarray, " N"]
    similarity: Float[np.ndarray, " N"]


class _Buckets(NamedTuple):
    """Items that share a band. `kept[starts[b]:starts[b] + filled[b]]` are those of bucket b that stay, ascending."""

    of_item: Int[np.ndarray, "bands N"]  # -1 where no other item has the band
    starts: Int[np.ndarray, " B"]
    filled: Int[np.ndarray, " B"]
    kept: Int[np.ndarray, " S"]


def keep_first(
    sets: NgramSets,
    keys: UInt[np.ndarray, "bands T"],
    text: Int[np.ndarray, " N"],
    group: Int[np.ndarray, " N"],
    threshold: float,
    progress: Callable[[int], None] = lambda done: None,
) -> Kept:
    """Which items stay. Item i has the set and the band keys of text `text[i]`, and is compared within its `group`."""
    kept = Kept(np.arange(len(text)), np.ones(len(text)))
    buckets = _buckets(keys, text, group)

    def similar(pairs: Iterator[UInt[np.ndarray, " K"]]) -> Iterator[tuple[int, int, float]]:
        possible = [np.empty(0, np.uint64)]
        for pair in pairs:
            left, right = _items(pair)
            left_text, right_text = text[left], text[right]
            may = group[left] == group[right]  # two groups could share a bucket by chance
            may[may] = may_be_similar(sets, left_text[may], right_text[may], threshold)
            possible.append(distinct(pair[may]))
        left, right = _items(distinct(np.concatenate(possible)))
        found = similarities(sets, text[left], text[right])
        enough = found >= threshold
        return zip(left[enough].tolist(), right[enough].tolist(), found[enough].tolist(), strict=True)

    for first in range(0, len(text), BLOCK):
        items = np.arange(first, min(first + BLOCK, len(text)))
        for pairs in (_pairs_with_kept, _pairs_within):
            for left, right, similarity in similar(pairs(buckets, items)):
                if kept.stays[left] == left and kept.stays[right] == right:
                    kept.stays[left], kept.similarity[left] = right, similarity
            items = items[kept.stays[items] == items]
        _append(buckets, items)
        progress(int(first + BLOCK))
    return kept


def _buckets(keys: UInt[np.ndarray, "bands T"], text: Int[np.ndarray, " N"], group: Int[np.ndarray, " N"]) -> _Buckets:
    of_item = np.full((len(keys), len(text)), -1, np.int32)
    of_group = group.astype(np.uint64) * FOLD
    sizes = [np.empty(0, np.int64)]
    count = 0
    for row, key in zip(of_item, keys, strict=True):
        mixed = (key[text] ^ of_group) * FOLD
        order = np.argsort(mixed)
        run = np.append(True, mixed[order][1:] != mixed[order][:-1])[: len(order)].cumsum() - 1
        size = np.bincount(run)
        shared = size > 1
        number = np.where(shared, shared.cumsum() - 1 + count, -1)
        row[order] = number[run]
        sizes.append(size[shared])
        count += int(shared.sum())
    size = np.concatenate(sizes)
    return _Buckets(of_item, size.cumsum() - size, np.zeros(count, np.int64), np.empty(size.sum(), np.int32))


def _pairs_with_kept(buckets: _Buckets, items: Int[np.ndarray, " n"]) -> Iterator[UInt[np.ndarray, " K"]]:
    """Pairs of each item with the items that stay and share a bucket, about CHUNK at a time."""
    item, bucket = _entries(buckets, items)
    counts = buckets.filled[bucket]
    item, bucket, counts = item[counts > 0], bucket[counts > 0], counts[counts > 0]
    ends = counts.cumsum()
    first = 0
    while first < len(item):
        last = int(np.searchsorted(ends, ends[first] + CHUNK))
        here = slice(first, last)
        yield _pair(item[here].repeat(counts[here]), buckets.kept[ranges(buckets.starts[bucket[here]], counts[here])])
        first = last


def _pairs_within(buckets: _Buckets, items: Int[np.ndarray, " n"]) -> Iterator[UInt[np.ndarray, " K"]]:
    """Pairs of each item with the earlier ones of `items` that share a bucket."""
    item, bucket = _entries(buckets, items)
    rank = _rank(bucket)
    yield _pair(item.repeat(rank), item[ranges(np.arange(len(item)) - rank, rank)])


def _append(buckets: _Buckets, items: Int[np.ndarray, " n"]) -> None:
    item, bucket = _entries(buckets, items)
    buckets.kept[buckets.starts[bucket] + buckets.filled[bucket] + _rank(bucket)] = item
    np.add.at(buckets.filled, bucket, 1)


def _entries(buckets: _Buckets, items: Int[np.ndarray, " n"]) -> tuple[Int[np.ndarray, " S"], Int[np.ndarray, " S"]]:
    """Each item with each of its buckets, by bucket and then by item."""
    of_items = buckets.of_item[:, items]
    band, index = np.nonzero(of_items >= 0)
    bucket = of_items[band, index]
    order = np.argsort(bucket, kind="stable")  # entries of a bucket are of one band, in which items ascend
    return items[index[order]], bucket[order]


def _rank(bucket: Int[np.ndarray, " S"]) -> Int[np.ndarray, " S"]:
    """How many earlier entries have the same bucket, of entries sorted by bucket."""
    return np.arange(len(bucket)) - np.searchsorted(bucket, bucket)


def _pair(left: Int[np.ndarray, " K"], right: Int[np.ndarray, " K"]) -> UInt[np.ndarray, " K"]:
    return left.astype(np.uint64) << np.uint64(32) | right.astype(np.uint64)


def _items(pair: UInt[np.ndarray, " K"]) -> tuple[Int[np.ndarray, " K"], Int[np.ndarray, " K"]]:
    return (pair >> np.uint64(32)).astype(np.int64), (pair & np.uint64(0xFFFFFFFF)).astype(np.int64)
