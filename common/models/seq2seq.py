"""A pre-norm Transformer encoder and decoder (arXiv:1706.03762, with normalisation before each sublayer).

The decoder runs on whole sequences, and token by token on cached keys and values (`common.models.attention.Past`);
then the keys and values of the memory are computed once, by `memory_keys_values`. Layers are stacked [L, ...].
"""

import functools
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float

from common.models.attention import PAST_AXES, KeyValues, Past, attend_cached, attend_to, attention_weights
from common.models.layers import Dense, dropout
from common.types import PyTree

norm = functools.partial(nn.LayerNorm, epsilon=1e-5)


class Attention(nn.Module):
    """Multi-head attention with biased projections. What is attended to is given as keys and values."""

    features: int
    heads: int

    def setup(self):
        self.q_proj = Dense(self.features, use_bias=True)
        self.k_proj = Dense(self.features, use_bias=True)
        self.v_proj = Dense(self.features, use_bias=True)
        self.out_proj = Dense(self.features, use_bias=True)

    def keys_values(self, memory: Float[Array, "B M I"]) -> KeyValues:
        """Keys and values [B M H dim] of a sequence."""
        return KeyValues(self._split(self.k_proj(memory)), self._split(self.v_proj(memory)))

    def __call__(
        self, x: Float[Array, "B S I"], memory: KeyValues, mask: Bool[Array, "#B #S M"] | None = None
    ) -> Float[Array, "B S D"]:
        """Each position attends to the memory, where `mask` is true.

        `apply(..., mutable=["intermediates"])` also returns how much, as `weights` [B H S M].
        """
        q = self._split(self.q_proj(x))
        if self.is_mutable_collection("intermediates"):
            self.sow("intermediates", "weights", attention_weights(q, memory.k, mask))
        return self._joined(attend_to(q, *memory, mask))

    def cached(self, x: Float[Array, "B G I"], past: Past) -> tuple[Float[Array, "B G D"], KeyValues]:
        """Self-attention of one new token of each of G continuations, and its own keys and values."""
        own = self.keys_values(x)
        return self._joined(attend_cached(self._split(self.q_proj(x)), *own, past)), own

    def attend_single_token(self, x: Float[Array, "B S I"], memory: KeyValues) -> Float[Array, "B 1 D"]:
        """What each position gets of a memory of one token (M = 1): its weight is 1, whatever the query."""
        if self.is_initializing():
            self.q_proj(x)  # without effect and without gradient, but part of the layout
        return self._joined(memory.v)

    def self_attention(
        self, x: Float[Array, "B S I"], mask: Bool[Array, "#B #S S"] | None = None, past: Past | None = None
    ) -> tuple[Float[Array, "B S D"], KeyValues]:
        """Self-attention under `mask`, or on cached keys and values; also the keys and values of `x`."""
        if past is not None:
            return self.cached(x, past)
        own = self.keys_values(x)
        return self(x, own, mask), own

    def _split(self, x: Array) -> Array:
        return x.reshape(*x.shape[:-1], self.heads, -1)

    def _joined(self, x: Array) -> Array:
        return self.out_proj(x.reshape(*x.shape[:-2], -1))


class FeedForward(nn.Module):
    """Linear, ReLU, Linear."""

    hidden: int
    dropout: float = 0.0

    @nn.compact
    def __call__(self, x: Float[Array, "B S D"]) -> Float[Array, "B S D"]:
        inner = nn.relu(Dense(self.hidden, use_bias=True, name="up")(x))
        return Dense(x.shape[-1], use_bias=True, name="down")(drop(self, inner, self.dropout))


class EncoderLayer(nn.Module):
    """Self-attention and a feed-forward part, in the form `nn.scan` wants."""

    heads: int
    dropout: float

    @nn.compact
    def __call__(self, x, mask):
        normed = norm(name="norm1")(x)
        attended, _ = Attention(x.shape[-1], self.heads, name="attention").self_attention(normed, mask)
        x = x + drop(self, attended, self.dropout)
        fed = FeedForward(4 * x.shape[-1], self.dropout, name="feed_forward")(norm(name="norm2")(x))
        return x + drop(self, fed, self.dropout), None


class DecoderLayer(nn.Module):
    """Causal self-attention, attention to the memory and a feed-forward part; also this layer's keys and values."""

    heads: int
    dropout: float

    @nn.compact
    def __call__(self, x, memory, past, mask, memory_mask):
        normed = norm(name="norm1")(x)
        attended, own = Attention(x.shape[-1], self.heads, name="attention").self_attention(normed, mask, past)
        x = x + drop(self, attended, self.dropout)
        cross = Attention(x.shape[-1], self.heads, name="cross_attention")
        memory = memory if isinstance(memory, KeyValues) else cross.keys_values(memory)
        attended = cross(norm(name="norm2")(x), memory, memory_mask)
        x = x + drop(self, attended, self.dropout)
        fed = FeedForward(4 * x.shape[-1], self.dropout, name="feed_forward")(norm(name="norm3")(x))
        return x + drop(self, fed, self.dropout), own


class Encoder(nn.Module):
    """L encoder layers without a last norm."""

    layers: int
    heads: int
    dropout: float = 0.0

    @nn.compact
    def __call__(self, x: Float[Array, "B S D"], mask: Bool[Array, "B 1 S"] | None = None) -> Float[Array, "B S D"]:
        stack = _scan(EncoderLayer, self.layers, nn.broadcast)
        return stack(self.heads, self.dropout, name="layers")(x, mask)[0]


class Decoder(nn.Module):
    """L decoder layers and a last norm."""

    layers: int
    heads: int
    dropout: float = 0.0

    @nn.compact
    def __call__(
        self,
        x: Float[Array, "B S D"],
        memory: Float[Array, "B M D"] | KeyValues,
        mask: Bool[Array, "B S S"] | None = None,
        memory_mask: Bool[Array, "B 1 M"] | None = None,
        past: Past | None = None,
    ) -> tuple[Float[Array, "B S D"], KeyValues]:
        """Hidden states, and the keys and values of these tokens [L B S H dim].

        `memory` may be given as `memory_keys_values`. Whole sequences come with `mask`; new tokens with `past`, S = G.
        """
        memory_axes = 0 if isinstance(memory, KeyValues) else nn.broadcast
        past_axes = nn.broadcast if past is None else PAST_AXES
        stack = _scan(DecoderLayer, self.layers, memory_axes, past_axes, nn.broadcast, nn.broadcast)
        x, own = stack(self.heads, self.dropout, name="layers")(x, memory, past, mask, memory_mask)
        return norm(name="norm")(x), own


def memory_keys_values(params: PyTree, memory: Float[Array, "B M D"], heads: int) -> KeyValues:
    """Keys and values [L B M H dim] of a memory for every layer of the `Decoder` that has these parameters."""
    attention = Attention(memory.shape[-1], heads)
    stack = params["layers"]["cross_attention"]

    def of_layer(layer: PyTree) -> Any:
        return attention.apply({"params": layer}, memory, method="keys_values")

    return jax.vmap(of_layer)(stack)


def drop(module: nn.Module, x: Array, rate: float) -> Array:
    """Dropout where `apply` was given a "dropout" random key."""
    return dropout(x, rate, module.make_rng("dropout")) if rate > 0 and module.has_rng("dropout") else x


def causal(length: int) -> Bool[Array, "1 S S"]:
    """True where a position may look: at itself and at what comes before it."""
    return jnp.tril(jnp.ones((1, length, length), bool))


def sincos_positions_2d(features: int, height: int, width: int) -> Float[np.ndarray, "N D"]:
    """Fixed positions of a grid, row by row: half of the channels for x, half for y, each sines and then cosines.

    Frequencies are 10000^(-i / (D / 4)) (arXiv:2111.06377).
    """
    frequencies = 10_000.0 ** (-np.arange(features // 4) / (features / 4))
    y, x = np.meshgrid(np.arange(height), np.arange(width), indexing="ij")
    angles = [axis.reshape(-1, 1) * frequencies for axis in (x, y)]
    return np.concatenate([part(angle) for angle in angles for part in (np.sin, np.cos)], axis=1).astype(np.float32)


def _scan(layer: type[nn.Module], layers: int, *in_axes: Any) -> Any:
    return nn.scan(
        layer,
        variable_axes={"params": 0, "intermediates": 0},
        split_rngs={"params": True, "dropout": True},
        in_axes=in_axes,
        length=layers,
    )
