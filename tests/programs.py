"""The programs that the systems run, at tiny sizes, to look at what is compiled for a platform."""

import dataclasses
import functools
import re
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from common.generation.generate import make_generator, row_keys
from common.generation.sampling import Sampling
from common.generation.settings import DecodeSettings
from common.models import bert, clip
from common.models.decoding import Prompts
from common.models.lora import scaled
from common.models.qwen2 import Qwen2, output_head
from common.training.losses import answer_loss, token_logprobs
from common.training.step import LossFn, init_state, make_train_step
from common.types import PyTree
from tests import tiny
from unicross_jax import model as unicross

CLIP = clip.ClipConfig(
    image_size=32, vision_layers=(1, 3, 1, 1), vision_width=4, embed_dim=12, context_length=16, vocab_size=50,
    text_width=16, text_heads=2, text_layers=6,
)  # fmt: skip
SETTINGS = DecodeSettings(7, Sampling(0.8, top_k=20, top_p=0.9), group=3, stop_ids=(5, 11), forbidden_ids=(2, 3))


class Program(NamedTuple):
    """A function to trace anew, and what it is called with; `weights` are those of the model that are not trained."""

    function: Callable[..., Any]
    arguments: tuple[Any, ...]
    weights: PyTree


def lora_step(layers: int) -> Program:
    """A training step of a LoRA adapter with dropout."""
    config = dataclasses.replace(tiny.CONFIG, num_hidden_layers=layers)
    base = tiny.params(config)
    adapter = tiny.lora(base)

    def loss(trainable, frozen, batch, rng):
        variables = {"params": frozen, "lora": scaled(trainable, tiny.LORA, frozen)}
        hidden, _ = Qwen2(config, 0.1).apply(
            variables, batch.tokens, batch.positions, batch.segments, rngs={"dropout": rng}
        )
        logp = token_logprobs(
            hidden, output_head(frozen), batch.targets, wanted=batch.weights != 0, chunk=8, head_trained=False
        )
        return answer_loss(logp, batch.weights), {}

    tx = optax.adamw(1e-3)
    step = make_train_step(loss, tx)
    return Program(step, (init_state(adapter, tx), base, tiny.batch(), jax.random.key(0)), base)


def sampling(layers: int) -> Program:
    """Samples of an adapted decoder."""
    config = dataclasses.replace(tiny.CONFIG, num_hidden_layers=layers)
    base = tiny.params(config)
    variables = {"params": base, "lora": scaled(tiny.lora(base), tiny.LORA, base)}
    prompts = Prompts(jnp.ones((4, 9), jnp.int32), jnp.ones((4, 9), bool))
    generator: Any = make_generator(config, SETTINGS)
    return Program(generator.__wrapped__, (variables, prompts, row_keys(0, range(4))), base)


def clip_gradient(layers: int) -> Program:
    """The gradient of both sides of CLIP, with `layers` equal blocks in a stage of images."""
    config = dataclasses.replace(CLIP, vision_layers=(1, layers + 1, 1, 1))
    params = clip.init_params(config, jax.random.key(0))
    images, ids = jnp.ones((2, 32, 32, 3)), jnp.ones((2, 5), jnp.int32)

    def similarity(params):
        image, text = clip.Clip(config).apply({"params": params}, images, ids)
        return (image * text).sum()

    return Program(jax.grad(similarity), (params,), {})


def unicross_loss(layers: int) -> tuple[LossFn, tuple[PyTree, PyTree, unicross.ReportBatch]]:
    """The loss of a UniCrossAdapter with dropout; what it trains, what it does not, and a batch."""
    config = unicross.UniCrossConfig(CLIP, vocabulary=40, heads=2, vision_layers=2, decoder_layers=layers, dropout=0.1)
    params = clip.init_params(CLIP, jax.random.key(0))
    trainable = unicross.init_trainable(config, jax.random.key(1))
    frozen = {"clip": params, "report_embedding": params["text"]["token_embedding"][: config.vocabulary]}
    studies = unicross.Studies(
        jnp.zeros((2, 2, 32, 32), jnp.uint8), jnp.ones((2, 2), bool), jnp.full((2, 4), 3), jnp.full(2, 2)
    )
    batch = unicross.ReportBatch(studies, jnp.full((2, 6), 3), jnp.full((2, 6), 4), jnp.ones((2, 6)))

    return functools.partial(unicross.loss, config=config, chunk=4), (trainable, frozen, batch)


def unicross_step(layers: int) -> Program:
    """The gradient of a UniCrossAdapter's loss."""
    loss, (trainable, frozen, batch) = unicross_loss(layers)

    def total(trainable, frozen, batch, rng):
        return loss(trainable, frozen, batch, rng)[0].total

    return Program(jax.value_and_grad(total), (trainable, frozen, batch, jax.random.key(0)), frozen)


def saliency(layers: int) -> Program:
    """Logits of a labeler and their gradient with respect to the words."""
    config = bert.ClassifierConfig(bert.BertConfig(30, 32, layers, 4, 48, max_position_embeddings=40))
    params = bert.init_classifier(config, jax.random.key(1))
    mask = jnp.array([[1] * 4, [1, 1, 0, 0]]) > 0

    def score(params, ids):
        words = bert.word_embeddings(params, ids)
        return jax.value_and_grad(lambda words: bert.chexbert_logits(config, params, words, mask)[:, :, 1].sum())(words)

    return Program(score, (params, jnp.array([[3, 4, 5, 6], [3, 7, 0, 0]])), params)


def lowered(function: Callable[..., Any], arguments: tuple[Any, ...], *platforms: str, **jit: Any) -> list[str]:
    """StableHLO of a function for each of these platforms, none of which need be there."""
    traced = jax.jit(lambda *arguments: function(*arguments), **jit).trace(*arguments)
    return [traced.lower(lowering_platforms=(platform,)).as_text() for platform in platforms]


def rearranged_stacks(weights: PyTree, text: str, dtype: str = "f32") -> list[str]:
    """Operations that make another copy of a stack of kernels: of the whole, or of a layer of a fixed number."""
    stacks = {"x".join(map(str, leaf.shape)) + f"x{dtype}" for leaf in jax.tree.leaves(weights) if leaf.ndim in (3, 5)}
    pattern = r"stablehlo\.(?:transpose|slice|concatenate|reverse|copy).*: \(tensor<([^>]+)>"
    return [found[0] for found in re.finditer(pattern, text) if found[1] in stacks]


PROGRAMS: dict[str, Callable[[int], Program]] = {
    "LoRA step": lora_step,
    "sampling": sampling,
    "CLIP": clip_gradient,
    "UniCross step": unicross_step,
    "saliency": saliency,
}
