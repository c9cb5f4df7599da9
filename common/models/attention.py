"""Attention for all models: `attend` on whole sequences, `attend_to` on others, `attend_cached` on new tokens,
`attend_shared_prompt` on a prompt with several continuations.

`common.models.attention_choice` selects the implementation, and says which ones there are and why.
"""

import functools
from typing import Any, NamedTuple

import flax.linen as nn
import flax.struct
import jax
import jax.numpy as jnp
from jax.sharding import PartitionSpec
from jaxtyping import Array, Bool, Float, Int

from common.models.attention_choice import SPLASH_BLOCK, Implementation, Operation, Shape, choose
from common.models.layers import BATCH_AXES
from common.types import PyTree


def attend(
    q: Float[Array, "B S H dim"],
    k: Float[Array, "B S K dim"],
    v: Float[Array, "B S K dim"],
    segments: Int[Array, "#B S"] | None,
    *,
    causal: bool = True,
    implementation: Implementation = "auto",
    operation: Operation = "rows",
) -> Float[Array, "B S H dim"]:
    """Softmax attention within segments, with grouped queries (H a multiple of K) and scale 1 / sqrt(dim).

    A token attends to the tokens of its own segment, and under `causal` to no later one. Padding is a segment (0)
    like any other: its outputs are finite and meaningless. Without segments each row is one sequence from its first
    position on: under `causal`, padding after its last token (`tokens_first`) then needs no mask.
    """
    chosen = choose(operation, _shape(q, k), implementation).implementation
    if chosen == "splash":
        return _splash(q, k, v, () if segments is None else (segments, segments), causal)
    visible = None if segments is None else segments[:, :, None] == segments[:, None, :]
    if chosen == "cudnn":
        return _cudnn(q, k, v, visible, causal)
    if causal:
        triangle = jnp.tril(jnp.ones((q.shape[1], q.shape[1]), bool))
        visible = triangle[None] if visible is None else visible & triangle
    return _plain(q, k, v, visible)


class SharedPrompt(flax.struct.PyTreeNode):
    """Rows that hold a prompt once and then G continuations of it, P + G * T tokens, in place of segments.

    A continuation attends to the prompt and to itself, never to its siblings. The masks are true on tokens.
    """

    prompt: Bool[Array, "B P"]
    continuations: Bool[Array, "B G T"]
    tokens_first: bool = flax.struct.field(pytree_node=False, default=False)  # padding of prompts is after their tokens


def tokens_first(
    rows: Bool[Array, "B S"] | SharedPrompt,
) -> tuple[Int[Array, "B N"], SharedPrompt | None]:
    """The order in which padding comes after the tokens of rows, or of prompts, and the segments of rows in that order.

    `rows` is true on the tokens of one sequence a row, wherever its padding is. A causal kernel needs no mask then.
    """
    mask = rows.prompt if isinstance(rows, SharedPrompt) else rows
    order = jnp.argsort(~mask, axis=1, stable=True).astype(jnp.int32)
    if not isinstance(rows, SharedPrompt):
        return order, None
    batch, group, length = rows.continuations.shape
    rest = jnp.broadcast_to(mask.shape[1] + jnp.arange(group * length, dtype=jnp.int32), (batch, group * length))
    sorted_mask = jnp.take_along_axis(mask, order, axis=1)
    return jnp.concatenate([order, rest], axis=1), rows.replace(prompt=sorted_mask, tokens_first=True)


@functools.partial(jax.named_call, name="attend_shared_prompt")
def attend_shared_prompt(
    q: Float[Array, "B N H dim"],
    k: Float[Array, "B N K dim"],
    v: Float[Array, "B N K dim"],
    rows: SharedPrompt,
    implementation: Implementation = "auto",
) -> Float[Array, "B N H dim"]:
    """Causal attention of prompts to themselves, and of continuations to their prompt and themselves; N = P + G * T."""
    prompt, length = rows.prompt.shape[1], rows.continuations.shape[2]
    segments = None if rows.tokens_first else rows.prompt.astype(jnp.int32)
    read = attend(q[:, :prompt], k[:, :prompt], v[:, :prompt], segments, implementation=implementation)
    shape = Shape(length, prompt + length, q.shape[-1], q.dtype.name)
    chosen = choose("continuations", shape, implementation).implementation
    continued = _continued if chosen == "xla" else functools.partial(_continued_fused, kernel=chosen)
    return jnp.concatenate([read, continued(q, k, v, rows)], axis=1)


def _continued(q, k, v, rows):
    """The continuations' part of `attend_shared_prompt`.

    The prompt's keys and values are read once for the whole group, and nothing is scored that would be masked whole.
    """
    batch, group, length = rows.continuations.shape
    prompt = rows.prompt.shape[1]
    heads, dim, shared = q.shape[2], q.shape[3], k.shape[2]

    # Heads and groups first: each product below is then one batched matrix product without transposed copies.
    own_q = (q[:, prompt:] * dim**-0.5).reshape(batch, group, length, shared, heads // shared, dim)
    own_q = own_q.transpose(0, 3, 1, 4, 2, 5)  # [B K G H/K T dim]
    own_k, own_v = (x[:, prompt:].reshape(batch, group, length, shared, dim).transpose(0, 3, 1, 2, 4) for x in (k, v))
    prompt_k, prompt_v = (x[:, :prompt].transpose(0, 2, 1, 3) for x in (k, v))
    scores = functools.partial(jnp.einsum, preferred_element_type=jnp.float32)
    lowest = jnp.finfo(jnp.float32).min
    to_prompt = scores("bkqd,bkpd->bkqp", own_q.reshape(batch, shared, -1, dim), prompt_k)
    to_prompt = jnp.where(rows.prompt[:, None, None], to_prompt, lowest)
    to_own = scores("bkgqd,bkgsd->bkgqs", own_q.reshape(batch, shared, group, -1, dim), own_k)
    visible = jnp.tril(jnp.ones((length, length), bool)) & rows.continuations[:, :, None]
    visible = jnp.tile(visible, (1, 1, heads // shared, 1))  # [B G H/K*T T]
    to_own = jnp.where(visible[:, None], to_own, lowest).reshape(batch, shared, -1, length)

    # One softmax over both blocks, which are never joined: they share the maximum and the sum.
    highest = jax.lax.stop_gradient(jnp.maximum(to_prompt.max(-1), to_own.max(-1)))[..., None]
    to_prompt, to_own = jnp.exp(to_prompt - highest), jnp.exp(to_own - highest)
    total = (to_prompt.sum(-1) + to_own.sum(-1))[..., None]
    out = scores("bkqp,bkpd->bkqd", to_prompt.astype(v.dtype), prompt_v)
    own = scores("bkgqs,bkgsd->bkgqd", to_own.astype(v.dtype).reshape(batch, shared, group, -1, length), own_v)
    out = ((out + own.reshape(out.shape)) / total).astype(q.dtype)
    out = out.reshape(batch, shared, group, heads // shared, length, dim).transpose(0, 2, 4, 1, 3, 5)
    return out.reshape(batch, group * length, heads, dim)


def _continued_fused(q, k, v, rows, kernel):
    """The same by a fused kernel, in one row for each continuation, with the prompt's keys and values before its own.

    They are repeated for that: G * P * K * dim numbers, where the scores are G * P * H * T.
    """
    batch, group, length = rows.continuations.shape
    prompt = rows.prompt.shape[1]

    def each(x):
        return x.reshape(batch * group, length, *x.shape[2:])

    def after_prompt(x):
        return jnp.concatenate([jnp.repeat(x[:, :prompt], group, axis=0), each(x[:, prompt:])], axis=1)

    tokens = rows.continuations.reshape(batch * group, length)
    seen = jnp.concatenate([jnp.repeat(rows.prompt, group, axis=0), tokens], axis=1)
    own_q, own_k, own_v = each(q[:, prompt:]), after_prompt(k), after_prompt(v)
    if kernel == "splash":
        segments = jnp.ones_like(tokens, jnp.int32), seen.astype(jnp.int32)
        out = _splash(own_q, own_k, own_v, segments, causal=True)
    else:
        earlier = jnp.tril(jnp.ones((length, prompt + length), bool), prompt)
        out = _cudnn(own_q, own_k, own_v, seen[:, None] & earlier)
    return out.reshape(batch, group * length, *q.shape[2:])


def attend_to(
    q: Float[Array, "B S H dim"],
    k: Float[Array, "B M K dim"],
    v: Float[Array, "B M K dim"],
    mask: Bool[Array, "#B #S M"] | None = None,
) -> Float[Array, "B S H dim"]:
    """Softmax attention to another sequence, or to one's own under any mask; scale 1 / sqrt(dim).

    Queries are grouped as in `attend`: H is a multiple of K.
    """
    return _plain(q, k, v, mask)


def attention_weights(
    q: Float[Array, "B S H dim"], k: Float[Array, "B M H dim"], mask: Bool[Array, "#B #S M"] | None = None
) -> Float[Array, "B H S M"]:
    """The weights by which `attend_to` sums the values, to look at them."""
    scores = jnp.einsum("bshd,bmhd->bhsm", q, k).astype(jnp.float32) * q.shape[-1] ** -0.5
    return jax.nn.softmax(scores if mask is None else jnp.where(mask[:, None], scores, jnp.finfo(scores.dtype).min))


def _plain(q, k, v, visible):
    """Scores in full, for `visible` [#B #S M] or None. The heads that share keys stand in one product.

    Four axes, and a division after the last product: XLA for CPUs computes five axes, or weights that are divided
    first, up to half again as slowly.
    """
    batch, length, heads, dim = q.shape
    shared = k.shape[2]
    q = (q * dim**-0.5).reshape(batch, length, shared, heads // shared, dim)
    q = q.transpose(0, 2, 3, 1, 4).reshape(batch, shared, -1, dim)  # [B K G*S dim]
    k, v = k.swapaxes(1, 2), v.swapaxes(1, 2)
    scores = jnp.einsum("bkqd,bkmd->bkqm", q, k, preferred_element_type=jnp.float32)
    if visible is not None:
        if visible.shape[1] > 1:
            visible = jnp.tile(visible, (1, heads // shared, 1))
        scores = jnp.where(visible[:, None], scores, jnp.finfo(jnp.float32).min)
    weights = jnp.exp(scores - jax.lax.stop_gradient(scores.max(-1, keepdims=True)))
    out = jnp.einsum("bkqm,bkmd->bkqd", weights.astype(v.dtype), v, preferred_element_type=jnp.float32)
    out = (out / weights.sum(-1, keepdims=True)).astype(v.dtype)
    return out.reshape(batch, heads, length, dim).swapaxes(1, 2)


def _shape(q: Array, k: Array) -> Shape:
    return Shape(q.shape[1], k.shape[1], q.shape[-1], q.dtype.name)


def _cudnn(q, k, v, visible, causal=False):
    """The fused kernel of NVIDIA GPUs; `causal` is no part of the mask `visible` [#B S M], so that it skips blocks.

    In training it takes even lengths only: where one is odd, it gets a position at the end that no token sees.
    """
    length, odd = q.shape[1], (q.shape[1] % 2, k.shape[1] % 2)
    if visible is None and odd[1] and not causal:
        visible = jnp.ones((1, *q.shape[1:2], *k.shape[1:2]), bool)
    mask = None if visible is None else jnp.pad(visible, ((0, 0), (0, odd[0]), (0, odd[1])))[:, None]
    q, k, v = (jnp.pad(x, ((0, 0), (0, x.shape[1] % 2), (0, 0), (0, 0))) for x in (q, k, v))
    out = jax.nn.dot_product_attention(q, k, v, mask=mask, is_causal=causal, implementation="cudnn")
    return out[:, :length]


def _splash(q, k, v, segments, causal, interpret=False):
    """Splash attention, mapped over the mesh by hand because a Pallas call has no partitioning rule.

    Queries are the last positions of the keys. `segments` are those of queries and of keys, or nothing.
    """
    from jax.experimental.pallas.ops.tpu.splash_attention import splash_attention_kernel as kernels
    from jax.experimental.pallas.ops.tpu.splash_attention import splash_attention_mask as masks

    def local(q, k, v, *segments):
        sides = (q.shape[1], k.shape[1])
        mask = masks.CausalMask(sides, offset=sides[1] - sides[0]) if causal else masks.FullMask(sides)
        block_q, block = (next(size for size in (1024, 512, 256, SPLASH_BLOCK) if side % size == 0) for side in sides)
        sizes = kernels.BlockSizes(
            block_q=block_q, block_kv=block, block_kv_compute=min(block, 512),
            block_q_dkv=block_q, block_kv_dkv=block, block_kv_dkv_compute=min(block, 512),
            block_q_dq=block_q, block_kv_dq=block,
        )  # fmt: skip
        kernel = kernels.make_splash_mha(
            masks.MultiHeadMask([mask] * q.shape[2]),
            block_sizes=sizes,
            head_shards=1,
            q_seq_shards=1,
            interpret=interpret,
        )
        heads_first = [jnp.swapaxes(x, 1, 2) for x in (q * q.shape[-1] ** -0.5, k, v)]

        def row(q, k, v, *segments):
            return kernel(q, k, v, segment_ids=kernels.SegmentIds(*segments) if segments else None)

        out: Array = jax.vmap(row)(*heads_first, *segments)
        return jnp.swapaxes(out, 1, 2).astype(q.dtype)

    segments = [jnp.broadcast_to(own, x.shape[:2]) for own, x in zip(segments, (q, k), strict=False)]
    mesh = jax.sharding.get_abstract_mesh()
    if mesh.empty or not {*BATCH_AXES, "tensor"} <= set(mesh.axis_names):
        return local(q, k, v, *segments)
    heads = PartitionSpec(BATCH_AXES, None, "tensor", None)
    return jax.shard_map(
        local,
        in_specs=(heads, heads, heads, *[PartitionSpec(BATCH_AXES, None)] * len(segments)),
        out_specs=heads,
        check_vma=False,
    )(q, k, v, *segments)


class KeyValues(NamedTuple):
    """Keys and values of one layer, or of all layers with a leading axis L."""

    k: Float[Array, "..."]
    v: Float[Array, "..."]


class Past(NamedTuple):
    """What new tokens attend to besides themselves, for one layer or stacked over L.

    `prompt` is kept once for the G continuations of a prompt; `suffix` holds what each continuation has produced.
    Heads come before positions, as the products over positions need them: a cache is read at every token.
    """

    prompt: PyTree  # of leaves [B K P dim]: the `KeyValues` of a layer, or any tree that a model keeps
    prompt_mask: Bool[Array, "B P"]
    suffix: PyTree  # of leaves [B G K T dim]
    suffix_mask: Bool[Array, "B G T"]
    context: PyTree = None  # of leaves [... B M K dim]: what else belongs to a prompt, such as its encoded images


# For `nn.scan` over layers: the masks are those of all layers, and where there is no `Past` nothing is split.
PAST_AXES: Any = Past._make((0, nn.broadcast, 0, nn.broadcast, nn.broadcast))


@functools.partial(jax.named_call, name="attend_cached")
def attend_cached(
    q: Float[Array, "B N H dim"], k: Float[Array, "B N K dim"], v: Float[Array, "B N K dim"], past: Past
) -> Float[Array, "B N H dim"]:
    """W new tokens of each of G continuations, N = G * W, attend to the shared prompt, their suffix and one another.

    Each sees itself and those before it. The three blocks are scored apart and share one softmax, so the prompt's keys
    and values are never repeated and the cache is never copied: the caller writes k and v into it after the layers have
    run.
    """
    batch, _, heads, dim = q.shape
    group, shared = past.suffix_mask.shape[1], k.shape[2]
    window, each = q.shape[1] // group, heads // k.shape[2]
    q = (q * dim**-0.5).reshape(batch, group, window, shared, each, dim)
    q = q.transpose(0, 1, 3, 2, 4, 5).reshape(batch, group, shared, -1, dim)  # [B G K W*H/K dim]
    by_key = q.swapaxes(1, 2).reshape(batch, shared, -1, dim)  # [B K G*W*H/K dim]: one product for the whole group
    k, v = (x.reshape(batch, group, window, shared, dim) for x in (k, v))

    def by_continuation(x: Array) -> Array:
        return x.reshape(batch, shared, group, window * each, *x.shape[3:]).swapaxes(1, 2)

    scores = functools.partial(jnp.einsum, preferred_element_type=jnp.float32)
    lowest = jnp.finfo(jnp.float32).min
    to_prompt = scores("bkqd,bkpd->bkqp", by_key, past.prompt.k)
    to_prompt = jnp.where(past.prompt_mask[:, None, None], to_prompt, lowest)
    to_suffix = scores("bgkqd,bgktd->bgkqt", q, past.suffix.k)
    to_suffix = jnp.where(past.suffix_mask[:, :, None, None], to_suffix, lowest)
    to_window = scores("bgkqd,bgwkd->bgkqw", q, k)
    if window > 1:
        earlier = jnp.repeat(jnp.tril(jnp.ones((window, window), bool)), each, axis=0)  # [W*H/K W]
        to_window = jnp.where(earlier, to_window, lowest)

    # One softmax over the three blocks, which are never joined: they share the maximum and the sum.
    highest = jnp.maximum(jnp.maximum(by_continuation(to_prompt.max(-1)), to_suffix.max(-1)), to_window.max(-1))
    to_prompt = jnp.exp(to_prompt - highest.swapaxes(1, 2).reshape(batch, shared, -1)[..., None])
    to_suffix, to_window = jnp.exp(to_suffix - highest[..., None]), jnp.exp(to_window - highest[..., None])
    total = by_continuation(to_prompt.sum(-1)) + to_suffix.sum(-1) + to_window.sum(-1)
    out = by_continuation(scores("bkqp,bkpd->bkqd", to_prompt.astype(v.dtype), past.prompt.v))
    out += scores("bgkqt,bgktd->bgkqd", to_suffix.astype(v.dtype), past.suffix.v)
    out += scores("bgkqw,bgwkd->bgkqd", to_window.astype(v.dtype), v)
    out = (out / total[..., None]).astype(v.dtype)
    out = out.reshape(batch, group, shared, window, each, dim).transpose(0, 1, 3, 2, 4, 5)
    return out.reshape(batch, -1, heads, dim)
