"""From three visual maps to the memory of the report decoder (UniCrossAdapter, Eq. 5 and 6).

The maps are brought to one grid and width, gated by the global text feature (Eq. 5), merged, given their coordinates
(Eq. 6), and read by a vision Transformer. Batch normalisation is a scale and a bias for each channel.
"""

import functools

import flax.linen as nn
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

from common.models.layers import Dense
from common.models.seq2seq import Attention, Encoder, drop, norm, sincos_positions_2d
from unicross_jax.adapters import RESAMPLINGS, Resample


class Fusion(nn.Module):
    """The three visual maps and the global text feature as one map on the middle grid."""

    features: int
    heads: int
    modulation: bool = True
    multi_scale: bool = True  # else only the last map

    @nn.compact
    def __call__(self, maps: tuple[Float[Array, "B _ _ _"], ...], text: Float[Array, "B E"]) -> Float[Array, "B h w D"]:
        text = Dense(self.features, use_bias=True, name="text")(text)[:, None]
        gated = []
        for scale, (visual, how) in enumerate(zip(maps, RESAMPLINGS, strict=True)):
            if not self.multi_scale and scale < len(maps) - 1:
                continue
            visual = Activated(name=f"affine{scale}")(Resample(self.features, how, name=f"project{scale}")(visual))
            if self.modulation:
                visual = self._modulate(visual, text, f"modulate{scale}")
            gated.append(visual)
        conv = functools.partial(nn.Conv, self.features, use_bias=False, padding="SAME")
        fused = Activated(name="merged")(conv(kernel_size=(1, 1), name="merge")(jnp.concatenate(gated, axis=-1)))
        fused = Activated(name="placed")(conv(kernel_size=(3, 3), name="place")(with_coordinates(fused)))
        return Activated(name="smoothed")(conv(kernel_size=(3, 3), name="smooth")(fused))

    def _modulate(self, visual: Array, text: Array, name: str) -> Array:
        """Eq. 5: visual tokens attend to one text token, so the softmax is 1 and the result gates the channels."""
        attention = Attention(self.features, self.heads, name=name)
        tokens = visual.reshape(visual.shape[0], -1, visual.shape[-1])
        return visual * attention.attend_single_token(tokens, attention.keys_values(text))[:, None]


class Activated(nn.Module):
    """ReLU of a scale and a bias for each channel."""

    @nn.compact
    def __call__(self, x: Float[Array, "B h w D"]) -> Float[Array, "B h w D"]:
        scale = self.param("scale", nn.initializers.ones_init(), x.shape[-1:])
        return nn.relu(x * scale + self.param("bias", nn.initializers.zeros_init(), x.shape[-1:]))


class VisionTransformer(nn.Module):
    """The fused maps of all views as one memory sequence: a class token, then the views one after another."""

    layers: int
    heads: int
    dropout: float = 0.0

    @nn.compact
    def __call__(
        self, maps: Float[Array, "B V h w D"], view_mask: Bool[Array, "B V"]
    ) -> tuple[Float[Array, "B M D"], Bool[Array, "B M"]]:
        """The memory and which of its tokens exist; `view_mask` is false on views that a study lacks.

        Fixed positions are added before the first layer and, as in the authors' code, again after the last.
        """
        batch, views, height, width, features = maps.shape
        positions = jnp.asarray(sincos_positions_2d(features, height, width))
        x = Dense(features, use_bias=True, name="project")(maps.reshape(batch, views, -1, features)) + positions
        x = drop(self, norm(name="norm_in")(x), self.dropout).reshape(batch, -1, features)
        first = self.param("class_token", nn.initializers.normal(0.02), (features,))
        x = jnp.concatenate([jnp.broadcast_to(first, (batch, 1, features)), x], axis=1)
        mask = jnp.repeat(view_mask, height * width, axis=1)
        mask = jnp.concatenate([jnp.ones((batch, 1), bool), mask], axis=1)
        x = Encoder(self.layers, self.heads, self.dropout, name="encoder")(x, mask[:, None])
        again = jnp.concatenate([jnp.zeros((1, features)), jnp.tile(positions, (views, 1))])
        return norm(name="norm")(x + again), mask


def with_coordinates(x: Float[Array, "B h w D"]) -> Float[Array, "B h w D+2"]:
    """The map with the x and the y coordinate of each position, from -1 to 1, as two channels more (Eq. 6)."""
    batch, height, width, _ = x.shape
    across = jnp.broadcast_to(jnp.linspace(-1, 1, width)[None, None, :, None], (batch, height, width, 1))
    down = jnp.broadcast_to(jnp.linspace(-1, 1, height)[None, :, None, None], (batch, height, width, 1))
    return jnp.concatenate([x, across.astype(x.dtype), down.astype(x.dtype)], axis=-1)
