"""Sets of character n-grams of many texts: their MinHash signatures in bands, and the exact similarity of pairs.

The similarity of two texts is the Jaccard index of their sets of n-grams. A signature holds, for each of many
permutations of the n-grams, the first one of the set; two signatures agree in an entry with the probability that is the
similarity (Broder 1997). Texts whose signatures agree in a whole band of `rows` entries are candidates: of pairs with
similarity s, 1 - (1 - s^rows)^bands are found (Leskovec, Rajaraman and Ullman, Mining of Massive Datasets, 3.4).

The permutations are the "affine32" ones of datasketch 2 (MurmurHash3's finalizer, then a h + b modulo 2^32), applied to
all texts of a chunk at a time, which takes a tenth of the time of one MinHash object for each text.
"""

from collections.abc import Iterator, Sequence
from typing import NamedTuple

import numpy as np
from jaxtyping import Bool, Float, Int, UInt

CHUNK = 1 << 20  # characters, n-grams or pairs that intermediate arrays hold at a time
SLICE = 1 << 16  # n-grams that are permuted at a time; they stay in the cache
CODE_POINT_BITS = 21
EXACT = 3  # code points that fit 64 bits whole
FOLD = np.uint64(0x9E3779B97F4A7C15)
SEED = 1


class NgramSets(NamedTuple):
    """The distinct n-grams of each text. Row i is `members[starts[i]:starts[i + 1]]`, ascending numbers of n-grams."""

    members: UInt[np.ndarray, " S"]
    starts: Int[np.ndarray, " N+1"]
    hashes: UInt[np.ndarray, " V"]  # 32 bits of each n-gram, the same in every corpus
    sizes: Int[np.ndarray, " N"]  # of the sets
    bitmaps: UInt[np.ndarray, "N words"]  # a bit for each value that the low bits of the hashes take in the set


def ngram_sets(texts: Sequence[str], n: int) -> NgramSets:
    """The sets of character n-grams of texts that are not empty and hold no NUL; one shorter than n is its own n-gram.

    For n up to 3 an n-gram is known by its code points; a longer one by 64 bits, of which two n-grams of a corpus share
    all with a probability of less than 1 in 1,000.
    """
    vocabulary = _vocabulary(texts, n)
    members, sizes = [np.empty(0, np.uint32)], [np.empty(0, np.int64)]
    for first, codes, of_text in _coded(texts, n):
        numbers = np.searchsorted(vocabulary, codes).astype(np.uint64)
        unique = distinct(of_text.astype(np.uint64) << np.uint64(32) | numbers)
        members.append(unique.astype(np.uint32))
        sizes.append(np.bincount((unique >> np.uint64(32)).astype(np.int64) - first))
    size = np.concatenate(sizes)
    starts = np.append(0, size.cumsum())
    hashes = (vocabulary * FOLD >> np.uint64(32)).astype(np.uint32)
    sets = NgramSets(np.concatenate(members), starts, hashes, size, np.empty((0, 0), np.uint64))
    return sets._replace(bitmaps=_bitmaps(sets))


def band_keys(sets: NgramSets, bands: int, rows: int) -> UInt[np.ndarray, "bands N"]:
    """A 64-bit hash of each band of each text's signature."""
    multipliers, offsets = permutations(bands * rows)
    mixed = finalized(sets.hashes)
    keys = np.zeros((bands, len(sets.sizes)), np.uint64)
    for first, last in _spans(sets.starts, SLICE):
        members = mixed[sets.members[sets.starts[first] : sets.starts[last]]]
        starts = sets.starts[first:last] - sets.starts[first]
        for index in range(bands * rows):
            lowest = np.minimum.reduceat(members * multipliers[index] + offsets[index], starts)
            part = keys[index // rows, first:last]
            part += lowest
            part *= FOLD
            part ^= part >> np.uint64(29)
    return keys


def permutations(count: int) -> tuple[UInt[np.ndarray, " K"], UInt[np.ndarray, " K"]]:
    """The multipliers, which are odd, and the offsets of `count` permutations of 32-bit numbers."""
    drawn = np.random.Generator(np.random.PCG64(SEED)).integers(0, 1 << 32, (2, count), np.uint32)
    return drawn[0] | np.uint32(1), drawn[1]


def finalized(hashes: UInt[np.ndarray, " V"]) -> UInt[np.ndarray, " V"]:
    """MurmurHash3's finalizer of 32-bit numbers, a bijection that spreads similar ones."""
    hashes = (hashes ^ hashes >> np.uint32(16)) * np.uint32(0x85EBCA6B)
    hashes = (hashes ^ hashes >> np.uint32(13)) * np.uint32(0xC2B2AE35)
    return hashes ^ hashes >> np.uint32(16)


def may_be_similar(
    sets: NgramSets, left: Int[np.ndarray, " K"], right: Int[np.ndarray, " K"], threshold: float
) -> Bool[np.ndarray, " K"]:
    """False for pairs of texts whose similarity is certainly below the threshold.

    Sets of sizes a and b with similarity s differ in (a + b) (1 - s) / (1 + s) members, and their bitmaps in at most as
    many bits (Sandes, Teodoro and Melo 2020, Bitmap filter).
    """
    of_left, of_right = sets.sizes[left], sets.sizes[right]
    total = of_left + of_right
    allowed = np.floor(total * ((1 - threshold) / (1 + threshold)) + 1e-6)
    possible = np.abs(of_left - of_right) <= allowed
    where = np.flatnonzero(possible)
    differing = np.bitwise_count(sets.bitmaps[left[where]] ^ sets.bitmaps[right[where]]).sum(-1, dtype=np.int64)
    possible[where] = differing <= allowed[where]
    return possible


def similarities(sets: NgramSets, left: Int[np.ndarray, " K"], right: Int[np.ndarray, " K"]) -> Float[np.ndarray, " K"]:
    """The exact Jaccard index of each pair of texts."""
    total = sets.sizes[left] + sets.sizes[right]
    found = np.empty(len(left))
    for first, last in _spans(np.concatenate([[0], total.cumsum()]), CHUNK):
        pairs = np.arange(last - first, dtype=np.uint64)
        sides = []
        for texts in (left[first:last], right[first:last]):
            counts = sets.sizes[texts]
            sides.append(pairs.repeat(counts) << np.uint64(32) | sets.members[ranges(sets.starts[texts], counts)])
        together = np.sort(np.concatenate(sides))
        twice = together[1:][together[1:] == together[:-1]] >> np.uint64(32)
        shared = np.bincount(twice.astype(np.int64), minlength=last - first)
        found[first:last] = shared / (total[first:last] - shared)
    return found


def ranges(starts: Int[np.ndarray, " N"], counts: Int[np.ndarray, " N"]) -> Int[np.ndarray, " S"]:
    """The numbers starts[i], starts[i] + 1, ..., of which there are counts[i], for each i in turn."""
    ends = counts.cumsum()
    return np.arange(ends[-1] if len(ends) else 0) + (starts - ends + counts).repeat(counts)


def distinct(values: UInt[np.ndarray, " S"]) -> UInt[np.ndarray, " V"]:
    """As `numpy.unique`, whose hash table is slower than its sort."""
    values = np.sort(values)
    return values[np.append(True, values[1:] != values[:-1])[: len(values)]]


def _vocabulary(texts: Sequence[str], n: int) -> UInt[np.ndarray, " V"]:
    """The distinct n-grams of all texts, ascending."""
    known, new, waiting = np.empty(0, np.uint64), [], 0
    for _, codes, _ in _coded(texts, n):
        new.append(distinct(codes))
        waiting += len(new[-1])
        if waiting > max(len(known), CHUNK):  # so that merging takes as long as reading
            known, new, waiting = distinct(np.concatenate([known, *new])), [], 0
    return distinct(np.concatenate([known, *new]))


def _coded(texts: Sequence[str], n: int) -> Iterator[tuple[int, UInt[np.ndarray, " S"], Int[np.ndarray, " S"]]]:
    """Chunk by chunk: the number of its first text, the n-gram at each position, and the number of its text."""
    gap = "\0" * (n - 1)
    lengths = np.fromiter(map(len, texts), np.int64, len(texts))
    base = np.uint64(1 << CODE_POINT_BITS) if n <= EXACT else FOLD
    for first, last in _spans(np.concatenate([[0], (lengths + n - 1).cumsum()]), CHUNK):
        joined = "".join(text + gap for text in texts[first:last])
        points = np.frombuffer(joined.encode("utf-32-le", "surrogatepass"), "<u4").astype(np.uint64)
        windows = len(points) - n + 1
        codes = points[:windows].copy()
        for index in range(1, n):
            codes *= base
            codes += points[index : index + windows]
        here = lengths[first:last]
        counts = np.maximum(here - n + 1, 1)
        yield (
            first,
            codes[ranges((here + n - 1).cumsum() - here - n + 1, counts)],
            np.arange(first, last).repeat(counts),
        )


def _bitmaps(sets: NgramSets) -> UInt[np.ndarray, "N words"]:
    """Bitmaps of about four bits for each member of an average set, between 256 and 2,048."""
    average = len(sets.members) / max(len(sets.sizes), 1)
    bits = 1 << min(max(int(4 * average - 1).bit_length(), 8), 11) if average else 256
    indices = (finalized(sets.hashes) & np.uint32(bits - 1)).astype(np.int64)
    bitmaps = np.empty((len(sets.sizes), bits // 64), np.uint64)
    for first in range(0, len(sets.sizes), CHUNK // bits):
        last = min(first + CHUNK // bits, len(sets.sizes))
        members = sets.members[sets.starts[first] : sets.starts[last]]
        flags = np.zeros((last - first, bits), bool)
        flags[np.arange(last - first).repeat(sets.sizes[first:last]), indices[members]] = True
        bitmaps[first:last] = np.packbits(flags, axis=-1).view(np.uint64)
    return bitmaps


def _spans(starts: Int[np.ndarray, " rows"], most: int) -> Iterator[tuple[int, int]]:
    """Spans of rows with at most `most` members together, or of one row that has more."""
    first = 0
    while first < len(starts) - 1:
        last = max(int(np.searchsorted(starts, starts[first] + most, side="right")) - 1, first + 1)
        yield first, last
        first = last
