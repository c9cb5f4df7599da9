"""What a run leaves of a Llama, a GLM-4 or a Baichuan2, opened by transformers and PEFT, has our logits."""

import dataclasses
import json
import shutil

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax.traverse_util import flatten_dict
from safetensors.numpy import load_file, save_file

from common.errors import UserError
from common.models.adapters import check_adapters, load_adapter, save_adapter
from common.models.families import FAMILIES
from common.models.lora import LoraConfig
from common.models.qwen2 import Qwen2, output_head
from common.models.qwen2_weights import config_from_directory, load_qwen2
from common.training.sft import model_variables
from tests import tiny
from tests.parity.exported_run import export_moved

torch = pytest.importorskip("torch", reason="PyTorch is the reference here (requirements-parity.txt)")
peft = pytest.importorskip("peft")
transformers = pytest.importorskip("transformers")

TOLERANCE = 1e-4
CAUSAL = transformers.AutoModelForCausalLM
ALL, SOME = "(q|k|v|o|gate|up|down)_proj", "(q|up)_proj"


def saved(kind, directory, material, **options):
    """A base model saved by transformers, with the SentencePiece tokenizer of the test material beside it."""
    torch.manual_seed(0)
    config = getattr(transformers, kind)(
        vocab_size=config_from_directory(material.base).vocab_size, hidden_size=32, intermediate_size=48,
        num_hidden_layers=2, num_attention_heads=4, max_position_embeddings=256, initializer_range=0.2,
        eos_token_id=1, bos_token_id=None, pad_token_id=1, **options,
    )  # fmt: skip
    CAUSAL.from_config(config).save_pretrained(directory)
    shutil.copy(material.base / "tokenizer.model", directory)
    return directory


@pytest.fixture(scope="module", params=["LlamaConfig", "GlmConfig", "Glm4Config"])
def base(request, material, tmp_path_factory):
    options = {} if request.param == "LlamaConfig" else {"head_dim": 8}
    return saved(request.param, tmp_path_factory.mktemp("family"), material, num_key_value_heads=2, **options)


def ids(vocabulary):
    return np.random.default_rng(0).integers(6, vocabulary, (2, 15))


def logits(config, variables):
    tokens = jnp.asarray(ids(config.vocab_size))
    positions = jnp.broadcast_to(jnp.arange(tokens.shape[1]), tokens.shape)
    hidden, _ = jax.jit(Qwen2(config).apply)(variables, tokens, positions, jnp.ones_like(positions))
    return hidden @ output_head(variables["params"]).T


def theirs(model):
    with torch.no_grad():
        return model.eval()(torch.tensor(ids(model.config.vocab_size))).logits.numpy()


def exported(directory, run_dir, tuning, targets=ALL):
    """Our logits of a base with what `tuning` trains moved at random, exported as a run exports it; and the base."""
    loaded, variables = export_moved(directory, run_dir, tuning, targets)
    return logits(loaded.config, variables), loaded


@pytest.mark.parametrize("targets", [ALL, SOME, "o_proj"])
@pytest.mark.filterwarnings("error::UserWarning")
def test_an_adapter_gives_our_logits_in_peft(base, tmp_path, targets):
    expected, loaded = exported(base, tmp_path, "lora", targets)
    model = peft.PeftModel.from_pretrained(CAUSAL.from_pretrained(base), tmp_path / "adapter")
    np.testing.assert_allclose(theirs(model), expected, atol=TOLERANCE)
    assert np.abs(logits(loaded.config, {"params": loaded.params}) - expected).max() > 0.01
    config, lora, params = load_adapter(tmp_path / "adapter", loaded.config, loaded.params)
    again = logits(loaded.config, model_variables(lora, {"params": params}, config))
    np.testing.assert_allclose(again, expected, atol=1e-5)


def test_a_whole_model_gives_our_logits_in_transformers(base, tmp_path):
    expected, loaded = exported(base, tmp_path, "full")
    model, report = CAUSAL.from_pretrained(tmp_path / "model", output_loading_info=True)
    assert not any(report.values()), report
    np.testing.assert_allclose(theirs(model), expected, atol=TOLERANCE)
    assert type(model).__name__ == FAMILIES[loaded.config.model_type].architecture
    assert config_from_directory(tmp_path / "model") == dataclasses.replace(loaded.config, remat="none")


@pytest.mark.parametrize("dora", [False, True])
def test_an_adapter_of_others_on_a_joined_matrix_is_read(base, tmp_path, dora):
    """As PEFT makes one of all linear layers, with a rank of its own for one of them."""
    model = CAUSAL.from_pretrained(base)
    adapter = peft.LoraConfig(
        r=2, target_modules="all-linear", rank_pattern={"down_proj": 4}, init_lora_weights=False, task_type="CAUSAL_LM",
        use_dora=dora,
    )  # fmt: skip
    adapted = peft.get_peft_model(model, adapter)
    adapted.save_pretrained(tmp_path)
    config, params = load_qwen2(base)
    own, lora, params = load_adapter(tmp_path, config, params)
    assert {path[-2] for path in flatten_dict(lora)} == {f"{name}_proj" for name in ALL[1:].split(")")[0].split("|")}
    found = logits(config, model_variables(lora, {"params": params}, own))
    np.testing.assert_allclose(found, theirs(adapted), atol=TOLERANCE)


@pytest.fixture
def baichuan(material, tmp_path):
    """A Baichuan2 of the weights of a Llama, and that Llama with a head of rows of length 1."""
    directory = saved("LlamaConfig", tmp_path / "baichuan", material)
    peer = CAUSAL.from_pretrained(directory)
    tensors = load_file(directory / "model.safetensors")
    for layer in range(2):
        parts = [tensors.pop(f"model.layers.{layer}.self_attn.{name}_proj.weight") for name in "qkv"]
        tensors[f"model.layers.{layer}.self_attn.W_pack.weight"] = np.concatenate(parts)
    save_file(tensors, directory / "model.safetensors")
    said = json.loads((directory / "config.json").read_text())
    (directory / "config.json").write_text(json.dumps(said | {"model_type": "baichuan"}))
    with torch.no_grad():
        peer.lm_head.weight.copy_(torch.nn.functional.normalize(peer.lm_head.weight))
    return directory, peer


@pytest.mark.parametrize(
    ("options", "joined_alpha"), [({}, 15.0), ({"rslora": True}, 5.0 * 3**0.5), ({"dora": True}, 15.0)]
)
def test_an_adapter_of_baichuan_is_one_of_its_joined_matrix(baichuan, tmp_path, options, joined_alpha):
    """B A of the whole matrix is that of q, k and v, one below the other."""
    directory, peer = baichuan
    config, params = load_qwen2(directory)
    np.testing.assert_allclose(logits(config, {"params": params}), theirs(peer), atol=TOLERANCE)
    own = LoraConfig(rank=3, alpha=5.0, dropout=0.0, **options)
    lora = tiny.lora(params, own)
    save_adapter(tmp_path / "adapter", config, lora, own, "baichuan")
    said = json.loads((tmp_path / "adapter" / "adapter_config.json").read_text())
    assert (said["rank_pattern"], said["alpha_pattern"]) == ({"W_pack": 9}, {"W_pack": joined_alpha})
    assert said["target_modules"] == ["W_pack", "down_proj", "gate_proj", "o_proj", "up_proj"]
    stored = load_file(tmp_path / "adapter" / "adapter_model.safetensors")
    prefix = "base_model.model.model.layers.1.self_attn.W_pack"
    whole = stored[f"{prefix}.lora_B.weight"] @ stored[f"{prefix}.lora_A.weight"]
    of_layer = lora["layers"]["self_attn"]
    parts = [(of_layer[f"{name}_proj"]["a"][1] @ of_layer[f"{name}_proj"]["b"][1]).T for name in "qkv"]
    np.testing.assert_allclose(whole, np.concatenate(parts), atol=1e-6)
    again, read, base = load_adapter(tmp_path / "adapter", config, params)
    expected = logits(config, model_variables(lora, {"params": params}, own))
    found = logits(config, model_variables(read, {"params": base}, again))
    np.testing.assert_allclose(found, expected, atol=1e-5)


def test_what_cannot_be_written_is_one_line_before_the_run(baichuan, tmp_path):
    directory, _ = baichuan
    with pytest.raises(UserError, match=r"type baichuan does not support full fine-tuning.*model\.tuning lora"):
        exported(directory, tmp_path, "full")
    config = config_from_directory(directory)
    with pytest.raises(UserError, match=r"lora\.dora: W_pack of .* baichuan holds .* only q_proj, v_proj: match all"):
        check_adapters(config, LoraConfig(targets="(q|v)_proj", dora=True))
    config = dataclasses.replace(config, model_type="chatglm")
    with pytest.raises(UserError, match=r"type chatglm cannot be trained.*layout of transformers \(GLM-4-9B-hf"):
        load_adapter(tmp_path, config, {})
