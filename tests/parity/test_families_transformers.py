"""Llama 3, Yi, GLM-4 and Baichuan2 against PyTorch models with random weights: logits, greedy tokens, rotary scaling.

Baichuan2 and the first release of GLM-4 are not in transformers: their tensors are joined and renamed here, from a
Llama whose head has rows of length 1 and from a `GlmForCausalLM`.
"""

import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from common.generation.loop import generate, prefill
from common.generation.settings import DecodeSettings
from common.models.decoding import Prompts
from common.models.qwen2 import Qwen2, bind, output_head
from common.models.qwen2_weights import config_from_directory, load_qwen2, published_config, save_qwen2

torch = pytest.importorskip("torch", reason="PyTorch is the reference here (requirements-parity.txt)")
transformers = pytest.importorskip("transformers")

TOLERANCE = 1e-4
VOCABULARY, STOPS = 173, (7, 9)
SIZES = {
    "vocab_size": VOCABULARY, "hidden_size": 64, "intermediate_size": 112, "num_hidden_layers": 2,
    "num_attention_heads": 4, "max_position_embeddings": 128, "eos_token_id": list(STOPS), "pad_token_id": 1,
    "bos_token_id": None,
}  # fmt: skip
LLAMA3 = {
    "rope_type": "llama3", "rope_theta": 5e5, "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
    "original_max_position_embeddings": 16,
}  # fmt: skip
GLM = {"head_dim": 16, "num_key_value_heads": 2, "pad_token_id": 1}
MODELS = {
    "llama 3.1": ("LlamaConfig", {"num_key_value_heads": 2, "rms_norm_eps": 1e-5, "rope_parameters": LLAMA3}),
    "yi": ("LlamaConfig", {"num_key_value_heads": 1, "rope_parameters": {"rope_type": "default", "rope_theta": 5e6}}),
    "glm": ("GlmConfig", {**GLM, "rms_norm_eps": 1.5625e-7}),
    "glm 4 0414": ("Glm4Config", {**GLM, "rms_norm_eps": 1e-5}),
    "glm 4 32b": ("Glm4Config", {**GLM, "attention_bias": False, "tie_word_embeddings": True}),
    "baichuan2": ("LlamaConfig", {}),
    "chatglm": ("GlmConfig", {**GLM, "rope_parameters": {"rope_theta": 5e6, "partial_rotary_factor": 0.5}}),
}
IDS = np.random.default_rng(0).integers(10, VOCABULARY, (2, 41))


def random_model(name: str):
    """With large weights, so that choices differ, biases and norms of their own, and likelier stop tokens."""
    kind, options = MODELS[name]
    torch.manual_seed(len(name))
    config = getattr(transformers, kind)(**(SIZES | options))
    model = transformers.AutoModelForCausalLM.from_config(config).eval()
    for name_, parameter in model.named_parameters():
        torch.nn.init.normal_(parameter, mean=1.0 if "norm" in name_ else 0.0, std=0.2)
    with torch.no_grad():
        model.model.norm.weight[0] = 3.0
        model.lm_head.weight[list(STOPS), 0] += 0.5
    return model


def join(directory, model) -> None:
    """Turn the saved Llama into a Baichuan2: one matrix for q, k and v, and a head that is not normalised yet."""
    tensors = load_file(directory / "model.safetensors")
    for layer in range(SIZES["num_hidden_layers"]):
        parts = [tensors.pop(f"model.layers.{layer}.self_attn.{name}_proj.weight") for name in "qkv"]
        tensors[f"model.layers.{layer}.self_attn.W_pack.weight"] = np.concatenate(parts)
    save_file(tensors, directory / "model.safetensors")
    with torch.no_grad():
        model.lm_head.weight.copy_(torch.nn.functional.normalize(model.lm_head.weight))
    kept = {name: value for name, value in SIZES.items() if name != "num_key_value_heads"}
    write(directory, {**kept, "model_type": "baichuan", "architectures": ["BaichuanForCausalLM"]})


def rename(directory, model) -> None:
    """Turn the saved GLM into one as first released."""
    tensors = load_file(directory / "model.safetensors")
    for layer in range(SIZES["num_hidden_layers"]):
        old, new = f"model.layers.{layer}", f"transformer.encoder.layers.{layer}"
        for kind in ("weight", "bias"):
            parts = [tensors.pop(f"{old}.self_attn.{name}_proj.{kind}") for name in "qkv"]
            tensors[f"{new}.self_attention.query_key_value.{kind}"] = np.concatenate(parts)
        for theirs, ours in (
            ("self_attention.dense", "self_attn.o_proj"),
            ("mlp.dense_h_to_4h", "mlp.gate_up_proj"),
            ("mlp.dense_4h_to_h", "mlp.down_proj"),
            ("input_layernorm", "input_layernorm"),
            ("post_attention_layernorm", "post_attention_layernorm"),
        ):
            tensors[f"{new}.{theirs}.weight"] = tensors.pop(f"{old}.{ours}.weight")
    for theirs, ours in (
        ("transformer.embedding.word_embeddings", "model.embed_tokens"),
        ("transformer.encoder.final_layernorm", "model.norm"),
        ("transformer.output_layer", "lm_head"),
    ):
        tensors[f"{theirs}.weight"] = tensors.pop(f"{ours}.weight")
    tensors["transformer.rotary_pos_emb.inv_freq"] = np.ones(4, np.float32)
    save_file(tensors, directory / "model.safetensors")
    sizes = {
        "model_type": "chatglm", "num_layers": 2, "padded_vocab_size": VOCABULARY, "vocab_size": VOCABULARY,
        "hidden_size": 64, "ffn_hidden_size": 112, "kv_channels": 16, "num_attention_heads": 4, "seq_length": 128,
        "layernorm_epsilon": model.config.rms_norm_eps, "multi_query_attention": True, "multi_query_group_num": 2,
        "add_qkv_bias": True, "add_bias_linear": False, "rmsnorm": True, "rope_ratio": 500, "original_rope": True,
        "post_layer_norm": True, "apply_residual_connection_post_layernorm": False, "torch_dtype": "float32",
    }  # fmt: skip
    write(directory, sizes)


def write(directory, config) -> None:
    (directory / "config.json").write_text(json.dumps(config))


@pytest.fixture(scope="module", params=MODELS)
def published(request, tmp_path_factory):
    """The PyTorch model, and a directory in its family's layout."""
    model = random_model(request.param)
    directory = tmp_path_factory.mktemp("published")
    model.save_pretrained(directory)
    if request.param in ("baichuan2", "chatglm"):
        (join if request.param == "baichuan2" else rename)(directory, model)
    return model, directory


def test_logits(published):
    model, directory = published
    config, params = load_qwen2(directory)
    positions = jnp.broadcast_to(jnp.arange(IDS.shape[1]), IDS.shape)
    hidden, _ = jax.jit(Qwen2(config).apply)({"params": params}, jnp.asarray(IDS), positions, jnp.ones_like(positions))
    with torch.no_grad():
        expected = model(torch.tensor(IDS)).logits.numpy()
    assert np.abs(expected).max() > 1
    np.testing.assert_allclose(hidden @ output_head(params).T, expected, atol=TOLERANCE)


def test_greedy_tokens_on_the_cache_are_those_of_generate_token_for_token(published):
    model, directory = published
    config, params = load_qwen2(directory)
    rng = np.random.default_rng(1)
    lengths = rng.integers(1, 21, 16)
    mask = np.arange(20) >= 20 - lengths[:, None]
    prompts = Prompts(jnp.asarray(rng.integers(10, VOCABULARY, mask.shape) * mask), jnp.asarray(mask))

    @jax.jit
    def run(params):
        forward = bind(config, {"params": params})
        keys = jax.random.split(jax.random.key(0), 16)
        read = prefill(forward, prompts)
        return generate(forward, output_head(params), read, keys, DecodeSettings(16, stop_ids=STOPS))

    found = np.asarray(run(params).tokens[:, 0])
    tokens, attended = (torch.tensor(np.asarray(leaf)).long() for leaf in (prompts.tokens, prompts.mask))
    with torch.inference_mode():
        out = model.generate(
            tokens, attention_mask=attended, do_sample=False, max_new_tokens=16, eos_token_id=list(STOPS)
        )
    expected = out[:, 20:].numpy()
    expected = np.pad(expected, ((0, 0), (0, 16 - expected.shape[1])))
    after = np.cumsum(np.isin(expected, STOPS), axis=-1) - np.isin(expected, STOPS) > 0
    np.testing.assert_array_equal(found, np.where(after, 0, expected))
    assert len(np.unique(found)) > 20


def test_an_exported_llama_loads_in_transformers(tmp_path):
    model = random_model("llama 3.1")
    model.save_pretrained(tmp_path / "source")
    config, params = load_qwen2(tmp_path / "source")
    save_qwen2(tmp_path / "export", config, params, source=tmp_path / "source")
    again, report = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "export", output_loading_info=True)
    assert type(again) is type(model)
    assert not report["missing_keys"]
    assert not report["unexpected_keys"]
    with torch.no_grad():
        assert torch.equal(again.eval()(torch.tensor(IDS)).logits, model(torch.tensor(IDS)).logits)
    assert config_from_directory(tmp_path / "export") == config


@pytest.mark.parametrize("original", [16, 64, 8192])
@pytest.mark.parametrize(("low", "high"), [(1.0, 4.0), (0.5, 2.0)])
def test_rotary_frequencies_of_llama_3(tmp_path, original, low, high):
    scaling = LLAMA3 | {
        "original_max_position_embeddings": original,
        "low_freq_factor": low,
        "high_freq_factor": high,
    }
    peer = transformers.LlamaConfig(hidden_size=512, num_attention_heads=4, rope_parameters=scaling)
    expected = transformers.models.llama.modeling_llama.LlamaRotaryEmbedding(peer).inv_freq
    peer.save_pretrained(tmp_path)
    config = config_from_directory(tmp_path)
    np.testing.assert_allclose(
        config.rotary_scaling.frequencies(config.head_dim, config.rope_theta), expected, rtol=2e-6
    )
    write(tmp_path, published_config(config, json.loads((tmp_path / "config.json").read_text())))
    assert config_from_directory(tmp_path) == config
