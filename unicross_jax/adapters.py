"""Adapters within and across modalities, between the frozen blocks of CLIP (UniCrossAdapter, Eq. 1-4).

Stage k takes the output of visual layer k + 1 and of the k-th third of the text blocks, brings both to 64 channels
(Eq. 1), lets each attend to itself (Eq. 2) and to the other (Eq. 3), and adds the result to them (Eq. 4).
"""

import dataclasses
from typing import Literal, NamedTuple

import flax.linen as nn
from jaxtyping import Array, Bool, Float

from common.models.attention import KeyValues, Past
from common.models.layers import Dense, matmul
from common.models.seq2seq import Attention, FeedForward, drop, norm

Resampling = Literal["halve", "keep", "double"]  # from a visual map to the grid of the adapters
RESAMPLINGS: tuple[Resampling, ...] = ("halve", "keep", "double")  # of the three stages
BACK: dict[Resampling, Resampling] = {"halve": "double", "keep": "keep", "double": "halve"}


@dataclasses.dataclass(frozen=True)
class AdapterConfig:
    """Sizes of the adapters, and what an ablation leaves out."""

    width: int = 64
    heads: int = 4
    hidden: int = 128  # of the feed-forward part
    dropout: float = 0.1
    within: bool = True  # self-attention within each modality (Eq. 2)
    across: bool = True  # cross-attention between them (Eq. 3)


class Coupled(NamedTuple):
    """What a stage makes of both modalities. The reduced features go to the next stage."""

    visual: Float[Array, "B h w C"]
    text: Float[Array, "B T W"]
    reduced_visual: Float[Array, "B N D"]
    reduced_text: Float[Array, "B T D"]
    attended_visual: Float[Array, "B N D"]  # after Eq. 2: what text attends to


class Resample(nn.Module):
    """A convolution of stride 2 without overlap, one of 1 x 1, or the transposed form of the former; no bias.

    As matrix products: XLA for CPUs has slow gradients of strided convolutions.
    """

    features: int
    how: Resampling

    @nn.compact
    def __call__(self, x: Float[Array, "B h w C"]) -> Float[Array, "B h2 w2 D"]:
        batch, height, width, channels = x.shape
        size = 1 if self.how == "keep" else 2
        shape = (size, size, channels, self.features)
        kernel = self.param("kernel", nn.initializers.he_normal(), shape)
        if self.how == "double":
            y = matmul(x, kernel.transpose(2, 0, 1, 3).reshape(channels, -1))
            y = y.reshape(batch, height, width, size, size, -1).transpose(0, 1, 3, 2, 4, 5)
            return y.reshape(batch, height * size, width * size, -1)
        x = x.reshape(batch, height // size, size, width // size, size, channels).transpose(0, 1, 3, 2, 4, 5)
        return matmul(x.reshape(*x.shape[:3], -1), kernel.reshape(-1, self.features))


class Modality(nn.Module):
    """One modality in a stage: self-attention, cross-attention, feed-forward, each added and normalised."""

    config: AdapterConfig

    def setup(self):
        config = self.config
        self.self_attention = Attention(config.width, config.heads)
        self.cross_attention = Attention(config.width, config.heads)
        self.feed_forward = FeedForward(config.hidden, config.dropout)
        self.norm1, self.norm2, self.norm3 = norm(), norm(), norm()

    def within(
        self, x: Float[Array, "B N D"], mask: Bool[Array, "#B #N N"] | None = None, past: Past | None = None
    ) -> tuple[Float[Array, "B N D"], KeyValues]:
        """Eq. 2, and the keys and values of `x`."""
        attended, own = self.self_attention.self_attention(x, mask, past)
        if not self.config.within:
            return x, own
        return self.norm1(x + drop(self, attended, self.config.dropout)), own

    def keys_values(self, other: Float[Array, "B M D"]) -> KeyValues:
        """The other modality, as `across` takes it."""
        return self.cross_attention.keys_values(other)

    def across(
        self, x: Float[Array, "B N D"], other: KeyValues, mask: Bool[Array, "B 1 M"] | None = None
    ) -> Float[Array, "B N D"]:
        """Eq. 3, and the feed-forward part."""
        if self.config.across:
            x = self.norm2(x + drop(self, self.cross_attention(x, other, mask), self.config.dropout))
        return self.norm3(x + drop(self, self.feed_forward(x), self.config.dropout))


class Stage(nn.Module):
    """One of the three adapter stages."""

    config: AdapterConfig
    channels: int  # of the visual map
    text_width: int
    resampling: Resampling

    def setup(self):
        config = self.config
        self.reduce_visual = Resample(config.width, self.resampling)
        self.recover_visual = Resample(self.channels, BACK[self.resampling])
        self.reduce_text = Dense(config.width, use_bias=True)
        self.recover_text = Dense(self.text_width, use_bias=True)
        self.residual_visual, self.residual_text = norm(), norm()
        self.visual, self.text = Modality(config), Modality(config)

    def couple(
        self,
        visual: Float[Array, "B h w C"],
        text: Float[Array, "B T W"],
        before: Coupled | None,
        text_mask: Bool[Array, "#B #T T"],
        text_keys: Bool[Array, "B 1 T"],
    ) -> Coupled:
        """Eq. 1-4. `text_mask`: where text attends within itself; `text_keys`: the tokens that images attend to."""
        grid = self.reduce_visual(visual)
        v = grid.reshape(grid.shape[0], -1, grid.shape[-1])
        v = v if before is None else self.residual_visual(v + before.reduced_visual)
        t = self.begin_text(text, None if before is None else before.reduced_text)
        v1, _ = self.visual.within(v)
        t1, _ = self.text.within(t, text_mask)
        v2 = self.visual.across(v1, self.visual.keys_values(t1), text_keys)
        return Coupled(
            visual + self.recover_visual(v2.reshape(grid.shape)),
            self.end_text(text, t1, self.text.keys_values(v1)),
            v,
            t,
            v1,
        )

    def begin_text(self, text: Float[Array, "B T W"], before: Float[Array, "B T D"] | None) -> Float[Array, "B T D"]:
        """Eq. 1 for text; `before` is the reduced text of the stage before."""
        reduced = self.reduce_text(text)
        return reduced if before is None else self.residual_text(reduced + before)

    def end_text(
        self,
        text: Float[Array, "B T W"],
        attended: Float[Array, "B T D"],
        visual: KeyValues,
        visual_mask: Bool[Array, "B 1 N"] | None = None,
    ) -> Float[Array, "B T W"]:
        """Eq. 3 and 4 for text."""
        return text + self.recover_text(self.text.across(attended, visual, visual_mask))

    def text_alone(
        self,
        text: Float[Array, "B T W"],
        before: Float[Array, "B T D"] | None,
        visual: KeyValues,
        visual_mask: Bool[Array, "B 1 N"] | None,
        text_mask: Bool[Array, "B T T"] | None,
        past: Past | None = None,
    ) -> tuple[Float[Array, "B T W"], Float[Array, "B T D"], KeyValues]:
        """The text side for images that are known: its features, its reduced features, its keys and values."""
        reduced = self.begin_text(text, before)
        attended, own = self.text.within(reduced, text_mask, past)
        return self.end_text(text, attended, visual, visual_mask), reduced, own

    def visual_keys_values(self, attended: Float[Array, "B N D"]) -> KeyValues:
        """What `text_alone` takes of the images."""
        return self.text.keys_values(attended)
