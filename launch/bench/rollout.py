"""The part of `medreport bench rl` that is about sampling: groups that share the reading of their prompt, and the same
program on prompts that are repeated for each of their samples. No peer; the ratio is between our two forms.
"""

import functools
import time
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from common.generation.loop import Generated
from common.models.decoding import Prompts
from common.models.lora import init_lora
from common.models.qwen2 import init_params
from launch.bench.rl_policy import LORA, Shape, make_policy, random_prompts
from launch.bench.timing import Timed, in_turns, rates


def rollout_case(shape: Shape) -> dict[str, Any]:
    """Rates of both forms in samples, the bytes of each program besides its weights, and `ratio`, of the rates."""
    from deer_jax.ditpo import PolicyParams

    policy, tokens = make_policy(shape), random_prompts(shape)

    def sample(params: PolicyParams, prompts: Prompts, keys: jax.Array, group: int) -> Generated:
        return policy.sample(params, prompts, keys, group)

    base = jax.jit(functools.partial(init_params, shape.config()))(jax.random.key(0))
    params = PolicyParams(init_lora(base, LORA, jax.random.key(1), base), {"params": base})
    works: dict[str, Timed] = {}
    needed = {}
    for name, group in (("shared", shape.group), ("repeated", 1)):
        rows = jnp.asarray(np.repeat(tokens, shape.group // group, axis=0))
        given = params, Prompts(rows, jnp.ones(rows.shape, bool)), jax.random.split(jax.random.key(2), len(rows))
        program = jax.jit(sample, static_argnames="group").lower(*given, group=group).compile()
        works[name] = functools.partial(_timed, functools.partial(program, *given))
        memory: Any = program.memory_analysis()
        needed[name] = memory.temp_size_in_bytes + memory.output_size_in_bytes
    in_turns(works, 1)
    seconds = in_turns(works, shape.repetitions)
    case: dict[str, Any] = {
        name: {**rates(seconds[name], shape.prompts * shape.group, "samples"), "bytes": needed[name]} for name in works
    }
    return case | {"ratio": case["shared"]["samples_per_second"] / case["repeated"]["samples_per_second"]}


def _timed(work: Any) -> float:
    started = time.perf_counter()
    jax.block_until_ready(work())
    return time.perf_counter() - started
