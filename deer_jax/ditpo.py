"""DiTPO: group-relative policy optimisation with an advantage for each token (DEER Eq. 2 and 6).

The baseline is GRPO (arXiv:2402.03300): G reports are sampled for each study, a report's advantage is its reward
relative to its group, and the clipped objective of PPO is maximised. DiTPO multiplies the advantage of a report by a
weight for each of its tokens (`deer_jax.token_weights`); with all weights 1 this is GRPO. Other objectives
(`deer_jax.objective`) take the same weights.

Nothing here depends on a model: the policy is a pair of pure functions.
"""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple, Protocol

import flax.struct
import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int, Key

from common.generation.drafts import NO_DRAFTS, Drafts
from common.generation.loop import Generated
from common.training.step import LossFn
from common.training.token_statistics import TokenLogprobs
from common.types import LossSum, PyTree
from deer_jax.objective import Normalisation, Objective

# Bounds below which shares are reported: of tokens by ratio and by weight, of reports by advantage
RATIOS = (0.8, 0.95, 1.05, 1.2)
TOKEN_WEIGHTS = (1, 1.01, 1.1, 1.25, 1.5, 2, 3, 5, 10)
ADVANTAGES = (-2, -1, -0.5, -0.25, -0.1, 0.1, 0.25, 0.5, 1, 2)


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


class TokenStatistics(Protocol):
    """`TokenLogProbs` with further statistics of the same distributions."""

    def __call__(
        self, params: PolicyParams, prompts: PyTree, tokens: Int[Array, "B G T"], mask: Bool[Array, "B G T"]
    ) -> TokenLogprobs: ...


class Policy(NamedTuple):
    """Any model that can be sampled and scored. `prompts` is any tree of leaves [B, ...]."""

    sample: Sample
    token_logprobs: TokenLogProbs
    token_statistics: TokenStatistics | None = None  # for objectives with entropy


class Measured(flax.struct.PyTreeNode):
    """What is known of each rollout besides, under M names; the means of finite values are reported."""

    values: Float[Array, "B G M"]  # one array: each is placed and summed over devices at a cost of its own
    names: tuple[str, ...] = flax.struct.field(pytree_node=False)


class Rollouts(flax.struct.PyTreeNode):
    """What one update learns from. Tokens after the end are masked."""

    prompts: PyTree  # leaves [B, ...]
    tokens: Int[Array, "B G T"]
    mask: Bool[Array, "B G T"]
    old_log_probs: Float[Array, "B G T"]  # of the policy that sampled; with `importance`, as training computes them
    advantages: Float[Array, "B G"]
    token_weights: Float[Array, "B G T"]
    reference_log_probs: Float[Array, "B G T"] | None = None  # of the policy before RL, where the objective has `kl`
    importance: Float[Array, "B G T"] | None = None  # what each token's loss is multiplied by (`importance`)
    measured: Measured | None = None

    @property
    def real_tokens(self) -> Int[Array, ""]:
        """Sampled tokens."""
        return self.mask.sum()


def group_advantages(
    rewards: Float[Array, "B G"], epsilon: float = 1e-6, deviations: bool = True
) -> Float[Array, "B G"]:
    """Reward of each rollout relative to its group, in standard deviations of the group (Eq. 2) or as it is.

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
    return jnp.where(highest <= lowest, 0.0, centred / (deviation + epsilon) if deviations else centred)


def probability_ratio(
    logp: Float[Array, "B G T"], old_logp: Float[Array, "B G T"], mask: Bool[Array, "B G T"], of_sequence: bool
) -> Float[Array, "B G T"]:
    """How much likelier each token is now, or `of_sequence` its report: the geometric mean over the report's tokens.

    The latter has the gradient of the token alone (GSPO-token, arXiv:2507.18071), so that tokens may have weights.
    Where these are 1 the gradient of a report's mean is GSPO's.
    """
    gap = logp - old_logp
    if not of_sequence:
        return jnp.exp(gap)
    mean = jnp.where(mask, gap, 0).sum(-1, keepdims=True) / jnp.maximum(mask.sum(-1, keepdims=True), 1)
    return jnp.exp(jax.lax.stop_gradient(mean) + logp - jax.lax.stop_gradient(logp))


def policy_loss(
    logp: Float[Array, "B G T"],
    old_logp: Float[Array, "B G T"],
    advantages: Float[Array, "B G"],
    token_weights: Float[Array, "B G T"],
    mask: Bool[Array, "B G T"],
    objective: Objective,
) -> Float[Array, "B G T"]:
    """Loss of each token: the clipped objective with token-level advantages A_i * w_i^t (Eq. 6), negated.

    CISPO clips the ratio as a weight of the log-probability's gradient (arXiv:2506.13585).
    """
    form = objective.form
    ratio = probability_ratio(logp, old_logp, mask, form.of_sequence)
    gain = advantages[..., None] * token_weights
    clipped = jnp.clip(ratio, 1 - form.clip_low, 1 + form.clip_high)
    if form.weight_clipped:
        return -jax.lax.stop_gradient(clipped) * gain * logp
    return -jnp.minimum(ratio * gain, clipped * gain)


def importance(logp: Float[Array, "B G T"], sampled_logp: Float[Array, "B G T"], cap: float) -> Float[Array, "B G T"]:
    """The probability of each token in training's forward pass over that in sampling, at most `cap`.

    The loss times this corrects for what both programs compute differently, in bfloat16 above all (truncated importance
    sampling, as TRL's `token_truncate`).
    """
    return jnp.minimum(jnp.exp(logp - sampled_logp), cap)


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
    logp: Float[Array, "B G T"],
    rollouts: Rollouts,
    objective: Objective,
    entropy: Float[Array, "B G T"] | None = None,
) -> tuple[LossSum, dict[str, LossSum]]:
    """The loss of rollouts whose tokens have the log-probabilities `logp` now, and sums to report by name.

    `entropy` is that of each token's distribution, where the objective has it. What is reported: `diagnostics`.
    """
    form, mask = objective.form, rollouts.mask
    aux = diagnostics(logp, rollouts, objective)
    loss = policy_loss(logp, rollouts.old_log_probs, rollouts.advantages, rollouts.token_weights, mask, objective)
    if rollouts.importance is not None:
        loss *= rollouts.importance
    if rollouts.reference_log_probs is not None:
        apart = divergence(logp, rollouts.reference_log_probs)
        if objective.kl_bias_correction:
            apart *= jnp.exp(logp - rollouts.old_log_probs)
        loss += objective.kl * apart
        aux["kl"] = mean_over(mask, apart)
    if entropy is not None:
        loss -= objective.entropy * entropy
        aux["entropy"] = mean_over(mask, entropy)
    counted = jnp.ones(rollouts.advantages.shape, bool)
    if objective.drop_equal_groups or form.refills:
        counted &= (rollouts.advantages != 0).any(-1, keepdims=True)
    return summed(loss, mask, counted, form.normalisation), aux


def mean_over(mask: Bool[Array, "..."], values: Array) -> LossSum:
    """The mean of the values on the mask."""
    return LossSum(jnp.where(mask, values, 0).sum(), mask.sum().astype(jnp.float32))


def diagnostics(logp: Float[Array, "B G T"], rollouts: Rollouts, objective: Objective) -> dict[str, LossSum]:
    """Means over tokens that tell how far the policy has moved from the one that sampled.

    `clipped_high` and `clipped_low` are the shares of tokens whose gradient the clipping takes away (of CISPO: whose
    weight is clipped) at either end, `clipped` their sum; `log_prob_gap` the mean distance of log-probabilities;
    `ratio_below_R` the share of tokens whose own ratio is below R; `entropy` that of the sampling policy as its samples
    estimate it, minus their mean log-probability.
    """
    form, mask = objective.form, rollouts.mask
    gap = logp - rollouts.old_log_probs
    ratio = probability_ratio(logp, rollouts.old_log_probs, mask, form.of_sequence)
    gain = rollouts.advantages[..., None] * rollouts.token_weights
    high = (ratio > 1 + form.clip_high) & (form.weight_clipped | (gain > 0))
    low = (ratio < 1 - form.clip_low) & (form.weight_clipped | (gain < 0))
    values: dict[str, Any] = {
        "clipped": high | low,
        "clipped_high": high,
        "clipped_low": low,
        "log_prob_gap": jnp.abs(gap),
        "entropy": -rollouts.old_log_probs,
        **{f"ratio_below_{bound}": jnp.exp(gap) < bound for bound in RATIOS},
    }
    if rollouts.importance is not None:
        values |= {
            "importance": rollouts.importance,
            "importance_capped": rollouts.importance >= objective.importance_cap,
        }
    return {name: mean_over(mask, own) for name, own in values.items()}


def distributions(rollouts: Rollouts) -> dict[str, LossSum]:
    """Histograms of the advantages of reports and of the weights of tokens, over those that are learnt from.

    `advantage_below_A` and `token_weight_below_W` are the shares below each bound, so that the difference of two is
    what lies between their bounds. The sums are whole numbers: they do not depend on how a batch is cut.
    """
    return {
        **shares_below("advantage", ADVANTAGES, rollouts.advantages, rollouts.mask.any(-1)),
        **shares_below("token_weight", TOKEN_WEIGHTS, rollouts.token_weights, rollouts.mask),
    }


def shares_below(
    name: str, bounds: Sequence[float], values: Float[Array, "..."], mask: Bool[Array, "..."]
) -> dict[str, LossSum]:
    """The shares of the values on the mask below each bound, by name; one sum over devices counts for all."""
    below = (values[..., None] < jnp.array(bounds, values.dtype)) & mask[..., None]
    counts, count = below.reshape(-1, len(bounds)).sum(0), mask.sum().astype(jnp.float32)
    return {f"{name}_below_{bound}": LossSum(counts[index], count) for index, bound in enumerate(bounds)}


def means_of_finite(measured: Measured) -> dict[str, LossSum]:
    """The mean of the finite values under each name."""
    known = jnp.isfinite(measured.values)
    totals = jnp.where(known, measured.values, 0).sum((0, 1))
    counts = known.sum((0, 1)).astype(jnp.float32)
    return {name: LossSum(totals[index], counts[index]) for index, name in enumerate(measured.names)}


# loss(logp, rollouts, objective) -> the sum to differentiate, and further sums to report by name; of an objective with
# entropy also `entropy`
RolloutLoss = Callable[..., tuple[LossSum, dict[str, LossSum]]]


def make_loss(policy: Policy, objective: Objective, loss: RolloutLoss = ditpo_loss) -> LossFn:
    """The loss of a policy, in the form that `common.training.step.make_train_step` takes; batches are `Rollouts`."""

    def loss_fn(trainable: PyTree, frozen: PyTree, batch: Rollouts, rng: Array) -> tuple[LossSum, dict[str, LossSum]]:
        params = PolicyParams(trainable, frozen)
        known: dict[str, Array] = {}
        if objective.entropy:
            if policy.token_statistics is None:
                raise ValueError("objective.entropy needs a policy with token_statistics")
            found = policy.token_statistics(params, batch.prompts, batch.tokens, batch.mask)
            logp, known["entropy"] = found.logp, found.entropy
        else:
            logp = policy.token_logprobs(params, batch.prompts, batch.tokens, batch.mask)
        total, aux = loss(logp, batch, objective, **known)
        measured = {} if batch.measured is None else means_of_finite(batch.measured)
        return total, aux | distributions(batch) | measured

    return loss_fn
