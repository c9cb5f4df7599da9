"""The vision tower of Qwen2.5-VL (arXiv:2502.13923, section 2.1) in Linen.

Blocks attend within windows of 8 x 8 patches, a few of them over the whole image; in the end 2 x 2 patches become one
token. Patches stand in the order of their windows (`common.models.qwen2_vl_layout`), each window padded to full size,
so that windows are rows of a batch whatever the image's size.
"""

import dataclasses
import math
from typing import Any

import flax.linen as nn
import flax.struct
import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int, UInt8

from common.errors import UserError
from common.models.attention import attend
from common.models.attention_choice import Implementation, Shape, choose
from common.models.clip import CLIP_MEAN, CLIP_STD
from common.models.layers import BATCH_AXES, Dense, RMSNorm, constrain, gelu, matmul, rotary_angles, rotate
from common.models.qwen2 import Remat, remat
from common.types import PyTree

RMS_NORM_EPS = 1e-6
ROPE_THETA = 1e4


@dataclasses.dataclass(frozen=True)
class VisionConfig:
    """Sizes of the published vision towers (default: 3B), and how to compute. Raises UserError for impossible sizes."""

    depth: int = 32
    hidden_size: int = 1280
    intermediate_size: int = 3420
    num_heads: int = 16
    out_hidden_size: int = 2048  # the width of the language model
    in_channels: int = 3
    patch_size: int = 14
    temporal_patch_size: int = 2  # frames in a patch; an image is the same frame twice
    spatial_merge_size: int = 2  # patches that become one token, along each side
    window_size: int = 112  # pixels
    fullatt_block_indexes: tuple[int, ...] = (7, 15, 23, 31)
    dtype: str = "float32"  # of the computation
    param_dtype: str = "float32"  # of the stored weights
    attention: Implementation = "auto"
    remat: Remat = "none"

    def __post_init__(self):
        if self.hidden_size % (4 * self.num_heads):
            raise UserError(
                f"vision hidden_size is {self.hidden_size}, expected a multiple of 4 x num_heads ({self.num_heads}): "
                "half of each head rotates with the row of a patch, half with its column"
            )
        if self.window_size % self.token_size:
            raise UserError(
                f"vision window_size is {self.window_size}, expected a multiple of {self.token_size} pixels"
            )

    @property
    def token_size(self) -> int:
        """Pixels along a side of the square that becomes one token."""
        return self.patch_size * self.spatial_merge_size

    @property
    def window_patches(self) -> int:
        """Patches in a whole window."""
        return (self.window_size // self.patch_size) ** 2

    @property
    def full_attention_share(self) -> float:
        """The share of blocks that attend over the whole image."""
        return len({*self.fullatt_block_indexes} & {*range(self.depth)}) / self.depth

    @property
    def patch_features(self) -> int:
        """Numbers in a patch."""
        return self.in_channels * self.temporal_patch_size * self.patch_size**2


class VisionLayout(flax.struct.PyTreeNode):
    """Where the patches of images of one size stand in the tower.

    There are W windows of C patches in a row, with `spatial_merge_size`^2 patches of a token side by side.
    """

    order: Int[Array, " W*C/4"]  # the token in each slot; any token in empty slots
    slots: Int[Array, " T"]  # the slot of each token, tokens in reading order
    positions: Int[Array, "W*C 2"]  # row and column of the patch in each slot
    mask: Bool[Array, " W*C"]  # true where there is a patch


class PatchEmbedding(nn.Module):
    """A convolution whose stride is its size, as one product."""

    config: VisionConfig

    @nn.compact
    def __call__(self, patches: Float[Array, "I N C"]) -> Float[Array, "I N D"]:
        config = self.config
        shape = (config.in_channels, config.temporal_patch_size, config.patch_size, config.patch_size)
        kernel = self.param(
            "kernel", nn.initializers.normal(0.02), (*shape, config.hidden_size), config.param_dtype
        ).reshape(-1, config.hidden_size)
        return matmul(patches.astype(config.dtype), kernel.astype(config.dtype))


class VisionAttention(nn.Module):
    """Self-attention over the image where `full`, else within each window."""

    config: VisionConfig

    @nn.compact
    def __call__(self, x, full, rotary, segments):
        config = self.config
        packed = dense(config, 3 * config.hidden_size, "qkv")(x)
        q, k, v = jnp.moveaxis(packed.reshape(*x.shape[:2], 3, config.num_heads, -1), 2, 0)
        q, k = rotate(q, *rotary), rotate(k, *rotary)

        def over_image(q, k, v):
            return attend_over_image(q, k, v, segments, config.attention)

        def over_windows(q, k, v):
            def windows(x):
                return x.reshape(-1, config.window_patches, *x.shape[2:])

            own = windows(jnp.broadcast_to(segments, q.shape[:2]))
            options: Any = {"implementation": config.attention, "operation": "windows"}
            return attend(windows(q), windows(k), windows(v), own, causal=False, **options).reshape(q.shape)

        # Without the checkpoints the backward pass would keep the scores of both branches for every block.
        branches = [jax.checkpoint(branch, prevent_cse=False) for branch in (over_image, over_windows)]
        attended = jax.lax.cond(full, *branches, q, k, v)
        return dense(config, config.hidden_size, "proj")(attended.reshape(x.shape))


def attend_over_image(
    q: Float[Array, "I N H dim"],
    k: Float[Array, "I N H dim"],
    v: Float[Array, "I N H dim"],
    segments: Int[Array, "#I N"],
    implementation: Implementation,
) -> Float[Array, "I N H dim"]:
    """Attention of each patch to all of its image. Where splash is to be had, heads are padded to its 128 channels."""
    dim = q.shape[-1]
    options: Any = {"causal": False, "implementation": implementation, "operation": "image"}
    shape = Shape(q.shape[1], q.shape[1], dim, q.dtype.name)
    if choose("image", shape, implementation).implementation == "splash":
        q, k, v = pad_heads(q, k, v, -dim % 128)
    return attend(q, k, v, segments, **options)[..., :dim]


def pad_heads(q: Array, k: Array, v: Array, padding: int) -> tuple[Array, Array, Array]:
    """Heads with channels of 0 after their own; queries are scaled so that scores stay what they were."""
    dim = q.shape[-1]
    q = (q * math.sqrt((dim + padding) / dim)).astype(q.dtype)  # `attend` divides by the root of the padded size
    q, k, v = (jnp.pad(x, ((0, 0), (0, 0), (0, 0), (0, padding))) for x in (q, k, v))
    return q, k, v


class VisionMLP(nn.Module):
    """SwiGLU with biases."""

    config: VisionConfig

    @nn.compact
    def __call__(self, x):
        gate = dense(self.config, self.config.intermediate_size, "gate_proj")(x)
        up = dense(self.config, self.config.intermediate_size, "up_proj")(x)
        return dense(self.config, self.config.hidden_size, "down_proj")(nn.silu(gate) * up)


class VisionBlock(nn.Module):
    """One pre-norm layer, in the form `nn.scan` wants."""

    config: VisionConfig

    @nn.compact
    def __call__(self, x, full, rotary, segments):
        config = self.config
        normed = RMSNorm(RMS_NORM_EPS, config.param_dtype, name="norm1")(x)
        x = x + VisionAttention(config, name="attn")(normed, full, rotary, segments)
        normed = RMSNorm(RMS_NORM_EPS, config.param_dtype, name="norm2")(x)
        return constrain(x + VisionMLP(config, name="mlp")(normed), BATCH_AXES, None, None), None


class Merger(nn.Module):
    """The patches of a token, side by side, to one vector of the language model's width."""

    config: VisionConfig

    @nn.compact
    def __call__(self, tokens: Float[Array, "I T 4 D"]) -> Float[Array, "I T E"]:
        config = self.config
        x = RMSNorm(RMS_NORM_EPS, config.param_dtype, name="ln_q")(tokens)
        x = x.reshape(*x.shape[:2], -1)
        x = gelu(dense(config, x.shape[-1], "mlp_0")(x))
        return dense(config, config.out_hidden_size, "mlp_2")(x)


class VisionTower(nn.Module):
    """Patches of images of one size to features, one for each token, in reading order."""

    config: VisionConfig

    @nn.compact
    def __call__(self, patches: Float[Array, "I N C"], layout: VisionLayout) -> Float[Array, "I T E"]:
        config = self.config
        images, merged = patches.shape[0], config.spatial_merge_size**2

        def tokens(x: Array) -> Array:
            return x.reshape(images, -1, merged, config.hidden_size)

        x = PatchEmbedding(config, name="patch_embed")(patches)
        x = jnp.take(tokens(x), layout.order, axis=1).reshape(images, -1, config.hidden_size)
        x = constrain(x, BATCH_AXES, None, None)
        rows, columns = layout.positions[None, :, 0], layout.positions[None, :, 1]
        half = config.hidden_size // config.num_heads // 2
        turns = [rotary_angles(at, half, ROPE_THETA) for at in (rows, columns)]
        rotary = tuple(jnp.concatenate(parts, axis=-1) for parts in zip(*turns, strict=True))
        full = jnp.isin(jnp.arange(config.depth), jnp.array(config.fullatt_block_indexes, jnp.int32))
        segments = layout.mask[None].astype(jnp.int32)  # of all images: a mask of them is made once
        blocks: Any = nn.scan(
            remat(VisionBlock, config.remat),
            variable_axes={"params": 0, "lora": 0},
            split_rngs={"params": True},
            in_axes=(0, nn.broadcast, nn.broadcast),
            length=config.depth,
        )(config, name="blocks")
        x, _ = blocks(x, full, rotary, segments)
        return Merger(config, name="merger")(jnp.take(tokens(x), layout.slots, axis=1))


def grey_patches(config: VisionConfig, images: UInt8[Array, "... height width"]) -> Float[Array, "... N C"]:
    """Patches of grey images whose sides are multiples of `token_size`, made on the device.

    What the published processor makes on the host, up to rounding, from a 24th of the bytes.
    """
    *leading, height, width = images.shape
    size, merge = config.patch_size, config.spatial_merge_size
    grey = images.reshape(-1, height // size // merge, merge, size, width // size // merge, merge, size)
    grey = grey.transpose(0, 1, 4, 2, 5, 3, 6)[:, :, :, :, :, None, None]  # [I rows columns merge merge 1 1 size size]
    mean, std = (jnp.array(values).reshape(-1, 1, 1, 1) for values in (CLIP_MEAN, CLIP_STD))
    coloured = (grey.astype(jnp.float32) / 255 - mean) / std
    shape = (*coloured.shape[:5], config.in_channels, config.temporal_patch_size, size, size)
    return jnp.broadcast_to(coloured, shape).reshape(*leading, (height // size) * (width // size), -1)


def dense(config: VisionConfig, features: int, name: str) -> Dense:
    """A dense layer with bias in the config's dtypes."""
    return Dense(features, True, config.dtype, config.param_dtype, name=name)


def init_params(config: VisionConfig, key: Array) -> PyTree:
    """Random parameters (normal, 0.02), for tests, benchmarks and training from scratch."""
    window = config.window_patches
    tokens = jnp.arange(window // config.spatial_merge_size**2)
    layout = VisionLayout(tokens, tokens, jnp.zeros((window, 2), jnp.int32), jnp.ones(window, bool))
    patches = jnp.zeros((1, window, config.patch_features))
    one_window = dataclasses.replace(config, attention="xla")  # shapes do not depend on it, and splash takes no so few
    return VisionTower(one_window).init({"params": key}, patches, layout)["params"]


SHARDING_RULES: list[tuple[str, tuple[str | None, ...]]] = [
    # Heads stay whole: q, k and v are packed in one matrix, whose thirds no even split respects.
    (r"patch_embed/kernel$", (None, None, None, None, "fsdp")),
    (r"blocks/.*(qkv|proj)/kernel$", (None, "fsdp")),
    (r"merger/mlp_0/kernel$", ("fsdp", "tensor")),
    (r"merger/mlp_0/bias$", ("tensor",)),
    (r"merger/mlp_2/kernel$", ("tensor", "fsdp")),
    (r"", ()),
]
