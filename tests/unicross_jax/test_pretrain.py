"""What the small CLIP is made by: the loss of its pre-training, against the same in NumPy."""

import functools

import jax
import numpy as np
import pytest

from common.models.clip import Clip, ClipConfig, init_params, normalise
from unicross_jax.pretrain import WORD_SCALE, CaptionBatch, pretraining_loss, text_embedding

CONFIG = ClipConfig(
    image_size=32, vision_layers=(1, 1, 1, 1), vision_width=4, embed_dim=64, context_length=8, vocab_size=20,
    text_width=64, text_heads=1, text_layers=3,
)  # fmt: skip


def batch(seed: int) -> CaptionBatch:
    random = np.random.default_rng(seed)
    images = random.integers(0, 256, (3, 32, 32), np.uint8)
    captions = np.random.default_rng(0).integers(1, 20, (3, 8), np.int32)
    return CaptionBatch(images, captions, np.array([7, 4, 5], np.int32))


@pytest.fixture(scope="module")
def params():
    return init_params(CONFIG, jax.random.key(0))


@pytest.fixture(scope="module")
def loss():
    return jax.jit(functools.partial(pretraining_loss, config=CONFIG))


def log_softmax(x: np.ndarray, axis: int = -1) -> np.ndarray:
    return x - np.log(np.exp(x - x.max(axis, keepdims=True)).sum(axis, keepdims=True)) - x.max(axis, keepdims=True)


def test_captions_are_told_apart_and_their_next_words_told_by_image_and_text(params, loss):
    given = batch(1)

    @jax.jit
    def features(params):
        def both(clip):
            return clip.visual(normalise(given.images)), *text_embedding(clip, given.captions, given.ends)

        return Clip(CONFIG).apply({"params": params}, method=both)

    images, captions, words = (np.asarray(part, np.float64) for part in features(params))
    unit = [x / np.linalg.norm(x, axis=1, keepdims=True) for x in (images, captions)]
    similarity = np.exp(float(params["logit_scale"])) * unit[0] @ unit[1].T
    contrast = -(np.diag(log_softmax(similarity, 0)) + np.diag(log_softmax(similarity, 1))).mean() / 2
    next_word = []
    for row, end in enumerate(given.ends):
        for index in range(end):
            logits = WORD_SCALE * (words[row, index] + images[row]) @ np.asarray(params["text"]["token_embedding"]).T
            next_word.append(-log_softmax(logits)[given.captions[row, index + 1]])
    total, parts = loss(params, {}, given, jax.random.key(0))
    assert float(parts["contrast"].total / parts["contrast"].weight) == pytest.approx(contrast, rel=1e-5)
    assert float(parts["next_word"].total / parts["next_word"].weight) == pytest.approx(np.mean(next_word), rel=1e-5)
    assert float(total.total / total.weight) == pytest.approx(contrast + np.mean(next_word), rel=1e-5)


def test_what_follows_the_end_of_a_caption_does_not_count(params, loss):
    given = batch(1)
    captions = np.array(given.captions)
    captions[1, 5:], captions[2, 6:] = 3, 4
    of = [loss(params, {}, one, jax.random.key(0))[0].total for one in (given, given.replace(captions=captions))]
    assert float(of[0]) == pytest.approx(float(of[1]), rel=1e-6)
