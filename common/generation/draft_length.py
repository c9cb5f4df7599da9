"""How many drafts a pass verifies: as many as pay, by what has stood so far.

A pass over n tokens takes as long as reading the parameters once and doing the arithmetic of n tokens. Where that
arithmetic is free, long drafts pay even if few of them stand; where it is not, only those that do.
"""

import flax.struct
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from common.models.cpu_ops import on_cpu

# Tokens whose arithmetic takes as long as reading the parameters, in bfloat16: FLOP/s over bytes/s is 295 on an H100,
# 240 on a TPU v5e, 153 on an A100. On two cores it was measured, in float32 with 4 million parameters.
BALANCE, CPU_BALANCE = 240.0, 18.0
MEMORY = 0.9  # weight of a pass relative to the next one
PRIOR_STOOD, PRIOR_TRIED = 1.8, 2.0  # count as seen, so that drafts are tried first, and again after a while


class Trials(flax.struct.PyTreeNode):
    """Drafts of each continuation that were compared with the model's choice in its last passes."""

    stood: Float[Array, "B G"]
    tried: Float[Array, "B G"]


def no_trials(rows: int, group: int) -> Trials:
    """Before the first pass."""
    return Trials(jnp.zeros((rows, group)), jnp.zeros((rows, group)))


def add_trials(trials: Trials, stood: Int[Array, "B G"], drafts: int) -> Trials:
    """After a pass with some drafts, of which the first `stood` did: the next one failed, those behind say nothing."""
    tried = jnp.minimum(stood + 1, drafts)
    return Trials(MEMORY * trials.stood + jnp.minimum(stood, drafts), MEMORY * trials.tried + tried)


def draft_lengths(most: int) -> tuple[int, ...]:
    """The numbers of drafts that passes are compiled for."""
    return tuple(sorted({most, most // 2, 0}))


def best_draft_length(trials: Trials, active: Bool[Array, "B G"], lengths: tuple[int, ...]) -> Int[Array, ""]:
    """The index of the length by which the active continuations gain the most tokens in a unit of time.

    Each draft of a continuation stands with the same probability if those before it do: its own share, drawn towards
    that of all. All rows take part in a pass, active or not.
    """
    of_all = (trials.stood.sum() + PRIOR_STOOD) / (trials.tried.sum() + PRIOR_TRIED)
    chance = (trials.stood + PRIOR_TRIED * of_all) / (trials.tried + PRIOR_TRIED)
    balance = CPU_BALANCE if on_cpu() else BALANCE
    rates = []
    for length in lengths:
        tokens = (chance[..., None] ** jnp.arange(length + 1)).sum(axis=-1)
        cost = 1 + active.size * (length + 1) / balance
        rates.append(jnp.where(active, tokens, 0).sum() / cost)
    return jnp.argmax(jnp.stack(rates))
