"""One step of reinforcement learning: sample a group for each study, judge on the host, update.

Sampling and updating are jitted programs over the same arrays. Between them stands one hop through the host, because
the labeler has another tokenizer: tokens become texts, texts get rewards and token weights. The step has the form that
`common.training.loop.train` takes, so logs, checkpoints and resuming are those of every other training.
"""

import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import flax.struct
import jax
import jax.numpy as jnp
import numpy as np
import optax
from jaxtyping import Array, Bool, Float, Int

from common.data.packing import GlobalBatch, Plan
from common.data.tokenizers import Tokenizer
from common.generation.drafts import Drafts, Table
from common.generation.loop import Generated
from common.generation.memory import halved, slot_memory, without_drafts
from common.io.finite import check_finite
from common.training.logs import SECONDS
from common.training.parallel import DeviceLayout, compile_rows, compile_step, device_put_tree, fetch_rows, place_batch
from common.training.step import TrainStep, make_train_step
from common.types import PyTree, TrainState
from deer_jax.ditpo import (
    Measured,
    Policy,
    PolicyParams,
    RolloutLoss,
    Rollouts,
    ditpo_loss,
    group_advantages,
    importance,
    make_loss,
)
from deer_jax.measures import means_of_nothing, of_groups, reward_measures, rollout_measures, weight_measures
from deer_jax.objective import Objective
from deer_jax.token_weights import Rollout, Scores, read_rollout


class StudyBatch(flax.struct.PyTreeNode):
    """Prompts of B studies, and their numbers: a study's samples depend on its number, the step and the run's key.

    Where the rewards of a study's group are all equal, the study of the same row in the next of `spares` takes its
    place.
    """

    prompts: PyTree  # leaves [B, ...]
    study: Int[Array, " B"]
    spares: tuple["StudyBatch", ...] = ()


class Judged(NamedTuple):
    """What the host says of a batch of groups, in their order."""

    rewards: Float[np.ndarray, "B G"]
    weights: Scores  # of each group, of each rollout, of each token
    measured: dict[str, Float[np.ndarray, "B G"]]  # values to report the means of, over finite ones
    seconds: dict[str, float]
    found: Bool[np.ndarray, "B G 14 3"] | None = None  # findings: in report and reference, in the one, in the other


# judge(studies, groups of rollouts, updates done) -> Judged
Judge = Callable[[Int[np.ndarray, " B"], Sequence[Sequence[Rollout]], int], Judged]


def plan_studies(count: int, rows: int, steps: int, seed: int, spares: int = 0) -> Plan:
    """Batches of `rows` studies out of `count`, each as often as any other: one shuffled pass after another.

    A row has a study and then its spare ones.
    """
    own = rows * (1 + spares)
    passes = -(-own * steps // count)
    order = np.concatenate([np.random.default_rng([seed, one]).permutation(count) for one in range(passes)])
    batches = order[: own * steps].reshape(steps, 1 + spares, rows).swapaxes(1, 2).tolist()
    return Plan([GlobalBatch(1, batch, rows, 0) for batch in batches])


def read_groups(generated: Generated, tokenizer: Tokenizer) -> list[list[Rollout]]:
    """The sampled reports as texts (numpy leaves)."""
    return [
        [read_rollout(tokens[:length].tolist(), tokenizer) for tokens, length in zip(*group, strict=True)]
        for group in zip(generated.tokens, generated.lengths, strict=True)
    ]


def padded_weights(weights: Scores, length: int) -> Float[np.ndarray, "B G T"]:
    """Weights of all tokens as one array; 1 after the end."""
    padded = np.ones((len(weights), len(weights[0]), length), np.float32)
    for row, group in enumerate(weights):
        for index, own in enumerate(group):
            padded[row, index, : len(own)] = own
    return padded


def stacked(measured: Mapping[str, Float[np.ndarray, "B G"]]) -> Measured:
    """Values by name as one array; numpy, to be placed."""
    values: Any = np.stack([*measured.values()], axis=-1).astype(np.float32)
    return Measured(values, tuple(measured))


def make_rl_step(
    policy: Policy,
    objective: Objective,
    tx: optax.GradientTransformation,
    judge: Judge,
    tokenizer: Tokenizer,
    layout: DeviceLayout,
    *,
    group: int,
    updates: int = 1,
    accumulate: int = 1,
    reference: PyTree | None = None,
    ids: Sequence[str | int] | None = None,
    loss: RolloutLoss = ditpo_loss,
    table: Table | None = None,
) -> TrainStep:
    """`step(state, frozen, batch, rng)` over `StudyBatch`es: rollout, judgement, `updates` updates on it.

    A batch has spare studies where groups with equal rewards are to be drawn again.

    `loss` is that of rollouts. Drafts come from `table`, where the policy's settings have some. `reference` is the
    trainable tree before RL; it is needed where the objective has `kl`. `state.step` counts steps, not updates. Metrics
    whose name begins with "seconds/" tell where the time went. Raises UserError naming a study, by its entry in `ids`
    or by its number, whose reports were sampled from logits that are not finite.
    """

    def sample(
        trainable: PyTree, frozen: PyTree, batch: StudyBatch, at: tuple[Array, Array, Table | None]
    ) -> Generated:
        rng, step, table = at
        key = jax.random.fold_in(jax.random.fold_in(rng, step), 1)  # 0 is the update's
        keys = jax.vmap(jax.random.fold_in, in_axes=(None, 0))(key, batch.study)
        known = {} if table is None else {"drafts": Drafts(None, table)}
        return policy.sample(PolicyParams(trainable, frozen), batch.prompts, keys, group, **known)

    def score(trainable: PyTree, frozen: PyTree, batch: Rollouts, _: Array) -> Float[Array, "B G T"]:
        return policy.token_logprobs(PolicyParams(trainable, frozen), batch.prompts, batch.tokens, batch.mask)

    def correct(trainable: PyTree, frozen: PyTree, batch: Rollouts, at: Array) -> tuple[Array, Array]:
        logp = score(trainable, frozen, batch, at)
        return logp, importance(logp, batch.old_log_probs, objective.importance_cap)

    placed_table = None if table is None else device_put_tree(table, layout)
    run_sample, run_score, run_correct, run_take = (
        compile_rows(rows, layout) for rows in (sample, score, correct, _take_rows)
    )
    learnt = make_loss(policy, objective, loss)
    update = compile_step(lambda axis: make_train_step(learnt, tx, accumulate, axis), layout)
    count_once = jax.jit(lambda state: state.replace(step=state.step - (updates - 1)), donate_argnums=0)

    def draw(state: TrainState, frozen: PyTree, batch: StudyBatch, rng: Array, clock: _Clock) -> _Drawn:
        """Sample the groups of a batch, and judge them."""
        at = rng, state.step, placed_table
        studies = halved("--batch-size", batch.study.size, multiple=layout.row_shards)
        with slot_memory(studies, without_drafts(table is not None), halved("--rollout.group", group)):
            sampled = jax.block_until_ready(run_sample(state.trainable, frozen, batch, at))
        clock.stop("rollout")
        generated, studies = fetch_rows((sampled, batch.study), layout)
        check_rollouts(generated, studies if ids is None else [ids[study] for study in studies], int(state.step) + 1)
        groups = read_groups(generated, tokenizer)
        judged = judge(studies, groups, int(state.step))
        clock.stop("host", without=judged.seconds)
        return _Drawn(batch.prompts, generated, groups, judged)

    def fill(state: TrainState, frozen: PyTree, batch: StudyBatch, rng: Array, clock: _Clock) -> _Drawn:
        """Draw a batch, and in place of groups with equal rewards those of its spare studies."""
        drawn = draw(state, frozen, batch, rng, clock)
        refilled = np.zeros(len(drawn.groups), bool)
        for spare in batch.spares:
            equal = ~has_variance(drawn.judged.rewards)
            if not any_process(bool(equal.any())):
                break
            other = draw(state, frozen, spare, rng, clock)
            prompts = run_take({}, {}, (place_batch(equal, layout), other.prompts, drawn.prompts), state.step)
            drawn = _with_rows(equal, other, drawn, prompts)
            refilled |= equal
        if batch.spares:
            drawn.judged.measured["refilled"] = of_groups(refilled, drawn.judged.rewards.shape)
        return drawn

    def step(state: TrainState, frozen: PyTree, batch: StudyBatch, rng: Array):
        clock = _Clock()
        prompts, generated, groups, judged = fill(state, frozen, batch, rng, clock)
        mask = generated.mask & generated.stopped[..., None] if objective.mask_unfinished else generated.mask
        advantages = group_advantages(jnp.asarray(judged.rewards, jnp.float32), deviations=objective.form.deviations)
        host = {
            "tokens": generated.tokens,
            "mask": mask,
            "old_log_probs": generated.log_probs,
            "advantages": np.asarray(advantages),
            "token_weights": padded_weights(judged.weights, generated.tokens.shape[-1]),
            "measured": stacked(
                {
                    **judged.measured,
                    **rollout_measures(generated, groups),
                    **reward_measures(judged.rewards),
                    **weight_measures(judged.weights),
                }
            ),
        }
        rollouts = Rollouts(prompts=prompts, **place_batch(host, layout))
        if objective.kl:
            rollouts = rollouts.replace(reference_log_probs=run_score(reference, frozen, rollouts, state.step))
        if objective.importance_cap:
            logp, ratio = run_correct(state.trainable, frozen, rollouts, state.step)
            rollouts = rollouts.replace(old_log_probs=logp, importance=ratio)
        clock.stop("host")
        for _ in range(updates):
            state, metrics = update(state, frozen, rollouts, rng)
        if updates > 1:
            state = count_once(state)
        metrics = jax.device_get(metrics)
        clock.stop("update")
        spent = {SECONDS + name: np.float64(seconds) for name, seconds in clock.spent.items()}
        return state, {**metrics, **means_of_nothing(metrics), **spent}

    return step


class _Drawn(NamedTuple):
    """A batch with its groups, sampled and judged; `prompts` are placed, the rest is on the host."""

    prompts: PyTree
    generated: Generated
    groups: list[list[Rollout]]
    judged: Judged


def has_variance(rewards: Float[np.ndarray, "B G"]) -> Bool[np.ndarray, " B"]:
    """Whether a group has finite rewards that are not all equal."""
    known = np.isfinite(rewards)
    return np.where(known, rewards, -np.inf).max(-1) > np.where(known, rewards, np.inf).min(-1)


def any_process(here: bool) -> bool:
    """Whether it is so in any process."""
    if jax.process_count() == 1:
        return bool(here)
    from jax.experimental import multihost_utils

    return bool(multihost_utils.process_allgather(np.array(here)).any())


def _take_rows(_: PyTree, __: PyTree, rows: tuple[Array, PyTree, PyTree], ___: Array) -> PyTree:
    """Where `rows[0]` the rows of the second tree, else those of the third."""
    chosen, new, old = rows
    return jax.tree.map(lambda a, b: jnp.where(chosen.reshape(-1, *[1] * (a.ndim - 1)), a, b), new, old)


def _with_rows(chosen: Bool[np.ndarray, " B"], new: _Drawn, old: _Drawn, prompts: PyTree) -> _Drawn:
    """`old` with the chosen rows of `new`."""

    def of_arrays(new: PyTree, old: PyTree) -> PyTree:
        return jax.tree.map(lambda a, b: np.where(chosen.reshape(-1, *[1] * (a.ndim - 1)), a, b), new, old)

    def of_lists(new: list, old: list) -> list:
        return [a if taken else b for taken, a, b in zip(chosen, new, old, strict=True)]

    judged = Judged(
        of_arrays(new.judged.rewards, old.judged.rewards),
        of_lists(new.judged.weights, old.judged.weights),
        of_arrays(new.judged.measured, old.judged.measured),
        old.judged.seconds,
    )  # `found` is for validation
    return _Drawn(prompts, of_arrays(new.generated, old.generated), of_lists(new.groups, old.groups), judged)


def check_rollouts(generated: Generated, ids: Sequence[object], step: int) -> None:
    """Raise UserError naming the first of `ids` with a rollout that is not finite."""
    check_finite(
        np.asarray(generated.finite.all(-1)),
        ids,
        f"the policy's logits in step {step}",
        "lower the learning rate, or look for bad weights; the checkpoints are from before that",
    )


class _Clock:
    """Seconds by name, summed over stops."""

    def __init__(self) -> None:
        self.spent: dict[str, float] = {}
        self._last = time.perf_counter()

    def stop(self, name: str, without: Mapping[str, float] | None = None) -> None:
        """The time goes to `name`, but for the parts of it that have names of their own."""
        now, parts = time.perf_counter(), without or {}
        for part, seconds in {name: now - self._last - sum(parts.values()), **parts}.items():
            self.spent[part] = self.spent.get(part, 0.0) + seconds
        self._last = now
