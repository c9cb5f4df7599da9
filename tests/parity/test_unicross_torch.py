"""UniCrossAdapter under `published` against an independent PyTorch build of the printed equations, random weights."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax.traverse_util import unflatten_dict
from safetensors.torch import save_file

from common.models.clip import ClipConfig, normalise
from common.models.clip_weights import load_clip
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
from launch.torch_clip import TorchClip, randomise  # noqa: E402
from launch.torch_unicross import UniCrossAdapter  # noqa: E402

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


class Backbone(torch.nn.Module):
    """The interface that the reference asks of CLIP."""

    def __init__(self, clip):
        super().__init__()
        self.clip = clip
        self.stem, self.dense_pool = clip.visual.stem, clip.visual.attnpool.dense
        self.layer1, self.layer2, self.layer3, self.layer4 = (getattr(clip.visual, f"layer{i}") for i in (1, 2, 3, 4))
        self.token_embedding, self.positional_embedding = clip.token_embedding, clip.positional_embedding
        self.blocks = [lambda x, b=block: b(x.transpose(0, 1)).transpose(0, 1) for block in clip.transformer.resblocks]
        self.ln_final, self.text_projection = clip.ln_final, clip.text_projection


@pytest.fixture(scope="module")
def pair(tmp_path_factory):
    """The PyTorch model, and our trainable and frozen trees with the same weights."""
    torch.manual_seed(0)
    clip = randomise(TorchClip(CLIP))
    file = tmp_path_factory.mktemp("clip") / "open_clip_model.safetensors"
    save_file({name: tensor.contiguous() for name, tensor in clip.state_dict().items()}, file)
    _, params = load_clip(file.parent)
    reference = UniCrossAdapter(
        Backbone(clip), 40, channels=(64, 128, 256), text_width=64, embed=24, width=64, heads=4, ffn=256,
        encoder_layers=2, decoder_layers=2,
    ).eval()  # fmt: skip
    for name, parameter in reference.named_parameters():
        if not name.startswith("clip."):
            torch.nn.init.normal_(parameter, std=0.15)
    ours = ours_from({name: tensor.detach().numpy() for name, tensor in own_parameters(reference).items()})
    return reference, ours, {"clip": params, "report_embedding": params["text"]["token_embedding"][:40]}


def own_parameters(reference):
    return {name: tensor for name, tensor in reference.named_parameters() if not name.startswith("clip.")}


def ours_from(theirs):
    """Arrays by PyTorch's names as our tree: parameters, or gradients."""
    tree = {}

    def linear(path, name):
        tree[f"{path}/kernel"], tree[f"{path}/bias"] = theirs[f"{name}.weight"].T, theirs[f"{name}.bias"]

    def norm(path, name):
        tree[f"{path}/scale"], tree[f"{path}/bias"] = theirs[f"{name}.weight"], theirs[f"{name}.bias"]

    def attention(path, name):
        for part in ("q", "k", "v", "out"):
            linear(f"{path}/{part}_proj", f"{name}.{part}")

    def feed_forward(path, name):
        linear(f"{path}/up", f"{name}.up")
        linear(f"{path}/down", f"{name}.down")

    def conv(path, name, transposed=False):
        kernel = theirs[f"{name}.weight"]
        # A transposed convolution is stored [in out h w], and ours runs over its kernel from the other end.
        tree[f"{path}/kernel"] = (
            kernel.transpose(2, 3, 0, 1)[::-1, ::-1] if transposed else kernel.transpose(2, 3, 1, 0)
        )

    def affine(path, name):
        tree[f"{path}/scale"], tree[f"{path}/bias"] = theirs[f"{name}.scale"], theirs[f"{name}.bias"]

    for k in range(3):
        path, name = f"adapter{k}", f"adapters.{k}"
        conv(f"{path}/reduce_visual/conv", f"{name}.reduce_visual", transposed=k == 2)
        conv(f"{path}/recover_visual/conv", f"{name}.recover_visual", transposed=k == 0)
        if k == 1:  # PyTorch's is a transposed convolution of size 1, stored [in out 1 1]
            tree[f"{path}/recover_visual/conv/kernel"] = theirs[f"{name}.recover_visual.weight"].transpose(2, 3, 0, 1)
        linear(f"{path}/reduce_text", f"{name}.reduce_text")
        linear(f"{path}/recover_text", f"{name}.recover_text")
        for modality in ("visual", "text"):
            own = f"{path}/{modality}"
            if k:
                norm(f"{path}/residual_{modality}", f"{name}.{modality}.residual_norm")
            attention(f"{own}/self_attention", f"{name}.{modality}.self_attention")
            attention(f"{own}/cross_attention", f"{name}.{modality}.cross_attention")
            feed_forward(f"{own}/feed_forward", f"{name}.{modality}.ffn")
            for number, part in enumerate(("self_norm", "cross_norm", "ffn_norm"), 1):
                norm(f"{own}/norm{number}", f"{name}.{modality}.{part}")
        conv(f"fusion/project{k}/conv", f"fusion.project.{k}", transposed=k == 2)
        affine(f"fusion/affine{k}", f"fusion.project_affine.{k}")
        attention(f"fusion/modulate{k}", f"fusion.modulate.{k}")
    linear("fusion/text", "fusion.text")
    for layer, after, name in (
        ("merge", "merged", "merge"),
        ("place", "placed", "locate"),
        ("smooth", "smoothed", "refine"),
    ):
        conv(f"fusion/{layer}", f"fusion.{name}")
        affine(f"fusion/{after}", f"fusion.{name}_affine")
    linear("vision/project", "encoder.embed")
    norm("vision/norm_in", "encoder.embed_norm")
    tree["vision/class_token"] = theirs["encoder.class_token"]
    norm("vision/norm", "encoder.norm")
    norm("decoder/norm", "decoder.norm")
    stacks = {}
    for name, path, norms in (
        ("encoder", "vision/encoder/layers", ("self_norm", "ffn_norm")),
        ("decoder", "decoder/layers", ("self_norm", "cross_norm", "ffn_norm")),
    ):
        for layer in range(2):
            before, tree = tree, {}
            for number, part in enumerate(norms, 1):
                norm(f"{path}/norm{number}", f"{name}.layers.{layer}.{part}")
            attention(f"{path}/attention", f"{name}.layers.{layer}.self_attention")
            if name == "decoder":
                attention(f"{path}/cross_attention", f"{name}.layers.{layer}.cross_attention")
            feed_forward(f"{path}/feed_forward", f"{name}.layers.{layer}.ffn")
            for leaf, value in tree.items():
                stacks.setdefault(leaf, []).append(value)
            tree = before
    tree |= {leaf: np.stack(values) for leaf, values in stacks.items()}
    tree["logits/kernel"], tree["logits/bias"] = theirs["logits.weight"], theirs["logits.bias"]
    return jax.tree.map(jnp.asarray, unflatten_dict(tree, sep="/"))


def studies():
    return Studies(IMAGES, jnp.ones((3, 2), bool), jnp.zeros((3, 2), jnp.int32), jnp.zeros(3, jnp.int32))


def theirs_of(reference):
    images = normalise(IMAGES)
    images = torch.tensor(np.asarray(images)).permute(0, 1, 4, 2, 3)
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
