"""Advantages and the clipped objective, against the equations written out in loops."""

import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from common.training.step import summed_gradients
from deer_jax.ditpo import (
    ADVANTAGES,
    TOKEN_WEIGHTS,
    Policy,
    Rollouts,
    ditpo_loss,
    divergence,
    group_advantages,
    make_loss,
)
from deer_jax.objective import Objective
from deer_jax.rl import stacked

B, G, T = 3, 4, 6


def rollouts(seed: int = 0, **changes) -> tuple[jax.Array, Rollouts]:
    random = np.random.default_rng(seed)
    old = random.normal(-1, 0.5, (B, G, T)).astype(np.float32)
    lengths = random.integers(1, T + 1, (B, G))
    lengths[0, 0] = 0
    fields = {
        "prompts": {},
        "tokens": np.zeros((B, G, T), np.int32),
        "mask": np.arange(T) < lengths[..., None],
        "old_log_probs": old,
        "advantages": random.normal(size=(B, G)).astype(np.float32),
        "token_weights": (1 + random.random((B, G, T))).astype(np.float32),
    } | changes
    logp = old + random.normal(0, 0.3, old.shape).astype(np.float32)
    return jnp.asarray(logp), Rollouts(**fields)


def written_out(logp, batch: Rollouts, objective: Objective) -> float:
    total = weight = 0.0
    for b in range(B):
        if objective.drop_equal_groups and not any(batch.advantages[b]):
            continue
        for g in range(G):
            losses = []
            for t in range(T):
                if not batch.mask[b, g, t]:
                    continue
                ratio = math.exp(logp[b, g, t] - batch.old_log_probs[b, g, t])
                advantage = float(batch.advantages[b, g] * batch.token_weights[b, g, t])
                clipped = min(max(ratio, 1 - objective.clip_low), 1 + objective.clip_high)
                loss = -min(ratio * advantage, clipped * advantage)
                if batch.reference_log_probs is not None:
                    gap = float(batch.reference_log_probs[b, g, t] - logp[b, g, t])
                    loss += objective.kl * (math.exp(gap) - gap - 1)
                losses.append(loss)
            if objective.normalisation == "sequence":
                total, weight = total + sum(losses) / max(len(losses), 1), weight + 1
            elif objective.normalisation == "token":
                total, weight = total + sum(losses), weight + len(losses)
            else:
                total, weight = total + sum(losses), weight + T
    return total / weight


@pytest.mark.parametrize("normalisation", ["sequence", "token", "constant"])
@pytest.mark.parametrize("kl", [0.0, 0.1])
@pytest.mark.parametrize("drop", [False, True])
def test_the_loss_is_the_equation_written_out(normalisation, kl, drop):
    logp, batch = rollouts()
    batch = batch.replace(advantages=batch.advantages * np.array([[1], [0], [1]], np.float32))
    if kl:
        batch = batch.replace(reference_log_probs=np.asarray(logp) + 0.2)
    objective = Objective(0.2, 0.28, kl, normalisation, drop)
    loss, _ = ditpo_loss(logp, batch, objective)
    np.testing.assert_allclose(loss.total / loss.weight, written_out(logp, batch, objective), rtol=1e-5)


def test_weights_scale_the_gradient_of_their_token_alone():
    logp, batch = rollouts(token_weights=np.ones((B, G, T), np.float32))
    logp = jnp.asarray(batch.old_log_probs)  # nothing is clipped

    def gradient(weights):
        return jax.grad(lambda x: ditpo_loss(x, batch.replace(token_weights=weights), Objective())[0].total)(logp)

    plain = gradient(batch.token_weights)
    heavier = batch.token_weights.copy()
    heavier[1, 2, 0] = 3
    expected = np.array(plain)
    expected[1, 2, 0] *= 3
    np.testing.assert_allclose(gradient(heavier), expected, rtol=1e-6)


def test_advantages_are_deviations_from_the_group():
    rewards = np.random.default_rng(0).random((5, 8)).astype(np.float32)
    expected = (rewards - rewards.mean(1, keepdims=True)) / (rewards.std(1, keepdims=True) + 1e-6)
    np.testing.assert_allclose(group_advantages(jnp.asarray(rewards)), expected, rtol=2e-5, atol=1e-6)


def test_equal_rewards_give_no_signal_at_all():
    rewards = jnp.full((2, 7), 0.1, jnp.float32)  # whose mean is not 0.1 in float32
    assert not np.asarray(group_advantages(rewards)).any()


def test_a_reward_that_is_not_finite_leaves_its_group_as_if_it_were_not_there():
    rewards = np.array([[0.1, np.nan, 0.5, 0.9], [np.inf, np.nan, np.nan, 1.0]], np.float32)
    advantages = np.asarray(group_advantages(jnp.asarray(rewards)))
    alone = np.asarray(group_advantages(jnp.asarray(rewards[:1, [0, 2, 3]])))
    np.testing.assert_allclose(advantages[0, [0, 2, 3]], alone[0], rtol=1e-6)
    assert advantages[0, 1] == 0
    assert not advantages[1].any()


def test_the_divergence_is_never_negative_and_unbiased():
    logp, reference = jax.nn.log_softmax(jax.random.normal(jax.random.key(0), (2, 50)))
    estimates = divergence(logp, reference)
    assert (estimates >= 0).all()
    exact = (jnp.exp(logp) * (logp - reference)).sum()
    np.testing.assert_allclose((jnp.exp(logp) * estimates).sum(), exact, rtol=1e-5)


def test_what_is_reported_leaves_out_padding():
    logp, batch = rollouts(measured=stacked({"reward": np.arange(B * G, dtype=np.float32).reshape(B, G)}))
    far = jnp.where(batch.mask, logp, 50.0)
    policy = Policy(sample=None, token_logprobs=lambda *_: far)
    _, aux = make_loss(policy, Objective())({}, {}, batch, None)
    gap = np.abs(np.asarray(logp) - batch.old_log_probs)[batch.mask].mean()
    np.testing.assert_allclose(aux["log_prob_gap"].total / aux["log_prob_gap"].weight, gap, rtol=1e-5)
    np.testing.assert_allclose(aux["reward"].total / aux["reward"].weight, np.arange(B * G).mean())


@pytest.mark.parametrize("accumulate", [1, 3])
def test_advantages_and_weights_are_counted_as_numpys_histogram_does(accumulate):
    random = np.random.default_rng(1)
    advantages = random.normal(size=(B, G)).astype(np.float32)
    advantages[0] = [5, 0, -0.1, 2]  # the first report has no token; the others stand on a bound or in the middle
    weights = (1 + random.gamma(1, 2, (B, G, T)) * (random.random((B, G, T)) < 0.7)).astype(np.float32)
    weights[1, 2] = [-1, 0, 1, 1.01, 10, 100]
    logp, batch = rollouts(advantages=advantages, token_weights=weights)
    policy = Policy(sample=None, token_logprobs=lambda params, prompts, *_: logp[prompts["row"]] * params.trainable)
    batch = jax.tree.map(jnp.asarray, batch.replace(prompts={"row": np.arange(B)}))
    sums = jax.jit(
        lambda scale: summed_gradients(make_loss(policy, Objective()), scale, {}, batch, jax.random.key(0), accumulate)
    )(1.0)[1]
    learnt = np.asarray(batch.mask).any(-1)
    assert 0 < learnt.sum() < learnt.size
    for name, bounds, own in (
        ("advantage", ADVANTAGES, advantages[learnt]),
        ("token_weight", TOKEN_WEIGHTS, weights[np.asarray(batch.mask)]),
    ):
        found = [sums[f"{name}_below_{bound}"] for bound in bounds]
        assert {float(one.weight) for one in found} == {own.size}
        counts, _ = np.histogram(own, np.float32([-np.inf, *bounds, np.inf]))
        assert np.diff([0, *(int(one.total) for one in found), own.size]).tolist() == counts.tolist()
        assert (counts > 0).sum() > 4


def test_a_mean_is_over_finite_values():
    values = np.arange(B * G, dtype=np.float32).reshape(B, G)
    values[1] = np.nan
    logp, batch = rollouts(measured=stacked({"other": np.ones((B, G)), "reward/Edema": values}))
    policy = Policy(sample=None, token_logprobs=lambda *_: logp)
    _, aux = make_loss(policy, Objective())({}, {}, batch, None)
    assert aux["reward/Edema"].total == np.nansum(values)
    assert aux["reward/Edema"].weight == 2 * G
    assert aux["other"].total == aux["other"].weight == B * G
