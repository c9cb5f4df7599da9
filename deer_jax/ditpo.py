"""DiTPO: group-relative policy optimisation with an advantage for each token (DEER Eq. 2 and 6).

The baseline is GRPO (arXiv:2402.03300): G reports are sampled for each study, a report's advantage is its reward
relative to its group, and the clipped objective of PPO is maximised. DiTPO multiplies the advantage of a report by a
weight for each of its tokens (`deer_jax.token_weights`); with all weights 1 this is GRPO.

Nothing here depends on a model: the policy is a pair of pure functions.
"""

import dataclasses
from collections.abc import Callable
from typing import Literal, NamedTuple, Protocol

import flax.struct
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int, Key

from common.bounds import NotNegative
from common.generation.drafts import NO_DRAFTS, Drafts
from common.generation.loop import Generated
from common.training.step import LossFn
from common.types import LossSum, PyTree

Normalisation = Literal["sequence", "token", "constant"]


class PolicyParams(NamedTuple):
    """What a policy computes with: the tree that training changes, and the one that it does not."""

    trainable: PyTree
    frozen: PyTree


class Sample(Protocol):
    """G = `group` continuations of each prompt, and their log-probabilities; drafts change the time it takes alone."""

    def __call__(
        self, params: PolicyParams, prompts: PyTree, keys: Key[Array, " B"], group: int, drafts: Drafts = NO_DRAFTS
    ) -> Generated: ...


class TokenLogProbs(Protocol):
    """Log-probabilities of given continuations, under the distribution that `Sample` draws from; 0 off the mask."""

    def __call__(
        self, params: PolicyParams, prompts: PyTree, tokens: Int[Array, "B G T"], mask: Bool[Array, "B G T"]
    ) -> Float[Array, "B G T"]: ...


class Policy(NamedTuple):
    """Any model that can be sampled and scored. `prompts` is any tree of leaves [B, ...]."""

    sample: Sample
    token_logprobs: TokenLogProbs


@dataclasses.dataclass(frozen=True)
class Objective:
    """The clipped objective."""

    clip_low: NotNegative = 0.2  # probability ratios below 1 - clip_low gain nothing more
    clip_high: NotNegative = 0.2  # and above 1 + clip_high
    kl: NotNegative = 0.0  # weight of the divergence from the policy before RL; 0: none, and no reference is scored
    normalisation: Normalisation = "sequence"  # mean of each report, then of all; all tokens alike; all possible tokens
    drop_equal_groups: bool = False  # groups whose rewards are all equal do not count in the denominator
    kl_bias_correction: bool = False  # the divergence times the probability ratio, as TRL does by default


class Rollouts(flax.struct.PyTreeNode):
    """What one update learns from. Tokens after the end are masked."""

    prompts: PyTree  # leaves [B, ...]
    tokens: Int[Array, "B G T"]
    mask: Bool[Array, "B G T"]
    old_log_probs: Float[Array, "B G T"]  # of the policy that sampled
    advantages: Float[Array, "B G"]
    token_weights: Float[Array, "B G T"]
    reference_log_probs: Float[Array, "B G T"] | None = None  # of the policy before RL, where the objective has `kl`
    measured: dict[str, Float[Array, "B G"]] = flax.struct.field(default_factory=dict)  # means are reported

    @property
    def real_tokens(self) -> Int[Array, ""]:
        """Sampled tokens."""
        return self.mask.sum()


def group_advantages(rewards: Float[Array, "B G"], epsilon: float = 1e-6) -> Float[Array, "B G"]:
    """Reward of each rollout relative to its group, in standard deviations of the group (Eq. 2).

    A group whose rewards are all equal gets exactly 0: its mean can differ from its members by rounding, and that
    difference divided by epsilon would be a signal made of noise. A rollout whose reward is not finite is no member
    of its group, and gets 0.
    """
    known = jnp.isfinite(rewards)
    count = jnp.maximum(known.sum(-1, keepdims=True), 1)
    values = jnp.where(known, rewards, 0)
    centred = jnp.where(known, values - values.sum(-1, keepdims=True) / count, 0)
    deviation = jnp.sqrt((centred**2).sum(-1, keepdims=True) / count)
    highest = jnp.where(known, rewards, -jnp.inf).max(-1, keepdims=True)
    lowest = jnp.where(known, rewards, jnp.inf).min(-1, keepdims=True)
    return jnp.where(highest <= lowest, 0.0, centred / (deviation + epsilon))


def policy_loss(
    logp: Float[Array, "B G T"],
    old_logp: Float[Array, "B G T"],
    advantages: Float[Array, "B G"],
    token_weights: Float[Array, "B G T"],
    objective: Objective,
) -> Float[Array, "B G T"]:
    """Loss of each token: the clipped objective with token-level advantages A_i * w_i^t (Eq. 6), negated."""
    ratio = jnp.exp(logp - old_logp)
    gain = advantages[..., None] * token_weights
    clipped = jnp.clip(ratio, 1 - objective.clip_low, 1 + objective.clip_high)
    return -jnp.minimum(ratio * gain, clipped * gain)


def divergence(logp: Float[Array, "..."], reference_logp: Float[Array, "..."]) -> Float[Array, "..."]:
    """Unbiased, non-negative estimate of KL(policy || reference) from sampled tokens (arXiv:2402.03300, Eq. 4).

    Its value is unbiased on samples of the policy itself; its gradient is not that of the divergence. Times the
    probability ratio of policy and sampling policy, both are (arXiv:2512.02556): `Objective.kl_bias_correction`.
    """
    gap = reference_logp - logp
    return jnp.exp(gap) - gap - 1


def summed(
    token_loss: Float[Array, "B G T"],
    mask: Bool[Array, "B G T"],
    counted: Bool[Array, "B G"],
    normalisation: Normalisation,
) -> LossSum:
    """The loss of tokens as a sum and what to divide it by.

    `sequence`: each report's mean, then the mean over reports (GRPO). `token`: the mean over all tokens of the batch
    (DAPO, arXiv:2503.14476). `constant`: over reports times T, so that a report's length changes nothing
    (arXiv:2503.20783). Reports that are not `counted` add nothing to either.
    """
    mask = mask & counted[..., None]
    lengths = mask.sum(-1)
    of_report = jnp.where(mask, token_loss, 0).sum(-1)
    if normalisation == "sequence":
        return LossSum((of_report / jnp.maximum(lengths, 1)).sum(), counted.sum().astype(jnp.float32))
    if normalisation == "token":
        return LossSum(of_report.sum(), lengths.sum().astype(jnp.float32))
    return LossSum(of_report.sum(), (counted.sum() * mask.shape[-1]).astype(jnp.float32))


def ditpo_loss(
    logp: Float[Array, "B G T"], rollouts: Rollouts, objective: Objective
) -> tuple[LossSum, dict[str, LossSum]]:
    """The loss of rollouts whose tokens have the log-probabilities `logp` now, and sums to report by name.

    `clipped` is the share of tokens whose gradient the clipping takes away, `log_prob_gap` the mean distance between
    log-probabilities now and when sampled.
    """
    loss = policy_loss(logp, rollouts.old_log_probs, rollouts.advantages, rollouts.token_weights, objective)
    counted = jnp.ones(rollouts.advantages.shape, bool)
    if objective.drop_equal_groups:
        counted &= (rollouts.advantages != 0).any(-1, keepdims=True)
    mask = rollouts.mask
    tokens = mask.sum().astype(jnp.float32)

    def mean(values: Array) -> LossSum:
        return LossSum(jnp.where(mask, values, 0).sum(), tokens)

    ratio, gain = jnp.exp(logp - rollouts.old_log_probs), rollouts.advantages[..., None] * rollouts.token_weights
    beyond = ((ratio > 1 + objective.clip_high) & (gain > 0)) | ((ratio < 1 - objective.clip_low) & (gain < 0))
    aux = {"clipped": mean(beyond), "log_prob_gap": mean(jnp.abs(logp - rollouts.old_log_probs))}
    if rollouts.reference_log_probs is not None:
        apart = divergence(logp, rollouts.reference_log_probs)
        if objective.kl_bias_correction:
            apart *= ratio
        loss += objective.kl * apart
        aux["kl"] = mean(apart)
    return summed(loss, mask, counted, objective.normalisation), aux


# loss(logp, rollouts, objective) -> the sum to differentiate, and further sums to report by name
RolloutLoss = Callable[[Float[Array, "B G T"], Rollouts, Objective], tuple[LossSum, dict[str, LossSum]]]


def make_loss(policy: Policy, objective: Objective, loss: RolloutLoss = ditpo_loss) -> LossFn:
    """The loss of a policy, in the form that `common.training.step.make_train_step` takes; batches are `Rollouts`."""

    def loss_fn(trainable: PyTree, frozen: PyTree, batch: Rollouts, rng: Array) -> tuple[LossSum, dict[str, LossSum]]:
        params = PolicyParams(trainable, frozen)
        logp = policy.token_logprobs(params, batch.prompts, batch.tokens, batch.mask)
        total, aux = loss(logp, batch, objective)
        rows = jnp.float32(batch.advantages.size)
        return total, aux | {name: LossSum(values.sum(), rows) for name, values in batch.measured.items()}

    return loss_fn
