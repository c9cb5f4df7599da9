"""What generation needs from a model: a `Forward`, called on whole prompts and then on new tokens.

Nothing here depends on a model; `common.models.qwen2.bind` makes a `Forward` of a Qwen2.
"""

from collections.abc import Callable, Sequence
from typing import NamedTuple, Protocol

import flax.struct
import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from common.models.attention import Past
from common.models.attention_choice import Use
from common.types import PyTree


class Forward(Protocol):
    """A model with its weights bound, called in two ways; both return hidden states and new keys and values.

    Prefill: whole prompts [B P] with `segments`. Decode: W tokens of each continuation [B G*W] with `past`, those of
    one continuation together. The keys and values returned are any tree of leaves [... B S K dim]: stacked over
    layers, or one leaf a layer.
    """

    def __call__(
        self,
        tokens: Int[Array, "B S"],
        positions: Int[Array, "B S"],
        segments: Int[Array, "B S"] | None = None,
        past: Past | None = None,
    ) -> tuple[Float[Array, "B S D"], PyTree]: ...


class Decoder(NamedTuple):
    """A model as generation takes it: pure functions of its weights, any tree."""

    read: Callable[[PyTree, PyTree], "Prefilled"]  # of gathered weights and prompts, leaves [B ...]
    bind: Callable[[PyTree], Forward]  # for new tokens, of prepared weights
    head: Callable[[PyTree], Float[Array, "V D"]]  # which gives logits of hidden states, of prepared weights
    prepare: Callable[[PyTree], PyTree] | None = None  # of gathered weights, once before the loop; None: no change
    # Of weights, once for reading and decoding: to gather twice in a program is to hold two copies. None: no change.
    gather: Callable[[PyTree], PyTree] | None = None
    attention: Callable[[PyTree], Sequence[Use]] = lambda prompt: ()  # what attends, for a prompt of such leaves


class Prompts(flax.struct.PyTreeNode):
    """Left-padded prompts: each row ends with its last token, and `mask` is true on tokens."""

    tokens: Int[Array, "B P"]
    mask: Bool[Array, "B P"]


class Prefilled(flax.struct.PyTreeNode):
    """Prompts after the model has read them. A model whose prompts hold more than tokens makes its own."""

    hidden: Float[Array, "B D"]  # of the last prompt token
    keys_values: PyTree  # leaves [... B K P dim]
    mask: Bool[Array, "B P"]
    next_position: Int[Array, " B"]  # of the first new token
    context: PyTree = None  # `Past.context`, where the model keeps more of a prompt than its keys and values


def heads_first(keys_values: PyTree) -> PyTree:
    """Leaves [... B P K dim] as [... B K P dim], the order that `Past` keeps them in."""
    return jax.tree.map(lambda leaf: jnp.swapaxes(leaf, -3, -2), keys_values)
