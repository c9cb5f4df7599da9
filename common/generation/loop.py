"""Generation as one program: prompts are computed once, then a `while_loop` emits a token per step until all are done.

A decode state has B prompts with G continuations each (samples of a group, beams, or one). A prompt's keys and values
are kept once for its group; what the continuations produce goes into a preallocated cache in the loop's carry, written
in place. Nothing here depends on a model: it takes a `Forward`, such as `common.models.qwen2.bind` makes of a Qwen2.
"""

import flax.struct
import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int, Key

from common.generation.sampling import GREEDY, Sampling, choose_tokens, row_uniforms
from common.models import cpu_ops
from common.models.attention import Past
from common.models.cpu_ops import on_cpu
from common.models.decoding import Forward, Prefilled, Prompts, heads_first
from common.models.layers import BATCH_AXES, constrain
from common.types import PyTree


class Generated(flax.struct.PyTreeNode):
    """New tokens of every continuation, the stop token included; 0 after the end."""

    tokens: Int[Array, "B G T"]
    log_probs: Float[Array, "B G T"]
    lengths: Int[Array, "B G"]
    stopped: Bool[Array, "B G"]  # by a stop token, not by the limit
    finite: Bool[Array, "B G"]  # every logit that a token was chosen from; where false the rest means nothing

    @property
    def mask(self) -> Bool[Array, "B G T"]:
        """True on generated tokens."""
        return jnp.arange(self.tokens.shape[-1]) < self.lengths[..., None]


def prefill(forward: Forward, prompts: Prompts) -> Prefilled:
    """Read the prompts. Positions count from 0 at the first token; padding is a segment of its own."""
    positions = jnp.maximum(jnp.cumsum(prompts.mask, axis=-1) - 1, 0)
    hidden, keys_values = forward(prompts.tokens, positions, segments=prompts.mask.astype(jnp.int32))
    return Prefilled(hidden[:, -1], heads_first(keys_values), prompts.mask, prompts.mask.sum(axis=-1))


class _Loop(flax.struct.PyTreeNode):
    """The carry of the decode loop."""

    step: Int[Array, ""]
    hidden: Float[Array, "B G D"]  # of the token before the one to choose
    suffix: PyTree
    generated: Generated


def generate(
    forward: Forward,
    head: Float[Array, "V D"],
    prefilled: Prefilled,
    keys: Key[Array, " B"],
    *,
    max_new_tokens: int,
    stop_ids: tuple[int, ...],
    sampling: Sampling = GREEDY,
    group: int = 1,
    forbidden: Bool[Array, " V"] | None = None,
) -> Generated:
    """G continuations of each prompt of up to T = max_new_tokens tokens.

    Each row has its own key, so that its samples do not depend on the rows beside it. `log_probs` are those of the
    policy: after `forbidden` (ids that are never emitted) and temperature, before top-k and top-p; a greedy choice is
    scored at temperature 1.
    """
    batch = prefilled.hidden.shape[0]
    uniforms = row_uniforms(keys, group, max_new_tokens)

    def step(state: _Loop) -> _Loop:
        rows = state.hidden.reshape(batch * group, -1)
        logits, finite = next_logits(rows, head, forbidden)
        tokens, log_probs = choose_tokens(logits, uniforms[state.step].reshape(-1), sampling)
        finite &= jnp.isfinite(log_probs)  # a low temperature may have taken a large logit beyond float32
        tokens, log_probs, finite = (x.reshape(batch, group) for x in (tokens, log_probs, finite))

        done = state.generated
        active = ~done.stopped
        tokens = jnp.where(active, tokens, 0)
        generated = Generated(
            tokens=done.tokens.at[:, :, state.step].set(tokens),
            log_probs=done.log_probs.at[:, :, state.step].set(jnp.where(active, log_probs, 0.0)),
            lengths=done.lengths + active,
            stopped=done.stopped | (active & is_stop(tokens, stop_ids)),
            finite=done.finite & (finite | ~active),
        )
        hidden, suffix = extend(forward, tokens, prefilled, state.suffix, state.step)
        return _Loop(state.step + 1, hidden, suffix, generated)

    shape = (batch, group, max_new_tokens)
    start = _Loop(
        step=jnp.int32(0),
        hidden=jnp.broadcast_to(prefilled.hidden[:, None], (batch, group, prefilled.hidden.shape[-1])),
        suffix=empty_suffix(prefilled.keys_values, group, max_new_tokens),
        generated=Generated(
            tokens=jnp.zeros(shape, jnp.int32),
            log_probs=jnp.zeros(shape, jnp.float32),
            lengths=jnp.zeros(shape[:2], jnp.int32),
            stopped=jnp.zeros(shape[:2], bool),
            finite=jnp.ones(shape[:2], bool),
        ),
    )

    def unfinished(state: _Loop) -> Bool[Array, ""]:
        return (state.step < max_new_tokens) & ~state.generated.stopped.all()

    return jax.lax.while_loop(unfinished, step, start).generated


def extend(
    forward: Forward, tokens: Int[Array, "B G"], prefilled: Prefilled, suffix: PyTree, step: Int[Array, ""]
) -> tuple[Float[Array, "B G D"], PyTree]:
    """Feed one token of each continuation: its hidden states, and the cache with its keys and values at `step`."""
    slots = jax.tree.leaves(suffix)[0].shape[-2]
    positions = jnp.broadcast_to((prefilled.next_position + step)[:, None], tokens.shape)
    written = jnp.broadcast_to(jnp.arange(slots) < step, (*tokens.shape, slots))
    past = Past(prefilled.keys_values, prefilled.mask, suffix, written)
    hidden, new = forward(tokens, positions, past=past)
    if on_cpu():
        new = cpu_ops.after(hidden, new)

    def written_at_step(cache: Array, new: Array) -> Array:
        return jax.lax.dynamic_update_slice_in_dim(cache, new[..., None, :], step, axis=cache.ndim - 2)

    return hidden, jax.tree.map(written_at_step, suffix, new)


def empty_suffix(prompt: PyTree, group: int, slots: int) -> PyTree:
    """The cache of the continuations, leaves [... B G K T dim], for a prompt's leaves [... B K P dim]."""

    def empty(leaf: Array) -> Array:
        *stack, batch, heads, _, dim = leaf.shape
        zeros = jnp.zeros((*stack, batch, group, heads, slots, dim), leaf.dtype)
        return constrain(zeros, *[None] * len(stack), BATCH_AXES, None, "tensor", None, None)

    return jax.tree.map(empty, prompt)


def next_logits(
    hidden: Float[Array, "N D"], head: Float[Array, "V D"], forbidden: Bool[Array, " V"] | None
) -> tuple[Float[Array, "V N"], Bool[Array, " N"]]:
    """Float32 logits, -inf where forbidden; and whether all of a row's were finite before that.

    A row that was not is 0 throughout, because with NaN the bisection of top-k would not end.
    """
    head = head.astype(hidden.dtype)
    if on_cpu():
        logits = cpu_ops.small_batch_matmul(head, hidden, jnp.float32)
    else:
        logits = jnp.einsum("vd,nd->vn", head, hidden, preferred_element_type=jnp.float32)
    logits = constrain(logits, "tensor", BATCH_AXES)
    finite = jnp.isfinite(logits).all(axis=0)
    logits = jnp.where(finite, logits, 0.0)
    return logits if forbidden is None else jnp.where(forbidden[:, None], -jnp.inf, logits), finite


def is_stop(tokens: Int[Array, "..."], stop_ids: tuple[int, ...]) -> Bool[Array, "..."]:
    """Whether each token ends its continuation."""
    return jnp.isin(tokens, jnp.array(stop_ids, jnp.int32))
