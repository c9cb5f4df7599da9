"""Qwen2.5-VL against transformers' PyTorch model with random weights: features, positions, logits, tokens, files."""

import dataclasses
import functools
import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from safetensors.torch import load_file, save_file

from common.generation.loop import generate
from common.generation.sampling import Sampling
from common.generation.settings import DecodeSettings
from common.io.safetensors import open_tensors, published_tensors
from common.models.attention import attend
from common.models.qwen2 import bind
from common.models.qwen2_vl import (
    SHARDING_RULES,
    hidden_states,
    output_head,
    prefill_study,
    vision_features,
    with_continuations,
)
from common.models.qwen2_vl_layout import (
    expand_images,
    study_rows,
    vision_layout,
)
from common.models.qwen2_vl_vision import pad_heads
from common.models.qwen2_vl_weights import (
    load_qwen2_vl,
    name_map,
    param_shapes,
    save_qwen2_vl,
)
from common.training.losses import token_logprobs
from common.training.parallel import MeshConfig, make_device_layout, place_batch, shardings

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")

TOLERANCE = 1e-4
START, END, PAD, IMAGE, VIDEO = 160, 161, 162, 163, 164
ALIGNED, CUT = (16, 8), (10, 18)  # in patches: whole windows, and windows cut on both edges

CONFIGS = {
    "tied": ({"depth": 4, "fullatt_block_indexes": [1, 3]}, {"rope_theta": 1e6, "mrope_section": [2, 3, 3]}, True),
    "untied": (
        {"depth": 3, "fullatt_block_indexes": [2], "num_heads": 4, "window_size": 56},
        {"rope_theta": 1e4, "mrope_section": [4, 2, 2]},
        False,
    ),
}


@pytest.fixture(scope="module", params=CONFIGS)
def published(request, tmp_path_factory):
    """A PyTorch model with random weights (biases and norms too), and its directory in small shards."""
    vision, rope, tied = CONFIGS[request.param]
    torch.manual_seed(0)
    config = transformers.Qwen2_5_VLConfig(
        vision_config={"hidden_size": 32, "intermediate_size": 48, "num_heads": 2, "out_hidden_size": 64, **vision},
        text_config={
            "vocab_size": 173, "hidden_size": 64, "intermediate_size": 112, "num_hidden_layers": 2,
            "num_attention_heads": 4, "num_key_value_heads": 2, "rms_norm_eps": 1e-6,
            "rope_parameters": {"rope_type": "default", **rope},
        },
        tie_word_embeddings=tied, vision_start_token_id=START, vision_end_token_id=END, vision_token_id=PAD,
        image_token_id=IMAGE, video_token_id=VIDEO,
    )  # fmt: skip
    model = transformers.Qwen2_5_VLForConditionalGeneration(config).eval()
    for name, parameter in model.named_parameters():
        torch.nn.init.normal_(parameter, mean=1.0 if "norm" in name or "ln_q" in name else 0.0, std=0.2)
    directory = tmp_path_factory.mktemp("published") / "model"
    model.save_pretrained(directory, max_shard_size="60KB")
    assert (directory / "model.safetensors.index.json").is_file()
    return model, directory


def patches(grid, seed=0):
    """Random patches of an image."""
    return np.random.default_rng(seed).normal(size=(grid[0] * grid[1], 3 * 2 * 14 * 14)).astype(np.float32)


def prompt(config, grids, words=5, seed=0):
    """Tokens with images between them, the first in front."""
    random = np.random.default_rng(seed)
    row = random.integers(0, 150, 2).tolist()
    for _ in grids:
        row += [START, IMAGE, END, *random.integers(0, 150, words).tolist()]
    return expand_images(config, row, grids)


def theirs_of(rows, grids, pixels, length=None, left=True):
    """Inputs of the PyTorch model, padded."""
    length = length or max(map(len, rows))
    ids, mask = np.zeros((len(rows), length), np.int64), np.zeros((len(rows), length), np.int64)
    for index, row in enumerate(rows):
        columns = slice(length - len(row), length) if left else slice(0, len(row))
        ids[index, columns], mask[index, columns] = row, 1
    inputs = {"input_ids": torch.tensor(ids), "attention_mask": torch.tensor(mask)}
    if flat := [image for study in pixels for image in study]:
        thw = [(1, *grid) for study in grids for grid in study]
        inputs |= {
            "pixel_values": torch.tensor(np.concatenate(flat)),
            "image_grid_thw": torch.tensor(thw),
            "mm_token_type_ids": torch.tensor((ids == IMAGE).astype(np.int32)),
        }
    return inputs


def images_of(config, grid, pixels):
    """Our batch of images, zeros where a study has fewer than others, and their layout."""
    images = np.zeros((len(pixels), max(map(len, pixels)), grid[0] * grid[1], config.vision.patch_features), np.float32)
    for index, own in enumerate(pixels):
        for number, image in enumerate(own):
            images[index, number] = image
    return images, vision_layout(config.vision, grid)


def ours_of(config, params, rows, grids, pixels, left=True):
    """Our rows and features of the same studies."""
    features = None
    if any(grids):
        features = jitted_features(config, params, *images_of(config, grids[0][0], pixels))
    return study_rows(config, rows, grids, length=max(map(len, rows)), left=left), features


jitted_features = jax.jit(vision_features, static_argnums=0)
jitted_hidden = jax.jit(hidden_states, static_argnums=0)


@functools.partial(jax.jit, static_argnums=(0, 4, 5, 6))
def continued(config, params, rows, features, group, new, sampling, keys=None):
    forward = bind(config.language, {"params": params["language"]})
    keys = jax.random.split(jax.random.key(0), rows.tokens.shape[0]) if keys is None else keys
    prefilled = prefill_study(config, params, rows, features, forward)
    forbidden = config.forbidden_ids if sampling.temperature else ()
    settings = DecodeSettings(new, sampling, group=group, forbidden_ids=forbidden)
    return generate(forward, output_head(params), prefilled, keys, settings)


STUDIES = {
    "one aligned image": [[ALIGNED]],
    "two images with cut windows": [[CUT] * 2],
    "different studies": [[CUT], [CUT] * 2, []],
}


@pytest.mark.parametrize("studies", STUDIES)
def test_features_and_logits(published, studies):
    model, directory = published
    config, params = load_qwen2_vl(directory)
    assert config.language.rope_theta == model.config.text_config.rope_parameters["rope_theta"]
    grids = STUDIES[studies]
    pixels = [[patches(grid, seed) for seed, grid in enumerate(own)] for own in grids]
    rows = [prompt(config, own, seed=seed) for seed, own in enumerate(grids)]
    inputs = theirs_of(rows, grids, pixels)
    with torch.no_grad():
        vision = model.model.get_image_features(inputs["pixel_values"], inputs["image_grid_thw"]).pooler_output
        expected = model(**inputs).logits.numpy()
    study, features = ours_of(config, params, rows, grids, pixels)
    images = [(row, index) for row, own in enumerate(grids) for index in range(len(own))]
    for (row, index), reference in zip(images, vision, strict=True):
        assert np.abs(reference.numpy()).max() > 0.1
        np.testing.assert_allclose(features[row, index, : len(reference)], reference, atol=TOLERANCE)
    logits = jitted_hidden(config, params, study, features) @ output_head(params).T
    assert np.abs(expected).max() > 1
    np.testing.assert_allclose(logits[study.mask], expected[study.mask], atol=TOLERANCE)


def test_bfloat16(published):
    model, directory = published
    config, params = load_qwen2_vl(directory, dtype="bfloat16", param_dtype="bfloat16")
    pixels = [[patches(CUT, 0), patches(CUT, 1)]]
    features = jitted_features(config, params, *images_of(config, CUT, pixels))
    assert features.dtype == jnp.bfloat16
    thw, flat = torch.tensor([(1, *CUT)] * 2), torch.tensor(np.concatenate(pixels[0]))
    with torch.no_grad():
        expected = model.model.get_image_features(flat, thw).pooler_output
    for found, reference in zip(features[0].astype(jnp.float32), expected, strict=True):
        error = np.abs(found[: len(reference)] - reference.numpy())
        assert error.mean() < 0.02 * np.abs(reference.numpy()).mean()


def test_heads_padded_for_splash_attend_alike():
    q, k, v = np.random.default_rng(0).normal(size=(3, 2, 12, 3, 20)).astype(np.float32)
    segments = jnp.array([[1] * 12, [1] * 9 + [0] * 3])
    expected = attend(q, k, v, segments, causal=False)
    padded = attend(*pad_heads(q, k, v, 12), segments, causal=False)
    np.testing.assert_allclose(padded[..., :20], expected, atol=1e-5)
    assert not padded[..., 20:].any()


@pytest.mark.parametrize("left", [True, False])
def test_positions(published, left):
    model, directory = published
    config, _ = load_qwen2_vl(directory)
    grids = [[CUT, (22, 14)], [ALIGNED, (6, 4), (2, 2)], [(4, 30)]]
    rows = [prompt(config, own, words=1 + seed, seed=seed) for seed, own in enumerate(grids)]
    inputs = theirs_of(rows, grids, [[patches((2, 2))]], left=left)
    inputs["image_grid_thw"] = torch.tensor([(1, *grid) for own in grids for grid in own])
    positions, deltas = model.model.get_rope_index(**{k: v for k, v in inputs.items() if k != "pixel_values"})
    ours = study_rows(config, rows, grids, length=max(map(len, rows)), left=left)
    np.testing.assert_array_equal(np.moveaxis(ours.positions, 1, 0), positions)
    np.testing.assert_array_equal(ours.next_position, [len(row) for row in rows] + deltas.numpy()[:, 0])


def test_text_alone_needs_one_position(published):
    model, directory = published
    config, params = load_qwen2_vl(directory)
    rows = [prompt(config, [], seed=seed) * 6 for seed in range(3)]
    study, features = ours_of(config, params, rows, [[], [], []], [[], [], []])
    with torch.no_grad():
        expected = model(input_ids=torch.tensor(rows)).logits.numpy()
    assert features is None
    hidden = jitted_hidden(config, params, study, None)
    np.testing.assert_allclose(hidden @ output_head(params).T, expected, atol=TOLERANCE)
    forward = jax.jit(bind(config.language, {"params": params["language"]}))
    one, _ = forward(study.tokens, study.positions[:, 0], segments=study.mask.astype(int))
    three, _ = forward(study.tokens, np.moveaxis(study.positions, 1, 0), segments=study.mask.astype(int))
    np.testing.assert_array_equal(one, three)


def test_greedy_tokens(published):
    model, directory = published
    config, params = load_qwen2_vl(directory)
    grids = [[CUT], [CUT] * 2, [CUT], [CUT] * 3]
    pixels = [[patches(grid, 10 + seed) for seed, grid in enumerate(own)] for own in grids]
    rows = [prompt(config, own, words=3, seed=20 + seed) for seed, own in enumerate(grids)]
    inputs = theirs_of(rows, grids, pixels)
    with torch.no_grad():
        expected = model.generate(**inputs, max_new_tokens=12, do_sample=False, eos_token_id=None, pad_token_id=0)
    expected = expected[:, inputs["input_ids"].shape[1] :].numpy()
    study, features = ours_of(config, params, rows, grids, pixels)
    generated = continued(config, params, study, features, 1, 12, Sampling())
    assert len(np.unique(expected)) > 10
    np.testing.assert_array_equal(generated.tokens[:, 0], expected)


def test_samples_of_a_group_share_the_prompt_and_score_as_they_were_sampled(published):
    """G continuations of one prefill are those of the prompt repeated G times; the training form gives their scores."""
    _, directory = published
    config, params = load_qwen2_vl(directory)
    grids = [[CUT], [CUT] * 2]
    pixels = [[patches(grid, seed) for seed, grid in enumerate(own)] for own in grids]
    rows = [prompt(config, own, seed=seed) for seed, own in enumerate(grids)]
    study, features = ours_of(config, params, rows, grids, pixels)
    group, new = 4, 6
    generated = continued(config, params, study, features, group, new, Sampling(temperature=1.0))
    assert not np.isin(generated.tokens, config.forbidden_ids).any()
    whole, shared = with_continuations(study, generated.tokens, generated.mask)
    hidden = jitted_hidden(config, params, whole, features, shared)
    prompt_length = study.tokens.shape[1]
    after = hidden[:, prompt_length:].reshape(2, group, new, -1)
    last = jnp.broadcast_to(hidden[:, None, None, prompt_length - 1], (2, group, 1, hidden.shape[-1]))
    before = jnp.concatenate([last, after[:, :, :-1]], axis=2).reshape(2 * group, new, -1)
    logits = (before @ output_head(params).T).at[..., jnp.array(config.forbidden_ids)].set(-jnp.inf)
    chosen = generated.tokens.reshape(2 * group, new)
    scores = jnp.take_along_axis(jax.nn.log_softmax(logits), chosen[..., None], axis=-1)[..., 0]
    np.testing.assert_allclose(scores.reshape(2, group, new), generated.log_probs, atol=TOLERANCE)
    for member in range(group):  # each row as a row of its own
        alone = [row + generated.tokens[index, member].tolist() for index, row in enumerate(rows)]
        single, own = ours_of(config, params, alone, grids, pixels, left=False)
        states = jitted_hidden(config, params, single, own)
        for index, row in enumerate(rows):
            span = slice(len(row) - 1, len(row) - 1 + new)
            expected = before.reshape(2, group, new, -1)[index, member]
            np.testing.assert_allclose(states[index, span], expected, atol=TOLERANCE)


def test_loss_and_gradients_of_all_parameters(published):
    model, directory = published
    config, params = load_qwen2_vl(directory)
    config = dataclasses.replace(config, vision=dataclasses.replace(config.vision, remat="full"))
    grids = [[CUT], [CUT] * 2]
    pixels = [[patches(grid, seed) for seed, grid in enumerate(own)] for own in grids]
    rows = [prompt(config, own, words=8, seed=seed) for seed, own in enumerate(grids)]
    inputs = theirs_of(rows, grids, pixels, left=False)
    study, _ = ours_of(config, params, rows, grids, pixels, left=False)
    batch, layout = images_of(config, CUT, pixels)
    targets = np.roll(study.tokens, -1, axis=1)
    wanted = study.mask & np.roll(study.mask, -1, axis=1) & (study.image_index < 0)
    wanted[:, -1] = False

    @functools.partial(jax.jit, static_argnums=0)
    def value_and_gradients(config, params):
        def loss(params):
            features = vision_features(config, params, batch, layout)
            hidden = hidden_states(config, params, study, features)
            logp = token_logprobs(hidden, output_head(params), targets, wanted=wanted, chunk=8, head_trained=True)
            return -(logp * wanted).sum() / wanted.sum()

        return jax.value_and_grad(loss)(params)

    model.zero_grad()
    logits = model(**inputs).logits
    crosses = torch.nn.functional.cross_entropy(logits.transpose(1, 2), torch.tensor(targets).long(), reduction="none")
    expected = (crosses * torch.tensor(wanted)).sum() / wanted.sum()
    expected.backward()
    theirs = {name: parameter.grad.numpy() for name, parameter in model.named_parameters()}
    value, gradients = value_and_gradients(config, params)
    np.testing.assert_allclose(value, expected.item(), rtol=1e-5)
    ours = dict(published_tensors(gradients, name_map(config, "memory")))
    assert ours.keys() == theirs.keys()
    for name, reference in theirs.items():
        scale = np.abs(reference).max()
        if name.endswith("k_proj.bias"):  # adds the same to every score of a query: its gradient is 0 but for rounding
            scale = np.abs(theirs[name.replace("k_proj", "q_proj")]).max()
        assert np.abs(ours[name] - reference).max() <= TOLERANCE * scale, name


def test_straight_into_a_mesh(published):
    """Each shard of the weights is read on its own; the sharded program gives the numbers of one device."""
    _, directory = published
    config, params = load_qwen2_vl(directory)
    layout = make_device_layout("mesh", MeshConfig(data=2, fsdp=2, tensor=2))
    placed = shardings(param_shapes(config), layout, SHARDING_RULES)
    _, sharded = load_qwen2_vl(directory, shardings=placed)
    assert jax.tree.map(lambda leaf: leaf.sharding, sharded) == placed
    assert not sharded["visual"]["blocks"]["attn"]["qkv"]["kernel"].sharding.is_fully_replicated
    grids = [[CUT], [CUT] * 2, [CUT], []]
    pixels = [[patches(grid, seed) for seed, grid in enumerate(own)] for own in grids]
    rows = [prompt(config, own, seed=seed) for seed, own in enumerate(grids)]
    study, features = ours_of(config, params, rows, grids, pixels)
    images, windows = images_of(config, CUT, pixels)
    expected = jitted_hidden(config, params, study, features)
    with layout.context():
        batch = place_batch((images, study), layout)

        @jax.jit
        def forward(params, images, study):
            return hidden_states(config, params, study, vision_features(config, params, images, windows))

        found = forward(sharded, *batch)
    np.testing.assert_allclose(found[study.mask], expected[study.mask], atol=1e-4)


def test_both_layouts_on_disk(published, tmp_path):
    model, directory = published
    config, params = load_qwen2_vl(directory)
    stored = {name for file in directory.glob("*.safetensors") for name in load_file(file)}
    assert any(name.startswith("visual.") for name in stored)
    save_file({name: tensor.clone() for name, tensor in model.state_dict().items()}, tmp_path / "model.safetensors")
    (tmp_path / "config.json").write_text((directory / "config.json").read_text())
    again, same = load_qwen2_vl(tmp_path)
    assert again == config
    jax.tree.map(np.testing.assert_array_equal, params, same)


@pytest.mark.parametrize("naming", ["hub", "memory"])
@pytest.mark.parametrize("source", [None, "hub", "memory"])
def test_a_saved_model_loads_in_transformers_with_the_same_logits(published, tmp_path, naming, source):
    model, directory = published
    config, params = load_qwen2_vl(directory)
    if source is not None:
        save_qwen2_vl(tmp_path / "source", config, params, source=directory, naming=source)
    saved = tmp_path / "saved"
    save_qwen2_vl(saved, config, params, naming=naming, source=source and tmp_path / "source", max_shard_bytes=60_000)
    names = set(open_tensors(saved))
    in_memory = set(model.state_dict()) - ({"lm_head.weight"} if config.language.tie_word_embeddings else set())
    assert names == (in_memory if naming == "memory" else set(open_tensors(directory)))
    nested = json.loads((saved / "config.json").read_text()).get("text_config")
    assert (nested is not None) == (naming == "memory")
    again, same = load_qwen2_vl(saved)
    assert again == config
    jax.tree.map(np.testing.assert_array_equal, params, same)
    loaded, report = transformers.Qwen2_5_VLForConditionalGeneration.from_pretrained(saved, output_loading_info=True)
    assert not report["missing_keys"]
    assert not report["unexpected_keys"]
    assert loaded.config.text_config.rope_parameters.items() >= model.config.text_config.rope_parameters.items()
    for key, tensor in model.state_dict().items():
        assert torch.equal(tensor, loaded.state_dict()[key]), key
    inputs = theirs_of([prompt(config, [CUT])], [[CUT]], [[patches(CUT)]])
    with torch.no_grad():
        assert torch.equal(loaded.eval()(**inputs).logits, model(**inputs).logits)
