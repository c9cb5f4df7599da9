"""Model FLOPs of a step of reinforcement learning: prefill and decoding of a rollout, and the updates on it."""

import functools
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp

from common.training.loop import Flops
from common.training.traced_flops import Runs, shapes_of, traced_flops, update_flops
from common.types import PyTree
from deer_jax.config import RlConfig
from deer_jax.ditpo import Policy, PolicyParams
from deer_jax.rl import StudyBatch


def step_flops(
    policy: Policy, config: RlConfig, trainable: PyTree, frozen: PyTree, true_share: float | None = None
) -> Flops:
    """What a step costs by its traced programs. New tokens count as far as they are written, padding of prompts counts.

    The update differentiates the log-probabilities of a group; with `objective.kl` the reference scores it, too.
    `true_share` is how often a `cond` of the policy is true.
    """
    trees = shapes_of(trainable), shapes_of(frozen)  # the arrays themselves belong to the training
    group, length = config.rollout.group, config.rollout.max_new_tokens

    @functools.cache
    def of_shapes(structure: Any, shapes: tuple[jax.ShapeDtypeStruct, ...]) -> tuple[float, float, float]:
        """FLOPs of reading the prompts, of one new token in all rows, and of what is done with a rollout."""
        batch: StudyBatch = jax.tree.unflatten(structure, shapes)
        rows = batch.study.shape[0]

        def sample(trainable: PyTree, frozen: PyTree, prompts: PyTree) -> PyTree:
            keys = jax.random.split(jax.random.key(0), rows)
            return policy.sample(PolicyParams(trainable, frozen), prompts, keys, group)

        def score(trainable: PyTree, frozen: PyTree, prompts: PyTree) -> jax.Array:
            tokens, mask = jnp.zeros((rows, group, length), jnp.int32), jnp.ones((rows, group, length), bool)
            return policy.token_logprobs(PolicyParams(trainable, frozen), prompts, tokens, mask).sum()

        arguments = *trees, batch.prompts
        one, two = (traced_flops(sample, *arguments, runs=Runs(rounds, true_share)) for rounds in (1, 2))
        runs = Runs(-(-group * length // config.model.loss_chunk), true_share)
        update = config.updates * update_flops(score, *arguments, runs=runs)
        reference = traced_flops(score, *arguments, runs=runs) if config.objective.kl else 0.0
        return 2 * one - two, two - one, update + reference

    def flops(batch: StudyBatch, metrics: Mapping[str, float]) -> float:
        leaves, structure = jax.tree.flatten(batch)
        reading, token, learning = of_shapes(structure, tuple(shapes_of(leaves)))
        return reading + token * metrics["new_tokens"] + learning

    return flops
