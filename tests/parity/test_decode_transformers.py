"""Greedy and beam search emit the same tokens as transformers' PyTorch `generate`, prompt lengths mixed."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from common.generation.beams import beam_search
from common.generation.loop import generate, prefill
from common.generation.settings import DecodeSettings
from common.models.decoding import Prompts
from common.models.qwen2 import Qwen2Config, bind, output_head
from common.models.qwen2_weights import load_qwen2

torch = pytest.importorskip("torch", reason="PyTorch is the reference here (requirements-parity.txt)")
transformers = pytest.importorskip("transformers")

STOPS = (7, 9)


def torch_model(vocab: int, heads: int, shared: int, tied: bool, stop_bias: float = 0.0):
    """A random Qwen2 with large weights, so that the choices differ, and its stop tokens made likelier."""
    torch.manual_seed(vocab + heads)
    config = transformers.Qwen2Config(
        vocab_size=vocab,
        hidden_size=32,
        intermediate_size=48,
        num_hidden_layers=2,
        num_attention_heads=heads,
        num_key_value_heads=shared,
        tie_word_embeddings=tied,
        max_position_embeddings=128,
        initializer_range=0.3,
        eos_token_id=list(STOPS),
        pad_token_id=1,
        bos_token_id=None,
    )
    model = transformers.Qwen2ForCausalLM(config).eval()
    with torch.no_grad():
        # A direction that the final norm always shows, in favour of the stop tokens.
        model.model.norm.weight[0] = 3.0
        model.lm_head.weight[list(STOPS), 0] += stop_bias
    return model


def ours(model, tmp_path) -> tuple[Qwen2Config, dict]:
    model.save_pretrained(tmp_path)
    return load_qwen2(tmp_path)


def mixed_prompts(rows: int, longest: int, vocab: int) -> Prompts:
    rng = np.random.default_rng(rows)
    lengths = rng.integers(1, longest + 1, rows)
    mask = np.arange(longest) >= longest - lengths[:, None]
    return Prompts(jnp.asarray(rng.integers(10, vocab, (rows, longest)) * mask), jnp.asarray(mask))


def reference(model, prompts: Prompts, **options) -> np.ndarray:
    """New tokens of transformers, 0 after the end."""
    tokens, mask = (torch.tensor(np.asarray(leaf)).long() for leaf in (prompts.tokens, prompts.mask))
    with torch.inference_mode():
        out = model.generate(tokens, attention_mask=mask, do_sample=False, **options)
    return out[:, tokens.shape[1] :].numpy()


def padded(tokens: np.ndarray, length: int) -> np.ndarray:
    """Tokens up to the first stop, then 0."""
    tokens = np.pad(tokens, ((0, 0), (0, length - tokens.shape[1])))
    stopped_before = np.cumsum(np.isin(tokens, STOPS), axis=-1) - np.isin(tokens, STOPS) > 0
    return np.where(stopped_before, 0, tokens)


@pytest.mark.parametrize(
    ("heads", "shared", "tied", "stop_bias"),
    [(4, 4, False, 0.0), (4, 2, True, 0.0), (8, 1, False, 0.5)],
    ids=["separate head", "tied head, two queries a key", "one key, early stops"],
)
def test_greedy_is_that_of_transformers_on_32_mixed_prompts(heads, shared, tied, stop_bias, tmp_path):
    model = torch_model(199, heads, shared, tied, stop_bias)
    config, params = ours(model, tmp_path)
    prompts = mixed_prompts(32, 24, config.vocab_size)

    @jax.jit
    def run(params):
        forward = bind(config, {"params": params})
        keys = jax.random.split(jax.random.key(0), 32)
        read = prefill(forward, prompts)
        return generate(forward, output_head(params), read, keys, DecodeSettings(20, stop_ids=STOPS))

    result = run(params)
    np.testing.assert_array_equal(result.tokens[:, 0], padded(reference(model, prompts, max_new_tokens=20), 20))
    ends = np.isin(result.tokens[:, 0], STOPS)
    np.testing.assert_array_equal(result.stopped[:, 0], ends.any(-1))
    np.testing.assert_array_equal(result.lengths[:, 0], np.where(ends.any(-1), ends.argmax(-1) + 1, 20))


@pytest.mark.parametrize(
    ("beams", "stop_bias", "penalty"),
    [(2, 0.0, 1.0), (4, 0.4, 1.0), (3, 0.6, 0.0), (5, 0.8, 2.0)],
)
def test_beam_search_is_that_of_transformers(beams, stop_bias, penalty, tmp_path):
    model = torch_model(97 + beams, 4, 2, False, stop_bias)
    config, params = ours(model, tmp_path)
    prompts = mixed_prompts(8, 12, config.vocab_size)

    @jax.jit
    def run(params):
        forward = bind(config, {"params": params})
        settings = DecodeSettings(14, beams=beams, stop_ids=STOPS, length_penalty=penalty)
        return beam_search(forward, output_head(params), prefill(forward, prompts), settings)

    found = run(params)
    options = {"num_beams": beams, "length_penalty": penalty, "early_stopping": False, "max_new_tokens": 14}
    wanted = padded(reference(model, prompts, num_return_sequences=beams, **options), 14)
    np.testing.assert_array_equal(found.generated.tokens, wanted.reshape(8, beams, 14))
    sums = np.asarray(found.generated.log_probs).sum(-1) / np.asarray(found.generated.lengths) ** penalty
    np.testing.assert_allclose(sums, found.scores, rtol=1e-5)
