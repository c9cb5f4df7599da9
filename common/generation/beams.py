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

from common.generation.loop import Generated, empty_suffix, extend, next_logits
from common.generation.settings import DecodeSettings
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


class Search(flax.struct.PyTreeNode):
    """The beams of B prompts, between two tokens."""

    prompts: Prefilled
    suffix: PyTree  # of leaves [... B K heads T dim]: keys and values of the running beams
    hidden: Float[Array, "B K D"]  # of the token before the one to choose
    step: Int[Array, " B"]  # tokens of the running beams
    running: _Running
    finished: Beams
    filled: Bool[Array, "B K"]  # finished places that hold a beam
    improvable: Bool[Array, " B"]
    finite: Bool[Array, " B"]  # all logits of all beams while the prompt was not done

    @property
    def done(self) -> Bool[Array, " B"]:
        """Whether a prompt's best beam is known."""
        return ~self.improvable | (self.step >= self.running.tokens.shape[-1])

    def idle(self) -> "Search":
        """The same with nothing to do."""
        return self.replace(improvable=jnp.zeros_like(self.improvable))

    @property
    def generated(self) -> Generated:
        """The best beam of each prompt, G = 1. One that is not finite spoils the choice among all of its prompt."""
        generated = self.finished.generated.replace(finite=self.finite[:, None])
        return jax.tree.map(lambda leaf: leaf[:, :1], generated)


def beam_search(forward: Forward, head: Float[Array, "V D"], prefilled: Prefilled, settings: DecodeSettings) -> Beams:
    """The K = beams best continuations of each prompt."""
    end = finish_search(forward, head, begin_search(prefilled, settings), settings)
    finite = jnp.broadcast_to(end.finite[:, None], end.filled.shape)
    return end.finished.replace(generated=end.finished.generated.replace(finite=finite))


def begin_search(prefilled: Prefilled, settings: DecodeSettings) -> Search:
    """The state before the first token."""
    batch, width = prefilled.hidden.shape
    shape = (batch, settings.beams, settings.max_new_tokens)
    tokens, log_probs = jnp.zeros(shape, jnp.int32), jnp.zeros(shape, jnp.float32)
    no, yes = jnp.zeros(shape[:2], bool), jnp.ones(shape[:2], bool)
    nothing = Generated(tokens, log_probs, jnp.zeros(shape[:2], jnp.int32), no, yes, jnp.zeros(shape, bool))
    # All beams of a prompt start equal: only the first may be extended.
    scores = jnp.broadcast_to(jnp.where(jnp.arange(settings.beams) == 0, 0.0, LOWEST), shape[:2])
    return Search(
        prompts=prefilled,
        suffix=empty_suffix(prefilled.keys_values, settings.beams, settings.max_new_tokens),
        hidden=jnp.broadcast_to(prefilled.hidden[:, None], (*shape[:2], width)),
        step=jnp.zeros(batch, jnp.int32),
        running=_Running(tokens, log_probs, scores),
        finished=Beams(nothing, jnp.full(shape[:2], LOWEST)),
        filled=no,
        improvable=jnp.ones(batch, bool),
        finite=jnp.ones(batch, bool),
    )


def finish_search(
    forward: Forward,
    head: Float[Array, "V D"],
    start: Search,
    settings: DecodeSettings,
    enough: Int[Array, ""] | None = None,
) -> Search:
    """Steps until the best beams of `enough` prompts are known, of all by default."""
    beams, longest, vocabulary = settings.beams, settings.max_new_tokens, head.shape[0]
    candidates = min(max(2, 1 + len(settings.stop_ids)) * beams, beams * vocabulary)
    forbidden = settings.forbidden(vocabulary)

    def step(state: Search) -> Search:
        batch, _, width = state.hidden.shape
        logits, finite = next_logits(state.hidden.reshape(batch * beams, width), head, forbidden)
        log_probs = jax.nn.log_softmax(logits.T, axis=-1).reshape(batch, beams, vocabulary)
        totals = (state.running.scores[..., None] + log_probs).reshape(batch, -1)
        totals, indices = jax.lax.top_k(totals, candidates)
        parents, tokens = indices // vocabulary, indices % vocabulary
        own = jnp.take_along_axis(log_probs.reshape(batch, -1), indices, axis=-1)
        here = jnp.arange(longest) == state.step[:, None, None]
        extended = _Running(
            tokens=jnp.where(here, tokens[..., None], _pick(state.running.tokens, parents)),
            log_probs=jnp.where(here, own[..., None], _pick(state.running.log_probs, parents)),
            scores=totals,
        )
        stopped = settings.is_stop(tokens)
        ends = stopped | (state.step == longest - 1)[:, None]

        finished, filled = _finished(state, extended, stopped, ends, settings)
        scores, best = jax.lax.top_k(totals + jnp.where(ends, LOWEST, 0.0), beams)
        running = jax.tree.map(lambda leaf: _pick(leaf, best), extended).replace(scores=scores)
        worst = jnp.where(filled, finished.scores.min(axis=-1, keepdims=True), LOWEST)
        possible = scores[:, :1] / _length(state, settings)

        suffix = jax.tree.map(lambda leaf: _pick(leaf, _pick(parents, best), axis=leaf.ndim - 4), state.suffix)
        held = jnp.broadcast_to(jnp.minimum(state.step, longest - 1)[:, None], (batch, beams))
        hidden, suffix = extend(forward, _pick(tokens, best)[..., None], state.prompts, suffix, held)
        return state.replace(
            suffix=suffix,
            hidden=hidden[:, :, 0],
            step=jnp.where(state.done, state.step, state.step + 1),
            running=running,
            finished=finished,
            filled=filled,
            improvable=state.improvable & (possible > worst).any(axis=-1),
            finite=state.finite & (finite.reshape(batch, beams).all(axis=-1) | state.done),
        )

    def unfinished(state: Search) -> Bool[Array, ""]:
        return ~state.done.all() if enough is None else state.done.sum() < jnp.minimum(enough, state.done.shape[0])

    return jax.lax.while_loop(unfinished, step, start)


def _finished(
    state: Search, extended: _Running, stopped: Array, ends: Array, settings: DecodeSettings
) -> tuple[Beams, Bool[Array, "B K"]]:
    """The best K of the finished beams and the first K candidates that end here."""
    entering = ends & (jnp.arange(ends.shape[1]) < settings.beams) & ~state.done[:, None]
    scores = extended.scores / _length(state, settings)
    scores = jnp.where(entering, scores, scores + LOWEST)
    lengths = jnp.broadcast_to(state.step[:, None] + 1, stopped.shape)
    drafted = jnp.zeros(extended.tokens.shape, bool)
    new = Generated(extended.tokens, extended.log_probs, lengths, stopped, jnp.ones_like(stopped), drafted)
    merged = jax.tree.map(lambda old, new: jnp.concatenate([old, new], axis=1), state.finished, Beams(new, scores))
    _, best = jax.lax.top_k(merged.scores, settings.beams)
    filled = jnp.concatenate([state.filled, entering], axis=1)
    return jax.tree.map(lambda leaf: _pick(leaf, best), merged), _pick(filled, best)


def _length(state: Search, settings: DecodeSettings) -> Float[Array, "B 1"]:
    """What the sums of log-probabilities are divided by."""
    return (state.step[:, None] + 1.0) ** settings.length_penalty


def _pick(x: Array, indices: Int[Array, "B N"], axis: int = 1) -> Array:
    """x at `indices` along `axis`, row by row; the rows are the axis before it."""
    shape = [1] * x.ndim
    shape[axis - 1 : axis + 1] = indices.shape
    return jnp.take_along_axis(x, indices.reshape(shape), axis=axis)
