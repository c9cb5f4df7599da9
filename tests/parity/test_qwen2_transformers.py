"""The Qwen2 decoder against transformers' PyTorch model with random weights: logits, loss, every gradient."""

import functools
import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax.traverse_util import flatten_dict

from common.io.safetensors import published_tensors
from common.models.layers import rotary_angles
from common.models.qwen2 import Qwen2, output_head
from common.models.qwen2_weights import (
    config_from_directory,
    load_qwen2,
    name_map,
    published_config,
    save_qwen2,
)
from common.training.losses import answer_loss, token_logprobs

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")

TOLERANCE = 1e-4
IDS = np.random.default_rng(0).integers(0, 173, (2, 21))
TARGETS = np.roll(IDS, -1, axis=1)
POSITIONS = jnp.broadcast_to(jnp.arange(IDS.shape[1]), IDS.shape)
WEIGHTS = (np.random.default_rng(1).random(IDS.shape) < 0.5).astype(np.float32) * [[1.0] * 20 + [0.0]]

CONFIGS = {
    "tied": {"tie_word_embeddings": True, "num_key_value_heads": 2, "rope_theta": 1e6},
    "untied": {"tie_word_embeddings": False, "num_key_value_heads": 1, "rope_theta": 1e4},
    "no grouping": {"tie_word_embeddings": False, "num_key_value_heads": 4, "rope_theta": 3e5, "rms_norm_eps": 1e-5},
}
LONGER = [
    {"rope_type": "linear", "factor": 2.0},
    {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 16},
    {"rope_type": "yarn", "factor": 2.0, "beta_fast": 8, "mscale": 0.7, "mscale_all_dim": 0.3, "truncate": False},
    {"rope_type": "yarn", "factor": 1.0, "attention_factor": 1.3, "original_max_position_embeddings": 16},
]


@pytest.fixture(scope="module", params=CONFIGS)
def published(request, tmp_path_factory):
    """A PyTorch model with random weights (biases and norms too), and its directory in small shards."""
    options = dict(CONFIGS[request.param])
    theta = options.pop("rope_theta")
    torch.manual_seed(0)
    config = transformers.Qwen2Config(
        vocab_size=173, hidden_size=64, intermediate_size=112, num_hidden_layers=2, num_attention_heads=4,
        rope_parameters={"rope_type": "default", "rope_theta": theta}, **options,
    )  # fmt: skip
    model = transformers.AutoModelForCausalLM.from_config(config).eval()
    for name, parameter in model.named_parameters():
        torch.nn.init.normal_(parameter, mean=1.0 if "norm" in name else 0.0, std=0.2)
    directory = tmp_path_factory.mktemp("published") / "model"
    model.save_pretrained(directory, max_shard_size="60KB")
    assert (directory / "model.safetensors.index.json").is_file()
    return model, directory


@functools.partial(jax.jit, static_argnums=0)
def hidden_states(config, params):
    return Qwen2(config).apply({"params": params}, jnp.asarray(IDS), POSITIONS, jnp.ones_like(POSITIONS))[0]


def test_logits(published):
    model, directory = published
    config, params = load_qwen2(directory)
    assert config.rope_theta == model.config.rope_parameters["rope_theta"]
    with torch.no_grad():
        expected = model(torch.tensor(IDS)).logits.numpy()
    assert np.abs(expected).max() > 1
    np.testing.assert_allclose(hidden_states(config, params) @ output_head(params).T, expected, atol=TOLERANCE)


@pytest.mark.parametrize("scaling", LONGER)
def test_rotary_frequencies_of_longer_contexts(tmp_path, scaling):
    peer = transformers.Qwen2Config(
        hidden_size=64,
        num_attention_heads=4,
        num_key_value_heads=4,
        max_position_embeddings=64,
        rope_parameters={"rope_theta": 1e4, **scaling},
    )
    expected = transformers.models.qwen2.modeling_qwen2.Qwen2RotaryEmbedding(peer)
    peer.save_pretrained(tmp_path)
    config = config_from_directory(tmp_path)
    found = config.rotary_scaling.frequencies(config.head_dim, config.rope_theta)
    np.testing.assert_allclose(found, expected.inv_freq, rtol=1e-6)
    assert config.rotary_scaling.amplitude == pytest.approx(expected.attention_scaling)
    kept = published_config(config, json.loads((tmp_path / "config.json").read_text()))
    (tmp_path / "config.json").write_text(json.dumps(kept))
    assert config_from_directory(tmp_path) == config
    angles = rotary_angles(np.arange(3)[None], config.head_dim, config.rope_theta, scaling=config.rotary_scaling)
    cos, sin = expected(torch.zeros(1), torch.arange(3)[None])
    np.testing.assert_allclose(angles, [cos[..., :8], sin[..., :8]], atol=1e-6)


def test_a_saved_model_loads_in_transformers_with_the_same_weights(published, tmp_path):
    model, directory = published
    config, params = load_qwen2(directory)
    save_qwen2(tmp_path / "whole", config, params)
    save_qwen2(tmp_path / "shards", config, params, source=directory, max_shard_bytes=60_000)
    assert (tmp_path / "shards" / "generation_config.json").is_file()
    for name in ("whole", "shards"):
        again, report = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / name, output_loading_info=True)
        assert not report["missing_keys"]
        assert not report["unexpected_keys"]
        assert again.config.rope_parameters == model.config.rope_parameters
        for key, tensor in model.state_dict().items():
            assert torch.equal(tensor, again.state_dict()[key]), key
        with torch.no_grad():
            assert torch.equal(again.eval()(torch.tensor(IDS)).logits, model(torch.tensor(IDS)).logits)


def test_loss_and_gradients_of_all_parameters(published):
    model, directory = published
    config, params = load_qwen2(directory)

    def loss(params):
        hidden = hidden_states(config, params)
        logp = token_logprobs(hidden, output_head(params), jnp.asarray(TARGETS), chunk=8, head_trained=True)
        total = answer_loss(logp, jnp.asarray(WEIGHTS))
        return total.total / total.weight

    value, gradients = jax.jit(jax.value_and_grad(loss))(params)
    model.zero_grad()
    logits = model(torch.tensor(IDS)).logits
    crosses = torch.nn.functional.cross_entropy(logits.transpose(1, 2), torch.tensor(TARGETS), reduction="none")
    expected = (crosses * torch.tensor(WEIGHTS)).sum() / WEIGHTS.sum()
    expected.backward()
    np.testing.assert_allclose(value, expected.item(), rtol=1e-5)
    theirs = {name: parameter.grad.numpy() for name, parameter in model.named_parameters()}
    ours = dict(published_tensors(gradients, name_map(config)))
    assert ours.keys() == theirs.keys()
    for name, reference in theirs.items():
        scale = np.abs(reference).max()
        if name.endswith("k_proj.bias"):  # adds the same to every score of a query: its gradient is 0 but for rounding
            scale = np.abs(theirs[name.replace("k_proj", "q_proj")]).max()
        assert np.abs(ours[name] - reference).max() <= TOLERANCE * scale, name


def test_token_logprobs_are_the_cross_entropy_of_torch(published):
    model, directory = published
    config, params = load_qwen2(directory)
    with torch.no_grad():
        logits = model(torch.tensor(IDS)).logits.transpose(1, 2)
        expected = -torch.nn.functional.cross_entropy(logits, torch.tensor(TARGETS), reduction="none").numpy()
    logp = token_logprobs(
        hidden_states(config, params), output_head(params), jnp.asarray(TARGETS), chunk=5, head_trained=False
    )
    np.testing.assert_allclose(logp, expected, atol=TOLERANCE)


def test_bfloat16_checkpoints_stay_bfloat16(published, tmp_path):
    model, _ = published
    low = transformers.AutoModelForCausalLM.from_config(model.config).to(torch.bfloat16)
    low.save_pretrained(tmp_path)
    config, params = load_qwen2(tmp_path)
    assert config.dtype == config.param_dtype == "bfloat16"
    assert {leaf.dtype for leaf in flatten_dict(params).values()} == {jnp.dtype(jnp.bfloat16)}
    config, wide = load_qwen2(tmp_path, dtype="float32", param_dtype="float32")
    assert (config.dtype, config.param_dtype) == ("float32", "float32")
    for name, tensor in published_tensors(wide, name_map(config)):
        np.testing.assert_array_equal(tensor, low.state_dict()[name].float().numpy())
