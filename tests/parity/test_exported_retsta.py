"""What RetSTA exports, opened as users open it: by transformers and PEFT, without a warning, with our logits."""

import json
import shutil
import warnings

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from common.data.exported_tokenizer import exported_files
from common.data.tokenizers import load_tokenizer
from common.models.peft import load_peft
from common.models.qwen2 import Qwen2, output_head
from common.models.qwen2_weights import load_qwen2
from common.training.sft import model_variables
from deer_jax.config import EMBEDDED_BASE as BYTE_LEVEL  # its tokenizer.json stands for a published one
from tests.parity.exported_run import export_moved
from tests.runs import SIZES

torch = pytest.importorskip("torch")
peft = pytest.importorskip("peft")
transformers = pytest.importorskip("transformers")

TOLERANCE = 1e-4
IDS = np.random.default_rng(0).integers(6, SIZES.vocab_size, (2, 15))
POSITIONS = jnp.broadcast_to(jnp.arange(IDS.shape[1]), IDS.shape)
TARGETS = ("(q|k|v|o|gate|up|down)_proj", "q_proj", "(gate|up|down)_proj")
CAUSAL = transformers.AutoModelForCausalLM
TEXT = "OD: few drusen, 2.5 mm.\n\n左眼视网膜出血。  OS:  normal"


@pytest.fixture(scope="module", params=["tied", "untied", "bfloat16"])
def base(request, material, tmp_path_factory):
    """A base model saved by transformers, with the SentencePiece tokenizer of the test material beside it."""
    directory = tmp_path_factory.mktemp("retsta") / "base"
    torch.manual_seed(0)
    config = transformers.Qwen2Config(
        vocab_size=SIZES.vocab_size, hidden_size=32, intermediate_size=48, num_hidden_layers=2, num_attention_heads=4,
        num_key_value_heads=2, initializer_range=0.2, tie_word_embeddings=request.param == "tied", bos_token_id=None,
        eos_token_id=1,
    )  # fmt: skip
    model = CAUSAL.from_config(config)
    model.to(torch.bfloat16 if request.param == "bfloat16" else torch.float32).save_pretrained(directory)
    shutil.copy(material.base / "tokenizer.model", directory)
    return directory


def exported(directory, run_dir, tuning, targets=TARGETS[0]):
    """Our logits of a base with what `tuning` trains moved at random, exported as a run exports it; and the base."""
    loaded, variables = export_moved(directory, run_dir, tuning, targets)
    return logits(loaded.config, variables), loaded


def logits(config, variables):
    hidden, _ = jax.jit(Qwen2(config).apply)(variables, jnp.asarray(IDS), POSITIONS, jnp.ones_like(POSITIONS))
    return hidden.astype(jnp.float32) @ output_head(variables["params"]).astype(jnp.float32).T


def silently(load):
    """The logits of what `load` returns; a warning, such as PEFT's about an adapter that it ignores, is an error."""
    with warnings.catch_warnings():
        warnings.simplefilter("error", UserWarning)
        model = load().eval()
    with torch.no_grad():
        return model(torch.tensor(IDS)).logits.numpy()


def test_a_whole_model_gives_our_logits_in_transformers(base, tmp_path):
    expected, loaded = exported(base, tmp_path, "full")
    model, report = CAUSAL.from_pretrained(tmp_path / "model", output_loading_info=True)
    assert not any(report.values()), report
    assert model.dtype == torch.float32  # as what was trained is stored, whatever the base was
    np.testing.assert_allclose(silently(lambda: model), expected, atol=TOLERANCE)
    assert np.abs(logits(loaded.config, {"params": loaded.params}) - expected).max() > 0.1
    assert set(transformers.GenerationConfig.from_pretrained(tmp_path / "model").eos_token_id) == {1, 4}


@pytest.mark.parametrize("targets", TARGETS)
def test_an_adapter_gives_our_logits_in_peft_and_transformers(base, tmp_path, targets):
    expected, loaded = exported(base, tmp_path, "lora", targets)
    adapter = tmp_path / "adapter"
    ways = {
        "PeftModel": lambda: peft.PeftModel.from_pretrained(CAUSAL.from_pretrained(base, dtype="float32"), adapter),
        "AutoPeftModel": lambda: peft.AutoPeftModelForCausalLM.from_pretrained(adapter, dtype="float32"),
        "transformers": lambda: CAUSAL.from_pretrained(adapter, dtype="float32"),
    }
    for load in ways.values():
        np.testing.assert_allclose(silently(load), expected, atol=TOLERANCE)
    assert np.abs(logits(loaded.config, {"params": loaded.params}) - expected).max() > 0.1
    assert (adapter / "README.md").read_text().count("transformers 5.23 and peft 0.19") == 1
    config, lora, params = load_peft(adapter, load_qwen2(base, dtype="float32")[1])
    np.testing.assert_allclose(
        logits(loaded.config, model_variables(lora, {"params": params}, config)), expected, atol=1e-6
    )


def test_a_sentencepiece_tokenizer_goes_along_as_one_of_transformers(base, tmp_path, capsys):
    """Its ids, its turns; and as AutoTokenizer takes any Qwen2's for Qwen2's own, the run says what to take."""
    _, loaded = exported(base, tmp_path, "full")
    tokenizer, directory = loaded.tokenizer, tmp_path / "model"
    assert "read its tokenizer with transformers' PreTrainedTokenizerFast; AutoTokenizer" in capsys.readouterr().out
    assert transformers.AutoTokenizer.from_pretrained(directory)(TEXT)["input_ids"] != tokenizer.encode(TEXT)
    theirs, again = transformers.PreTrainedTokenizerFast.from_pretrained(directory), load_tokenizer(directory)
    assert theirs(TEXT)["input_ids"] == tokenizer.encode(TEXT) == again.encode(TEXT)
    assert theirs.decode(tokenizer.encode(TEXT)) == TEXT == again.decode(tokenizer.encode(TEXT))
    assert (theirs.eos_token_id, theirs.pad_token_id) == (tokenizer.eos_id, tokenizer.pad_id)
    assert (again.eos_id, again.pad_id, again.stop_ids) == (tokenizer.eos_id, tokenizer.pad_id, tokenizer.stop_ids)
    turns = [{"role": "user", "content": TEXT}]
    chat = theirs.apply_chat_template(turns, add_generation_prompt=True, tokenize=True, return_dict=False)
    assert chat == tokenizer.chat(turns) == again.chat(turns)


def test_files_of_a_published_tokenizer_are_left_alone(tmp_path):
    for name in ("tokenizer.json", "tokenizer_config.json"):
        shutil.copy(BYTE_LEVEL / name, tmp_path)
    tokenizer = load_tokenizer(tmp_path)
    files = exported_files(tmp_path, tokenizer)
    assert files.keys() == {"generation_config.json", "chat_template.jinja"}  # it has none of its own
    assert json.loads(files["generation_config.json"])["eos_token_id"] == list(tokenizer.stop_ids)
    (tmp_path / "chat_template.jinja").write_text("{% for m in messages %}{{ m['content'] }}{% endfor %}")
    own = '{"eos_token_id": [2, 0], "top_k": 1}'
    (tmp_path / "generation_config.json").write_text(own)
    assert exported_files(tmp_path, load_tokenizer(tmp_path)) == {"generation_config.json": own}
