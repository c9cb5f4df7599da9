"""Weights that overflow float16, and not float32, on rows with one token: for tests of results that are not finite."""

import jax

LOUD = 17  # the token whose hidden states are too large for float16


def overflowing(params, loud: int = LOUD, size: float = 6e4):
    """A Qwen2's parameters in which the token `loud`, and no other one, leads to numbers beyond float16.

    One channel of the hidden state belongs to that token; the first layer multiplies it by `size`, which float16 still
    holds.
    """
    channel = 3
    table = params["embed_tokens"].at[:, channel].set(0.0)
    table = table.at[loud].set(0.0).at[loud, channel].set(1.0)
    layers = jax.tree.map(lambda leaf: leaf, params["layers"])
    layers["self_attn"]["o_proj"]["kernel"] = layers["self_attn"]["o_proj"]["kernel"].at[..., channel].set(0.0)
    layers["mlp"]["down_proj"]["kernel"] = layers["mlp"]["down_proj"]["kernel"].at[..., channel].set(0.0)
    layers["mlp"]["gate_proj"]["kernel"] = layers["mlp"]["gate_proj"]["kernel"].at[:, channel].set(size)
    return {**params, "embed_tokens": table, "layers": layers}
