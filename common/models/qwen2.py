"""Qwen2 / Qwen2.5 decoder in Linen (arXiv:2407.10671): grouped-query attention, rotary positions, SwiGLU, RMSNorm.

Llama 3, Yi, GLM-4 and Baichuan2 are the same decoder under other values of a few fields (`common.models.families`).

Module and parameter names follow the published checkpoints (`layers/self_attn/q_proj/kernel`), with the layers
stacked on a leading axis [L, ...]; `common.models.families` holds the maps. The model returns hidden states, not
logits: the loss (`common.training.losses`) and decoding (`common.generation.loop`) multiply by
`output_head` themselves.
"""

import dataclasses
from collections.abc import Callable
from typing import Any, Literal

import flax.linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from common.models import cpu_ops
from common.models.attention import (
    PAST_AXES,
    KeyValues,
    Past,
    SharedPrompt,
    attend,
    attend_cached,
    attend_shared_prompt,
    tokens_first,
)
from common.models.attention_choice import Implementation, Shape, Use, choose_implementation
from common.models.cpu_ops import on_cpu
from common.models.decoding import Forward
from common.models.layers import (
    BATCH_AXES,
    Dense,
    RMSNorm,
    RotaryScaling,
    constrain,
    rotary_angles,
    rotate,
)
from common.types import PyTree

Remat = Literal["none", "dots", "full"]


@dataclasses.dataclass(frozen=True)
class Qwen2Config:
    """Sizes of the published `config.json`, and how to compute."""

    vocab_size: int = 151_936
    hidden_size: int = 3584
    intermediate_size: int = 18_944
    num_hidden_layers: int = 28
    num_attention_heads: int = 28
    num_key_value_heads: int = 4
    head_dim: int = 128
    rope_theta: float = 1e6
    mrope_section: tuple[int, ...] = ()  # Qwen2-VL: frequencies of time, height and width (`rotary_angles`)
    rotary_scaling: RotaryScaling = RotaryScaling()
    rms_norm_eps: float = 1e-6
    tie_word_embeddings: bool = False
    model_type: str = "qwen2"  # whose names and layout the published tensors have (`common.models.families`)
    attention_bias: bool = True  # on q, k and v; o has none in any family
    post_norms: bool = False  # GLM-4-0414: what attention and MLP give is normalised before it is added
    rotary_dims: int = 0  # dimensions of a head that rotate, from its start; 0: all
    rotary_pairs: Literal["halves", "adjacent"] = "halves"  # `rotate`
    dtype: str = "float32"  # of the computation
    param_dtype: str = "float32"  # of the stored weights
    attention: Implementation = "auto"
    remat: Remat = "none"  # what the backward pass recomputes: nothing, all but large products, each layer whole


class Attention(nn.Module):
    """Self-attention of one layer. Returns its output and the keys and values of the given tokens."""

    config: Qwen2Config
    lora_dropout: float = 0.0

    @nn.compact
    def __call__(self, x, rotary, segments, past: Past | None):
        config = self.config

        def project(name: str, heads: int) -> Array:
            features = heads * config.head_dim
            return dense(config, features, name, self.lora_dropout, config.attention_bias)(x).reshape(
                *x.shape[:2], heads, config.head_dim
            )

        cos, sin = rotary
        q = rotate(project("q_proj", config.num_attention_heads), cos, sin, config.rotary_pairs)
        k = rotate(project("k_proj", config.num_key_value_heads), cos, sin, config.rotary_pairs)
        v = project("v_proj", config.num_key_value_heads)
        if past is not None:
            out = attend_cached(q, k, v, past)
        elif isinstance(segments, SharedPrompt):
            out = attend_shared_prompt(q, k, v, segments, config.attention)
        else:
            out = attend(q, k, v, segments, implementation=config.attention)
        out = out.reshape(*x.shape[:2], -1)
        return dense(config, config.hidden_size, "o_proj", self.lora_dropout)(out), KeyValues(k, v)


class MLP(nn.Module):
    """SwiGLU: down(silu(gate(x)) * up(x))."""

    config: Qwen2Config
    lora_dropout: float = 0.0

    @nn.compact
    def __call__(self, x):
        config = self.config
        gate = dense(config, config.intermediate_size, "gate_proj", self.lora_dropout)(x)
        up = dense(config, config.intermediate_size, "up_proj", self.lora_dropout)(x)
        return dense(config, config.hidden_size, "down_proj", self.lora_dropout)(nn.silu(gate) * up)


class Block(nn.Module):
    """One pre-norm layer, in the form `nn.scan` wants: carry in, carry out, and this layer's keys and values."""

    config: Qwen2Config
    lora_dropout: float = 0.0
    keep: bool = False

    @nn.compact
    def __call__(self, x, past: Past | None, rotary, segments):
        config = self.config

        def norm(name: str, x: Array) -> Array:
            return RMSNorm(config.rms_norm_eps, config.param_dtype, name=name)(x)

        attention = Attention(config, self.lora_dropout, name="self_attn")
        attended, key_values = attention(norm("input_layernorm", x), rotary, segments, past)
        if config.post_norms:
            attended = norm("post_self_attn_layernorm", attended)
        x = constrain(x + attended, BATCH_AXES, None, None)
        out = MLP(config, self.lora_dropout, name="mlp")(norm("post_attention_layernorm", x))
        x = x + (norm("post_mlp_layernorm", out) if config.post_norms else out)
        return constrain(x, BATCH_AXES, None, None), key_values if self.keep else None


class Qwen2(nn.Module):
    """Tokens to final hidden states (after the last norm)."""

    config: Qwen2Config
    lora_dropout: float = 0.0

    @nn.compact
    def __call__(
        self,
        tokens: Int[Array, "B S"],
        positions: Int[Array, "#B S"] | Int[Array, "3 #B S"],
        segments: Int[Array, "B S"] | Bool[Array, "B S"] | SharedPrompt | None = None,
        past: Past | None = None,
        keep: bool = False,
        embeddings: Float[Array, "B S D"] | None = None,
        layers: Callable[..., Any] | None = None,
    ) -> tuple[Float[Array, "B S D"], KeyValues | None]:
        """With `segments`: whole rows, or prompts with their continuations (`SharedPrompt`). Numbers tell packed
        sequences apart; a mask is true on the tokens of one sequence a row, wherever its padding is.
        With `past` (stacked over layers): decode, S = group.

        `keep` also returns the keys and values of these tokens, stacked [L B S K dim]. `embeddings` take the place of
        those of the tokens. Where the config has `mrope_section`, positions may be [3 B S]. `layers`, if given, runs
        over the layers in place of a scan.
        """
        config = self.config
        embedding = self.param(
            "embed_tokens",
            nn.initializers.normal(0.02),
            (config.vocab_size, config.hidden_size),
            config.param_dtype,
        )
        if not config.tie_word_embeddings:
            self.param(
                "lm_head",
                nn.initializers.normal(0.02),
                (config.vocab_size, config.hidden_size),
                config.param_dtype,
            )
        x = embedding[tokens] if embeddings is None else embeddings
        x = constrain(x.astype(config.dtype), BATCH_AXES, None, None)
        order, segments = padding_last(config, segments, x.shape[1])
        if order is not None:
            x, positions = reordered(x, order, 1), reordered(positions, order, positions.ndim - 1)
        rotary = angles(config, positions)
        layers = layers or nn.scan(
            remat(Block, config.remat) if past is None else Block,
            variable_axes={"params": 0, "lora": 0},
            split_rngs={"params": True, "dropout": True},
            in_axes=(nn.broadcast if past is None else PAST_AXES, nn.broadcast, nn.broadcast),
            length=config.num_hidden_layers,
        )(config, self.lora_dropout, keep, name="layers")
        x, key_values = layers(x, past, rotary, segments)
        if order is not None:
            back = jnp.argsort(order, axis=1)
            x = reordered(x, back, 1)
            key_values = jax.tree.map(lambda leaf: reordered(leaf, back, 2), key_values)
        return RMSNorm(config.rms_norm_eps, config.param_dtype, name="norm")(x), key_values


def bind(config: Qwen2Config, variables: PyTree) -> Forward:
    """The model with its weights as a `Forward`: called on prompts, then token by token.

    `variables` is {"params": ...}, with "lora" (scaled) beside it or not; for new tokens also what `for_decoding` makes
    of it. Prompts may come as `embeddings`.
    """
    collections = {name: tree for name, tree in variables.items() if name != cpu_ops.UNSTACKED}

    def forward(tokens, positions, segments=None, *rest, **named):
        padded = None if segments is None else segments > 0
        return Qwen2(config).apply(collections, tokens, positions, padded, *rest, keep=True, **named)

    if on_cpu():
        return cpu_ops.decode_unstacked(forward, Block(config, keep=True), variables)
    return forward


def padding_last(
    config: Qwen2Config, segments: Array | SharedPrompt | None, length: int
) -> tuple[Int[Array, "B S"] | None, Array | SharedPrompt | None]:
    """The order in which the layers read a row, None for its own, and the segments of rows in that order.

    cuDNN needs no mask where padding comes last. To move it once for all layers is less than a mask in each.
    """
    if segments is None or not (isinstance(segments, SharedPrompt) or segments.dtype == bool):
        return None, segments
    chosen = choose_implementation(config.attention, length, config.head_dim, jnp.dtype(config.dtype))
    if chosen == "cudnn":
        return tokens_first(segments)
    return None, segments if isinstance(segments, SharedPrompt) else segments.astype(jnp.int32)


def reordered(x: Array, order: Int[Array, "B S"], axis: int) -> Array:
    """`x` with the positions of each row in this order; they are its axis `axis`, and rows the one before it."""
    index = jnp.expand_dims(order, (*range(axis - 1), *range(axis + 1, x.ndim)))
    return jnp.take_along_axis(x, index, axis=axis, mode="promise_in_bounds")


def attention_uses(config: Qwen2Config, *lengths: int) -> list[Use]:
    """Where whole rows of these lengths, and tokens after them, attend."""
    shapes = [Shape(length, length, config.head_dim, config.dtype) for length in lengths]
    after = [shape._replace(queries=1) for shape in shapes]
    return [Use("language", "rows", shapes, config.attention), Use("new tokens", "decode", after, config.attention)]


def for_decoding(variables: PyTree) -> PyTree:
    """The variables as new tokens read them: as they are, but on a CPU."""
    return cpu_ops.unstacked_variables(variables) if on_cpu() else variables


def angles(
    config: Qwen2Config, positions: Int[Array, "B S"] | Int[Array, "3 B S"]
) -> tuple[Float[Array, "B S half"], Float[Array, "B S half"]]:
    """Cosine and sine of the rotation at these positions."""
    dims = config.rotary_dims or config.head_dim
    return rotary_angles(positions, dims, config.rope_theta, config.mrope_section, config.rotary_scaling)


def dense(config: Qwen2Config, features: int, name: str, lora_dropout: float, use_bias: bool = False) -> Dense:
    """A dense layer in the config's dtypes."""
    return Dense(features, use_bias, config.dtype, config.param_dtype, lora_dropout, name=name)


def remat(block: type[nn.Module], policy: Remat) -> type[nn.Module]:
    """`block` with its activations recomputed in the backward pass according to `policy`."""
    if policy == "none":
        return block
    saved = jax.checkpoint_policies.checkpoint_dots_with_no_batch_dims if policy == "dots" else None
    return nn.remat(block, prevent_cse=False, policy=saved)


def output_head(params: PyTree) -> Float[Array, "V D"]:
    """The matrix that turns hidden states into logits: `lm_head`, or the token embedding where they are tied."""
    return params["lm_head"] if "lm_head" in params else params["embed_tokens"]


def init_params(config: Qwen2Config, key: Array) -> PyTree:
    """Random parameters (normal, 0.02), for tests, benchmarks and training from scratch."""
    one = jnp.ones((1, 2), jnp.int32)
    config = dataclasses.replace(config, attention="xla")  # parameters do not depend on it, and splash takes no so few
    return Qwen2(config).init({"params": key}, one, one, one)["params"]


SHARDING_RULES: list[tuple[str, tuple[str | None, ...]]] = [
    # First match wins; L is never split. Column-parallel, then row-parallel, so that one layer needs one reduction.
    (r"(embed_tokens|lm_head)$", ("tensor", "fsdp")),
    (r"(q_proj|k_proj|v_proj|gate_proj|up_proj)/(kernel|int8|nf4)$", (None, "fsdp", "tensor")),
    (r"(q_proj|k_proj|v_proj|gate_proj|up_proj)/bias$", (None, "tensor")),
    (r"(o_proj|down_proj)/(kernel|int8|nf4)$", (None, "tensor", "fsdp")),
    (r"(q_proj|k_proj|v_proj|gate_proj|up_proj)/a$", (None, "fsdp", None)),
    (r"(q_proj|k_proj|v_proj|gate_proj|up_proj)/b$", (None, None, "tensor")),
    (r"(o_proj|down_proj)/a$", (None, "tensor", None)),
    (r"(o_proj|down_proj)/b$", (None, None, "fsdp")),
    (r"", ()),
]
