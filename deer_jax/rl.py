"""One step of reinforcement learning: sample a group for each study, judge on the host, update.

Sampling and updating are jitted programs over the same arrays. Between them stands one hop through the host, because
the labeler has another tokenizer: tokens become texts, texts get rewards and token weights. The step has the form that
`common.training.loop.train` takes, so logs, checkpoints and resuming are those of every other training.
"""

import time
from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple

import flax.struct
import jax
import jax.numpy as jnp
import numpy as np
import optax
from jaxtyping import Array, Float, Int

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
    Objective,
    Policy,
    PolicyParams,
    RolloutLoss,
    Rollouts,
    ditpo_loss,
    group_advantages,
    make_loss,
)
from deer_jax.token_weights import Rollout, Scores, read_rollout


class StudyBatch(flax.struct.PyTreeNode):
    """Prompts of B studies, and their numbers: a study's samples depend on its number, the step and the run's key."""

    prompts: PyTree  # leaves [B, ...]
    study: Int[Array, " B"]


class Judged(NamedTuple):
    """What the host says of a batch of groups, in their order."""

    rewards: Float[np.ndarray, "B G"]
    weights: Scores  # of each group, of each rollout, of each token
    measured: dict[str, Float[np.ndarray, "B G"]]  # values to report the means of
    seconds: dict[str, float]


# judge(studies, groups of rollouts, updates done) -> Judged
Judge = Callable[[Int[np.ndarray, " B"], Sequence[Sequence[Rollout]], int], Judged]


def plan_studies(count: int, rows: int, steps: int, seed: int) -> Plan:
    """Batches of `rows` studies out of `count`, each as often as any other: one shuffled pass after another."""
    passes = -(-rows * steps // count)
    order = np.concatenate([np.random.default_rng([seed, one]).permutation(count) for one in range(passes)])
    batches = order[: rows * steps].reshape(steps, rows).tolist()
    return Plan([GlobalBatch(1, [[study] for study in batch], rows, 0) for batch in batches])


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


def rollout_measures(generated: Generated, groups: Sequence[Sequence[Rollout]]) -> dict[str, np.ndarray]:
    """What is told of rollouts whatever the reward: length, and shares that were cut off, empty or no UTF-8."""

    def each(of: Callable[[Rollout], float]) -> Float[np.ndarray, "B G"]:
        return np.array([[of(rollout) for rollout in group] for group in groups], np.float32)

    return {
        "new_tokens": np.asarray(generated.lengths, np.float32),
        "unfinished": np.asarray(~generated.stopped, np.float32),
        "empty": each(lambda rollout: not rollout.text.strip()),
        "invalid_text": each(lambda rollout: "\N{REPLACEMENT CHARACTER}" in rollout.text),
    }


def reward_measures(rewards: Float[np.ndarray, "B G"]) -> dict[str, np.ndarray]:
    """Of finite rewards the mean and the deviation in the group, shares of groups without one, and what is not finite.

    The first three are DEER's Table 7.
    """
    known = np.isfinite(rewards)
    values = np.where(known, rewards, np.nan)
    empty = ~known.any(-1)
    values[empty] = 0
    deviation = np.nanstd(values, axis=-1)
    unique = np.array([len(np.unique(row[own])) for row, own in zip(rewards, known, strict=True)])
    return {
        "reward": np.where(known, rewards, 0) * (rewards.size / max(known.sum(), 1)),
        "reward_deviation": _by_group(deviation, rewards.shape),
        "zero_variance_groups": _by_group(unique < 2, rewards.shape),
        "unique_rewards": _by_group(unique, rewards.shape),
        "rewards_not_finite": (~known).astype(np.float32),
    }


def _by_group(values: np.ndarray, shape: tuple[int, ...]) -> Float[np.ndarray, "B G"]:
    return np.broadcast_to(values[:, None], shape).astype(np.float32)


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

    placed_table = None if table is None else device_put_tree(table, layout)
    run_sample, run_score = compile_rows(sample, layout), compile_rows(score, layout)
    learnt = make_loss(policy, objective, loss)
    update = compile_step(lambda axis: make_train_step(learnt, tx, accumulate, axis), layout)
    count_once = jax.jit(lambda state: state.replace(step=state.step - (updates - 1)), donate_argnums=0)

    def step(state: TrainState, frozen: PyTree, batch: StudyBatch, rng: Array):
        clock = _Clock()
        at = rng, state.step, placed_table
        studies = halved("--batch-size", batch.study.size, multiple=layout.row_shards)
        with slot_memory(studies, without_drafts(table is not None), halved("--rollout.group", group)):
            sampled = jax.block_until_ready(run_sample(state.trainable, frozen, batch, at))
        clock.stop("rollout")
        generated, studies = fetch_rows((sampled, batch.study), layout)
        check_rollouts(generated, studies if ids is None else [ids[study] for study in studies], int(state.step) + 1)
        groups = read_groups(generated, tokenizer)
        judged = judge(studies, groups, int(state.step))
        host = {
            "old_log_probs": generated.log_probs,
            "advantages": np.asarray(group_advantages(jnp.asarray(judged.rewards, jnp.float32))),
            "token_weights": padded_weights(judged.weights, generated.tokens.shape[-1]),
            "measured": {
                **judged.measured,
                **rollout_measures(generated, groups),
                **reward_measures(judged.rewards),
            },
        }
        placed = place_batch({"tokens": generated.tokens, "mask": generated.mask, **host}, layout)
        rollouts = Rollouts(prompts=batch.prompts, **placed)
        if objective.kl:
            rollouts = rollouts.replace(reference_log_probs=run_score(reference, frozen, rollouts, state.step))
        clock.stop("host", without=judged.seconds)
        for _ in range(updates):
            state, metrics = update(state, frozen, rollouts, rng)
        if updates > 1:
            state = count_once(state)
        jax.block_until_ready(metrics)
        clock.stop("update")
        spent = {SECONDS + name: np.float64(seconds) for name, seconds in clock.spent.items()}
        return state, {**metrics, **spent}

    return step


def check_rollouts(generated: Generated, ids: Sequence[object], step: int) -> None:
    """Raise UserError naming the first of `ids` with a rollout that is not finite."""
    check_finite(
        np.asarray(generated.finite.all(-1)),
        ids,
        f"the policy's logits in step {step}",
        "lower the learning rate, or look for bad weights; the checkpoints are from before that",
    )


class _Clock:
    """Seconds by name since the last stop."""

    def __init__(self) -> None:
        self.spent: dict[str, float] = {}
        self._last = time.perf_counter()

    def stop(self, name: str, without: Mapping[str, float] | None = None) -> None:
        """The time goes to `name`, but for the parts of it that have names of their own."""
        now, parts = time.perf_counter(), without or {}
        self.spent |= {name: now - self._last - sum(parts.values()), **parts}
        self._last = now
