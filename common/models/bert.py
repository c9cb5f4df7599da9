"""BERT (arXiv:1810.04805) in Linen, and classification heads on it as CheXbert has them (arXiv:2004.09167).

The encoder takes word embeddings instead of ids, so that one can differentiate with respect to them. Module and
parameter names follow the published checkpoints, with the layers stacked on a leading axis [L, ...];
`common.models.bert_weights` holds the map. Dropout is active exactly when `apply` is given a "dropout" random key.
"""

import dataclasses
import functools
from typing import Annotated, Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from common.bounds import Few, Rate, Within
from common.errors import UserError
from common.metrics.clinical import FINDINGS
from common.models import cpu_ops
from common.models.attention import attend_to, attention_weights
from common.models.attention_choice import Shape, Use
from common.models.cpu_ops import on_cpu
from common.models.layers import Dense, dropout, gelu, random_params
from common.types import PyTree

# The backward pass keeps the outputs of dense layers and recomputes the rest. In training what is kept is stacked over
# layers, and to write it took longer than to compute it; layers apart are as fast either way, with less memory so.
KEPT = jax.checkpoint_policies.checkpoint_dots_with_no_batch_dims
SIZES = (
    *("vocab_size", "hidden_size", "num_hidden_layers", "num_attention_heads", "intermediate_size"),
    *("max_position_embeddings", "type_vocab_size"),
)
MOST_CLASSES = 1024  # of a label

Width = Annotated[int, Within(1, 1 << 24)]


@dataclasses.dataclass(frozen=True)
class BertConfig:
    """Sizes of the published `config.json` (default: bert-base-uncased), and how to compute."""

    vocab_size: Width = 30_522
    hidden_size: Width = 768
    num_hidden_layers: Few = 12
    num_attention_heads: Few = 12
    intermediate_size: Width = 3072
    max_position_embeddings: Width = 512
    type_vocab_size: Width = 2
    layer_norm_eps: Rate = 1e-12
    hidden_dropout_prob: Rate = 0.1
    attention_probs_dropout_prob: Rate = 0.1
    dtype: str = "float32"  # of the computation
    param_dtype: str = "float32"  # of the stored weights

    def __post_init__(self):
        for name in SIZES:
            if getattr(self, name) < 1:
                raise UserError(f"{name} is {getattr(self, name)}, expected at least 1")
        if self.hidden_size % self.num_attention_heads:
            raise UserError(
                f"hidden_size {self.hidden_size} is not a multiple of num_attention_heads {self.num_attention_heads}"
            )


@dataclasses.dataclass(frozen=True)
class ClassifierConfig:
    """An encoder and a linear head for each of `labels`, with `classes` outputs. Default: CheXbert."""

    encoder: BertConfig = BertConfig()
    labels: tuple[str, ...] = FINDINGS
    classes: tuple[int, ...] = (*(4,) * 13, 2)

    def __post_init__(self):
        if (
            len(self.labels) != len(self.classes)
            or not self.labels
            or not all(2 <= number <= MOST_CLASSES for number in self.classes)
        ):
            raise UserError(
                f"{len(self.labels)} labels and {len(self.classes)} numbers of classes; expected one per label, "
                f"each from 2 to {MOST_CLASSES}"
            )


class Embeddings(nn.Module):
    """Word + position + token type (0 everywhere), normalised."""

    config: BertConfig

    @nn.compact
    def __call__(self, words: Float[Array, "B S D"]) -> Float[Array, "B S D"]:
        config = self.config

        def table(name: str, rows: int) -> Array:
            return self.param(name, nn.initializers.normal(0.02), (rows, config.hidden_size), config.param_dtype)

        table("word_embeddings", config.vocab_size)  # looked up by `word_embeddings`
        positions = table("position_embeddings", config.max_position_embeddings)[: words.shape[1]]
        x = words.astype(config.dtype) + (positions + table("token_type_embeddings", config.type_vocab_size)[0])
        return dropped(self, layer_norm(config)(x).astype(config.dtype), config.hidden_dropout_prob)


class AddNorm(nn.Module):
    """LayerNorm(residual + dropout(dense(x))): the end of both halves of a post-norm layer."""

    config: BertConfig

    @nn.compact
    def __call__(self, x: Float[Array, "B S I"], residual: Float[Array, "B S D"]) -> Float[Array, "B S D"]:
        config = self.config
        x = dropped(self, dense(config, config.hidden_size, "dense")(x), config.hidden_dropout_prob)
        return layer_norm(config)(residual + x).astype(config.dtype)


class Attention(nn.Module):
    """Self-attention in both directions; padding is not seen."""

    config: BertConfig

    @nn.compact
    def __call__(
        self, x: Float[Array, "B S D"], mask: Bool[Array, "B S"], only_first: bool = False
    ) -> Float[Array, "B S D"] | Float[Array, "B 1 D"]:
        config = self.config

        def heads(name: str, x: Array) -> Array:
            return dense(config, config.hidden_size, name)(x).reshape(*x.shape[:2], config.num_attention_heads, -1)

        if only_first:
            x, attended = x[:, :1], self._attend_first(heads("query", x[:, :1])[:, 0], x, mask)
        else:
            q, k, v = (heads(name, x) for name in ("query", "key", "value"))
            if config.attention_probs_dropout_prob > 0 and self.has_rng("dropout"):
                weights = dropped(self, attention_weights(q, k, mask[:, None]), config.attention_probs_dropout_prob)
                attended = jnp.einsum("bhsm,bmhd->bshd", weights.astype(v.dtype), v)
            else:
                attended = attend_to(q, k, v, mask[:, None])
        return AddNorm(config, name="output")(attended.reshape(x.shape), x)

    def _attend_first(
        self, q: Float[Array, "B H dim"], x: Float[Array, "B S D"], mask: Bool[Array, "B S"]
    ) -> Float[Array, "B H dim"]:
        """What the first position attends to, in evaluation mode, without keys and values of all positions.

        For one query, q . (x K) = (K q) . x, and the weighted sum of x V is V applied to the weighted sum of x. The
        bias of keys adds the same to all scores, which leaves their softmax as it is; weights sum to 1, so that the
        bias of values is added once.
        """
        params, dtype = self.variables["params"], x.dtype

        def kernel(name: str) -> Float[Array, "D H dim"]:
            return params[name]["kernel"].astype(dtype).reshape(x.shape[-1], *q.shape[1:])

        product = functools.partial(jnp.einsum, preferred_element_type=jnp.float32)
        asked = product("bhd,ihd->bhi", q * q.shape[-1] ** -0.5, kernel("key")).astype(dtype)
        scores = jnp.where(mask[:, None], product("bhi,bsi->bhs", asked, x), jnp.finfo(jnp.float32).min)
        read = product("bhs,bsi->bhi", jax.nn.softmax(scores).astype(dtype), x).astype(dtype)
        bias = params["value"]["bias"].astype(dtype).reshape(q.shape[1:])
        return product("bhi,ihd->bhd", read, kernel("value")).astype(dtype) + bias


class Layer(nn.Module):
    """One post-norm layer, in the form `nn.scan` wants. With `only_first`, of the first position alone."""

    config: BertConfig

    @nn.compact
    def __call__(
        self, x: Float[Array, "B S D"], mask: Bool[Array, "B S"], only_first: bool = False
    ) -> tuple[Float[Array, "B S D"] | Float[Array, "B 1 D"], None]:
        x = Attention(self.config, name="attention")(x, mask, only_first)
        inner = gelu(dense(self.config, self.config.intermediate_size, "intermediate")(x))
        return AddNorm(self.config, name="output")(inner, x), None


class Bert(nn.Module):
    """Word embeddings (`word_embeddings`) to hidden states. S is at most `max_position_embeddings`."""

    config: BertConfig

    @nn.compact
    def __call__(self, words: Float[Array, "B S D"], mask: Bool[Array, "B S"]) -> Float[Array, "B S D"]:
        """`mask` is True on tokens and False on padding, whose outputs are finite and meaningless."""
        layers = nn.scan(
            nn.remat(Layer, prevent_cse=False, policy=KEPT),
            variable_axes={"params": 0},
            split_rngs={"params": True, "dropout": True},
            in_axes=nn.broadcast,
            length=self.config.num_hidden_layers,
        )(self.config, name="layer")
        return layers(Embeddings(self.config, name="embeddings")(words), mask)[0]


class Classifier(nn.Module):
    """Linear heads on the last hidden state of [CLS], the first token; the pooler plays no part."""

    config: ClassifierConfig

    @nn.compact
    def __call__(self, words: Float[Array, "B S D"], mask: Bool[Array, "B S"]) -> Float[Array, "B N C"]:
        """Logits of N labels in C classes, the largest number; -inf beyond the classes of a label."""
        return self.heads(Bert(self.config.encoder, name="bert")(words, mask)[:, 0])

    @nn.compact
    def heads(self, first: Float[Array, "B D"]) -> Float[Array, "B N C"]:
        """The logits from the last hidden state of [CLS]."""
        encoder = self.config.encoder
        first = dropped(self, first, encoder.hidden_dropout_prob)
        columns = []
        for number, classes in enumerate(self.config.classes):
            logits = dense(encoder, classes, f"linear_heads_{number}")(first).astype(jnp.float32)
            missing = max(self.config.classes) - classes
            columns.append(jnp.pad(logits, ((0, 0), (0, missing)), constant_values=-jnp.inf))
        return jnp.stack(columns, axis=1)


def word_embeddings(params: PyTree, ids: Int[Array, "B S"]) -> Float[Array, "B S D"]:
    """Rows of the word table of a `Classifier`'s parameters: the input whose gradient is a token's saliency."""
    return params["bert"]["embeddings"]["word_embeddings"][ids]


def chexbert_logits(
    config: ClassifierConfig,
    params: PyTree,
    words: Float[Array, "B S D"],
    mask: Bool[Array, "B S"],
    dropout_key: Array | None = None,
) -> Float[Array, "B N C"]:
    """Logits of texts given by their word embeddings; without `dropout_key` in evaluation mode.

    With CheXbert's heads [B 14 4]: 0 blank, 1 positive, 2 negative, 3 uncertain. "No Finding" has two classes, 1 being
    positive; its logits 2 and 3 are -inf, so that they are never the largest and add nothing to a softmax. Do not sum
    over classes. Words at padding have no influence and a gradient of 0. In evaluation products of float32 are whole,
    also on a TPU, which would round their factors to bfloat16 and turn labels that are near to a tie.
    """
    logits: Any
    if dropout_key is not None:
        logits = Classifier(config).apply({"params": params}, words, mask, rngs={"dropout": dropout_key})
        return logits
    with jax.default_matmul_precision("float32"):
        first = first_hidden(config.encoder, params["bert"], words, mask)
        logits = Classifier(config).apply({"params": params}, first, method="heads")
    return logits


def unstack_layers(params: PyTree) -> PyTree:
    """Parameters of a `Classifier` as `chexbert_logits` reads them fastest: on a CPU, a list of layers for the stack.

    Elsewhere they stay as they are.
    """
    if not on_cpu():
        return params
    return {**params, "bert": {**params["bert"], "layer": _unstacked(params["bert"]["layer"])}}


def _unstacked(layers: PyTree) -> list[PyTree]:
    return layers if isinstance(layers, list) else cpu_ops.unstack_layers(layers)


def first_hidden(
    config: BertConfig, params: PyTree, words: Float[Array, "B S D"], mask: Bool[Array, "B S"]
) -> Float[Array, "B D"]:
    """`Bert` in evaluation mode, of the first token alone, which is all that the last layer forms.

    `params` are those of a `Bert`, on a CPU also with a list of layers (`unstack_layers`).
    """
    x: Any = Embeddings(config).apply({"params": params["embeddings"]}, words)

    def layer(own: PyTree, x: Array, only_first: bool = False) -> Array:
        read: Any = Layer(config).apply({"params": own}, x, mask, only_first)
        return read[0]

    if on_cpu():
        *before, last = _unstacked(params["layer"])
        for own in before:
            x = jax.checkpoint(layer, policy=KEPT)(own, x)
        return layer(last, x, only_first=True)[:, 0]

    def numbered(number: int | Array) -> PyTree:
        return jax.tree.map(lambda leaf: jax.lax.dynamic_index_in_dim(leaf, number, keepdims=False), params["layer"])

    @functools.partial(jax.checkpoint, policy=KEPT, prevent_cse=False)
    def step(number: Array, x: Array) -> Array:
        return layer(numbered(number), x)

    last = config.num_hidden_layers - 1
    return layer(numbered(last), jax.lax.fori_loop(0, last, step, x), only_first=True)[:, 0]


def init_classifier(config: ClassifierConfig, key: Array) -> PyTree:
    """Random parameters (normal, 0.02), for tests, benchmarks and training from scratch."""
    words = jnp.zeros((1, 2, config.encoder.hidden_size))
    shapes = jax.eval_shape(Classifier(config).init, key, words, jnp.ones((1, 2), bool))["params"]
    return random_params(shapes, key)


def classifier_shapes(config: ClassifierConfig) -> PyTree:
    """Shapes and dtypes of the parameters, without making them."""
    return jax.eval_shape(functools.partial(init_classifier, config), jax.random.key(0))


def attention_use(config: BertConfig) -> Use:
    """The labeler among the towers of a run."""
    window, head_dim = config.max_position_embeddings, config.hidden_size // config.num_attention_heads
    return Use("labeler", "labels", [Shape(window, window, head_dim, config.dtype)])


def dense(config: BertConfig, features: int, name: str) -> Dense:
    """A dense layer with bias in the config's dtypes."""
    return Dense(features, use_bias=True, dtype=config.dtype, param_dtype=config.param_dtype, name=name)


def layer_norm(config: BertConfig) -> nn.LayerNorm:
    """LayerNorm in float32, whatever the dtype of the computation."""
    return nn.LayerNorm(
        config.layer_norm_eps, jnp.float32, config.param_dtype, use_fast_variance=False, name="LayerNorm"
    )


def dropped(module: nn.Module, x: Float[Array, "..."], rate: float) -> Float[Array, "..."]:
    """`x` after dropout where `module` was given a key for it, else `x`."""
    return dropout(x, rate, module.make_rng("dropout")) if rate > 0 and module.has_rng("dropout") else x
