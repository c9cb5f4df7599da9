"""CLIP against PyTorch with random weights and BatchNorm statistics: every stage, every group, every file format."""

import functools
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax.traverse_util import flatten_dict

from common.errors import UserError
from common.models.attention import KeyValues, Past
from common.models.clip import RN101, Clip, ClipConfig, ModifiedResNet, TextTransformer, init_params
from common.models.clip_weights import load_clip, name_map, param_shapes, save_clip

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")
from safetensors.torch import load_file, save_file

from launch.bench.torch_clip import TorchClip
from tests.parity.unicross_weights import with_random_norms
from unicross_jax.config import EMBEDDED_CLIP

TOLERANCE = 1e-4
CONFIG = ClipConfig(
    image_size=64, vision_layers=(2, 1, 3, 2), vision_width=8, embed_dim=24, context_length=11, vocab_size=61,
    text_width=128, text_heads=2, text_layers=6,
)  # fmt: skip
IMAGES = np.random.default_rng(0).normal(size=(2, 64, 64, 3)).astype(np.float32)
IDS = np.random.default_rng(1).integers(1, 60, (3, 11))
IDS[0, 4], IDS[1, 10], IDS[2, 0] = 60, 60, 60  # the end token


@pytest.fixture(scope="module")
def peer():
    torch.manual_seed(0)
    return with_random_norms(TorchClip(CONFIG))


@pytest.fixture(scope="module")
def loaded(peer, tmp_path_factory):
    file = tmp_path_factory.mktemp("clip") / "open_clip_model.safetensors"
    save_file({name: tensor.contiguous() for name, tensor in peer.state_dict().items()}, file)
    return load_clip(file.parent)


def agree(ours, theirs):
    """Within TOLERANCE of the largest value, and not because all values are small."""
    theirs = np.asarray(theirs)
    scale = np.abs(theirs).max()
    assert scale > 0.1
    np.testing.assert_allclose(ours, theirs, rtol=0, atol=TOLERANCE * max(1.0, scale))


def nchw(x):
    return torch.tensor(np.asarray(x)).permute(0, 3, 1, 2).contiguous()


def nhwc(x):
    return x.permute(0, 2, 3, 1).numpy()


@functools.partial(jax.jit, static_argnames=("module", "method", "number"))
def call(module, params, *inputs, method=None, number=None):
    arguments = inputs if number is None else (number, *inputs)
    return module.apply({"params": params}, *arguments, method=method)


def test_every_stage_of_the_image_side(peer, loaded):
    config, params = loaded
    assert config == CONFIG
    image_side = functools.partial(call, ModifiedResNet(config), params["visual"])
    x = image_side(IMAGES, method="stem")
    assert x.shape == (2, 16, 16, 8)
    agree(x, nhwc(peer.visual.stem(nchw(IMAGES))))
    for number, shape in ((1, (16, 16, 32)), (2, (8, 8, 64)), (3, (4, 4, 128)), (4, (2, 2, 256))):
        theirs = getattr(peer.visual, f"layer{number}")(nchw(x))
        x = image_side(x, method="stage", number=number)
        assert x.shape == (2, *shape)
        agree(x, nhwc(theirs))
    agree(image_side(x, method="attention_pool"), peer.visual.attnpool(nchw(x)))
    agree(image_side(IMAGES), peer.visual(nchw(IMAGES)))


@pytest.mark.parametrize("grid", [(2, 2), (4, 3), (1, 1)])
def test_dense_pool_is_attention_of_all_positions_to_all(peer, loaded, grid):
    config, params = loaded
    x = np.random.default_rng(2).normal(size=(2, *grid, 256)).astype(np.float32)
    ours = call(ModifiedResNet(config), params["visual"], x, method="dense_pool")
    assert ours.shape == (2, *grid, 24)
    agree(ours, nhwc(peer.visual.attnpool.dense(nchw(x))))


@pytest.mark.parametrize("length", [11, 5])
def test_every_group_of_the_text_side(peer, loaded, length):
    config, params = loaded
    text_side = functools.partial(call, TextTransformer(config), params["text"])
    ids = IDS[:, :length]
    x, theirs = text_side(ids, method="embed"), peer.embed(torch.tensor(ids))
    agree(x, theirs.transpose(0, 1))
    for number in range(3):
        x = text_side(x, method="group", number=number)
        theirs = peer.transformer.resblocks[2 * number : 2 * number + 2](theirs)
        agree(x, theirs.transpose(0, 1))
    finished = text_side(x, method="finish")
    agree(finished, peer.ln_final(theirs).transpose(0, 1))
    end = np.array([4, 1, 0])
    expected = peer.ln_final(theirs)[end, np.arange(3)] @ peer.text_projection
    agree(text_side(finished, end, method="pooled"), expected)


def test_whole_model(peer, loaded):
    config, params = loaded
    images, texts = call(Clip(config), params, IMAGES, IDS)
    expected_images, expected_texts = peer(nchw(IMAGES), torch.tensor(IDS))
    agree(images, expected_images)
    agree(texts, expected_texts)
    assert params["logit_scale"] == 3.25


def test_a_token_changes_no_earlier_feature(loaded):
    config, params = loaded
    other = IDS.copy()
    other[:, 6] = 7
    text_side = functools.partial(call, TextTransformer(config), params["text"])
    change = np.abs(
        text_side(text_side(IDS, method="embed"), method="group", number=0)
        - text_side(text_side(other, method="embed"), method="group", number=0)
    ).max((0, 2))
    np.testing.assert_array_equal(change[:6], 0)
    assert (change[6:] > 0).all()


def test_cached_tokens_are_those_of_the_whole_text(loaded):
    """Five tokens at once, then the sixth, shared by two continuations with one token of their own before it."""
    config, params = loaded
    text_side = functools.partial(call, TextTransformer(config), params["text"])
    ids = np.stack([IDS[:1, :7], IDS[:1, :7]], axis=1)  # [B=1 G=2 T=7]
    ids[0, 1, 5:] = 7, 8
    for number in range(3):
        x = np.asarray(text_side(ids[0], method="embed"))
        whole, key_values = text_side(x, method="extend", number=number)
        k, v = (jnp.swapaxes(leaf, 2, 3) for leaf in key_values)  # [L G H T dim]
        past = Past(
            KeyValues(k[:, :1, :, :5], v[:, :1, :, :5]), jnp.ones((1, 5), bool),
            KeyValues(k[:, None, :, :, 5:6], v[:, None, :, :, 5:6]), jnp.ones((1, 2, 1), bool),
        )  # fmt: skip
        last, own = text_side(x[None, :, 6], None, past, method="extend", number=number)
        agree(last[0], whole[:, 6])
        agree(own.k[:, 0], key_values.k[:, :, 6])


def test_text_side_of_transformers(peer, tmp_path):
    torch.manual_seed(1)
    model = transformers.CLIPTextModelWithProjection(
        transformers.CLIPTextConfig(
            vocab_size=61, hidden_size=128, intermediate_size=512, projection_dim=24, num_hidden_layers=6,
            num_attention_heads=2, max_position_embeddings=11, eos_token_id=60,
        )
    ).eval()  # fmt: skip
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, mean=1.0 if parameter.ndim == 1 else 0.0, std=0.1)
    theirs = {name.removeprefix("text_model."): tensor for name, tensor in model.state_dict().items()}
    tensors = {name: tensor for name, tensor in peer.state_dict().items() if name.startswith(("visual.", "logit"))}
    tensors["token_embedding.weight"] = theirs["embeddings.token_embedding.weight"]
    tensors["positional_embedding"] = theirs["embeddings.position_embedding.weight"]
    tensors["text_projection"] = theirs["text_projection.weight"].T
    for part in ("weight", "bias"):
        tensors[f"ln_final.{part}"] = theirs[f"final_layer_norm.{part}"]
        for layer in range(6):
            ours, hub = f"transformer.resblocks.{layer}", f"encoder.layers.{layer}"
            packed = [theirs[f"{hub}.self_attn.{name}.{part}"] for name in ("q_proj", "k_proj", "v_proj")]
            tensors[f"{ours}.attn.in_proj_{part}"] = torch.cat(packed)
            tensors[f"{ours}.attn.out_proj.{part}"] = theirs[f"{hub}.self_attn.out_proj.{part}"]
            for name, hub_name in (
                *(("ln_1", "layer_norm1"), ("ln_2", "layer_norm2")),
                *(("mlp.c_fc", "mlp.fc1"), ("mlp.c_proj", "mlp.fc2")),
            ):
                tensors[f"{ours}.{name}.{part}"] = theirs[f"{hub}.{hub_name}.{part}"]
    save_file({name: tensor.contiguous() for name, tensor in tensors.items()}, tmp_path / "model.safetensors")
    config, params = load_clip(tmp_path)
    with torch.no_grad():
        expected = model(torch.tensor(IDS), output_hidden_states=True)
    text_side = functools.partial(call, TextTransformer(config), params["text"])
    x = text_side(IDS, method="embed")
    for number in range(3):
        x = text_side(x, method="group", number=number)
        agree(x, expected.hidden_states[2 * number + 2])
    agree(text_side(x, method="finish"), expected.last_hidden_state)
    agree(text_side(IDS), expected.text_embeds)


@pytest.mark.parametrize("kind", ["torchscript", "state dict", "legacy state dict", "training checkpoint"])
def test_every_file_format_gives_the_same_weights(peer, loaded, tmp_path, kind):
    file = tmp_path / "clip.pt"
    if kind == "torchscript":
        torch.jit.trace(peer, (nchw(IMAGES), torch.tensor(IDS)), check_trace=False).save(str(file))
    elif kind == "training checkpoint":
        state = {f"module.{name}": tensor for name, tensor in peer.state_dict().items()}
        torch.save({"epoch": 3, "name": "tiny", "state_dict": state, "optimizer": {"state": {0: torch.ones(3)}}}, file)
    else:
        torch.save(peer.state_dict(), file, _use_new_zipfile_serialization=kind == "state dict")
    config, params = load_clip(file)
    assert config == CONFIG
    jax.tree.map(np.testing.assert_array_equal, params, loaded[1])


def test_half_precision_archives_load_as_float32(peer, tmp_path):
    """As OpenAI publishes them: products in float16, norms in float32, in TorchScript."""
    model = TorchClip(CONFIG).eval().requires_grad_(False)
    model.load_state_dict(peer.state_dict())
    script = torch.jit.trace(model, (nchw(IMAGES), torch.tensor(IDS)), check_trace=False)
    for module in script.modules():
        if module.original_name in ("Conv2d", "Linear", "MultiheadAttention", "TorchAttentionPool"):
            module.half()
    script.save(str(tmp_path / "half.pt"))
    config, params = load_clip(tmp_path / "half.pt")
    assert {leaf.dtype for leaf in jax.tree.leaves(params)} == {jnp.dtype(jnp.float32)}
    kernel = params["visual"]["layer1"]["first"]["conv2"]["kernel"]
    expected = peer.visual.layer1[0].conv2.weight.half().float().permute(2, 3, 1, 0)
    np.testing.assert_array_equal(kernel, expected)
    images, texts = call(Clip(config), params, IMAGES, IDS)
    expected_images, expected_texts = peer(nchw(IMAGES), torch.tensor(IDS))
    np.testing.assert_allclose(images, expected_images, atol=0.02 * np.abs(expected_images).max())
    np.testing.assert_allclose(texts, expected_texts, atol=0.02 * np.abs(expected_texts).max())


def test_bfloat16_computation_stays_close(loaded):
    config, params = loaded
    low = ClipConfig(**{**vars(config), "dtype": "bfloat16"})
    for ours, wide in zip(call(Clip(low), params, IMAGES, IDS), call(Clip(config), params, IMAGES, IDS), strict=True):
        assert ours.dtype == jnp.bfloat16
        np.testing.assert_allclose(ours.astype(jnp.float32), wide, atol=0.05 * np.abs(wide).max())


@pytest.mark.parametrize(
    ("edit", "message"),
    [
        (lambda t: t.pop("visual.layer3.1.bn2.running_var"), r"visual\.layer3\.1\.bn2\.running_var is missing"),
        (lambda t: t.pop("visual.layer3.1.conv2.weight"), r"visual\.layer3\.1\.conv2\.weight is missing"),
        (lambda t: t.pop("text_projection"), r"text_projection is missing"),
        (lambda t: t.update(extra=torch.ones(2)), r"extra is surplus"),
        (lambda t: t["visual.bn1.running_var"].fill_(-1.0), r"visual\.bn1\.running_var has impossible values"),
        (lambda t: t["visual.bn1.bias"].fill_(torch.nan), r"visual\.bn1\.bias has impossible values"),
        (lambda t: t["ln_final.bias"].fill_(torch.inf), r"ln_final\.bias holds values that are not finite"),
        (lambda t: t.update({"visual.bn2.bias": torch.ones(5)}), r"visual\.bn2\.bias has shape \[5\]"),
        (lambda t: t.update({"ln_final.bias": torch.ones(5)}), r"ln_final\.bias has shape \[5\], expected \[128\]"),
        (lambda t: t.update({"visual.attnpool.positional_embedding": torch.ones(4, 256)}), r"one more than a square"),
        (lambda t: [t.pop(name) for name in list(t) if "resblocks.5" in name], r"text_layers is 5"),
        (lambda t: [t.pop(name) for name in list(t) if ".layer4." in name], r"no tensors under visual\.layer4"),
        (
            lambda t: (
                [t.pop(name) for name in list(t) if "visual" in name]
                and t.update({"visual.class_embedding": torch.ones(3)})
            ),
            r"its image side is a ViT",
        ),
    ],
)
def test_errors_name_tensor_and_file(peer, tmp_path, edit, message):
    tensors = {name: tensor.clone().contiguous() for name, tensor in peer.state_dict().items()}
    edit(tensors)
    save_file(tensors, tmp_path / "model.safetensors")
    with pytest.raises(UserError, match=message) as caught:
        load_clip(tmp_path / "model.safetensors")
    assert str(tmp_path) in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("kind", ["safetensors", "archive"])
@pytest.mark.parametrize("prefix", ["", "module.", "clip.", "module.encode_clip.backbone."])
def test_a_checkpoint_of_the_authors_is_refused_with_the_reason(peer, tmp_path, prefix, kind):
    """Their attention pool has a residual, `connect`: a 1x1 convolution and its BatchNorm."""
    tensors = {f"{prefix}{name}": tensor.clone() for name, tensor in peer.state_dict().items()}
    tensors[f"{prefix}visual.attnpool.connect.0.weight"] = torch.ones(24, 256, 1, 1)
    for part in ("weight", "bias", "running_mean", "running_var"):
        tensors[f"{prefix}visual.attnpool.connect.1.{part}"] = torch.ones(24)
    if kind == "archive":
        file = tmp_path / "best.pth"
        torch.save({"epoch": 3, "state_dict": tensors, "optimizer": {"state": {}}, "monitor_best": 0.2}, file)
    else:
        file = tmp_path / "model.safetensors"
        save_file({name: tensor.contiguous() for name, tensor in tensors.items()}, file)
    with pytest.raises(UserError, match=r"attnpool\.connect\.0\.weight, the residual of the attention pool") as caught:
        load_clip(file)
    assert str(file) in str(caught.value)
    assert "\n" not in str(caught.value)


# The published layout, as `save_clip` writes it and as it is shipped, in the module that reads OpenAI's.
@pytest.mark.parametrize("which", ["saved", "shipped"])
def test_an_exported_clip_loads_into_the_published_module(loaded, tmp_path, which):
    config, params = loaded
    directory = EMBEDDED_CLIP
    if which == "saved":
        save_clip(tmp_path / "clip", config, params)
        directory = tmp_path / "clip"
    config, params = load_clip(directory)
    stored = load_file(directory / "model.safetensors")
    model = TorchClip(config)
    result = model.load_state_dict({name: tensor.float() for name, tensor in stored.items()}, strict=False)
    assert not result.unexpected_keys
    counters = [name for name in model.state_dict() if name.endswith("num_batches_tracked")]
    # Sizes that OpenAI's `build_model` drops before it loads, and counters, which PyTorch sets where a file has none.
    assert set(result.missing_keys) <= {"context_length", "input_resolution", "vocab_size", *counters}
    random = np.random.default_rng(3)
    images = random.normal(size=(2, config.image_size, config.image_size, 3)).astype(np.float32)
    ids = random.integers(1, config.vocab_size, (2, config.context_length))
    ours = call(Clip(config), params, images, ids)
    with torch.no_grad():
        theirs = model.eval()(nchw(images), torch.tensor(ids))
    for found, expected in zip(ours, theirs, strict=True):
        agree(found, expected)


RN50 = ClipConfig(vision_layers=(3, 4, 6, 3), embed_dim=1024)


# Parameters that OpenAI's code prints for its models, and some of the shapes in the published archives.
@pytest.mark.parametrize(("config", "count"), [(RN50, 102_007_137), (RN101, 119_688_033)])
def test_published_sizes(config, count):
    shapes = param_shapes(config)
    leaves = flatten_dict(shapes, sep="/")
    assert sum(math.prod(leaf.shape) for leaf in leaves.values()) == count
    names = name_map(config)
    assert names.keys() == leaves.keys()
    published = {}
    for path, leaf in leaves.items():
        shape = leaf.shape[1:] if names[path].stacked else leaf.shape
        axes = names[path].axes or range(len(shape))
        published |= dict.fromkeys(names[path].names, tuple(shape[axis] for axis in np.argsort(axes)))
    embed = config.embed_dim
    last = config.vision_layers[2] - 1
    assert published["visual.conv1.weight"] == (32, 3, 3, 3)
    assert published["visual.layer1.0.downsample.0.weight"] == (256, 64, 1, 1)
    assert published[f"visual.layer3.{last}.conv3.weight"] == (1024, 256, 1, 1)
    assert published["visual.layer4.2.conv2.weight"] == (512, 512, 3, 3)
    assert published["visual.attnpool.positional_embedding"] == (50, 2048)
    assert published["visual.attnpool.c_proj.weight"] == (embed, 2048)
    assert published["transformer.resblocks.11.attn.in_proj_weight"] == (1536, 512)
    assert published["transformer.resblocks.11.mlp.c_fc.weight"] == (2048, 512)
    assert published["text_projection"] == (512, embed)


def test_feature_shapes_of_rn101_at_224():
    params = param_shapes(RN101)["visual"]
    image_side = ModifiedResNet(RN101)

    def features(params, images):
        bound = image_side.bind({"params": params})
        x = bound.stage(1, bound.stem(images))
        maps = [x := bound.stage(number, x) for number in (2, 3, 4)]
        return [*maps, bound.dense_pool(x), bound.attention_pool(x)]

    shapes = jax.eval_shape(features, params, jax.ShapeDtypeStruct((2, 224, 224, 3), jnp.float32))
    assert [leaf.shape[1:] for leaf in shapes] == [(28, 28, 512), (14, 14, 1024), (7, 7, 2048), (7, 7, 512), (512,)]


def test_random_parameters_run():
    params = jax.jit(init_params, static_argnums=0)(CONFIG, jax.random.key(0))
    images, texts = call(Clip(CONFIG), params, IMAGES, IDS)
    assert images.shape == (2, 24)
    assert texts.shape == (3, 24)
    assert np.isfinite(images).all()
    assert np.isfinite(texts).all()
