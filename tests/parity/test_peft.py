"""LoRA against the PEFT library: adapters in and out, logits, gradients, merged export."""

import dataclasses
import functools
import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax.traverse_util import flatten_dict

from common.errors import UserError
from common.models.lora import LoraConfig, init_lora, merge, scaled
from common.models.peft import load_peft, save_peft
from common.models.qwen2 import Qwen2, output_head
from common.models.qwen2_weights import load_qwen2, save_qwen2
from common.training.losses import answer_loss, token_logprobs

torch = pytest.importorskip("torch")
peft = pytest.importorskip("peft")
transformers = pytest.importorskip("transformers")

TOLERANCE = 1e-4
IDS = np.random.default_rng(0).integers(0, 211, (2, 19))
POSITIONS = jnp.broadcast_to(jnp.arange(IDS.shape[1]), IDS.shape)
WEIGHTS = (np.random.default_rng(1).random((2, 19)) < 0.6).astype(np.float32) * [[1.0] * 18 + [0.0]]


@pytest.fixture(scope="module")
def base(tmp_path_factory):
    torch.manual_seed(0)
    config = transformers.Qwen2Config(
        vocab_size=211, hidden_size=48, intermediate_size=80, num_hidden_layers=3, num_attention_heads=4,
        num_key_value_heads=2, rope_theta=1e5, initializer_range=0.2,
    )  # fmt: skip
    directory = tmp_path_factory.mktemp("base") / "model"
    transformers.AutoModelForCausalLM.from_config(config).save_pretrained(directory)
    return directory


def torch_adapter(base, **options):
    model = transformers.AutoModelForCausalLM.from_pretrained(base)
    config = peft.LoraConfig(task_type="CAUSAL_LM", r=4, lora_alpha=12, **options)
    model = peft.get_peft_model(model, config).eval()
    generator = torch.Generator().manual_seed(3)
    for name, parameter in model.named_parameters():
        if "lora_" in name:
            moved = torch.randn(parameter.shape, generator=generator) * 0.2
            parameter.data = parameter.data * (1 + moved) if "magnitude" in name else moved
    return model


def torch_logits(model):
    with torch.no_grad():
        return model.eval()(torch.tensor(IDS)).logits.numpy()


@functools.partial(jax.jit, static_argnums=0)
def our_logits(config, params, lora=None):
    variables = {"params": params} if lora is None else {"params": params, "lora": lora}
    hidden, _ = Qwen2(config).apply(variables, jnp.asarray(IDS), POSITIONS, jnp.ones_like(POSITIONS))
    return hidden @ output_head(params).T


def random_lora(params, config, key=7):
    lora = init_lora(params, config, jax.random.key(key), params)
    leaves, structure = jax.tree.flatten(lora)
    keys = jax.random.split(jax.random.key(key), len(leaves))
    moved = [0.2 * jax.random.normal(k, x.shape) for k, x in zip(keys, leaves, strict=True)]
    # Of magnitudes, which are not zero, a part.
    return structure.unflatten([x * (1 + d) if x.ndim == 2 else d for x, d in zip(leaves, moved, strict=True)])


@pytest.mark.parametrize(
    "options",
    [
        {"target_modules": ["q_proj", "v_proj"], "lora_dropout": 0.1},
        {"target_modules": "all-linear"},
        {"target_modules": r".*\.layers\.[02]\.mlp\.(up|down)_proj"},
        {"target_modules": ["self_attn.o_proj", "gate_proj"], "layers_to_transform": [1]},
        {"target_modules": "all-linear", "exclude_modules": ["k_proj"]},
        {"target_modules": ["q_proj", "up_proj"], "layers_to_transform": []},
        {"target_modules": "all-linear", "use_dora": True},
        {"target_modules": ["q_proj", "down_proj"], "use_dora": True, "layers_to_transform": [1], "use_rslora": True},
    ],
)
def test_an_adapter_of_peft_gives_its_logits_here(base, tmp_path, options):
    model = torch_adapter(base, **options)
    model.save_pretrained(tmp_path)
    config, params = load_qwen2(base)
    lora_config, lora, _ = load_peft(tmp_path, params)
    assert (lora_config.rank, lora_config.alpha) == (4, 12.0)
    assert lora_config.dropout == options.get("lora_dropout", 0.0)
    expected = torch_logits(model)
    assert np.abs(expected - our_logits(config, params)).max() > 0.1
    np.testing.assert_allclose(our_logits(config, params, scaled(lora, lora_config, params)), expected, atol=TOLERANCE)
    assert jax.tree.structure(init_lora(params, lora_config, jax.random.key(0), params)) == jax.tree.structure(lora)


LINEAR = LoraConfig().targets
PATTERNS = {
    "rank_pattern": {"q_proj": 7, r"layers\.1\.mlp\.(up|down)_proj": 2},
    "alpha_pattern": {r"2\.self_attn\.v_proj": 3, "q_proj": 40},
}


@pytest.mark.parametrize("rslora", [False, True])
@pytest.mark.parametrize("names", [(), ("rank_pattern",), ("alpha_pattern",), ("rank_pattern", "alpha_pattern")])
def test_other_scales_and_ranks_give_the_logits_of_peft(base, tmp_path, rslora, names):
    options = {name: PATTERNS[name] for name in names}
    model = torch_adapter(base, target_modules="all-linear", use_rslora=rslora, **options)
    for name, parameter in model.named_parameters():
        if "lora_" in name:
            parameter.data *= 0.4  # the scales are large
    model.save_pretrained(tmp_path)
    config, params = load_qwen2(base)
    lora_config, lora, _ = load_peft(tmp_path, params)
    assert lora_config.rank == (7 if "rank_pattern" in names else 4)
    expected = torch_logits(model)
    assert np.abs(expected - our_logits(config, params)).max() > 0.1
    np.testing.assert_allclose(our_logits(config, params, scaled(lora, lora_config, params)), expected, atol=TOLERANCE)


@pytest.mark.parametrize("tied", [False, True])
@pytest.mark.parametrize("saved", [["lm_head"], ["embed_tokens"], ["lm_head", "embed_tokens"]])
def test_modules_saved_whole_take_the_place_of_the_bases(base, tmp_path, saved, tied):
    if tied:
        model = transformers.AutoModelForCausalLM.from_pretrained(base)
        model.config.tie_word_embeddings = True
        model.tie_weights()
        base = tmp_path / "tied"
        model.save_pretrained(base)
    model = torch_adapter(base, target_modules=["q_proj"], modules_to_save=saved)
    generator = torch.Generator().manual_seed(4)
    for name, parameter in model.named_parameters():
        if "modules_to_save" in name:
            parameter.data = torch.randn(parameter.shape, generator=generator) * 0.2
    model.save_pretrained(tmp_path / "adapter")
    config, params = load_qwen2(base)
    assert config.tie_word_embeddings == tied
    lora_config, lora, changed = load_peft(tmp_path / "adapter", params)
    expected = torch_logits(model)
    assert np.abs(our_logits(config, params, scaled(lora, lora_config, params)) - expected).max() > 0.1
    np.testing.assert_allclose(our_logits(config, changed, scaled(lora, lora_config, params)), expected, atol=TOLERANCE)


@pytest.mark.parametrize(
    ("targets", "options"),
    [
        (r"(q|v)_proj", {}), (r"(q|v)_proj", {"rslora": True}), (LINEAR, {}), (LINEAR, {"dora": True}),
        (r"(q|v)_proj", {"dora": True, "rslora": True}),
    ],
)  # fmt: skip
def test_our_adapter_gives_our_logits_in_peft(base, tmp_path, targets, options):
    config, params = load_qwen2(base)
    lora_config = LoraConfig(rank=3, alpha=5.0, dropout=0.1, targets=targets, **options)
    lora = random_lora(params, lora_config)
    save_peft(tmp_path / "adapter", lora, lora_config, str(base))
    model = peft.AutoPeftModelForCausalLM.from_pretrained(tmp_path / "adapter")
    np.testing.assert_allclose(
        torch_logits(model), our_logits(config, params, scaled(lora, lora_config, params)), atol=TOLERANCE
    )
    again_config, again, _ = load_peft(tmp_path / "adapter", params)
    assert dataclasses.replace(again_config, targets=targets) == lora_config
    jax.tree.map(np.testing.assert_array_equal, again, lora)


@pytest.mark.parametrize("dora", [False, True])
def test_merged_export_is_a_plain_model_with_our_logits(base, tmp_path, dora):
    config, params = load_qwen2(base)
    lora_config = LoraConfig(rank=3, alpha=5.0, dora=dora)
    lora = random_lora(params, lora_config)
    save_qwen2(tmp_path / "merged", config, merge(params, lora, lora_config), source=base)
    model = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "merged")
    np.testing.assert_allclose(
        torch_logits(model), our_logits(config, params, scaled(lora, lora_config, params)), atol=TOLERANCE
    )


def test_dora_begins_as_the_base_with_the_magnitudes_of_peft(base):
    config, params = load_qwen2(base)
    own = LoraConfig(rank=3, dora=True)
    lora = init_lora(params, own, jax.random.key(0), params)
    np.testing.assert_allclose(our_logits(config, params, scaled(lora, own, params)), our_logits(config, params), 1e-5)
    model = transformers.AutoModelForCausalLM.from_pretrained(base)
    model = peft.get_peft_model(model, peft.LoraConfig(target_modules=["up_proj"], use_dora=True))
    for layer in range(config.num_hidden_layers):
        theirs = model.base_model.model.model.layers[layer].mlp.up_proj.lora_magnitude_vector["default"].weight
        np.testing.assert_allclose(lora["layers"]["mlp"]["up_proj"]["magnitude"][layer], theirs.detach(), rtol=1e-6)


@pytest.mark.parametrize("dora", [False, True])
def test_gradients_of_the_adapters_are_those_of_peft(base, tmp_path, dora):
    model = torch_adapter(base, target_modules="all-linear", use_dora=dora)
    model.save_pretrained(tmp_path)
    config, params = load_qwen2(base)
    lora_config, lora, _ = load_peft(tmp_path, params)
    targets = np.roll(IDS, -1, axis=1)

    def loss(lora):
        variables = {"params": params, "lora": scaled(lora, lora_config, params)}
        hidden, _ = Qwen2(config).apply(variables, jnp.asarray(IDS), POSITIONS, jnp.ones_like(POSITIONS))
        logp = token_logprobs(hidden, output_head(params), jnp.asarray(targets), chunk=8, head_trained=False)
        total = answer_loss(logp, jnp.asarray(WEIGHTS))
        return total.total / total.weight

    value, gradients = jax.jit(jax.value_and_grad(loss))(lora)
    logits = model(torch.tensor(IDS)).logits
    crosses = torch.nn.functional.cross_entropy(logits.transpose(1, 2), torch.tensor(targets), reduction="none")
    expected = (crosses * torch.tensor(WEIGHTS)).sum() / WEIGHTS.sum()
    expected.backward()
    np.testing.assert_allclose(value, expected.item(), rtol=1e-5)
    theirs = {name: parameter.grad for name, parameter in model.named_parameters() if parameter.grad is not None}
    compared = 0
    for path, gradient in flatten_dict(gradients).items():
        for layer in range(config.num_hidden_layers):
            module = ".".join(path[1:-1])
            kind = {"a": "A", "b": "B", "magnitude": "magnitude_vector"}[path[-1]]
            reference = theirs[f"base_model.model.model.layers.{layer}.{module}.lora_{kind}.default.weight"].numpy().T
            assert np.abs(gradient[layer] - reference).max() <= TOLERANCE * np.abs(reference).max()
            compared += 1
    assert compared == len(theirs) == 3 * 7 * (3 if dora else 2)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"use_dora": True}, r"q_proj.lora_magnitude_vector.* missing"),
        ({"use_dora": 1}, "use_dora is 1, expected true or false"),
        ({"lora_bias": True}, "lora_bias = True is neither LoRA nor DoRA"),
        ({"bias": "all"}, "bias is 'all'"),
        ({"modules_to_save": ["lm_head"]}, "tensor base_model.model.lm_head.weight is missing"),
        ({"modules_to_save": ["score"]}, "modules_to_save is .* expected none, or lm_head and embed_tokens"),
        ({"rank_pattern": {"q_proj": 2}}, r"lora_A.weight has shape \[4, 48\], but .* rank 2"),
        ({"rank_pattern": {"q_proj": "2"}}, "rank_pattern is .* a whole number, at least 1 and .* for each pattern"),
        ({"rank_pattern": {"(": 2}}, "is not a valid regular expression"),
        ({"alpha_pattern": ["q_proj"]}, "alpha_pattern is"),
        ({"r": True}, "r is True"),
        ({"lora_alpha": "x"}, "lora_alpha is 'x', expected a number, above 0"),
        ({"lora_alpha": 0}, "lora_alpha is 0"),
        ({"lora_dropout": "x"}, "lora_dropout is 'x'"),
        ({"target_modules": 5}, "target_modules is 5"),
        ({"target_modules": 0}, "target_modules is 0"),
        ({"target_modules": False}, "target_modules is False"),
        ({"exclude_modules": [5]}, r"exclude_modules is \[5\]"),
        ({"layers_to_transform": "0"}, "layers_to_transform is '0'"),
        ({"fan_in_fan_out": True}, "fan_in_fan_out"),
        ({"init_lora_weights": "pissa_niter_4"}, "changes the base weights"),
        ({"peft_type": "LOHA"}, "expected 'LORA'"),
        ({"r": 5}, r"lora_A.weight has shape \[4, 48\], expected \[5, 48\]"),
        ({"target_modules": ["q_proj", "k_proj"]}, r"k_proj.lora_A.weight.* missing"),
        ({"target_modules": ["q_proj"]}, r"v_proj.lora_A.weight.* surplus"),
        ({"target_modules": ["lm_head"]}, "match no linear layer"),
        ({"target_modules": None}, "target_modules is missing"),
        ({"target_modules": "("}, "is not a valid regular expression"),
    ],
)
def test_what_is_more_than_plain_lora_or_does_not_fit_is_refused(base, tmp_path, changes, message):
    torch_adapter(base, target_modules=["q_proj", "v_proj"]).save_pretrained(tmp_path)
    file = tmp_path / "adapter_config.json"
    file.write_text(json.dumps({**json.loads(file.read_text()), **changes}))
    _, params = load_qwen2(base)
    with pytest.raises(UserError, match=message):
        load_peft(tmp_path, params)


def test_an_adapter_of_another_base_is_refused(base, tmp_path):
    torch_adapter(base, target_modules=["q_proj"]).save_pretrained(tmp_path)
    _, params = load_qwen2(base)
    shallow = jax.tree.map(lambda x: x[:2], params["layers"])
    with pytest.raises(UserError, match=r"model.layers.2.self_attn.q_proj.lora_A.weight.* surplus"):
        load_peft(tmp_path, {"layers": shallow})
