"""The benchmark of reinforcement learning at toy shapes: its keys, and that the PyTorch peer does the same work."""

import dataclasses
import functools
import importlib.util
import json
import os
import subprocess
import sys

import jax
import numpy as np
import optax
import pytest

from common.clinical.labeler import encode, label_texts
from common.clinical.saliency import token_saliency
from common.io.exports import atomic_directory
from common.models.bert_weights import save_classifier
from common.models.decoding import Prompts
from common.models.lora import init_lora
from common.models.peft import save_peft
from common.models.qwen2 import init_params
from common.models.qwen2_weights import save_qwen2
from common.training.step import summed_gradients
from deer_jax.ditpo import PolicyParams, Rollouts, make_loss
from deer_jax.objective import Objective
from launch.bench import labeler as bench_labeler
from launch.bench import rl as bench_rl
from launch.bench import rl_policy
from tests.compile_flags import QUICK
from tests.launch.test_bench import BARE_IMAGE

TOY = dataclasses.replace(
    rl_policy.CPU, hidden=32, layers=2, heads=4, kv_heads=2, intermediate=48, vocabulary=96, loss_chunk=4, accumulate=3,
    prompts=3, group=4, prompt=8, new_tokens=5, peer_rows=4, label_hidden=32, label_layers=2, label_heads=4,
    label_intermediate=48, label_vocabulary=96, label_rows=4, reports=6, words=9, repetitions=1,
)  # fmt: skip
FLAGS = [f"--{key.replace('_', '-')}={value}" for key, value in dataclasses.asdict(TOY).items()]
CASES = {"step": "steps", "labels": "reports", "saliency": "reports", "labels_with_saliency": "reports"}
# Beside jax, optax and numpy it needs safetensors, and Orbax and rich, which flax brings.
NEEDED = ("orbax", "rich", "safetensors")
IMAGE = functools.reduce(lambda code, name: code.replace(f'"{name}", ', ""), NEEDED, BARE_IMAGE)


@pytest.fixture(scope="module")
def result():
    """What the command prints on a bare image; where torch and TRL are installed, beside them."""
    peer = [f"--{option}" for option, needs in (("peer", "torch"), ("trl", "trl")) if importlib.util.find_spec(needs)]
    done = subprocess.run(
        [sys.executable, "-c", IMAGE, "bench", "rl", *FLAGS, *peer],
        capture_output=True,
        text=True,
        check=False,
        env={**os.environ, "XLA_FLAGS": QUICK},  # one device
    )
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


def test_runs_on_a_bare_image_and_prints_one_json_object(result):
    assert result["cases"].keys() == {*CASES, "rollout"}
    for name in CASES:
        case = result["cases"][name]
        assert 0 < case["lowest"] <= case[f"{CASES[name]}_per_second"] <= case["highest"]
        assert case["model_tflops"] > 0
        assert case["utilisation"] is None  # the peak of a CPU is not known
    assert result["peak_bytes"] > 1e6


def test_a_group_that_shares_its_prompt_stands_beside_one_that_repeats_it(result):
    case = result["cases"]["rollout"]
    shared, repeated = case["shared"], case["repeated"]
    assert result["ratios"]["shared_to_repeated"] == shared["samples_per_second"] / repeated["samples_per_second"]
    assert 0 < shared["bytes"] < repeated["bytes"]


def test_a_step_is_split_into_parts_that_make_it_up(result):
    case = result["cases"]["step"]
    assert case["parts"].keys() == {"rollout", "labels", "token_weights", "host", "update"}
    assert 0.5 * case["seconds"] < sum(case["parts"].values()) <= case["seconds"]
    assert case["new_tokens"] == TOY.prompts * TOY.group * TOY.new_tokens


def test_ratios_to_the_peers_and_goals(result):
    pytest.importorskip("trl", reason="trl is not installed (make dev)")
    assert {"torch", "transformers", "peft", "trl"} <= result["peer"].keys()
    assert result["goals"].keys() == bench_rl.GOALS.keys()
    assert result["ratios"].keys() == {*bench_rl.GOALS, "shared_to_repeated"}
    for name, goal in result["goals"].items():
        assert goal["met"] == (result["ratios"][name] >= goal["at_least"])
    step = result["cases"]["step"]
    plain, trl = step["peer"]["plain"], step["peer"]["trl"]
    assert result["ratios"]["step"] == pytest.approx(plain["seconds"] / step["seconds"])
    assert result["ratios"]["step_to_trl"] == pytest.approx(trl["seconds"] / step["seconds"])
    assert sum(plain["parts"].values()) == pytest.approx(plain["seconds"])


@pytest.fixture(scope="module")
def weights():
    """Base and adapters of the decoder, the latter with a B that is not zero."""
    config, random = TOY.config(), np.random.default_rng(0)
    shapes = jax.eval_shape(functools.partial(init_params, config), jax.random.key(0))
    adapters = jax.eval_shape(lambda base: init_lora(shapes, rl_policy.LORA, jax.random.key(0), base), shapes)

    def noise(leaf):
        return random.normal(0, 0.2, leaf.shape).astype(np.float32)

    return jax.tree.map(noise, shapes), jax.tree.map(noise, adapters)


@pytest.fixture(scope="module")
def peer_model(weights, tmp_path_factory):
    """The peer's model with the same weights, through the files that both can read."""
    peft = pytest.importorskip("peft", reason="peft is not installed (make dev)")
    import transformers

    folder = tmp_path_factory.mktemp("policy")
    save_qwen2(folder / "base", TOY.config(), weights[0])
    save_peft(folder / "adapter", weights[1], rl_policy.LORA, str(folder / "base"))
    base = transformers.AutoModelForCausalLM.from_pretrained(folder / "base")
    return peft.PeftModel.from_pretrained(base, folder / "adapter", is_trainable=True)


def test_the_peer_trains_the_same_parameters(peer_model, weights):
    from launch.bench.peer_qwen2 import make_decoder, with_adapters

    def shapes(model):
        return {name: parameter.shape for name, parameter in model.named_parameters() if parameter.requires_grad}

    made = with_adapters(make_decoder(TOY), dataclasses.asdict(rl_policy.LORA))
    assert shapes(made) == shapes(peer_model)
    count = sum(parameter.numel() for parameter in peer_model.parameters())
    assert count == sum(leaf.size for leaf in jax.tree.leaves(weights))


def test_the_peer_has_the_same_loss_and_gradient_on_the_same_rollouts(peer_model, weights):
    import torch

    from launch.bench.peer_rl import policy_gradient

    base, adapters = weights
    random = np.random.default_rng(0)
    shape = (TOY.prompts, TOY.group, TOY.new_tokens)
    prompts, tokens = rl_policy.random_prompts(TOY), random.integers(1, TOY.vocabulary, shape, np.int32)
    ours = Prompts(prompts, np.ones(prompts.shape, bool))
    policy, mask = rl_policy.make_policy(TOY), np.ones(shape, bool)
    logp = jax.jit(policy.token_logprobs)(PolicyParams(adapters, {"params": base}), ours, tokens, mask)
    old = np.asarray(logp) + random.normal(0, 0.3, shape).astype(np.float32)  # some ratios are clipped
    advantages = random.normal(size=shape[:2]).astype(np.float32)
    rollouts = Rollouts(ours, tokens, mask, old, advantages, token_weights=np.ones_like(old))

    @jax.jit
    def loss_and_norm(adapters, frozen, rollouts):
        loss, key = make_loss(policy, Objective()), jax.random.key(0)
        gradient, sums = summed_gradients(loss, adapters, frozen, rollouts, key, 1)
        means = {name: value.total / value.weight for name, value in sums.items()}
        return means, optax.tree.norm(gradient) / sums["loss"].weight

    means, norm = loss_and_norm(adapters, {"params": base}, rollouts)

    rows = np.concatenate([np.repeat(prompts, TOY.group, axis=0), tokens.reshape(-1, TOY.new_tokens)], axis=1)
    arrays = torch.tensor(advantages.ravel()), TOY.peer_rows, torch.tensor(old.reshape(-1, TOY.new_tokens))
    found = policy_gradient(peer_model, torch.tensor(rows, dtype=torch.long), TOY.new_tokens, *arrays)
    assert 0.1 < means["clipped"] < 0.9
    assert abs(found - means["loss"]) < 1e-4
    theirs = torch.nn.utils.get_total_norm([p.grad for p in peer_model.parameters() if p.requires_grad])
    assert theirs.item() == pytest.approx(float(norm), rel=1e-4)


def test_the_peer_samples_as_many_tokens_of_every_prompt(peer_model):
    import torch

    from launch.bench.peer_rl import sample

    prompts = torch.tensor(rl_policy.random_prompts(TOY), dtype=torch.long)
    rows = sample(peer_model, prompts, TOY.group, TOY.new_tokens)
    assert rows.shape == (TOY.prompts * TOY.group, TOY.prompt + TOY.new_tokens)
    np.testing.assert_array_equal(rows[:, : TOY.prompt], prompts.repeat_interleave(TOY.group, 0))


def test_advantages_of_the_peer_are_ours():
    torch = pytest.importorskip("torch", reason="torch is not installed (make dev)")
    from deer_jax.ditpo import group_advantages
    from launch.bench import peer_rl

    rewards = np.random.default_rng(0).random((5, 8)).astype(np.float32)
    np.testing.assert_allclose(group_advantages(rewards), peer_rl.group_advantages(torch.tensor(rewards)), atol=1e-5)


def test_labels_and_saliency_of_the_peer_are_ours(tmp_path):
    torch = pytest.importorskip("torch", reason="torch is not installed (make dev)")
    from safetensors.torch import load_file

    from launch.bench.peer_labeler import Labeler

    labeler = bench_labeler.make_labeler(TOY)
    with atomic_directory(tmp_path / "labeler") as aside:
        save_classifier(aside, labeler.config, labeler.params)
    peer = Labeler(dataclasses.asdict(labeler.config.encoder), labeler.config.classes).eval().requires_grad_(False)
    peer.load_state_dict(load_file(tmp_path / "labeler" / "model.safetensors"))
    texts, targets = bench_labeler.random_reports(TOY)
    classes = label_texts(labeler, texts, TOY.label_rows).classes
    norms = token_saliency(labeler, texts, targets)
    index = 0
    for batch in bench_labeler.peer_batches(TOY, encode(labeler, texts).ids, targets):
        ids, mask, wanted = (torch.tensor(batch[name]) for name in ("ids", "mask", "targets"))
        np.testing.assert_array_equal(peer.classes(ids, mask), classes[index : index + len(ids)])
        values, peers = peer.saliency(ids, mask, wanted)
        np.testing.assert_array_equal(peers, classes[index : index + len(ids)])
        for row, own in zip(values, mask, strict=True):
            np.testing.assert_allclose(row[: own.sum()], norms[index][0], atol=1e-4, rtol=1e-4)
            index += 1
    assert index == TOY.reports
    assert max(values.max() for values, _ in norms) > 1e-3


def test_the_reward_of_texts_is_that_of_tokens():
    _, tokenizer = bench_rl.make_host(TOY)
    tokens = np.random.default_rng(0).integers(4, TOY.vocabulary, (6, 7))
    shares = bench_rl.even_share([tokenizer.decode(row.tolist()) for row in tokens], [])
    assert shares == pytest.approx((tokens % 2 == 0).mean(-1))
