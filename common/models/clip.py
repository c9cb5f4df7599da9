"""CLIP with a ResNet image side (arXiv:2103.00020) in Linen: ModifiedResNet and a causal text Transformer.

Both sides run in pieces (`stage`, `group`), so that adapters can stand between them. Images are NHWC. Module names
follow the published checkpoints; `common.models.clip_weights` holds the map. There is no BatchNorm: at inference it is
one scale and one bias per channel, and those are the parameters. Equal blocks are stacked on a leading axis.
"""

import dataclasses
import math
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from flax.traverse_util import path_aware_map
from jaxtyping import Array, Float, Int, UInt8

from common.errors import UserError
from common.models import cpu_ops
from common.models.attention import PAST_AXES, KeyValues, Past, attend, attend_cached, attend_to
from common.models.attention_choice import Shape, Use
from common.models.cpu_ops import on_cpu
from common.models.layers import Dense, random_params
from common.types import PyTree

# Of the RGB images in [0, 1] that CLIP was trained on: it is fed (image - mean) / std.
CLIP_MEAN = (0.48145466, 0.4578275, 0.40821073)
CLIP_STD = (0.26862954, 0.26130258, 0.27577711)
TEXT_GROUPS = 3
NO_PAST: Any = Past._make([None] * len(Past._fields))  # with the structure that `nn.scan` expects


@dataclasses.dataclass(frozen=True)
class ClipConfig:
    """Sizes of the published models (default: RN101), and how to compute. Raises UserError for impossible sizes."""

    image_size: int = 224
    vision_layers: tuple[int, int, int, int] = (3, 4, 23, 3)  # blocks in each stage
    vision_width: int = 64  # channels after the stem
    embed_dim: int = 512  # of the space that images and texts share
    context_length: int = 77
    vocab_size: int = 49_408
    text_width: int = 512
    text_heads: int = 8
    text_layers: int = 12
    dtype: str = "float32"  # of the computation
    param_dtype: str = "float32"  # of the stored weights

    def __post_init__(self):
        if self.text_layers % TEXT_GROUPS:
            raise UserError(f"text_layers is {self.text_layers}, expected a multiple of {TEXT_GROUPS}")
        if self.text_width % self.text_heads:
            raise UserError(f"text_width {self.text_width} is not a multiple of text_heads {self.text_heads}")
        if self.vision_width % 2 or self.image_size % 32:
            raise UserError(
                f"vision_width is {self.vision_width} and image_size {self.image_size}, expected multiples of 2 and 32"
            )

    @property
    def vision_features(self) -> int:
        """Channels after the last stage."""
        return self.vision_width * 32

    @property
    def vision_heads(self) -> int:
        """Heads of the attention pool: one for each 64 channels."""
        return self.vision_features // 64


RN101 = ClipConfig()


def convolve(
    x: Float[Array, "B H W I"], kernel: Float[Array, "size size I O"], stride: int = 1
) -> Float[Array, "B h w O"]:
    """A convolution of odd size, with zeros around the image."""
    if stride == 1 and on_cpu():
        return cpu_ops.convolve(x, kernel)
    margin = (kernel.shape[0] // 2, kernel.shape[0] // 2)
    return jax.lax.conv_general_dilated(
        x, kernel, (stride, stride), (margin, margin), dimension_numbers=("NHWC", "HWIO", "NHWC")
    )


class ScaledConv(nn.Module):
    """A square convolution, then one scale and one bias for each channel (a folded BatchNorm)."""

    config: ClipConfig
    features: int
    size: int = 1
    stride: int = 1

    @nn.compact
    def __call__(self, x: Float[Array, "B H W I"]) -> Float[Array, "B h w O"]:
        stored = self.config.param_dtype
        shape = (self.size, self.size, x.shape[-1], self.features)
        kernel = self.param("kernel", nn.initializers.he_normal(), shape, stored)
        scale = self.param("scale", nn.initializers.ones_init(), (self.features,), stored)
        bias = self.param("bias", nn.initializers.zeros_init(), (self.features,), stored)
        x = x @ kernel[0, 0].astype(x.dtype) if self.size == 1 else convolve(x, kernel.astype(x.dtype), self.stride)
        return x * scale.astype(x.dtype) + bias.astype(x.dtype)


class Bottleneck(nn.Module):
    """1x1, 3x3 and 1x1 convolutions with a residual; strides are average pools before a convolution (anti-aliasing)."""

    config: ClipConfig
    planes: int
    stride: int = 1
    project: bool = False  # whether the residual is convolved, to change its channels

    @nn.compact
    def __call__(self, x: Float[Array, "B H W I"]) -> tuple[Float[Array, "B h w O"], None]:
        config = self.config
        y = nn.relu(ScaledConv(config, self.planes, name="conv1")(x))
        y = nn.relu(ScaledConv(config, self.planes, 3, name="conv2")(y))
        y = ScaledConv(config, self.planes * 4, name="conv3")(halved(y) if self.stride == 2 else y)
        if self.project:
            x = ScaledConv(config, self.planes * 4, name="downsample")(halved(x) if self.stride == 2 else x)
        return nn.relu(x + y), None


class Stage(nn.Module):
    """The `first` block changes size and channels; the `rest` are equal and stacked, [blocks - 1, ...]."""

    config: ClipConfig
    planes: int
    blocks: int
    stride: int

    @nn.compact
    def __call__(self, x: Float[Array, "B H W I"]) -> Float[Array, "B h w O"]:
        x, _ = Bottleneck(self.config, self.planes, self.stride, project=True, name="first")(x)
        if self.blocks > 1:
            x, _ = stacked(Bottleneck, self.blocks - 1)(self.config, self.planes, name="rest")(x)
        return x


class AttentionPool(nn.Module):
    """Multi-head attention over the positions of the last feature map, in the two ways of `ModifiedResNet`."""

    config: ClipConfig

    def setup(self):
        config = self.config
        width, grid = config.vision_features, config.image_size // 32
        self.positional_embedding = self.param(
            "positional_embedding", nn.initializers.normal(width**-0.5), (grid**2 + 1, width), config.param_dtype
        )
        self.q_proj, self.k_proj, self.v_proj = (dense(config, width) for _ in range(3))
        self.c_proj = dense(config, config.embed_dim)

    def global_pool(self, x: Float[Array, "B H W C"]) -> Float[Array, "B embed"]:
        """See `ModifiedResNet.attention_pool`."""
        mean = x.mean((1, 2))[:, None] + self.positional_embedding[:1].astype(x.dtype)
        grid = self._positioned(x)
        return self._attend(mean, jnp.concatenate([mean, grid], axis=1))[:, 0]

    def dense_pool(self, x: Float[Array, "B H W C"]) -> Float[Array, "B H W embed"]:
        """See `ModifiedResNet.dense_pool`."""
        grid = self._positioned(x)
        return self._attend(grid, grid).reshape(*x.shape[:3], -1)

    def _positioned(self, x: Float[Array, "B H W C"]) -> Float[Array, "B HW C"]:
        """The positions of the map in a row, each with its embedding, which is resized where the grid differs."""
        batch, height, width, channels = x.shape
        trained = self.config.image_size // 32
        positions = self.positional_embedding[1:].astype(jnp.float32).reshape(trained, trained, channels)
        if (height, width) != (trained, trained):
            positions = jax.image.resize(positions, (height, width, channels), "cubic")
        return (x + positions.astype(x.dtype)).reshape(batch, height * width, channels)

    def _attend(self, queries: Float[Array, "B Q C"], keys: Float[Array, "B S C"]) -> Float[Array, "B Q embed"]:
        def heads(x):
            return x.reshape(*x.shape[:2], self.config.vision_heads, -1)

        q, k, v = heads(self.q_proj(queries)), heads(self.k_proj(keys)), heads(self.v_proj(keys))
        return self.c_proj(attend_to(q, k, v).reshape(*queries.shape))


class ModifiedResNet(nn.Module):
    """CLIP's ResNet: three convolutions as the stem, strides by average pools, attention instead of the last pool."""

    config: ClipConfig

    def setup(self):
        config = self.config
        width = config.vision_width
        self.conv1 = ScaledConv(config, width // 2, 3, stride=2)
        self.conv2 = ScaledConv(config, width // 2, 3)
        self.conv3 = ScaledConv(config, width, 3)
        self.layer1, self.layer2, self.layer3, self.layer4 = (
            Stage(config, width * 2**index, blocks, stride=1 if index == 0 else 2)
            for index, blocks in enumerate(config.vision_layers)
        )
        self.attnpool = AttentionPool(config)

    def stem(self, images: Float[Array, "B H W 3"]) -> Float[Array, "B H/4 W/4 width"]:
        """Images normalised with CLIP_MEAN and CLIP_STD to the input of stage 1."""
        x = images.astype(self.config.dtype)
        for conv in (self.conv1, self.conv2, self.conv3):
            x = nn.relu(conv(x))
        return halved(x)

    def stage(self, number: int, x: Float[Array, "B H W I"]) -> Float[Array, "B h w O"]:
        """Stage 1, 2, 3 or 4: 4, 8, 16, 32 times the width in channels; all but the first halve height and width."""
        return (self.layer1, self.layer2, self.layer3, self.layer4)[number - 1](x)

    def attention_pool(self, x: Float[Array, "B H W C"]) -> Float[Array, "B embed"]:
        """CLIP's image embedding: the mean over positions attends to itself and to all positions."""
        return self.attnpool.global_pool(x)

    def dense_pool(self, x: Float[Array, "B H W C"]) -> Float[Array, "B H W embed"]:
        """The attention pool used densely: every position attends to all positions, by the weights of the pool.

        Without the mean token, neither as query nor as key, and without its positional embedding. On a grid other than
        the trained one (image_size / 32) those of the grid are resized: bicubic, anti-aliased where it is smaller.
        """
        return self.attnpool.dense_pool(x)

    def __call__(self, images: Float[Array, "B H W 3"]) -> Float[Array, "B embed"]:
        """The image embedding, not normalised."""
        x = self.stem(images)
        for number in (1, 2, 3, 4):
            x = self.stage(number, x)
        return self.attention_pool(x)


class TextBlock(nn.Module):
    """One pre-norm layer of the text side: causal self-attention, then an MLP with QuickGELU.

    In the form `nn.scan` wants; also returns this layer's keys and values.
    """

    config: ClipConfig

    @nn.compact
    def __call__(
        self, x: Float[Array, "B T D"], segments: Int[Array, "B T"], past: Past
    ) -> tuple[Float[Array, "B T D"], KeyValues]:
        config = self.config
        width = config.text_width
        packed = dense(config, 3 * width, "in_proj")(layer_norm(config, "ln_1")(x))
        q, k, v = (part.reshape(*x.shape[:2], config.text_heads, -1) for part in jnp.split(packed, 3, axis=-1))
        whole = past.prompt is None
        attended = attend(q, k, v, segments, operation="clip") if whole else attend_cached(q, k, v, past)
        x = x + dense(config, width, "out_proj")(attended.reshape(x.shape))
        y = dense(config, 4 * width, "c_fc")(layer_norm(config, "ln_2")(x))
        return x + dense(config, width, "c_proj")(y * nn.sigmoid(1.702 * y)), KeyValues(k, v)


class TextTransformer(nn.Module):
    """CLIP's text side, its layers in three equal groups. A token sees itself and earlier ones only."""

    config: ClipConfig

    def setup(self):
        config = self.config
        width = config.text_width
        normal, stored = nn.initializers.normal, config.param_dtype
        self.token_embedding = self.param("token_embedding", normal(0.02), (config.vocab_size, width), stored)
        self.positional_embedding = self.param(
            "positional_embedding", normal(0.01), (config.context_length, width), stored
        )
        length = config.text_layers // TEXT_GROUPS
        self.blocks = [stacked(TextBlock, length, nn.broadcast, PAST_AXES)(config) for _ in range(TEXT_GROUPS)]
        self.ln_final = layer_norm(config)
        self.text_projection = self.param("text_projection", normal(width**-0.5), (width, config.embed_dim), stored)

    def embed(self, ids: Int[Array, "B T"]) -> Float[Array, "B T D"]:
        """Tokens at positions 0 to T - 1; T is at most `context_length`."""
        x = self.token_embedding[ids] + self.positional_embedding[: ids.shape[1]]
        return x.astype(self.config.dtype)

    def group(self, number: int, x: Float[Array, "B T D"]) -> Float[Array, "B T D"]:
        """The layers of group 0, 1 or 2."""
        return self.extend(number, x)[0]

    def extend(
        self,
        number: int,
        x: Float[Array, "B T D"],
        segments: Int[Array, "B T"] | None = None,
        past: Past | None = None,
    ) -> tuple[Float[Array, "B T D"], KeyValues]:
        """`group`, also on new tokens of cached texts (T continuations of each), with keys and values [L B T H dim]."""
        if segments is None:
            segments = jnp.ones(x.shape[:2], jnp.int32)
        return self.blocks[number](x, segments, past or NO_PAST)

    def finish(self, x: Float[Array, "B T D"]) -> Float[Array, "B T D"]:
        """The last LayerNorm."""
        return self.ln_final(x).astype(x.dtype)

    def pooled(self, x: Float[Array, "B T D"], end: Int[Array, " B"]) -> Float[Array, "B embed"]:
        """The text embedding: the finished feature at each text's end token, projected."""
        last = jnp.take_along_axis(x, end[:, None, None], axis=1)[:, 0]
        return last @ self.text_projection.astype(x.dtype)

    def __call__(self, ids: Int[Array, "B T"]) -> Float[Array, "B embed"]:
        """The text embedding, not normalised; the end token is the first of the largest id, as in OpenAI's code."""
        x = self.embed(ids)
        for number in range(TEXT_GROUPS):
            x = self.group(number, x)
        return self.pooled(self.finish(x), ids.argmax(-1))


class Clip(nn.Module):
    """Both sides. Similarities are exp(logit_scale) times the cosine of the embeddings."""

    config: ClipConfig

    def setup(self):
        self.visual = ModifiedResNet(self.config)
        self.text = TextTransformer(self.config)
        start = nn.initializers.constant(math.log(1 / 0.07))
        self.logit_scale = self.param("logit_scale", start, (), self.config.param_dtype)

    def __call__(
        self, images: Float[Array, "B H W 3"], ids: Int[Array, "N T"]
    ) -> tuple[Float[Array, "B embed"], Float[Array, "N embed"]]:
        """Embeddings of images and of texts, not normalised."""
        return self.visual(images), self.text(ids)


def attention_use(config: ClipConfig) -> Use:
    """Both sides among the towers of a run."""
    positions, length = (config.image_size // 32) ** 2 + 1, config.context_length
    text = Shape(length, length, config.text_width // config.text_heads, config.dtype)
    return Use("CLIP", "clip", [Shape(positions, positions, 64, config.dtype), text])


def normalise(images: UInt8[Array, "N H W *rgb"]) -> Float[Array, "N H W 3"]:
    """Images as CLIP takes them: (value / 255 - CLIP_MEAN) / CLIP_STD, where grey ones are alike in all channels."""
    values = jnp.asarray(images).astype(jnp.float32) / 255
    return ((values[..., None] if images.ndim == 3 else values) - jnp.array(CLIP_MEAN)) / jnp.array(CLIP_STD)


def dense(config: ClipConfig, features: int, name: str | None = None) -> Dense:
    """A dense layer with bias in the config's dtypes."""
    return Dense(features, use_bias=True, dtype=config.dtype, param_dtype=config.param_dtype, name=name)


def layer_norm(config: ClipConfig, name: str | None = None) -> nn.LayerNorm:
    """LayerNorm in float32, whatever the dtype of the computation; its result is float32 too."""
    return nn.LayerNorm(1e-5, jnp.float32, config.param_dtype, use_fast_variance=False, name=name)


def stacked(block: type[nn.Module], length: int, *in_axes: Any):
    """`block` repeated, its parameters stacked [length, ...]: compiled once, whatever the length."""
    axes: Any = {"params": 0, "intermediates": 0}
    return nn.scan(block, variable_axes=axes, split_rngs={"params": True}, in_axes=in_axes, length=length)


def halved(x: Float[Array, "B H W C"]) -> Float[Array, "B H/2 W/2 C"]:
    """2x2 average pool."""
    return nn.avg_pool(x, (2, 2), (2, 2))


def init_params(config: ClipConfig, key: Array) -> PyTree:
    """Random parameters, for tests, benchmarks and training from scratch (see `random_params`).

    A residual block adds a tenth of what it could (nothing in OpenAI's start), or each would double the variance of the
    features: there is no normalisation that takes it away.
    """
    images = jnp.zeros((1, config.image_size, config.image_size, 3))
    shapes = jax.eval_shape(Clip(config).init, key, images, jnp.zeros((1, 2), jnp.int32))["params"]
    logit_scale = jnp.full((), math.log(1 / 0.07), config.param_dtype)
    params = random_params(shapes, key)

    def started(path: tuple[Any, ...], leaf: Array) -> Array:
        adds = path[-2:] == ("conv3", "scale") and len(path) > 3  # not the stem's
        return 0.1 * leaf if adds else leaf

    params = path_aware_map(started, params)
    return {**params, "logit_scale": logit_scale}
