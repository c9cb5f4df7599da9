"""What is told of rollouts besides the loss: values of each, of which the mean over finite ones is logged."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
from jaxtyping import Bool, Float

from common.generation.loop import Generated
from deer_jax.token_weights import Rollout, Scores

REWARD_OF, STATED = "reward/", "stated/"  # before the names of findings


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
        "reward": np.where(known, rewards, np.nan).astype(np.float32),
        "reward_deviation": of_groups(deviation, rewards.shape),
        "zero_variance_groups": of_groups(unique < 2, rewards.shape),
        "unique_rewards": of_groups(unique, rewards.shape),
        "rewards_not_finite": (~known).astype(np.float32),
    }


def finding_measures(
    findings: Sequence[str], rewards: Float[np.ndarray, " N"], stated: Bool[np.ndarray, "N K"]
) -> dict[str, np.ndarray]:
    """Of each finding the rewards of reports whose reference states it, NaN for others, and which reports these are."""
    counted = stated & np.isfinite(rewards)[:, None]
    own = np.where(counted, rewards[:, None], np.nan)
    return {REWARD_OF + name: values for name, values in zip(findings, own.T, strict=True)} | {
        STATED + name: values for name, values in zip(findings, counted.T, strict=True)
    }


def means_of_nothing(metrics: Mapping[str, Any]) -> dict[str, np.ndarray]:
    """NaN for each mean of a step that is over no report or no token, which would pass for a 0."""
    names = [REWARD_OF + name.removeprefix(STATED) for name in metrics if name.startswith(STATED) and not metrics[name]]
    if not metrics["tokens"]:
        names += [name for name in metrics if "_below_" in name]
    return dict.fromkeys(names, np.array(np.nan))


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
