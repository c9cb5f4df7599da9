"""UniCrossAdapter under `published` against an independent PyTorch build of the printed equations, random weights."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from common.models.clip import ClipConfig, normalise
from unicross_jax.model import (
    ReportBatch,
    Studies,
    UniCrossConfig,
    init_trainable,
    loss,
    output_head,
    report_hidden,
)

torch = pytest.importorskip("torch")
from launch.bench.peer_unicross import Backbone
from launch.bench.torch_clip import TorchClip
from launch.bench.torch_unicross import UniCrossAdapter
from tests.parity.unicross_weights import ours_from, own_parameters, randomised, with_random_norms

TOLERANCE = 1e-4
CLIP = ClipConfig(
    image_size=64, vision_layers=(1, 1, 2, 1), vision_width=8, embed_dim=24, context_length=16, vocab_size=61,
    text_width=64, text_heads=1, text_layers=6,
)  # fmt: skip
CONFIG = UniCrossConfig(
    clip=CLIP, vocabulary=40, conditioning="published", heads=4, vision_layers=2, decoder_layers=2, dropout=0.0
)
TOKENS = np.random.default_rng(2).integers(1, 40, (3, 9))
MASK = np.arange(9) < np.array([[9], [4], [7]])
IMAGES = np.random.default_rng(3).integers(0, 256, (3, 2, 64, 64)).astype(np.uint8)


@pytest.fixture(scope="module")
def pair(tmp_path_factory):
    """The PyTorch model, and our trainable and frozen trees with the same weights."""
    torch.manual_seed(0)
    clip = with_random_norms(TorchClip(CLIP))
    reference = UniCrossAdapter(
        Backbone(clip), 40, channels=(64, 128, 256), text_width=64, embed=24, width=64, heads=4, ffn=256,
        encoder_layers=2, decoder_layers=2,
    ).eval()  # fmt: skip
    return reference, *randomised(reference, 40, tmp_path_factory.mktemp("clip"))


def studies():
    return Studies(IMAGES, jnp.ones((3, 2), bool), jnp.zeros((3, 2), jnp.int32), jnp.zeros(3, jnp.int32))


def theirs_of(reference):
    images = np.asarray(normalise(IMAGES.reshape(-1, *IMAGES.shape[2:]))).reshape(*IMAGES.shape, 3)
    images = torch.tensor(images).permute(0, 1, 4, 2, 3)
    return reference(images, torch.tensor(TOKENS), torch.tensor(MASK))


def test_the_weights_fit(pair):
    _, trainable, _ = pair
    expected = jax.eval_shape(lambda: init_trainable(CONFIG, jax.random.key(0)))
    assert jax.tree.map(jnp.shape, trainable) == jax.tree.map(jnp.shape, expected)


def test_logits_and_gradients(pair):
    reference, trainable, frozen = pair
    targets = np.roll(TOKENS, -1, axis=1)

    def total(trainable):
        hidden = report_hidden(trainable, frozen, studies(), TOKENS, jnp.asarray(MASK), CONFIG)
        logits = hidden @ output_head(trainable).T
        batch = ReportBatch(studies(), TOKENS, targets, MASK.astype(np.float32))
        return loss(trainable, frozen, batch, None, config=CONFIG)[0].total, logits

    ours, logits = jax.jit(jax.grad(total, has_aux=True))(trainable)
    theirs = theirs_of(reference)["logits"]
    scale = theirs[torch.tensor(MASK)].abs().max().item()
    assert scale > 0.5
    np.testing.assert_allclose(logits[MASK], theirs.detach().numpy()[MASK], rtol=0, atol=TOLERANCE * max(scale, 1.0))

    chosen = theirs.log_softmax(-1).gather(-1, torch.tensor(targets)[..., None])[..., 0]
    (-(chosen * torch.tensor(MASK)).sum()).backward()
    expected = ours_from(
        {
            name: np.zeros(tensor.shape, np.float32) if tensor.grad is None else tensor.grad.numpy()
            for name, tensor in own_parameters(reference).items()
        }
    )
    largest = max(float(jnp.abs(leaf).max()) for leaf in jax.tree.leaves(expected))

    def agree(path, a, b):
        # Relative to the leaf, with a floor for leaves whose gradient is rounding (biases that cancel in a softmax).
        scale = max(float(jnp.abs(b).max()), 1e-3 * largest)
        assert float(jnp.abs(a - b).max()) <= TOLERANCE * scale, jax.tree_util.keystr(path)

    jax.tree_util.tree_map_with_path(agree, ours, expected)
