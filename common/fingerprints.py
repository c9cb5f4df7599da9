"""What tells weights apart: SHA-256 of a tree in memory, and of published tensors, read in part."""

import hashlib
from collections.abc import Iterator, Mapping
from pathlib import Path

import jax
import numpy as np

from common.types import PyTree
from common.weights import WIDTHS, Index, StoredTensor, open_tensors, to_host

SAMPLED_BYTES = 1 << 20


def fingerprint(tree: PyTree) -> str:
    """SHA-256 over path, dtype, shape and bytes of every leaf, in the order of their paths; independent of shardings.

    Holds one leaf on the host at a time. Under several processes all must call it.
    """
    leaves = {
        jax.tree_util.keystr(path, simple=True, separator="/"): leaf
        for path, leaf in jax.tree_util.tree_flatten_with_path(tree)[0]
    }
    digest = hashlib.sha256()
    for path in sorted(leaves):
        whole = to_host(leaves[path])
        digest.update(f"{path} {whole.dtype} {whole.shape}\n".encode())
        digest.update(whole.tobytes())
    return digest.hexdigest()


def fingerprint_directory(directory: str | Path, stem: str = "model") -> str:
    """SHA-256 that tells published checkpoints apart in about a second, whatever their size and sharding into files.

    Covers name, dtype and shape of every tensor, all bytes of tensors up to 1 MiB and 16 evenly spaced blocks, 1 MiB
    in all, of larger ones. Training changes every tensor all over, so it changes this; an edit of a few numbers inside
    one large tensor may not.
    """
    return fingerprint_stored(open_tensors(directory, stem))


def fingerprint_stored(stored: Mapping[str, StoredTensor]) -> str:
    """`fingerprint_directory` of tensors that are open already."""
    digest = hashlib.sha256()
    for name in sorted(stored):
        tensor = stored[name]
        digest.update(f"{name} {tensor.dtype} {tensor.shape}\n".encode())
        for index in _sampled(tensor):
            digest.update(tensor.read(index).tobytes())
    return digest.hexdigest()


def _sampled(tensor: StoredTensor, blocks: int = 16) -> Iterator[Index]:
    """Slices of whole rows of a tensor: all of it, or `blocks` evenly spaced ones of SAMPLED_BYTES in all."""
    shape = tensor.shape
    if not shape:
        yield ()
        return
    rest = tuple(slice(0, length) for length in shape[1:])
    row_bytes = max(1, int(np.prod(shape[1:]))) * WIDTHS.get(tensor.dtype, 1)
    rows = max(1, SAMPLED_BYTES // (blocks * row_bytes))
    starts = np.linspace(0, shape[0] - rows, blocks).astype(int).tolist() if shape[0] > blocks * rows else [0]
    rows = rows if len(starts) > 1 else shape[0]
    for start in starts:
        yield (slice(start, start + rows), *rest)
