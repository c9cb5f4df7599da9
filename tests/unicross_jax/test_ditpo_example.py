"""The documented example: DiTPO on UniCrossAdapter's decoder, as a policy of another make."""

import functools

import jax
import numpy as np
import pytest

from deer_jax.ditpo import PolicyParams
from tests.examples import load_example
from unicross_jax.config import EMBEDDED_RUN


@pytest.fixture(scope="module")
def example():
    module = load_example("ditpo_on_unicross")
    module.load = functools.cache(module.load)  # the model is read once for both tests
    return module


@pytest.fixture(scope="module")
def material(example):
    return example.load(EMBEDDED_RUN, 4, 2)


def test_what_is_scored_is_what_was_sampled(example, material):
    policy = example.unicross_policy(material.config, material.settings, material.tokenizer.bos_id)
    params = PolicyParams(material.trainable, material.frozen)
    prompts = material.prompts["train"]
    keys = jax.random.split(jax.random.key(0), 4)
    sampled = jax.jit(policy.sample, static_argnums=3)(params, prompts, keys, 4)
    logp = jax.jit(policy.token_logprobs)(params, prompts, sampled.tokens, sampled.mask)
    np.testing.assert_allclose(logp, sampled.log_probs, atol=1e-4)  # log-probabilities down to -10


def test_the_example_trains(example, tmp_path, capsys):
    options = ["--studies", "4", "--test-studies", "2", "--steps", "2", "--rows", "2", "--fraction", "0.5"]
    example.main(["--output", str(tmp_path / "result.json"), *options])
    assert "promptmrg/F1" in capsys.readouterr().out
