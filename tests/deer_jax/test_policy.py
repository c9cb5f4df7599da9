"""A group that shares its prompt is sampled and scored as if each rollout had its own copy of it."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from common.generation.generate import make_scorer
from common.generation.sampling import Sampling
from common.generation.settings import DecodeSettings
from common.models.decoding import Prompts
from deer_jax.ditpo import PolicyParams
from deer_jax.policy import text_policy
from tests import tiny

G, T, P = 3, 7, 6
SETTINGS = DecodeSettings(
    max_new_tokens=T, sampling=Sampling(temperature=0.7), stop_ids=tuple(range(10, 30)), forbidden_ids=(5, 6, 60)
)
POLICY = text_policy(tiny.CONFIG, SETTINGS, tiny.LORA, chunk=8)


def prompts(rows: int = 4) -> Prompts:
    random = np.random.default_rng(0)
    mask = np.arange(P) >= random.integers(0, P - 1, rows)[:, None]
    return Prompts(jnp.asarray(random.integers(7, 90, (rows, P)) * mask, jnp.int32), jnp.asarray(mask))


@pytest.fixture(scope="module")
def params() -> PolicyParams:
    base = tiny.params()
    base["embed_tokens"] = base["embed_tokens"] * 20  # distributions that are far from flat
    return PolicyParams(tiny.lora(base), {"params": base})


@pytest.fixture(scope="module")
def sampled(params):
    keys = jax.random.split(jax.random.key(3), 4)
    return jax.jit(POLICY.sample, static_argnums=3)(params, prompts(), keys, G)


def repeated(tree):
    return jax.tree.map(lambda leaf: jnp.repeat(leaf, G, axis=0), tree)


def test_what_is_scored_is_what_was_sampled(params, sampled):
    logp = jax.jit(POLICY.token_logprobs)(params, prompts(), sampled.tokens, sampled.mask)
    assert (sampled.lengths < T).any()
    assert (sampled.lengths == T).any()
    np.testing.assert_allclose(logp, sampled.log_probs, atol=2e-5)


def test_forbidden_tokens_are_never_sampled(sampled):
    assert not np.isin(np.asarray(sampled.tokens)[np.asarray(sampled.mask)], SETTINGS.forbidden_ids).any()


def test_scores_are_those_of_rollouts_with_prompts_of_their_own(params, sampled):
    config = dataclasses.replace(SETTINGS, forbidden_ids=())
    policy = text_policy(tiny.CONFIG, config, tiny.LORA, chunk=8)
    logp = policy.token_logprobs(params, prompts(), sampled.tokens, sampled.mask)
    flat = Prompts(sampled.tokens.reshape(-1, T), sampled.mask.reshape(-1, T))
    from common.models.lora import scaled

    base = params.frozen["params"]
    variables = {"params": base, "lora": scaled(params.trainable, tiny.LORA, base)}
    alone = make_scorer(tiny.CONFIG, temperature=0.7)(variables, repeated(prompts()), flat)
    np.testing.assert_allclose(logp.reshape(-1, T), alone, atol=2e-5)


@pytest.mark.parametrize("tuned", ["adapters", "whole model"])
def test_gradients_are_those_of_rollouts_with_prompts_of_their_own(params, sampled, tuned):
    if tuned == "whole model":
        params = PolicyParams(params.frozen["params"], {})
    weights = jax.random.normal(jax.random.key(1), sampled.tokens.shape)

    def total(trainable, rows, tokens, mask, weights):
        logp = POLICY.token_logprobs(params._replace(trainable=trainable), rows, tokens, mask)
        return (logp * weights).sum()

    gradient = jax.jit(jax.grad(total))
    together = gradient(params.trainable, prompts(), sampled.tokens, sampled.mask, weights)
    flat = [leaf.reshape(-1, 1, T) for leaf in (sampled.tokens, sampled.mask, weights)]
    apart = gradient(params.trainable, repeated(prompts()), *flat)
    for one, other in zip(jax.tree.leaves(together), jax.tree.leaves(apart), strict=True):
        scale = float(jnp.abs(other).max()) + 1e-6
        np.testing.assert_allclose(one / scale, other / scale, atol=2e-5)


def test_siblings_do_not_see_each_other(params, sampled):
    changed = sampled.tokens.at[:, 1].set(70)
    before = POLICY.token_logprobs(params, prompts(), sampled.tokens, sampled.mask)
    after = POLICY.token_logprobs(params, prompts(), changed, sampled.mask)
    np.testing.assert_array_equal(before[:, [0, 2]], after[:, [0, 2]])
    assert not np.array_equal(before[:, 1], after[:, 1])
