"""Log-probabilities of tokens without a logits tensor, and the losses that are weighted sums of them.

Nothing of shape [B, S, V] ever exists: the vocabulary is visited for `chunk` positions at a time. With a frozen head
the forward pass also keeps the Jacobian of each log-probability, d logp / d hidden = head[target] - softmax @ head,
which is as large as `hidden`, and the backward pass is one multiplication. With a trained head, which may be the tied
embedding, the backward pass recomputes each chunk and accumulates the head's gradient.
"""

import functools

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from common.models.layers import BATCH_AXES, constrain
from common.types import LossSum


def token_logprobs(
    hidden: Float[Array, "B S D"],
    head: Float[Array, "V D"],
    targets: Int[Array, "B S"],
    *,
    chunk: int = 128,
    head_trained: bool = False,
) -> Float[Array, "B S"]:
    """log softmax(hidden @ head.T)[target] of every position, in float32.

    `chunk` positions of each row are expanded to the vocabulary at a time. With `head_trained` false the gradient with
    respect to `head` is zero, whatever is asked.
    """
    length = hidden.shape[1]
    chunk = min(chunk, length)
    padding = -length % chunk
    if padding:
        hidden = jnp.pad(hidden, ((0, 0), (0, padding), (0, 0)))
        targets = jnp.pad(targets, ((0, 0), (0, padding)))
    # Under a mesh: gather the head once, not once per chunk.
    head = constrain(head.astype(hidden.dtype), "tensor", None)
    logp = (_with_trained_head if head_trained else _with_frozen_head)(hidden, head, targets, chunk)
    return logp[:, :length]


def answer_loss(logp: Float[Array, "B S"], weights: Float[Array, "B S"]) -> LossSum:
    """Cross-entropy of the weighted tokens, as a sum (supervised fine-tuning)."""
    return LossSum(-(logp * weights).sum(), weights.sum())


def _chunks(x: Array, chunk: int) -> Array:
    """[B, S, ...] to [S / chunk, B, chunk, ...], the axis that `scan` walks first."""
    split = x.reshape(x.shape[0], -1, chunk, *x.shape[2:])
    return jnp.moveaxis(split, 1, 0)


def _joined(x: Array) -> Array:
    """The inverse of `_chunks`."""
    rows = jnp.moveaxis(x, 0, 1)
    return rows.reshape(rows.shape[0], -1, *rows.shape[3:])


def _logits(hidden: Array, head: Array) -> Float[Array, "B chunk V"]:
    logits = jnp.einsum("bsd,vd->bsv", hidden, head, preferred_element_type=jnp.float32)
    return constrain(logits, BATCH_AXES, None, "tensor")


def _chosen(logits: Array, targets: Array) -> tuple[Array, Array]:
    """Log-probability of the targets, and the normaliser."""
    normaliser = jax.nn.logsumexp(logits, axis=-1)
    picked = jnp.take_along_axis(logits, targets[..., None], axis=-1)[..., 0]
    return picked - normaliser, normaliser


def _primal(hidden, head, targets, chunk):
    def one(_, xs):
        return None, _chosen(_logits(xs[0], head), xs[1])[0]

    return _joined(jax.lax.scan(one, None, (_chunks(hidden, chunk), _chunks(targets, chunk)))[1])


_with_frozen_head = jax.custom_vjp(_primal, nondiff_argnums=(3,))
_with_trained_head = jax.custom_vjp(_primal, nondiff_argnums=(3,))


def _frozen_forward(hidden, head, targets, chunk):
    def one(_, xs):
        hidden, targets = xs
        logits = _logits(hidden, head)
        logp, normaliser = _chosen(logits, targets)
        probabilities = jnp.exp(logits - normaliser[..., None]).astype(head.dtype)
        expected = jnp.einsum("bsv,vd->bsd", probabilities, head, preferred_element_type=jnp.float32)
        return None, (logp, (head[targets] - expected).astype(hidden.dtype))

    _, (logp, jacobian) = jax.lax.scan(one, None, (_chunks(hidden, chunk), _chunks(targets, chunk)))
    return _joined(logp), _joined(jacobian)


def _frozen_backward(chunk, jacobian, cotangent):
    return (cotangent[..., None] * jacobian).astype(jacobian.dtype), None, None


def _trained_forward(hidden, head, targets, chunk):
    return _primal(hidden, head, targets, chunk), (hidden, head, targets)


def _trained_backward(chunk, residuals, cotangent):
    hidden, head, targets = residuals

    def one(head_gradient, xs):
        hidden, targets, cotangent = xs
        logits = _logits(hidden, head)
        hot = jax.nn.one_hot(targets, head.shape[0], dtype=jnp.float32)
        error = (cotangent[..., None] * (hot - jax.nn.softmax(logits))).astype(head.dtype)
        sums = functools.partial(jnp.einsum, preferred_element_type=jnp.float32)
        return head_gradient + sums("bsv,bsd->vd", error, hidden), sums("bsv,vd->bsd", error, head)

    chunks = (_chunks(hidden, chunk), _chunks(targets, chunk), _chunks(cotangent, chunk))
    head_gradient, gradient = jax.lax.scan(one, jnp.zeros(head.shape, jnp.float32), chunks)
    return _joined(gradient).astype(hidden.dtype), head_gradient.astype(head.dtype), None


_with_frozen_head.defvjp(_frozen_forward, _frozen_backward)
_with_trained_head.defvjp(_trained_forward, _trained_backward)
