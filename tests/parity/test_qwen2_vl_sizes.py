"""The published sizes of Qwen2.5-VL have the parameters, by number and by name, that transformers gives them."""

import json

import jax
import pytest

from common.models.qwen2_vl import Qwen2VLConfig
from common.models.qwen2_vl_weights import config_from_directory, name_map, param_shapes

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")

PUBLISHED = {  # config.json of the hub, without what does not matter here
    "3B": {
        "hidden_size": 2048, "intermediate_size": 11_008, "num_attention_heads": 16, "num_hidden_layers": 36,
        "num_key_value_heads": 2, "tie_word_embeddings": True, "vocab_size": 151_936,
    },
    "7B": {
        "hidden_size": 3584, "intermediate_size": 18_944, "num_attention_heads": 28, "num_hidden_layers": 28,
        "num_key_value_heads": 4, "tie_word_embeddings": False, "vocab_size": 152_064,
    },
}  # fmt: skip


@pytest.mark.parametrize("size", PUBLISHED)
def test_published_sizes_have_the_published_parameters(size, tmp_path):
    text = PUBLISHED[size]
    content = {
        **text, "model_type": "qwen2_5_vl", "hidden_act": "silu", "rms_norm_eps": 1e-6, "rope_theta": 1e6,
        "torch_dtype": "bfloat16", "rope_scaling": {"type": "mrope", "mrope_section": [16, 24, 24]},
        "vision_token_id": 151_654,
        "vision_config": {
            "depth": 32, "hidden_act": "silu", "hidden_size": 1280, "intermediate_size": 3420, "num_heads": 16,
            "in_chans": 3, "out_hidden_size": text["hidden_size"], "patch_size": 14, "spatial_merge_size": 2,
            "window_size": 112, "fullatt_block_indexes": [7, 15, 23, 31], "temporal_patch_size": 2,
        },
    }  # fmt: skip
    (tmp_path / "config.json").write_text(json.dumps(content))
    config = config_from_directory(tmp_path)
    assert isinstance(config, Qwen2VLConfig)
    assert config.forbidden_ids == (151_652, 151_653, 151_654, 151_655, 151_656)
    with torch.device("meta"):
        model = transformers.Qwen2_5_VLForConditionalGeneration(transformers.AutoConfig.from_pretrained(tmp_path))
    shapes = param_shapes(config)
    expected = sum(parameter.numel() for parameter in model.parameters())
    assert sum(leaf.size for leaf in jax.tree.leaves(shapes)) == expected
    assert expected == {"3B": 3_754_622_976, "7B": 8_292_166_656}[size]
    names = name_map(config, "memory")
    assert {name for entry in names.values() for name in entry.names} == {name for name, _ in model.named_parameters()}
