"""Phantoms as a source of studies: each split is a run of numbers of its own among the studies of a seed."""

from common.phantoms.phantom import Phantom, make_phantom, make_phantoms
from common.phantoms.study import Scanner

FIRST = {"train": 0, "validation": 1_000_000, "test": 2_000_000}  # number of each split's first study


def draw_split(seed: int, split: str, count: int, size: int, scanner: Scanner = "first") -> list[Phantom]:
    """The first `count` studies of a split of a seed, drawn at `size` pixels."""
    return make_phantoms(seed, range(FIRST[split], FIRST[split] + count), size, scanner)


def draw_again(seed: int, split: str, index: int, size: int, scanner: Scanner = "first") -> Phantom:
    """Study `index` of a split of a seed, at another size."""
    return make_phantom(seed, FIRST[split] + index, size, scanner)
