"""Beam search over the same decode state as sampling, with the rules of transformers 5 (`early_stopping=False`).

A beam's score is the sum of its log-probabilities divided by length ** length_penalty, the stop token counted in the
length. At each step the best (1 + stop tokens) x K candidates are taken, at least 2K; those that stop and are among
the first K compete for the K finished slots, the others fill the K running slots. A prompt is done when its best
running beam, at its present length, does not beat its worst finished one.
"""

import flax.struct
import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from common.generation.loop import Generated, empty_suffix, extend, is_stop, next_logits
from common.models.decoding import Forward, Prefilled
from common.types import PyTree

LOWEST = -1e9  # the score of what must not be chosen, as in transformers


class Beams(flax.struct.PyTreeNode):
    """The K finished beams of each prompt, best first."""

    generated: Generated  # G = K
    scores: Float[Array, "B K"]


class _Running(flax.struct.PyTreeNode):
    tokens: Int[Array, "B K T"]
    log_probs: Float[Array, "B K T"]
    scores: Float[Array, "B K"]  # sums of log_probs


class _Loop(flax.struct.PyTreeNode):
    step: Int[Array, ""]
    hidden: Float[Array, "B K D"]
    suffix: PyTree
    running: _Running
    finished: Beams
    filled: Bool[Array, "B K"]  # finished slots that hold a beam
    improvable: Bool[Array, " B"]
    finite: Bool[Array, " B"]  # all logits of all beams while the prompt was not done


def beam_search(
    forward: Forward,
    head: Float[Array, "V D"],
    prefilled: Prefilled,
    *,
    beams: int,
    max_new_tokens: int,
    stop_ids: tuple[int, ...],
    length_penalty: float = 1.0,
    forbidden: Bool[Array, " V"] | None = None,
) -> Beams:
    """The K = beams best continuations of each prompt."""
    batch, width = prefilled.hidden.shape
    vocabulary = head.shape[0]
    candidates = min(max(2, 1 + len(stop_ids)) * beams, beams * vocabulary)

    def step(state: _Loop) -> _Loop:
        logits, finite = next_logits(state.hidden.reshape(batch * beams, width), head, forbidden)
        log_probs = jax.nn.log_softmax(logits.T, axis=-1).reshape(batch, beams, vocabulary)
        totals = (state.running.scores[..., None] + log_probs).reshape(batch, -1)
        totals, indices = jax.lax.top_k(totals, candidates)
        parents, tokens = indices // vocabulary, indices % vocabulary
        own = jnp.take_along_axis(log_probs.reshape(batch, -1), indices, axis=-1)
        extended = _Running(
            tokens=_pick(state.running.tokens, parents).at[:, :, state.step].set(tokens),
            log_probs=_pick(state.running.log_probs, parents).at[:, :, state.step].set(own),
            scores=totals,
        )
        stopped = is_stop(tokens, stop_ids)
        ends = stopped | (state.step == max_new_tokens - 1)

        finished, filled = _finish(state, extended, stopped, ends)
        scores, best = jax.lax.top_k(totals + jnp.where(ends, LOWEST, 0.0), beams)
        running = jax.tree.map(lambda leaf: _pick(leaf, best), extended).replace(scores=scores)
        worst = jnp.where(filled, finished.scores.min(axis=-1, keepdims=True), LOWEST)
        possible = scores[:, :1] / (state.step + 1.0) ** length_penalty

        suffix = jax.tree.map(lambda leaf: _pick(leaf, _pick(parents, best), axis=leaf.ndim - 4), state.suffix)
        hidden, suffix = extend(forward, _pick(tokens, best), prefilled, suffix, state.step)
        improvable = state.improvable & (possible > worst).any(axis=-1)
        finite = state.finite & (finite.reshape(batch, beams).all(axis=-1) | ~state.improvable)
        return _Loop(state.step + 1, hidden, suffix, running, finished, filled, improvable, finite)

    def _finish(state: _Loop, extended: _Running, stopped: Array, ends: Array) -> tuple[Beams, Array]:
        """The best K of the finished beams and the first K candidates that end here."""
        entering = ends & (jnp.arange(candidates) < beams)
        scores = extended.scores / (state.step + 1.0) ** length_penalty
        scores = jnp.where(entering & state.improvable[:, None], scores, scores + LOWEST)
        lengths = jnp.full_like(stopped, state.step + 1, jnp.int32)
        new = Beams(Generated(extended.tokens, extended.log_probs, lengths, stopped, jnp.ones_like(stopped)), scores)
        merged = jax.tree.map(lambda old, new: jnp.concatenate([old, new], axis=1), state.finished, new)
        _, best = jax.lax.top_k(merged.scores, beams)
        filled = jnp.concatenate([state.filled, entering], axis=1)
        return jax.tree.map(lambda leaf: _pick(leaf, best), merged), _pick(filled, best)

    shape = (batch, beams, max_new_tokens)
    tokens, log_probs = jnp.zeros(shape, jnp.int32), jnp.zeros(shape, jnp.float32)
    no, yes = jnp.zeros(shape[:2], bool), jnp.ones(shape[:2], bool)
    nothing = Generated(tokens, log_probs, jnp.zeros(shape[:2], jnp.int32), stopped=no, finite=yes)
    # All beams of a prompt start equal: only the first may be extended.
    scores = jnp.broadcast_to(jnp.where(jnp.arange(beams) == 0, 0.0, LOWEST), shape[:2])
    start = _Loop(
        step=jnp.int32(0),
        hidden=jnp.broadcast_to(prefilled.hidden[:, None], (batch, beams, width)),
        suffix=empty_suffix(prefilled.keys_values, beams, max_new_tokens),
        running=_Running(tokens, log_probs, scores),
        finished=Beams(nothing, jnp.full(shape[:2], LOWEST)),
        filled=no,
        improvable=jnp.ones(batch, bool),
        finite=jnp.ones(batch, bool),
    )

    def unfinished(state: _Loop) -> Bool[Array, ""]:
        return (state.step < max_new_tokens) & state.improvable.any()

    end = jax.lax.while_loop(unfinished, step, start)
    # One beam that is not finite spoils the choice among all of its prompt.
    finite = jnp.broadcast_to(end.finite[:, None], shape[:2])
    return end.finished.replace(generated=end.finished.generated.replace(finite=finite))


def _pick(x: Array, indices: Int[Array, "B N"], axis: int = 1) -> Array:
    """x at `indices` along `axis`, row by row; the rows are the axis before it."""
    shape = [1] * x.ndim
    shape[axis - 1 : axis + 1] = indices.shape
    return jnp.take_along_axis(x, indices.reshape(shape), axis=axis)
