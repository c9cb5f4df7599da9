"""What shapes the compiled program of a generation."""

import dataclasses

import jax.numpy as jnp
from jaxtyping import Array, Bool, Int

from common.generation.sampling import GREEDY, Sampling


@dataclasses.dataclass(frozen=True)
class DecodeSettings:
    """Up to T = max_new_tokens tokens after each prompt, G = group times."""

    max_new_tokens: int = 256
    sampling: Sampling = GREEDY
    beams: int = 1  # more than 1: beam search, which ignores `sampling`
    length_penalty: float = 1.0  # of the beam search
    group: int = 1  # samples of each prompt
    stop_ids: tuple[int, ...] = ()
    forbidden_ids: tuple[int, ...] = ()
    drafts: int = 0  # most tokens proposed and verified in one pass (`common.generation.drafts`)

    def forbidden(self, vocabulary: int) -> Bool[Array, " V"] | None:
        """True on the ids that are never emitted; None where all may be."""
        if not self.forbidden_ids:
            return None
        return jnp.zeros(vocabulary, bool).at[jnp.array(self.forbidden_ids)].set(True)

    def is_stop(self, tokens: Int[Array, "..."]) -> Bool[Array, "..."]:
        """Whether each token ends its continuation."""
        return jnp.isin(tokens, jnp.array(self.stop_ids, jnp.int32))
