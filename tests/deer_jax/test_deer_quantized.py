"""DEER on language models in 8 and 4 bits: as on plain ones whose weights numpy has rounded, wherever it runs."""

import dataclasses
import json
import re
import shutil

import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import pytest
from flax.traverse_util import flatten_dict
from safetensors.numpy import load_file, save_file

from common.config import from_json, read_config, to_json
from common.config_options import parse
from common.errors import UserError
from common.models.lora import LoraConfig, merge
from common.models.qwen2_vl import SHARDING_RULES
from common.models.qwen2_vl_weights import param_shapes
from common.training.logs import read_metrics
from common.training.parallel import (
    MeshConfig,
    compile_evaluation,
    compile_rows,
    device_put_tree,
    fetch_rows,
    make_device_layout,
    place_batch,
)
from deer_jax.cli import dispatch
from deer_jax.config import INSTRUCTION, RL_NEEDS, RL_PRESETS, ModelConfig, RlConfig, RolloutConfig, SftConfig
from deer_jax.ditpo import PolicyParams, Rollouts, make_loss
from deer_jax.objective import Objective
from deer_jax.prompts import prompt_length, study_prompts
from deer_jax.rl import StudyBatch
from deer_jax.setup import decode_settings, export, initial_trees, load_base
from deer_jax.test_evaluation import sampling
from deer_jax.vision_policy import vision_policy
from launch.plan_shapes import study_trees
from tests import custom, tiny
from tests.deer_base import DATA, DEMO, SMALL, make_base

KINDS = ["int8", "nf4"]
SIDE, NEW, GROUP, STUDIES = 56, 6, 2, 4
LAYER = re.compile(r"model\.layers\..*_proj\.weight")
LORA = LoraConfig(rank=4, alpha=8.0, dora=True)
# As bitsandbytes publishes it (`create_normal_map`), to the digits that tell neighbours apart in bfloat16.
CODE = np.array([
    -1.0, -0.6961928, -0.52507305, -0.39491749, -0.28444138, -0.18477343, -0.09105004, 0.0,
    0.0795803, 0.1609302, 0.2461123, 0.33791524, 0.44070983, 0.562617, 0.72295684, 1.0,
])  # fmt: skip


def rounded(weight: np.ndarray, bits: str) -> np.ndarray:
    """What 8 or 4 bits keep of the weights [outputs, inputs] of a layer, by their definition."""
    if bits == "int8":
        step = np.abs(weight).max(1, keepdims=True) / 127
        return np.rint(weight / step) * step
    blocks = weight.reshape(len(weight), -1, 64)
    most = np.abs(blocks).max(-1, keepdims=True)
    return (CODE[np.abs(blocks[..., None] / most[..., None] - CODE).argmin(-1)] * most).reshape(weight.shape)


def tensors_of(directory):
    return load_file(directory / "model.safetensors")


def bits_of(tensor: np.ndarray) -> np.ndarray:
    return tensor.view(np.uint16 if tensor.dtype == ml_dtypes.bfloat16 else np.uint32)


@pytest.fixture(scope="module")
def base(tmp_path_factory):
    """A model stored in bfloat16, as Qwen2.5-VL is published.

    No weight is half-way between two steps of int8, as half of the largest one would be: the last bit of a quotient
    would decide.
    """
    directory = make_base(tmp_path_factory.mktemp("deer"), "bfloat16", layers=2)
    tensors = tensors_of(directory)
    for name, tensor in tensors.items():
        if LAYER.match(name):
            steps = np.abs(tensor.astype(np.float64)) / np.abs(tensor.astype(np.float64)).max(1, keepdims=True) * 127
            bits_of(tensor)[...] += (np.abs(steps % 1 - 0.5) < 1e-3).astype(np.uint16)
    save_file(tensors, directory / "model.safetensors", metadata={"format": "pt"})
    return directory


@pytest.fixture(scope="module", params=KINDS)
def both(request, base, tmp_path_factory):
    """The bits, and the directory of a plain float32 model with the weights that they stand for."""
    plain = tmp_path_factory.mktemp(request.param) / "plain"
    shutil.copytree(base, plain)
    tensors = {}
    for name, stored in tensors_of(base).items():
        wide = stored.astype(np.float64)
        tensors[name] = (rounded(wide, request.param) if LAYER.match(name) else wide).astype(np.float32)
    assert sum(bool(LAYER.match(name)) for name in tensors) == 2 * 7
    save_file(tensors, plain / "model.safetensors", metadata={"format": "pt"})
    return request.param, plain


def config_of(directory, param_dtype, tuning="lora") -> RlConfig:
    model = ModelConfig(base=str(directory), tuning=tuning, param_dtype=param_dtype)
    return dataclasses.replace(RL_PRESETS["demo"], model=model, lora=LORA)


def read(directory, param_dtype, layout, tuning="lora"):
    """A base, and its trees with adapters that are not zero."""
    config = config_of(directory, param_dtype, tuning)
    base = load_base(config.model, SIDE, INSTRUCTION, layout)
    trainable, frozen = initial_trees(config, base, layout)
    return base, PolicyParams(device_put_tree(tiny.moved(trainable, 0.03), layout, SHARDING_RULES), frozen)


def policy_of(base):
    settings = decode_settings(base, RolloutConfig(max_new_tokens=NEW))
    return vision_policy(base.config, base.layout, settings, LORA, chunk=8)


def prompts_of(base):
    images = np.random.default_rng(0).integers(0, 256, (STUDIES, SIDE, SIDE), dtype=np.uint8)
    numbers = [*range(STUDIES)]
    return study_prompts(numbers, [(image,) for image in images], base.encoder, 1, prompt_length(base.encoder, 1))


def rollouts_of(base, tokens, mask, logp) -> Rollouts:
    """What is learnt from reports; advantages, weights and the policy before are arbitrary."""
    random = np.random.default_rng(1)
    return Rollouts(
        prompts=prompts_of(base),
        tokens=np.asarray(tokens),
        mask=np.asarray(mask),
        old_log_probs=np.asarray(logp) - 0.05,
        advantages=random.normal(size=tokens.shape[:2]).astype(np.float32),
        token_weights=random.uniform(0.5, 2, tokens.shape).astype(np.float32),
        reference_log_probs=np.asarray(logp) + 0.1,
    )


def learning(policy):
    """Summed over rows: the loss of rollouts, its gradient, and log-probabilities and their squares."""
    loss = make_loss(policy, Objective(kl=0.1))

    def sums(trainable, frozen, batch, _):
        def total(trainable):
            return loss(trainable, frozen, batch, jax.random.key(0))[0].total

        logp = policy.token_logprobs(PolicyParams(trainable, frozen), batch.prompts, batch.tokens, batch.mask)
        return *jax.value_and_grad(total)(trainable), logp.sum(), jnp.square(logp).sum()

    return sums


def close(found, expected, relative):
    """Equal to a share of the largest number of each leaf: sums of float32 in another order."""
    for one, other in zip(jax.tree.leaves(found), jax.tree.leaves(expected), strict=True):
        other = np.asarray(other)
        np.testing.assert_allclose(one, other, atol=relative * np.abs(other).max(), rtol=0)


def test_reports_probabilities_and_gradients_are_those_of_the_rounded_weights(both, base):
    bits, plain = both
    one = make_device_layout("jit")
    own, trees = read(base, bits, one)
    dtypes = {path: leaf.dtype.name for path, leaf in flatten_dict(own.params, sep="/").items()}
    kernels = {path for path in dtypes if path.endswith(f"/{bits}")}
    assert len(kernels) == 7
    assert all(path.startswith("language/layers/") for path in kernels)
    assert {dtypes[path] for path in dtypes if path.startswith("visual/")} == {"bfloat16"}
    assert dtypes["language/embed_tokens"] == "bfloat16"

    other, expected = read(plain, "float32", one)
    close(trees.trainable, expected.trainable, 1e-6)  # among them DoRA's magnitudes, those of the rounded weights
    found = {}
    for name, model, own_trees in (("bits", own, trees), ("plain", other, expected)):
        policy = policy_of(model)
        keys = jax.random.split(jax.random.key(1), STUDIES)
        drawn = jax.jit(policy.sample, static_argnums=3)(own_trees, prompts_of(model), keys, GROUP)
        if name == "plain":
            np.testing.assert_array_equal(drawn.tokens, found["bits"][0].tokens)
            close(drawn.log_probs, found["bits"][0].log_probs, 1e-5)
        batch = rollouts_of(model, drawn.tokens, drawn.mask, drawn.log_probs)
        logp = jax.jit(policy.token_logprobs)(own_trees, batch.prompts, batch.tokens, batch.mask)
        np.testing.assert_allclose(logp, drawn.log_probs, atol=2e-5)  # scored as sampled
        found[name] = drawn, jax.jit(learning(policy))(*own_trees, batch, None)
    close(found["bits"][1], found["plain"][1], 2e-5)
    assert max(np.abs(leaf).max() for leaf in jax.tree.leaves(found["plain"][1][1])) > 1e-3

    _, whole = read(base, "bfloat16", one)
    policy, drawn = policy_of(own), found["bits"][0]
    logp = jax.jit(policy.token_logprobs)(whole, prompts_of(own), drawn.tokens, drawn.mask)
    gap = np.abs(logp - drawn.log_probs)[np.asarray(drawn.mask)].mean()
    assert 0 < gap < {"int8": 5e-3, "nf4": 5e-2}[bits]


@pytest.mark.parametrize("bits", KINDS)
@pytest.mark.parametrize("tuning", ["vision", "lora"])
def test_what_a_plan_counts_is_what_a_run_holds(bits, tuning, base):
    own, held = read(base, bits, make_device_layout("jit"), tuning)
    planned = study_trees(config_of(base, bits, tuning), param_shapes(own.config))

    def kinds(tree):
        return jax.tree.map(lambda leaf: (leaf.shape, leaf.dtype.name), tree)

    assert kinds(planned) == kinds(tuple(held))


@pytest.mark.parametrize("bits", KINDS)
def test_devices_change_nothing(bits, base):
    """Samples, the loss of rollouts, its gradient and log-probabilities: jit, pmap and a mesh; weights placed once."""
    random = np.random.default_rng(2)
    tokens = random.integers(20, 60, (STUDIES, GROUP, NEW)).astype(np.int32)
    logp = -4 - random.random(tokens.shape, np.float32)
    found, written = [], []
    for mode in ("jit", "pmap", "mesh"):
        layout = make_device_layout(mode, MeshConfig(data=1, fsdp=2, tensor=2), jax.devices()[:4])
        own, trees = read(base, bits, layout)
        kernel = trees.frozen["language"]["layers"]["mlp"]["up_proj"][bits]
        parts = 2 if mode == "mesh" else 1
        assert kernel.addressable_shards[0].data.shape == (2, kernel.shape[1] // parts, kernel.shape[2] // parts)
        policy = policy_of(own)

        def sample(trainable, frozen, batch, key, policy=policy):
            keys = jax.vmap(jax.random.fold_in, in_axes=(None, 0))(key, batch.study)
            return policy.sample(PolicyParams(trainable, frozen), batch.prompts, keys, GROUP)

        run, write = compile_evaluation(learning(policy), layout), compile_rows(sample, layout)
        studies = place_batch(StudyBatch(prompts_of(own), np.arange(STUDIES, dtype=np.int32)), layout)
        batch = place_batch(rollouts_of(own, tokens, tokens > 25, logp), layout)
        key = device_put_tree(jax.random.key(0), layout)
        with jax.transfer_guard("disallow"):
            found.append(jax.block_until_ready(run(*trees, batch, key)))
            drawn = jax.block_until_ready(write(*trees, studies, key))
        written.append(fetch_rows(drawn, layout))
    for sums, drawn in zip(found[1:], written[1:], strict=True):
        close(sums, found[0], 2e-5)
        np.testing.assert_array_equal(drawn.tokens, written[0].tokens)
        np.testing.assert_allclose(drawn.log_probs, written[0].log_probs, atol=2e-5)


@pytest.mark.parametrize("bits", KINDS)
def test_sft_of_the_tower_and_of_adapters_exports_the_bases_own_weights(bits, base, tmp_path):
    """Merged are the checkpoint's weights, not those that were rounded: W + B A alpha / rank, in bfloat16."""
    before = tensors_of(base)
    for tuning in ("vision", "lora"):
        run = tmp_path / tuning
        command = ["sft", *DEMO, "--run-dir", str(run), "--model.base", str(base), *DATA, *SMALL, "--max-steps", "2"]
        command += ["--max-length", "16", "--model.tuning", tuning, "--model.param-dtype", bits]
        if tuning == "lora":
            command += ["--lora.rank", "4", "--lora.targets", "(q|up|down)_proj", "--optim.learning-rate", "0.05"]
        dispatch(command)
        rows = read_metrics(run / "metrics.jsonl")
        assert [row["step"] for row in rows] == [1, 2]
        assert read_config(SftConfig, run).model.param_dtype == bits
        found = tensors_of(run / "model")
        assert found.keys() == before.keys()
        adapter = load_file(run / "adapter" / "adapter_model.safetensors") if tuning == "lora" else {}
        changed = 0
        for name, tensor in before.items():
            module = name.removesuffix(".weight").replace("model.layers", "model.language_model.layers")
            a, b = (adapter.get(f"base_model.model.{module}.lora_{part}.weight") for part in "AB")
            if tuning == "vision" and name.startswith("visual."):
                assert found[name].dtype == np.float32
                changed += bool((found[name] != tensor.astype(np.float32)).any())
            elif a is None or b is None:
                np.testing.assert_array_equal(bits_of(found[name]), bits_of(tensor), name)
            else:
                exact = tensor.astype(np.float64) + b.astype(np.float64) @ a.astype(np.float64) * (32.0 / 4)
                own = found[name].astype(np.float64)
                # Half a unit in the last place of bfloat16, and what float32 is off before that.
                assert (np.abs(own - exact) <= np.abs(exact) * (2**-8 + 1e-5) + 1e-7).all()
                changed += bool((own != tensor.astype(np.float64)).any())
        assert changed == (2 * 3 if tuning == "lora" else sum(name.startswith("visual.") for name in before))


def rl(run, base, bits):
    """Three steps with all that reads the frozen model: rollouts, old and reference log-probabilities, updates."""
    options = ["--steps", "3", "--checkpoint-every", "1", "--evaluate-every", "3", "--lora.rank", "4"]
    options += ["--rollout.group", "2", "--rollout.max-new-tokens", "6", "--objective.kl", "0.1"]
    options += ["--objective.importance-cap", "2", "--reward.function", "tests.custom:lengths", "--reward.labeler", ""]
    options += ["--reward.weights", "tfidf", "--model.base", str(base), "--model.tuning", "lora"]
    dispatch(["rl", "--run-dir", str(run), *DEMO, *DATA, *SMALL, *options, "--model.param-dtype", bits])


@pytest.fixture(scope="module", params=KINDS)
def reinforced(request, base, tmp_path_factory):
    """The bits, and a run of `deer rl` with them."""
    run = tmp_path_factory.mktemp("rl") / request.param
    rl(run, base, request.param)
    return request.param, run


def test_rl_reads_the_same_numbers_in_rollouts_and_updates_and_its_model_is_sampled(reinforced, tmp_path):
    bits, run = reinforced
    rows = read_metrics(run / "metrics.jsonl")
    assert [row["step"] for row in rows] == [1, 2, 3]
    assert rows[0]["log_prob_gap"] < 1e-4
    assert rows[0]["kl"] == pytest.approx(0, abs=1e-6)
    assert rows[-1]["grad_norm"] > 0

    output = tmp_path / "rollouts.jsonl"
    sample = ["sample", *DEMO, "--output", str(output), "--labeler", "", "--split", "test", "--limit", "3"]
    sample += ["--model.base", str(run / "model"), *DATA, "--rollout.group", "2", "--rollout.max-new-tokens", "6"]
    dispatch([*sample, "--model.tuning", "lora", "--model.param-dtype", bits])
    assert [len(json.loads(line)["rollouts"]) for line in output.read_text().splitlines()] == [2] * 3
    with pytest.raises(UserError, match="made with other options or files"):
        dispatch([*sample, "--model.tuning", "lora", "--model.param-dtype", "bfloat16"])


@pytest.mark.parametrize("reinforced", ["int8"], indirect=True)
def test_a_killed_run_is_continued_bit_for_bit_and_not_with_other_bits(reinforced, base, tmp_path, monkeypatch):
    bits, whole = reinforced
    cut, calls = tmp_path / "cut", []

    def killing(texts, references):
        calls.append(len(texts))
        if len(calls) == 2:
            raise KeyboardInterrupt
        return custom.word_lengths(texts, references)

    monkeypatch.setattr(custom, "lengths", killing)
    with pytest.raises(KeyboardInterrupt):
        rl(cut, base, bits)
    monkeypatch.undo()
    with pytest.raises(UserError, match=rf"model\.param_dtype was '?{bits}'? and is now '?bfloat16"):
        rl(cut, base, "bfloat16")
    rl(cut, base, bits)
    assert (whole / "metrics.jsonl").read_bytes() == (cut / "metrics.jsonl").read_bytes()
    one, other = (tensors_of(run / "model") for run in (whole, cut))
    for name, tensor in one.items():
        np.testing.assert_array_equal(bits_of(tensor), bits_of(other[name]), name)


def test_a_model_is_merged_alike_wherever_it_is_split(base, tmp_path):
    """DoRA's norms are sums over what is split: an element of bfloat16 may be the next one."""
    found = []
    for mode in ("jit", "mesh"):
        layout = make_device_layout(mode, MeshConfig(data=1, fsdp=2, tensor=2), jax.devices()[:4])
        own, trees = read(base, "int8", layout)
        export(config_of(base, "int8"), own, *trees, tmp_path / mode)
        found.append(tensors_of(tmp_path / mode / "model"))
    one, other = found
    assert one.keys() == other.keys()
    for name, tensor in one.items():
        wide, own = tensor.astype(np.float64), other[name].astype(np.float64)
        np.testing.assert_allclose(own, wide, rtol=2**-7, atol=0)
        if not LAYER.match(name):
            np.testing.assert_array_equal(own, wide)
    whole, exact = load_base(config_of(base, "bfloat16").model, SIDE, INSTRUCTION, make_device_layout("jit")), found[0]
    adapters = jax.device_get(trees.trainable["lora"])
    merged = merge(whole.params["language"], adapters, LORA)["layers"]["mlp"]["up_proj"]["kernel"]
    np.testing.assert_array_equal(merged[1].T, exact["model.layers.1.mlp.up_proj.weight"])


def test_fewer_bits_where_the_language_model_is_trained_are_refused(base, tmp_path):
    run = ["--run-dir", str(tmp_path / "run"), "--model.base", str(base), *DATA]
    full = "--model.param-dtype: not read with --model.tuning full; give --model.tuning vision or lora"
    for command in (["sft", *run, "--model.tuning", "full"], ["rl", *run]):
        with pytest.raises(UserError, match=full):
            dispatch([*command, *DEMO, "--model.param-dtype", "int8"])
    with pytest.raises(UserError, match=full):
        dispatch(["sample", "--output", str(tmp_path / "x.jsonl"), *run[2:], *DEMO, "--model.param-dtype", "nf4"])
    assert not list(tmp_path.iterdir())


def test_a_language_model_without_blocks_of_64_is_one_line(base, tmp_path):
    config = json.loads((base / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps(config | {"intermediate_size": 96}))
    for name in ("tokenizer.json", "tokenizer_config.json"):
        shutil.copy(base / name, tmp_path)
    with pytest.raises(UserError, match=r"model\.param_dtype nf4: needs layers whose inputs .*intermediate_size 96"):
        read(tmp_path, "nf4", make_device_layout("jit"))


def test_runs_and_options_of_before_are_read_by_the_new_name(capsys):
    config = dataclasses.replace(RL_PRESETS["mimic-cxr"], seed=3)
    recorded = json.loads(json.dumps(to_json(config)))
    recorded["model"]["frozen_dtype"] = recorded["model"].pop("param_dtype")
    assert from_json(RlConfig, recorded, "file") == config
    found = parse(
        RlConfig, RL_PRESETS["demo"], ["--model.tuning", "lora", "--model.frozen-dtype", "bfloat16"], "rl", RL_NEEDS
    )
    assert found.model.param_dtype == "bfloat16"
    assert capsys.readouterr().err == "warning: --model.frozen-dtype is now --model.param-dtype\n"


@pytest.mark.parametrize("bits", KINDS)
def test_a_model_with_merged_adapters_is_scored_as_it_is_stored(bits, tmp_path):
    model = ModelConfig(tuning="lora", param_dtype=bits)
    config = dataclasses.replace(RL_PRESETS["demo"], model=model)
    assert sampling(config, tmp_path, RolloutConfig()).model.param_dtype == "bfloat16"
