"""Entries of published configs that are null, left over or out of bounds, in every reader; the tensors decide."""

import dataclasses
import json
import struct

import jax
import numpy as np
import pytest

from common.data.qwen_images import check_processor
from common.errors import UserError
from common.models import qwen2_vl_weights, qwen2_weights
from common.models.bert import BertConfig
from common.models.bert_weights import encoder_config
from common.models.peft import load_peft, save_peft
from common.models.qwen2_vl import Qwen2VLConfig
from common.models.qwen2_vl_vision import VisionConfig
from tests import tiny

HUGE = 10**12
NO_NUMBERS = [True, "8", 0, -8, HUGE, 10**400, 1e30, [8], {}]


def write(directory, name, content):
    (directory / name).write_text(json.dumps(content))
    return directory


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    directory = tmp_path_factory.mktemp("saved")
    qwen2_weights.save_qwen2(directory / "model", tiny.CONFIG, tiny.params())
    save_peft(directory / "adapter", tiny.lora(tiny.params()), tiny.LORA, "model")
    return directory


@pytest.fixture
def qwen2(saved, tmp_path):
    """A directory with the tiny model's weights, whose config.json a test may change."""
    (tmp_path / "model.safetensors").symlink_to(saved / "model" / "model.safetensors")
    return write(tmp_path, "config.json", json.loads((saved / "model" / "config.json").read_text()))


def changed(directory, name="config.json", **entries):
    return write(directory, name, json.loads((directory / name).read_text()) | entries)


@pytest.mark.parametrize(
    "entry",
    [
        *("quantization_config", "rope_scaling", "rope_parameters", "sliding_window", "use_sliding_window"),
        *("max_window_layers", "layer_types", "tie_word_embeddings", "dtype", "hidden_act", "rms_norm_eps"),
        *("rope_theta", "eos_token_id", "architectures", "max_position_embeddings"),
    ],
)
def test_null_is_as_good_as_absent_in_a_qwen2(qwen2, entry):
    assert qwen2_weights.config_from_directory(changed(qwen2, **{entry: None})) == tiny.CONFIG
    if entry == "max_position_embeddings":
        assert qwen2_weights.max_positions(qwen2) is None


def test_no_window_slides_where_the_window_is_null(qwen2):
    from transformers import AutoConfig

    changed(qwen2, use_sliding_window=True, sliding_window=None, max_window_layers=0)
    assert set(AutoConfig.from_pretrained(qwen2).layer_types) == {"full_attention"}
    assert qwen2_weights.config_from_directory(qwen2) == tiny.CONFIG


@pytest.mark.parametrize("entry", [None, {}, {"quant_method": "gptq", "bits": 4}], ids=["null", "empty", "left over"])
def test_full_weights_load_whatever_is_said_of_quantization_and_are_exported_without_it(qwen2, tmp_path, entry):
    changed(qwen2, quantization_config=entry)
    config, params = qwen2_weights.load_qwen2(qwen2)
    jax.tree.map(np.testing.assert_array_equal, params, tiny.params())
    qwen2_weights.save_qwen2(tmp_path / "export", config, params, source=qwen2)
    assert "quantization_config" not in json.loads((tmp_path / "export" / "config.json").read_text())


def store(file, **tensors):
    """A safetensors file of zeros, with dtypes that NumPy does not have."""
    header, start = {}, 0
    for name, (dtype, shape, width) in tensors.items():
        end = start + int(np.prod(shape)) * width
        header[name] = {"dtype": dtype, "shape": shape, "data_offsets": [start, end]}
        start = end
    text = json.dumps(header).encode()
    file.write_bytes(struct.pack("<Q", len(text)) + text + bytes(start))


@pytest.mark.parametrize(
    ("name", "dtype"),
    [
        *(("model.layers.0.mlp.up_proj.weight", dtype) for dtype in ("F8_E4M3", "F8_E5M2", "I8", "U8")),
        *(("model.layers.0.mlp.up_proj.qweight", "I32"), ("model.layers.0.mlp.up_proj.weight_packed", "I32")),
        ("lm_head.weight", "F8_E4M3"),
    ],
)
@pytest.mark.parametrize("tied", [False, True])
def test_quantized_tensors_are_one_line_though_no_entry_says_so(qwen2, name, dtype, tied):
    (qwen2 / "model.safetensors").unlink()
    embedding = {"model.embed_tokens.weight": ("BF16", [96, 32], 2)}
    store(qwen2 / "model.safetensors", **embedding, **{name: (dtype, [96, 32], 4 if dtype == "I32" else 1)})
    changed(qwen2, tie_word_embeddings=tied, quantization_config=None)
    with pytest.raises(UserError, match=rf"tensor .* is {dtype}, expected one of .* exported as full weights"):
        qwen2_weights.load_qwen2(qwen2)


@pytest.mark.parametrize("value", NO_NUMBERS, ids=repr)
@pytest.mark.parametrize("entry", ["vocab_size", "num_hidden_layers", "num_attention_heads", "head_dim"])
def test_a_size_that_no_model_has_is_named(qwen2, entry, value):
    changed(qwen2, **{entry: value})
    with pytest.raises(
        UserError, match=rf"config\.json: ({entry} is .*, expected|num_attention_heads 8 is|head_dim is)"
    ):
        qwen2_weights.load_qwen2(qwen2)


@pytest.mark.parametrize(
    "entries",
    [
        {"tie_word_embeddings": "yes"},
        {"use_sliding_window": 1},
        {"layer_types": "full_attention"},
        {"rope_theta": -1.0, "rope_parameters": None},
        {"rope_parameters": {"rope_type": ["default"]}},
        {"rope_parameters": {"full_attention": {"rope_theta": 1e4}}},
        {"rope_scaling": {"type": "mrope", "mrope_section": [0, 4]}},
        {"num_attention_heads": 3, "num_key_value_heads": 3, "head_dim": None},
        {"torch_dtype": "float8_e4m3fn"},
        {"hidden_act": ["silu"]},
        {"model_type": None},
    ],
    ids=repr,
)
def test_an_entry_of_another_kind_is_named(qwen2, entries):
    with pytest.raises(UserError, match=r"config\.json: "):
        qwen2_weights.config_from_directory(changed(qwen2, **entries))


VL = Qwen2VLConfig(
    dataclasses.replace(tiny.CONFIG, mrope_section=(1, 1, 2)),
    VisionConfig(depth=1, hidden_size=16, intermediate_size=16, num_heads=2, out_hidden_size=32),
)


@pytest.mark.parametrize("naming", ["hub", "memory"])
def test_null_is_as_good_as_absent_in_a_qwen2_vl(tmp_path, naming):
    said = qwen2_vl_weights.published_config(VL, naming=naming)
    vision = {**said["vision_config"], "in_channels": None, "patch_size": None, "hidden_act": None, "tokens": None}
    nulls = dict.fromkeys(("quantization_config", "sliding_window", "video_token_id", "rope_parameters"))
    if naming == "hub":
        said |= {"text_config": None, "tie_word_embeddings": None, "rms_norm_eps": 1e-6} | nulls
    else:
        said["text_config"] |= nulls | {"rms_norm_eps": 1e-6, "layer_types": None}
        said |= nulls | {"rope_scaling": None, "torch_dtype": None}
    write(tmp_path, "config.json", said | {"vision_config": vision})
    assert qwen2_vl_weights.config_from_directory(tmp_path) == VL


@pytest.mark.parametrize("value", NO_NUMBERS, ids=repr)
def test_a_size_that_no_vision_tower_has_is_named(tmp_path, value):
    said = qwen2_vl_weights.published_config(VL)
    write(tmp_path, "config.json", said | {"vision_config": said["vision_config"] | {"depth": value}})
    with pytest.raises(UserError, match=r"vision_config depth is .*, expected a whole number, at least 1 and at most"):
        qwen2_vl_weights.config_from_directory(tmp_path)


def test_null_is_as_good_as_absent_in_a_bert(tmp_path):
    names = [field.name for field in dataclasses.fields(BertConfig) if not field.name.endswith("dtype")]
    extra = ("hidden_act", "position_embedding_type", "model_type", "quantization_config")
    write(tmp_path, "config.json", dict.fromkeys([*names, *extra]))
    assert encoder_config(tmp_path / "config.json") == BertConfig()
    for value in NO_NUMBERS:
        write(tmp_path, "config.json", {"hidden_size": value})
        with pytest.raises(UserError, match=r"config\.json: hidden_size"):
            encoder_config(tmp_path / "config.json")
    write(tmp_path, "config.json", {"hidden_dropout_prob": True})
    with pytest.raises(UserError, match="hidden_dropout_prob is True"):
        encoder_config(tmp_path / "config.json")


def test_null_is_as_good_as_absent_in_an_image_processor(tmp_path):
    names = ("min_pixels", "patch_size", "image_mean", "resample", "do_resize", "rescale_factor")
    write(tmp_path, "preprocessor_config.json", dict.fromkeys(names))
    check_processor(tmp_path, VisionConfig())
    for entries in ({"patch_size": HUGE}, {"image_mean": 0.5}, {"image_std": [1]}, {"do_resize": "no"}):
        write(tmp_path, "preprocessor_config.json", entries)
        with pytest.raises(UserError, match=rf"preprocessor_config\.json: {next(iter(entries))} is"):
            check_processor(tmp_path, VisionConfig())


@pytest.fixture
def adapter(saved, tmp_path):
    (tmp_path / "adapter_model.safetensors").symlink_to(saved / "adapter" / "adapter_model.safetensors")
    return write(tmp_path, "adapter_config.json", json.loads((saved / "adapter" / "adapter_config.json").read_text()))


def test_null_is_as_good_as_absent_in_an_adapter(adapter):
    nulls = ("lora_dropout", "bias", "rank_pattern", "alpha_pattern", "use_rslora", "modules_to_save", "eva_config")
    changed(adapter, "adapter_config.json", **dict.fromkeys(nulls))
    assert load_peft(adapter, tiny.params())[0].rank == tiny.LORA.rank


@pytest.mark.parametrize("value", [True, "4", 0, -4, 10**30, 10**400, 2.5], ids=repr)
@pytest.mark.parametrize("entry", ["r", "lora_alpha", "lora_dropout", "rank_pattern", "alpha_pattern"])
def test_a_number_that_an_adapter_cannot_have_is_named(adapter, entry, value):
    changed(adapter, "adapter_config.json", **{entry: {"q_proj": value} if "pattern" in entry else value})
    if (entry, value) in (("lora_dropout", 0), ("lora_alpha", 2.5), ("alpha_pattern", 2.5)):
        load_peft(adapter, tiny.params())
        return
    with pytest.raises(UserError, match=rf"adapter_config\.json: {entry} is .*, expected a "):
        load_peft(adapter, tiny.params())
