"""Make the small CLIP that the demo builds on: contrastive and language training from scratch on phantom studies.

Image and caption of a study are brought together and those of different studies apart (arXiv:2103.00020, Fig. 3). The
image is the frontal or the lateral view; half of the time the caption is a few of the report's sentences, in any order,
so that single findings count. Both sides together also learn to predict the next word of each caption
(arXiv:2205.01917), from the sum of the text's feature and the image's embedding, which are of one width: from the
features of a CLIP as small as this one, trained by contrast alone, a decoder could hardly read the words. The result
plays the part that CLIP RN101 has in the paper.
"""

import functools
from pathlib import Path
from typing import Any

import flax.linen as nn
import flax.struct
import jax
import jax.numpy as jnp
import numpy as np
from flax.traverse_util import flatten_dict, unflatten_dict
from jaxtyping import Array, Float, Int, UInt8

from common.bounds import COUNT, STEPS, bounded
from common.command import run_cli
from common.data.cleaning import r2gen_clean_iu
from common.data.clip_tokenizer import token_rows
from common.data.images import augment, resize_crop
from common.data.packing import plan_in_order
from common.data.tokenizers import WordTokenizer, build_word_tokenizer, save_words
from common.errors import Parser
from common.io.locks import owning
from common.models.clip import Clip, ClipConfig, ScaledConv, init_params, normalise
from common.models.clip_weights import save_clip
from common.phantoms.phantom import Phantom, make_phantoms
from common.training.optim import OptimConfig
from common.training.run import train_from_scratch
from common.types import LossSum, PyTree
from unicross_jax.config import EMBEDDED_CLIP

SEED = 11  # of the phantoms; the demo's have others
RESIZE, CROP, LENGTH = 72, 64, 64
FRONTAL = 2 / 3  # share of frontal images
DEPTH = 20  # convolutions one after another, at most
HELD_OUT = 256
SIZES = ClipConfig(
    image_size=CROP,
    vision_layers=(1, 1, 2, 1),
    vision_width=16,
    embed_dim=128,
    context_length=LENGTH,
    text_width=128,
    text_heads=2,
    text_layers=3,
)
OPTIM = OptimConfig(learning_rate=1e-3, warmup_ratio=0.07, weight_decay=0.05, b2=0.98)
WORD_SCALE = 10.0  # of the products of features and word embeddings
FIRST_SCALE = 5.0  # of similarities; CLIP's 14 is too much for embeddings that mean nothing yet


class CaptionBatch(flax.struct.PyTreeNode):
    """An image of each of B studies, and a caption; `ends` are the indices of the end tokens."""

    images: UInt8[Array, "B H W"]
    captions: Int[Array, "B T"]
    ends: Int[Array, " B"]

    @property
    def real_tokens(self) -> Int[Array, ""]:
        """Tokens of the captions."""
        return (self.ends + 1).sum()


def pretraining_loss(
    trainable: PyTree, frozen: PyTree, batch: CaptionBatch, rng: Array, *, config: ClipConfig
) -> tuple[LossSum, dict[str, LossSum]]:
    """Cross-entropy of which caption belongs to each image and which image to each caption, and of the next words.

    Every study of the batch is compared with every other, so a batch must not be cut into micro-batches.
    """
    clip, variables = Clip(config), {"params": trainable}
    images: Any = clip.apply(variables, normalise(batch.images), method=lambda module, x: module.visual(x))
    read: Any = clip.apply(variables, batch.captions, batch.ends, method=text_embedding)
    captions, words = read
    logits = WORD_SCALE * (words[:, :-1] + images[:, None]) @ trainable["text"]["token_embedding"].T
    images, captions = unit(images), unit(captions)
    similarity = jnp.exp(jnp.minimum(trainable["logit_scale"], np.log(100))) * images @ captions.T
    total, right = jnp.zeros(()), jnp.zeros(())
    for axis in (0, 1):
        total -= jnp.diagonal(jax.nn.log_softmax(similarity, axis)).sum() / 2
        right += (similarity.argmax(axis) == jnp.arange(len(similarity))).sum() / 2
    logp = jnp.take_along_axis(jax.nn.log_softmax(logits), batch.captions[:, 1:, None], axis=-1)[..., 0]
    counts = jnp.arange(logp.shape[1]) < batch.ends[:, None]
    language = LossSum(-(logp * counts).sum(), counts.sum().astype(jnp.float32))
    weight = jnp.float32(len(similarity))
    parts = {"contrast": LossSum(total, weight), "found": LossSum(right, weight), "next_word": language}
    return LossSum(total + weight * language.total / language.weight, weight), parts


def text_embedding(
    clip: Clip, ids: Int[Array, "B T"], ends: Int[Array, " B"]
) -> tuple[Float[Array, "B embed"], Float[Array, "B T D"]]:
    """The embedding at a known end token, and every token's feature.

    `Clip` itself looks for the largest id, which is another word here.
    """
    x = clip.text.embed(ids)
    for number in range(3):
        x = clip.text.group(number, x)
    finished = clip.text.finish(x)
    return clip.text.pooled(finished, ends), finished


def unit(x: Float[Array, "... E"]) -> Float[Array, "... E"]:
    """Vectors of length 1."""
    return x / jnp.linalg.norm(x, axis=-1, keepdims=True)


def sentences(phantom: Phantom) -> list[str]:
    """The cleaned sentences of a report, each with its full stop."""
    return [f"{text.strip()} ." for text in r2gen_clean_iu(phantom.report).split(" . ") if text.strip(" .")]


def caption(phantom: Phantom, rng: np.random.Generator) -> str:
    """The report, or some of its sentences; sometimes after the reason for the study."""
    found = sentences(phantom)
    if rng.random() < 0.5:
        found = [found[index] for index in rng.permutation(len(found))[: rng.integers(1, len(found) + 1)]]
    if rng.random() < 0.1:
        found = [phantom.indication, *found]
    return " ".join(found)


def training_batch(step: int, phantoms: list[Phantom], words: WordTokenizer, rows: int) -> CaptionBatch:
    """A batch of different studies, a function of the step."""
    rng = np.random.default_rng([SEED, step])
    chosen = [phantoms[index] for index in rng.choice(len(phantoms), rows, replace=False)]
    views = [phantom.frontal if rng.random() < FRONTAL else phantom.lateral for phantom in chosen]
    images = np.stack([augment(view, rng, resize=RESIZE, crop=CROP) for view in views])
    return caption_batch(images, words, [caption(phantom, rng) for phantom in chosen])


def evaluation_batch(phantoms: list[Phantom], words: WordTokenizer) -> CaptionBatch:
    """Whole reports and frontal images as they are."""
    images = np.stack([resize_crop(phantom.frontal, RESIZE, CROP) for phantom in phantoms])
    return caption_batch(images, words, [" ".join(sentences(phantom)) for phantom in phantoms])


def caption_batch(images: np.ndarray, words: WordTokenizer, captions: list[str]) -> CaptionBatch:
    """Images and captions as numpy."""
    arrays: tuple[Any, ...] = (images, *token_rows(words, captions, LENGTH))
    return CaptionBatch(*arrays)


def initial_params(config: ClipConfig, batch: CaptionBatch) -> PyTree:
    """Random parameters, scaled on a batch as BatchNorm would: every convolution's channels, and both embeddings, have
    mean 0 over the batch, and convolutions variance 1.

    Without it the embeddings of all images are nearly the same, and training does not move away from there.
    """
    params = init_params(config, jax.random.key(SEED)) | {"logit_scale": jnp.log(FIRST_SCALE)}
    clip = Clip(config)

    @jax.jit
    def statistics(params: PyTree) -> tuple[PyTree, Array, Array]:
        def both(module: Clip) -> tuple[Array, Array]:
            return module.visual(normalise(batch.images)), text_embedding(module, batch.captions, batch.ends)[0]

        (images, captions), seen = clip.apply(
            {"params": params},
            method=both,
            capture_intermediates=lambda module, _: isinstance(module, ScaledConv | nn.LayerNorm),
            mutable=["intermediates"],
        )
        return seen["intermediates"], images.mean(0), captions.mean(0)

    for _ in range(DEPTH):  # what a layer sees changes with the layers before it
        params = standardised(params, statistics(params)[0]["visual"])
    seen, image, _ = statistics(params)
    params["visual"]["attnpool"]["c_proj"]["bias"] -= image
    finished = seen["text"]["ln_final"]["__call__"][0]
    params["text"]["ln_final"]["bias"] -= finished[np.arange(len(batch.ends)), batch.ends].mean(0)
    return params


def standardised(params: PyTree, seen: PyTree) -> PyTree:
    """Convolutions rescaled by the mean and deviation of what they put out."""
    convolutions, outputs = flatten_dict(params["visual"]), flatten_dict(seen)
    for path, (output,) in outputs.items():
        where = path[:-1]
        stacked = convolutions[*where, "scale"].ndim == 2
        axes = (1, 2, 3) if stacked else (0, 1, 2)
        mean, deviation = output.mean(axes), output.std(axes) + 1e-6
        convolutions[*where, "bias"] = (convolutions[*where, "bias"] - mean) / deviation
        convolutions[*where, "scale"] = convolutions[*where, "scale"] / deviation
    return params | {"visual": unflatten_dict(convolutions)}


@owning("work")
def make(directory: Path, work: Path, studies: int, steps: int, rows: int) -> None:
    """Train in `work`, a run directory that can be continued, and write the finished CLIP to `directory`."""
    drawn = make_phantoms(SEED, range(studies + HELD_OUT), RESIZE)
    held_out, phantoms = drawn[:HELD_OUT], drawn[HELD_OUT:]
    words = build_word_tokenizer(
        text for phantom in phantoms for text in (r2gen_clean_iu(phantom.report), phantom.indication)
    )
    config = ClipConfig(**{**vars(SIZES), "vocab_size": words.vocab_size})
    unseen = [evaluation_batch(held_out[start : start + rows], words) for start in range(0, HELD_OUT, rows)]
    batch_of = functools.partial(training_batch, phantoms=phantoms, words=words, rows=rows)
    weights = train_from_scratch(
        OPTIM,
        SEED,
        work,
        functools.partial(pretraining_loss, config=config),
        initial_params(config, batch_of(0)),
        plan=plan_in_order([1] * steps, batch_rows=1, buckets=(1,)),
        to_batch=lambda step: batch_of(step.rows[0][0]),
        validation=lambda: unseen,
    )
    save_clip(directory, config, jax.tree.map(lambda leaf: leaf.astype(jnp.float16), weights))
    save_words(directory / "words.json", words)


def main(arguments: list[str]) -> None:
    """Command line of `python -m unicross_jax.pretrain`."""
    parser = Parser("python -m unicross_jax.pretrain", description=__doc__)
    parser.add_argument("--output", type=Path, default=EMBEDDED_CLIP, help="directory of the finished CLIP")
    parser.add_argument("--work", type=Path, default=Path("runs/clip"), help="run directory; continues if interrupted")
    parser.add_argument("--studies", type=bounded(COUNT), default=16_000, help="phantom studies to learn from")
    parser.add_argument("--steps", type=bounded(STEPS), default=3000, help="updates")
    parser.add_argument(
        "--rows", type=bounded(COUNT), default=64, help="studies of an update; each is compared with the others"
    )
    options = parser.parse_args(arguments)
    make(options.output, options.work, options.studies, options.steps, options.rows)


if __name__ == "__main__":
    run_cli(main)
