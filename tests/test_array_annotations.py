"""The shapes that functions declare are checked while tests run."""

import jax.numpy as jnp
import jaxtyping
import pytest

from common.training.losses import answer_loss


def test_a_wrong_shape_is_an_error():
    answer_loss(jnp.zeros((2, 3)), jnp.zeros((2, 3)))
    with pytest.raises(jaxtyping.TypeCheckError, match="parameter 'weights'"):
        answer_loss(jnp.zeros((2, 3)), jnp.zeros((2, 4)))
