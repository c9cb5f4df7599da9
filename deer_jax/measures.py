"""What is told of rollouts besides the loss: values of each, whose means are logged."""

from collections.abc import Callable, Sequence

import numpy as np
from jaxtyping import Float

from common.generation.loop import Generated
from deer_jax.token_weights import Rollout, Scores


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
        "reward_deviation": of_groups(deviation, rewards.shape),
        "zero_variance_groups": of_groups(unique < 2, rewards.shape),
        "unique_rewards": of_groups(unique, rewards.shape),
        "rewards_not_finite": (~known).astype(np.float32),
    }


def weight_measures(weights: Scores) -> dict[str, np.ndarray]:
    """Of the token weights of each rollout the mean, the largest, and the share that the heaviest tenth has of them."""

    def each(of: Callable[[np.ndarray], float]) -> Float[np.ndarray, "B G"]:
        return np.array([[of(np.asarray(own, np.float64)) for own in group] for group in weights], np.float32)

    def heaviest_tenth(own: np.ndarray) -> float:
        return float(np.sort(own)[-max(len(own) // 10, 1) :].sum() / own.sum()) if own.sum() > 0 else 0.0

    return {
        "token_weight": each(lambda own: float(own.mean()) if len(own) else 1.0),
        "token_weight_largest": each(lambda own: float(own.max(initial=0.0))),
        "token_weight_heaviest_tenth": each(heaviest_tenth),
    }


def of_groups(values: np.ndarray, shape: tuple[int, ...]) -> Float[np.ndarray, "B G"]:
    """Values [B] as those of each rollout of a group."""
    return np.broadcast_to(values[:, None], shape).astype(np.float32)
