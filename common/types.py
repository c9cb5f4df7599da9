"""The pytrees that travel between data, model, step and log.

Letters in shapes are the same everywhere: B batch rows, S sequence, L layers, H heads, K key/value heads,
D model width, V vocabulary, G samples in a group, T new tokens.
"""

from typing import Any, Protocol

import flax.struct
from jaxtyping import Array, Float, Int

PyTree = Any


class LossSum(flax.struct.PyTreeNode):
    """A loss as a sum and the weight to divide it by, so that sums over shards and micro-batches stay exact."""

    total: Float[Array, ""]
    weight: Float[Array, ""]


class Batch(Protocol):
    """What a training step needs of a batch beyond its being a pytree of arrays [rows, ...]."""

    @property
    def real_tokens(self) -> Int[Array, ""]:
        """Tokens that are no padding, to be logged; traced with the step, which sums it over devices."""


class TextBatch(flax.struct.PyTreeNode):
    """Rows of tokens, each row one padded example or several packed ones.

    `segments` is 0 on padding and 1, 2, ... on the examples of a row; `positions` restart at 0 in each.
    `targets[b, s]` is the token that follows `tokens[b, s]` in its own segment, and `weights[b, s]` how much its
    log-probability counts in the loss: 1 on answer tokens, 0 on prompts, at segment ends and on padding.
    """

    tokens: Int[Array, "B S"]
    targets: Int[Array, "B S"]
    weights: Float[Array, "B S"]
    segments: Int[Array, "B S"]
    positions: Int[Array, "B S"]

    @property
    def real_tokens(self) -> Int[Array, ""]:
        """Tokens in segments."""
        return (self.segments > 0).sum()


class TrainState(flax.struct.PyTreeNode):
    """What training changes and a checkpoint keeps. The frozen tree is not part of it."""

    step: Int[Array, ""]
    trainable: PyTree
    opt_state: PyTree
    skipped: Int[Array, ""]  # updates skipped so far because they, or their gradient or loss, were not finite
    skipped_in_a_row: Int[Array, ""]
