"""Drafts: tokens that a continuation is likely to go on with, from texts at hand instead of a second model.

Reports are templates: what follows the last few tokens of one has mostly been written before, in another report, in the
prompt, or in an earlier sample of the same study. Drafts come from a table of such contexts for all rows
(`common.generation.ngrams` builds it), and from a reference of each row, whichever knows the longer context. A draft
decides nothing: `common.generation.loop` keeps those that the model chooses itself.
"""

from typing import Any

import flax.struct
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Int, UInt32

from common.models.layers import hash_words

LONGEST = 6  # tokens of a context
PROBES = 4  # places of the table where a context may stand
START = -1  # the token before a text, and between the texts of a reference


class Table(flax.struct.PyTreeNode):
    """What follows the contexts of 1 to 6 tokens, by the hash of a context."""

    marks: UInt32[Array, " N"]  # of the context that stands at a place; 0: none. N is a power of 2
    tokens: Int[Array, "N K"]


class Drafts(flax.struct.PyTreeNode):
    """Where drafts come from; without either there are none that could stand."""

    reference: Int[Array, "B R"] | None = None  # texts of each prompt, START before each and to the end
    table: Table | None = None


NO_DRAFTS = Drafts()


def propose(
    drafts: Drafts, tokens: Int[Array, "B G T"], lengths: Int[Array, "B G"], count: int
) -> Int[Array, "B G count"]:
    """Drafts of each continuation after its `lengths` tokens; 0, a token like any other, where nothing is known."""
    shape = (*lengths.shape, count)
    found, known = jnp.zeros(shape, jnp.int32), jnp.zeros(lengths.shape, jnp.int32)
    if count == 0:
        return found
    last = last_tokens(tokens, lengths)
    if drafts.table is not None:
        found, known = from_table(drafts.table, last, count)
    if drafts.reference is not None:
        own, length = from_reference(drafts.reference, last, count)
        found = jnp.where((length >= known)[..., None] & (length > 0)[..., None], own, found)
    return found


def last_tokens(tokens: Int[Array, "B G T"], lengths: Int[Array, "B G"]) -> Int[Array, "B G 6"]:
    """The newest tokens of each continuation, the newest last; START before the first."""
    at = lengths[..., None] + jnp.arange(-LONGEST, 0)
    return jnp.where(at < 0, START, jnp.take_along_axis(tokens, jnp.maximum(at, 0), axis=-1))


def from_table(
    table: Table, last: Int[Array, "B G 6"], count: int
) -> tuple[Int[Array, "B G count"], Int[Array, "B G"]]:
    """Drafts of the longest context that the table has, and its length; 0 where it has none."""
    places = table.marks.shape[0]
    found = jnp.zeros(last.shape[:2], jnp.int32)
    known = jnp.zeros(last.shape[:2], jnp.int32)
    for length, word in enumerate(context_hashes(last), start=1):
        at, mark = hash_place(word, places), hash_mark(word)
        for probe in range(PROBES):
            here = (at + probe) & (places - 1)
            hit = table.marks[here] == mark
            found, known = jnp.where(hit, here, found), jnp.where(hit, length, known)
    kept = table.tokens[found][..., :count]
    kept = jnp.pad(kept, ((0, 0), (0, 0), (0, count - kept.shape[-1])))
    return jnp.where((known > 0)[..., None], kept, 0), known


def from_reference(
    reference: Int[Array, "B R"], last: Int[Array, "B G 6"], count: int
) -> tuple[Int[Array, "B G count"], Int[Array, "B G"]]:
    """What follows the longest context that a row's reference has, the last of several, and its length."""
    size = reference.shape[1]
    padded = jnp.pad(reference, ((0, 0), (LONGEST, 0)), constant_values=2 * START)
    run = jnp.zeros((*last.shape[:2], size), jnp.int32)
    matches = jnp.ones(run.shape, bool)
    for back in range(LONGEST):
        shifted = padded[:, None, LONGEST - back : LONGEST - back + size]
        matches &= shifted == last[..., LONGEST - 1 - back, None]
        run += matches
    score = run * size + jnp.arange(size)  # the longest, then the last
    best = jnp.argmax(score, axis=-1)
    at = best[..., None] + 1 + jnp.arange(count)
    own = jnp.take_along_axis(reference[:, None], jnp.minimum(at, size - 1), axis=-1)
    length = jnp.take_along_axis(run, best[..., None], axis=-1)[..., 0]
    return jnp.where(at < size, jnp.maximum(own, 0), 0), length


def context_hashes(last: Any) -> list[Any]:
    """The hashes of the contexts of 1, 2, ... 6 tokens that end here, for arrays of NumPy or of JAX [... 6]."""
    words, word = [], None
    for back in range(1, LONGEST + 1):
        own = last[..., -back].astype(np.uint32)
        word = hash_words(own if word is None else own ^ word)
        words.append(word)
    return words


def hash_place(word: Any, places: int) -> Any:
    """Where a context's entry is looked for first."""
    return (word & np.uint32(places - 1)).astype(np.int32)


def hash_mark(word: Any) -> Any:
    """What tells one context from others at the same place; never 0."""
    return hash_words(word ^ np.uint32(0x9E3779B9)) | np.uint32(1)
