"""Qwen2.5-VL as a policy: what it samples it scores alike, images are read once, and SFT leaves the language alone."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from common.generation.sampling import Sampling
from common.generation.settings import DecodeSettings
from common.models.lora import LoraConfig, init_lora
from common.models.qwen2 import Qwen2Config
from common.models.qwen2_vl import Qwen2VLConfig, init_params
from common.models.qwen2_vl_layout import study_rows, vision_layout
from common.models.qwen2_vl_vision import VisionConfig
from deer_jax.config import RL_PRESETS
from deer_jax.ditpo import PolicyParams, Rollouts, make_loss
from deer_jax.flops import step_flops
from deer_jax.objective import Objective
from deer_jax.prompts import ReportRows, StudyPrompts
from deer_jax.rl import StudyBatch
from deer_jax.vision_policy import sft_loss, split_params, vision_policy

LANGUAGE = Qwen2Config(
    vocab_size=64, hidden_size=32, intermediate_size=48, num_hidden_layers=2, num_attention_heads=4,
    num_key_value_heads=2, head_dim=8, tie_word_embeddings=True, mrope_section=(1, 1, 2),
)  # fmt: skip
VISION = VisionConfig(
    depth=2, hidden_size=16, intermediate_size=24, num_heads=2, out_hidden_size=32, window_size=56,
    fullatt_block_indexes=(1,),
)  # fmt: skip
CONFIG = Qwen2VLConfig(LANGUAGE, VISION, 57, 58, 59, 60, 61)
SIDE, GRID = 56, (4, 4)
LAYOUT = vision_layout(VISION, GRID)
G, T, P = 3, 5, 16
SETTINGS = DecodeSettings(
    max_new_tokens=T, sampling=Sampling(temperature=1.0), stop_ids=tuple(range(2, 14)), forbidden_ids=(62, 63)
)
POLICY = vision_policy(CONFIG, LAYOUT, SETTINGS, LoraConfig(rank=2), chunk=8)
SCORE = jax.jit(POLICY.token_logprobs)
SAMPLE = jax.jit(POLICY.sample, static_argnums=3)


def studies() -> StudyPrompts:
    """One, two and no images."""
    random = np.random.default_rng(0)
    image = [57, *[60] * 4, 58]
    rows = [[20, *image, 21], [*image, *image, 22], [23, 24, 25]]
    grids = [[GRID], [GRID, GRID], []]
    images = random.integers(0, 255, (3, 2, SIDE, SIDE), dtype=np.uint8)
    return StudyPrompts(study_rows(CONFIG, rows, grids, length=P, left=True), images)


@pytest.fixture(scope="module")
def params():
    tree = init_params(CONFIG, jax.random.key(0))
    return jax.tree.map(lambda leaf: leaf * 4 if leaf.ndim > 1 else leaf, tree)


@pytest.fixture(scope="module")
def sampled(params):
    keys = jax.random.split(jax.random.key(1), 3)
    return SAMPLE(PolicyParams({}, params), studies(), keys, G)


def test_a_policy_tells_whether_its_logits_are_finite(params, sampled):
    assert np.asarray(sampled.finite).all()
    language = params["language"] | {"norm": {"scale": params["language"]["norm"]["scale"] * 3e38}}
    keys = jax.random.split(jax.random.key(1), 3)
    found = SAMPLE(PolicyParams({}, {**params, "language": language}), studies(), keys, G)
    assert not np.asarray(found.finite).any()


@pytest.mark.parametrize("tuning", ["vision", "full", "lora"])
def test_what_is_scored_is_what_was_sampled(params, sampled, tuning):
    trees = PolicyParams(*split_params(params, tuning))
    if tuning == "lora":
        language = params["language"]
        adapters = init_lora(language, LoraConfig(rank=2), jax.random.key(2), language)
        trees = trees._replace(trainable={"lora": adapters})
    logp = SCORE(trees, studies(), sampled.tokens, sampled.mask)
    np.testing.assert_allclose(logp, sampled.log_probs, atol=2e-5)


def test_ids_of_images_and_rows_without_a_token_are_never_sampled(sampled):
    said = np.asarray(sampled.tokens)[np.asarray(sampled.mask)]
    assert not np.isin(said, [*range(57, 64)]).any()
    assert (sampled.lengths < T).any()
    assert not sampled.stopped.all()


def test_reports_depend_on_their_own_images_alone(params, sampled):
    prompts = studies()
    changed = prompts.images.copy()
    changed[1] = 255 - changed[1]
    before, after = (
        SCORE(PolicyParams(*split_params(params, "vision")), own, sampled.tokens, sampled.mask)
        for own in (prompts, prompts.replace(images=changed))
    )
    np.testing.assert_array_equal(before[jnp.array([0, 2])], after[jnp.array([0, 2])])
    assert np.abs(before[1] - after[1]).max() > 1e-4


def test_the_policy_gradient_reaches_the_images_of_the_whole_group(params, sampled):
    batch = Rollouts(
        prompts=studies(),
        tokens=sampled.tokens,
        mask=sampled.mask,
        old_log_probs=sampled.log_probs,
        advantages=jnp.array([[1.0, -1.0, 0.0]] * 3),
        token_weights=jnp.ones(sampled.tokens.shape),
    )
    loss = make_loss(POLICY, Objective())
    trainable, frozen = split_params(params, "vision")
    gradient = jax.jit(jax.grad(lambda tree, batch: loss(tree, frozen, batch, jax.random.key(0))[0].total))
    whole = gradient(trainable, batch)
    total = jax.tree.map(np.zeros_like, whole)
    for index in range(G):  # one rollout at a time, each with the images for itself
        one = jax.tree.map(lambda leaf, index=index: leaf[:, index : index + 1], batch.replace(prompts=None))
        total = jax.tree.map(np.add, total, gradient(trainable, one.replace(prompts=studies())))
    for one, other in zip(jax.tree.leaves(whole), jax.tree.leaves(total), strict=True):
        np.testing.assert_allclose(one, other, atol=2e-5 * np.abs(other).max() + 1e-7)
    assert max(np.abs(leaf).max() for leaf in jax.tree.leaves(whole)) > 1e-4


def test_sft_learns_reports_from_images_with_the_language_frozen(params):
    prompts = studies()
    rows = [[57, *[60] * 4, 58, 20, 30 + index, 31, 2] for index in range(3)]
    read = study_rows(CONFIG, rows, [[GRID]] * 3, length=12, left=False)
    targets, weights = np.zeros((3, 12), np.int32), np.zeros((3, 12), np.float32)
    targets[:, :9], weights[:, 6:9] = [row[1:] for row in rows], 1
    batch = ReportRows(StudyPrompts(read, prompts.images), targets, weights)
    trainable, frozen = split_params(params, "vision")
    assert set(trainable) == {"visual"}

    @jax.jit
    def step(tree):
        def mean(tree):
            loss, _ = sft_loss(
                tree, frozen, batch, jax.random.key(0), config=CONFIG, layout=LAYOUT, lora=LoraConfig(), chunk=8
            )
            return loss.total / loss.weight

        loss, gradient = jax.value_and_grad(mean)(tree)
        return jax.tree.map(lambda leaf, change: leaf - 0.05 * change, tree, gradient), loss

    losses = []
    for _ in range(25):
        trainable, loss = step(trainable)
        losses.append(float(loss))
    assert losses[-1] < losses[0] - 0.5


@pytest.mark.parametrize(("trained", "passes"), [("visual", 1 + 3), ("language", 1 + 1)])
def test_flops_of_a_step_count_windows_as_windows(params, trained, passes):
    """Images of 8 x 8 patches in windows of 4 x 4: one block of two sees a fourth of what the other sees."""
    grid, (size, images) = (8, 8), (64, 3 * 2)
    image = [57, *[60] * 16, 58]
    rows = study_rows(CONFIG, [[*image, *image]] * 3, [[grid, grid]] * 3, length=40, left=True)
    batch = StudyBatch(StudyPrompts(rows, np.zeros((3, 2, 112, 112), np.uint8)), np.arange(3))
    policy = vision_policy(CONFIG, vision_layout(VISION, grid), SETTINGS, chunk=8)
    config = dataclasses.replace(RL_PRESETS["demo"], updates=1)
    trees = {trained: params[trained]}, {part: tree for part, tree in params.items() if part != trained}
    whole, windows = (
        step_flops(policy, config, *trees, share)(batch, {"new_tokens": 9.0})
        for share in (1.0, VISION.full_attention_share)
    )
    pair = 4 * VISION.hidden_size  # a score and a weighted value
    assert whole - windows == pytest.approx(passes * images * pair * size * (size - 16), rel=1e-6)
