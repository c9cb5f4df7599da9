"""Published configs of the families: their sizes, what is refused by name, and where a file's rotation is doubted."""

import json
import math
import warnings

import jax
import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from common.errors import UserError
from common.io.safetensors import StoredTensor
from common.models.families import unit_rows
from common.models.qwen2 import SHARDING_RULES
from common.models.qwen2_weights import config_from_directory, load_qwen2, max_positions, param_shapes
from common.training.parallel import MeshConfig, make_device_layout, shardings

LLAMA3 = {
    "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0, "original_max_position_embeddings": 8192,
    "rope_type": "llama3",
}  # fmt: skip
LLAMA = {
    "model_type": "llama", "hidden_size": 4096, "intermediate_size": 14336, "num_hidden_layers": 32,
    "num_attention_heads": 32, "num_key_value_heads": 8, "rms_norm_eps": 1e-5, "vocab_size": 128256,
    "attention_bias": False, "mlp_bias": False, "rope_theta": 500000.0, "rope_scaling": LLAMA3,
    "max_position_embeddings": 131072, "torch_dtype": "bfloat16",
}  # fmt: skip
YI = {
    "model_type": "llama", "hidden_size": 4096, "intermediate_size": 11008, "num_hidden_layers": 48,
    "num_attention_heads": 32, "num_key_value_heads": 4, "rms_norm_eps": 1e-6, "vocab_size": 64000,
    "rope_theta": 5000000.0, "rope_scaling": None, "max_position_embeddings": 4096, "torch_dtype": "bfloat16",
}  # fmt: skip
BAICHUAN = {
    "model_type": "baichuan", "hidden_size": 4096, "intermediate_size": 11008, "num_hidden_layers": 32,
    "num_attention_heads": 32, "rms_norm_eps": 1e-6, "vocab_size": 125696, "max_position_embeddings": 4096,
    "model_max_length": 4096, "torch_dtype": "bfloat16",
}  # fmt: skip
GLM = {
    "model_type": "glm", "hidden_size": 4096, "intermediate_size": 13696, "num_hidden_layers": 40,
    "num_attention_heads": 32, "num_key_value_heads": 2, "head_dim": 128, "attention_bias": True,
    "rms_norm_eps": 1.5625e-7, "vocab_size": 151552, "rope_theta": 10000.0, "max_position_embeddings": 8192,
    "torch_dtype": "bfloat16",
}  # fmt: skip
GLM_0414 = GLM | {"model_type": "glm4", "rms_norm_eps": 1e-5, "partial_rotary_factor": 0.5}
CHATGLM = {
    "model_type": "chatglm", "hidden_size": 4096, "ffn_hidden_size": 13696, "num_layers": 40, "kv_channels": 128,
    "num_attention_heads": 32, "multi_query_attention": True, "multi_query_group_num": 2, "add_qkv_bias": True,
    "add_bias_linear": False, "layernorm_epsilon": 1.5625e-7, "padded_vocab_size": 151552, "vocab_size": 151552,
    "rope_ratio": 500, "original_rope": True, "rmsnorm": True, "post_layer_norm": True, "seq_length": 131072,
    "apply_residual_connection_post_layernorm": False, "torch_dtype": "bfloat16",
}  # fmt: skip
QWEN_72B = {
    "model_type": "qwen2", "hidden_size": 8192, "intermediate_size": 29568, "num_hidden_layers": 80,
    "num_attention_heads": 64, "num_key_value_heads": 8, "vocab_size": 152064, "rope_theta": 1e6,
}  # fmt: skip
# Parameters as the hub counts them; GLM-4-9B there has the 32 numbers of inv_freq besides.
PUBLISHED = {
    "Llama-3.1-8B": (LLAMA, 8_030_261_248),
    "Yi-1.5-9B": (YI, 8_829_407_232),
    "GLM-4-9B-hf": (GLM, 9_399_951_360),
    "GLM-4-9B-Chat": (CHATGLM, 9_399_951_360),
    "Qwen2.5-72B": (QWEN_72B, 72_706_203_648),
}


def write(directory, entries):
    (directory / "config.json").write_text(json.dumps(entries))
    return directory


@pytest.mark.parametrize(("entries", "parameters"), PUBLISHED.values(), ids=PUBLISHED)
def test_a_published_config_has_as_many_parameters_as_its_model(tmp_path, entries, parameters):
    shapes = jax.tree.leaves(param_shapes(config_from_directory(write(tmp_path, entries))))
    assert sum(math.prod(leaf.shape) for leaf in shapes) == parameters


def test_sizes_that_only_one_family_has(tmp_path):
    llama = config_from_directory(write(tmp_path, LLAMA))
    assert (llama.attention_bias, llama.rotary_scaling.ramp, llama.rotary_scaling.factor) == (False, "turns", 8.0)
    yi = config_from_directory(write(tmp_path, YI))
    assert (yi.rope_theta, yi.rotary_scaling.factor, max_positions(tmp_path)) == (5e6, 1.0, 4096)
    baichuan = config_from_directory(write(tmp_path, BAICHUAN))
    assert (baichuan.num_key_value_heads, baichuan.rope_theta, baichuan.rotary_pairs) == (32, 10_000, "halves")
    glm = config_from_directory(write(tmp_path, GLM))
    assert (glm.rotary_dims, glm.rotary_pairs, glm.post_norms, glm.attention_bias) == (64, "adjacent", False, True)
    assert config_from_directory(write(tmp_path, GLM_0414)).post_norms
    assert not config_from_directory(write(tmp_path, GLM_0414 | {"attention_bias": False})).attention_bias
    original = config_from_directory(write(tmp_path, CHATGLM))
    assert (original.rope_theta, original.rotary_dims, original.rms_norm_eps) == (5e6, 64, 1.5625e-7)
    assert max_positions(tmp_path) == 131072


@pytest.mark.parametrize("kind", ["type", "rope_type"])
@pytest.mark.parametrize("inside", ["rope_scaling", "rope_parameters"])
def test_rotary_entries_mean_the_same_wherever_they_stand(tmp_path, inside, kind):
    expected = config_from_directory(write(tmp_path, LLAMA))
    scaling = {kind if name == "rope_type" else name: value for name, value in LLAMA3.items()}
    own = {name: value for name, value in LLAMA.items() if name not in ("rope_theta", "rope_scaling")}
    assert config_from_directory(write(tmp_path, own | {inside: scaling, "rope_theta": 5e5})) == expected
    assert config_from_directory(write(tmp_path, own | {inside: scaling | {"rope_theta": 5e5}})) == expected
    glm = config_from_directory(write(tmp_path, GLM | {"partial_rotary_factor": 0.25}))
    parameters = {"rope_type": "default", "rope_theta": 10_000.0, "partial_rotary_factor": 0.25}
    assert config_from_directory(write(tmp_path, GLM | {"rope_theta": None, inside: parameters})) == glm
    assert glm.rotary_dims == 32


THIRTEEN = {name: value for name, value in BAICHUAN.items() if name != "max_position_embeddings"}
REFUSED = [
    (THIRTEEN | {"hidden_size": 5120, "num_hidden_layers": 40}, "Baichuan of 13 billion parameters.* ALiBi"),
    (THIRTEEN, "which uses ALiBi instead of rotary positions"),
    (BAICHUAN | {"num_hidden_layers": 40}, "use the one with 7 billion"),
    (LLAMA | {"attention_bias": True}, "attention_bias is True, expected false"),
    (LLAMA | {"mlp_bias": True}, "mlp_bias is True, expected false"),
    (LLAMA | {"partial_rotary_factor": 0.5}, "partial_rotary_factor is 0.5, which this architecture does not have"),
    (LLAMA | {"rope_scaling": {"type": "dynamic", "factor": 2.0}}, "rotary type is 'dynamic', expected 'default' or"),
    (LLAMA | {"rope_scaling": LLAMA3 | {"rope_type": "longrope"}}, "rotary rope_type is 'longrope', expected"),
    (LLAMA | {"rope_scaling": LLAMA3 | {"low_freq_factor": None}}, "rotary low_freq_factor is missing, expected a"),
    (LLAMA | {"rope_scaling": LLAMA3 | {"low_freq_factor": 4.0}}, "low_freq_factor is 4.0, expected less than"),
    (LLAMA | {"layer_types": ["sliding_attention"] * 32}, "use_sliding_window is not implemented"),
    (GLM | {"partial_rotary_factor": 0.01}, "partial_rotary_factor is 0.01"),
    (GLM | {"partial_rotary_factor": 2}, "partial_rotary_factor is 2, expected a number, above 0 and at most 1"),
    (GLM | {"attention_bias": "yes"}, "attention_bias is 'yes', expected true or false"),
    (GLM | {"model_type": "glm4_moe"}, "model_type is 'glm4_moe', expected 'qwen2' or 'llama' or 'glm' or 'glm4'"),
    (CHATGLM | {"num_layers": None}, "num_layers is missing, expected a whole number"),
    (CHATGLM | {"padded_vocab_size": 0}, "padded_vocab_size is 0, expected a whole number"),
    (CHATGLM | {"add_bias_linear": True}, "add_bias_linear is True, expected false; other ChatGLMs"),
    (CHATGLM | {"multi_query_attention": False}, "multi_query_attention is False, expected true"),
    (CHATGLM | {"rope_ratio": "500"}, "rope_ratio is '500', expected a number"),
]


@pytest.mark.parametrize(("entries", "message"), REFUSED, ids=[message for _, message in REFUSED])
def test_what_is_not_implemented_is_named(tmp_path, entries, message):
    with pytest.raises(UserError, match=rf"config\.json: .*{message}"):
        config_from_directory(write(tmp_path, entries))


@pytest.mark.parametrize(
    ("entries", "warned"),
    [
        (GLM, None),
        (GLM | {"max_position_embeddings": 131072}, "10,000 and is used, but the first release .* has 5,000,000"),
        (GLM | {"max_position_embeddings": 131072, "rope_theta": 5e6}, None),
        (GLM | {"rope_ratio": 1}, None),
        (GLM | {"rope_ratio": 500}, "rope_theta is 10,000 and is used, but rope_ratio means 5,000,000"),
        (GLM_0414 | {"max_position_embeddings": 131072}, None),
        (CHATGLM, None),
    ],
)
def test_a_doubtful_rotation_is_warned_of_and_used(tmp_path, entries, warned):
    if warned:
        with pytest.warns(UserWarning, match=warned):
            config = config_from_directory(write(tmp_path, entries))
        assert config.rope_theta == entries["rope_theta"]
        return
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        config_from_directory(write(tmp_path, entries))


def baichuan(directory, vocabulary=30, rows=3 * 16, **entries):
    """Weights of ones and twos, whose head has no row of length 1."""
    tensors = {
        "model.embed_tokens.weight": np.ones((vocabulary, 16), np.float32),
        "model.norm.weight": np.ones(16, np.float32),
        "lm_head.weight": np.full((vocabulary, 16), 2, np.float16),
        "model.layers.0.self_attn.W_pack.weight": np.repeat(np.arange(3, dtype=np.float32), rows // 3 * 16).reshape(
            -1, 16
        ),
        "model.layers.0.self_attn.o_proj.weight": np.ones((16, 16), np.float32),
        "model.layers.0.self_attn.rotary_emb.inv_freq": np.ones(4, np.float32),
        **{f"model.layers.0.{name}_layernorm.weight": np.ones(16, np.float32) for name in ("input", "post_attention")},
        **{f"model.layers.0.mlp.{name}_proj.weight": np.ones((24, 16), np.float32) for name in ("gate", "up")},
        "model.layers.0.mlp.down_proj.weight": np.ones((16, 24), np.float32),
    }
    save_file(tensors, directory / "model.safetensors")
    sizes = {"hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 1, "num_attention_heads": 2}
    return write(directory, BAICHUAN | sizes | {"vocab_size": vocabulary, "torch_dtype": "float32"} | entries)


def test_the_head_of_baichuan2_is_normalized_and_that_of_the_first_is_not(tmp_path):
    _, params = load_qwen2(baichuan(tmp_path))
    np.testing.assert_allclose(params["lm_head"], 0.25, rtol=1e-6)
    attention = params["layers"]["self_attn"]
    assert [float(attention[f"{name}_proj"]["kernel"].mean()) for name in "qkv"] == [0, 1, 2]
    for first in ({"architectures": ["BaiChuanForCausalLM"]}, {"vocabulary": 64_000}):
        assert float(load_qwen2(baichuan(tmp_path, **first))[1]["lm_head"].max()) == 2


def test_a_joined_matrix_is_checked_whole(tmp_path):
    with pytest.raises(UserError, match=r"W_pack\.weight has shape \[45, 16\], expected \[48, 16\]"):
        load_qwen2(baichuan(tmp_path, rows=45))
    with pytest.raises(UserError, match=r"model\.layers\.1\..* 4 more are missing; expected 17"):
        load_qwen2(baichuan(tmp_path, num_hidden_layers=2))


def test_each_device_reads_its_part_of_a_joined_matrix(tmp_path):
    directory = baichuan(tmp_path)
    stored = load_file(directory / "model.safetensors")
    random = np.random.default_rng(0)
    save_file(
        {name: random.normal(size=tensor.shape).astype(np.float32) for name, tensor in stored.items()},
        directory / "model.safetensors",
    )
    _, whole = load_qwen2(directory)
    layout = make_device_layout("mesh", MeshConfig(data=1, fsdp=2, tensor=4))
    targets = shardings(param_shapes(config_from_directory(directory)), layout, SHARDING_RULES)
    _, spread = load_qwen2(directory, shardings=targets)
    q_proj = spread["layers"]["self_attn"]["q_proj"]["kernel"]
    assert q_proj.addressable_shards[0].data.shape == (1, 8, 4)
    jax.tree.map(np.testing.assert_array_equal, spread, whole)


def test_rows_of_a_part_have_length_1_as_those_of_the_whole(tmp_path):
    rows = np.random.default_rng(0).normal(size=(5, 6)).astype(np.float16)
    rows[3] = 0
    tensor = unit_rows(StoredTensor("head", tmp_path, rows.shape, "F16", lambda index: rows[index] if index else rows))
    whole = rows.astype(np.float64)
    whole /= np.maximum(np.linalg.norm(whole, axis=1, keepdims=True), 1e-12)
    np.testing.assert_allclose(tensor.read(()), whole, atol=1e-6)
    np.testing.assert_allclose(tensor.read((slice(1, 4), slice(2, 5))), whole[1:4, 2:5], atol=1e-6)
    assert tensor.read(()).dtype == np.float32
