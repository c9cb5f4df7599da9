"""Generation as one program: prompts are read once, then each pass of a `while_loop` adds tokens until all are done.

A decode state has B prompts with G continuations each (samples of a group, or one). A prompt's keys and values are kept
once for its group; what the continuations produce goes into a preallocated cache in the loop's carry, written in place.
Nothing here depends on a model: it takes a `Forward`, such as `common.models.qwen2.bind` makes of a Qwen2.

A pass feeds the newest token of each continuation and k drafts behind it, and chooses a token after each of these. A
draft stands if it is the token that was chosen in its place; the first that is not ends the pass. What is chosen
depends on the tokens before it and on its own random number, so drafts change how many passes it takes, not what is
written: greedy and sampled continuations are those of k = 0, but for rounding, which may decide where two tokens are
equally likely or a random number falls on the border between two. (A draft thus stands with its probability, and
otherwise the token comes from the rest of the distribution: arXiv:2211.17192, Algorithm 1, for drafts without one.)
"""

import flax.struct
import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int, Key, Shaped

from common.generation.drafts import NO_DRAFTS, Drafts, Table, propose
from common.generation.sampling import choose_tokens, row_uniforms
from common.generation.settings import DecodeSettings
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
    drafted: Bool[Array, "B G T"]  # tokens that were drafts; the others took a pass each

    @property
    def mask(self) -> Bool[Array, "B G T"]:
        """True on generated tokens."""
        return jnp.arange(self.tokens.shape[-1]) < self.lengths[..., None]

    @property
    def done(self) -> Bool[Array, "B G"]:
        """Whether a continuation has ended."""
        return self.stopped | (self.lengths >= self.tokens.shape[-1])


class Decoding(flax.struct.PyTreeNode):
    """B prompts with G continuations each, between two passes."""

    prompts: Prefilled
    uniforms: Float[Array, "B G T"] | None  # what decides each token; None where the likeliest is taken
    reference: Int[Array, "B R"] | None  # that of `Drafts`
    suffix: PyTree  # of leaves [... B G K T+k dim]: keys and values of the new tokens but the newest
    generated: Generated

    @property
    def done(self) -> Bool[Array, " B"]:
        """Whether all continuations of a prompt have ended."""
        return self.generated.done.all(axis=-1)

    def idle(self) -> "Decoding":
        """The same with nothing to do."""
        return self.replace(generated=self.generated.replace(stopped=jnp.ones_like(self.generated.stopped)))


def prefill(forward: Forward, prompts: Prompts) -> Prefilled:
    """Read the prompts. Positions count from 0 at the first token; padding is a segment of its own."""
    positions = jnp.maximum(jnp.cumsum(prompts.mask, axis=-1) - 1, 0)
    hidden, keys_values = forward(prompts.tokens, positions, segments=prompts.mask.astype(jnp.int32))
    return Prefilled(hidden[:, -1], heads_first(keys_values), prompts.mask, prompts.mask.sum(axis=-1))


def generate(
    forward: Forward,
    head: Float[Array, "V D"],
    prefilled: Prefilled,
    keys: Key[Array, " B"],
    settings: DecodeSettings,
    drafts: Drafts = NO_DRAFTS,
) -> Generated:
    """G continuations of each prompt of up to T tokens.

    Each row has its own key, so that its samples do not depend on the rows beside it. `log_probs` are those of the
    policy: after forbidden ids and temperature, before top-k and top-p; a greedy choice is scored at temperature 1.
    """
    start = begin(head, prefilled, keys, settings, drafts.reference)
    return finish(forward, head, start, settings, drafts.table).generated


def begin(
    head: Float[Array, "V D"],
    prefilled: Prefilled,
    keys: Key[Array, " B"],
    settings: DecodeSettings,
    reference: Int[Array, "B R"] | None = None,
) -> Decoding:
    """The first token of every continuation, chosen from what the prompts' last tokens say."""
    batch, width = prefilled.hidden.shape
    shape = (batch, settings.group, settings.max_new_tokens)
    uniforms = row_uniforms(keys, *shape[1:]) if settings.sampling.temperature > 0 else None
    hidden = jnp.broadcast_to(prefilled.hidden[:, None, None], (*shape[:2], 1, width))
    nothing = Generated(
        tokens=jnp.zeros(shape, jnp.int32),
        log_probs=jnp.zeros(shape, jnp.float32),
        lengths=jnp.zeros(shape[:2], jnp.int32),
        stopped=jnp.zeros(shape[:2], bool),
        finite=jnp.ones(shape[:2], bool),
        drafted=jnp.zeros(shape, bool),
    )
    suffix = empty_suffix(prefilled.keys_values, settings.group, settings.max_new_tokens + settings.drafts)
    state = Decoding(prefilled, uniforms, reference, suffix, nothing)
    return state.replace(generated=_chosen(state, hidden, head, jnp.zeros((*shape[:2], 0), jnp.int32), settings))


def finish(
    forward: Forward,
    head: Float[Array, "V D"],
    state: Decoding,
    settings: DecodeSettings,
    table: Table | None = None,
    enough: Int[Array, ""] | None = None,
    count: int | None = None,
) -> Decoding:
    """Passes until the continuations of `enough` prompts have ended, all by default.

    Each pass has `count` drafts, at most and by default those of the settings.
    """
    sources = Drafts(state.reference, table)
    count = settings.drafts if count is None else count

    def unfinished(changing: tuple[PyTree, Generated]) -> Bool[Array, ""]:
        done = changing[1].done.all(axis=-1)
        return ~done.all() if enough is None else done.sum() < jnp.minimum(enough, done.shape[0])

    def add(changing: tuple[PyTree, Generated]) -> tuple[PyTree, Generated]:
        suffix, generated = changing
        own = state.replace(suffix=suffix, generated=generated)
        held = jnp.maximum(generated.lengths - 1, 0)
        drafts = propose(sources, generated.tokens, generated.lengths, count)
        window = jnp.concatenate([_take(generated.tokens, held[..., None]), drafts], axis=-1)
        hidden, suffix = extend(forward, window, state.prompts, suffix, held)
        return suffix, _chosen(own, hidden, head, drafts, settings)

    suffix, generated = jax.lax.while_loop(unfinished, add, (state.suffix, state.generated))
    return state.replace(suffix=suffix, generated=generated)


def _chosen(
    state: Decoding,
    hidden: Float[Array, "B G W D"],
    head: Float[Array, "V D"],
    drafts: Int[Array, "B G W-1"],
    settings: DecodeSettings,
) -> Generated:
    """What is generated once tokens are chosen after the newest token and its drafts, whose hidden states are given."""
    done = state.generated
    batch, group, window, width = hidden.shape
    length = done.tokens.shape[-1]
    at = done.lengths[..., None] + jnp.arange(window)
    logits, finite = next_logits(hidden.reshape(-1, width), head, settings.forbidden(head.shape[0]))
    own = jnp.zeros(at.shape) if state.uniforms is None else _take(state.uniforms, at)
    tokens, log_probs = choose_tokens(logits, own.reshape(-1), settings.sampling)
    finite &= jnp.isfinite(log_probs)  # a low temperature may have taken a large logit beyond float32
    tokens, log_probs, finite = (x.reshape(batch, group, window) for x in (tokens, log_probs, finite))

    stands = (tokens[..., :-1] == drafts) & ~settings.is_stop(drafts)  # nothing stands behind a stop token
    stands = jnp.concatenate([jnp.ones((batch, group, 1), bool), stands], axis=-1)
    new = (jnp.cumprod(stands, axis=-1) > 0) & ~done.done[..., None] & (at < length)
    count = new.sum(axis=-1)
    column = jnp.arange(length) - done.lengths[..., None]
    written = (column >= 0) & (column < count[..., None])
    return Generated(
        tokens=jnp.where(written, _take(tokens, column), done.tokens),
        log_probs=jnp.where(written, _take(log_probs, column), done.log_probs),
        lengths=done.lengths + count,
        stopped=done.stopped | (new & settings.is_stop(tokens)).any(axis=-1),
        finite=done.finite & (finite | ~new).all(axis=-1),
        drafted=done.drafted | (written & (column < count[..., None] - 1)),
    )


def _take(values: Array, at: Int[Array, "B G N"]) -> Array:
    """The values of each continuation at some places; the nearest one where a place is outside."""
    return jnp.take_along_axis(values, jnp.clip(at, 0, values.shape[-1] - 1), axis=-1)


def extend(
    forward: Forward,
    tokens: Int[Array, "B G W"],
    prefilled: Prefilled,
    suffix: PyTree,
    filled: Int[Array, "B G"],
) -> tuple[Float[Array, "B G W D"], PyTree]:
    """Feed W tokens of each continuation behind the `filled` ones that its cache holds.

    Returns their hidden states, and the cache with their keys and values behind the others.
    """
    batch, group, window = tokens.shape
    flat = (batch, group * window)
    places = jax.tree.leaves(suffix)[0].shape[-2]
    positions = (prefilled.next_position[:, None] + filled)[..., None] + jnp.arange(window)
    held = jnp.arange(places) < filled[..., None]
    past = Past(prefilled.keys_values, prefilled.mask, suffix, held, prefilled.context)
    hidden, new = forward(tokens.reshape(flat), positions.reshape(flat), past=past)
    if on_cpu():
        new = cpu_ops.after(hidden, new)

    def write(cache: Array, new: Array) -> Array:
        new = new.reshape(*new.shape[:-3], group, window, *new.shape[-2:])
        return _write_rows(cache, jnp.moveaxis(new, -3, -2), filled)

    return hidden.reshape(*tokens.shape, -1), jax.tree.map(write, suffix, new)


def _write_behind(cache: Shaped[Array, "... T dim"], new: Shaped[Array, "... W dim"], filled: Int[Array, ""]) -> Array:
    return jax.lax.dynamic_update_slice_in_dim(cache, new, filled, axis=-2)


_write_rows = jax.vmap(jax.vmap(_write_behind, (-4, -4, 0), -4), (-5, -5, 0), -5)  # [... B G K T dim]


def empty_suffix(prompt: PyTree, group: int, places: int) -> PyTree:
    """The cache of the continuations, leaves [... B G K T dim], for a prompt's leaves [... B K P dim]."""

    def empty(leaf: Array) -> Array:
        *stack, batch, heads, _, dim = leaf.shape
        zeros = jnp.zeros((*stack, batch, group, heads, places, dim), leaf.dtype)
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
