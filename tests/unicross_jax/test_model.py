"""UniCrossAdapter: who sees what under each conditioning, and that cached generation is the recomputed one."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from common.errors import UserError
from common.generation.generate import row_keys
from common.generation.settings import DecodeSettings
from common.generation.slots import decode
from common.models.clip import ClipConfig, init_params
from unicross_jax import generate, model
from unicross_jax.model import Studies, UniCrossConfig, init_trainable, output_head, report_hidden
from unicross_jax.train import scale_vision_updates

CLIP = ClipConfig(
    image_size=32, vision_layers=(1, 1, 1, 1), vision_width=4, embed_dim=12, context_length=16, vocab_size=50,
    text_width=16, text_heads=2, text_layers=3,
)  # fmt: skip
CAUSAL = UniCrossConfig(clip=CLIP, vocabulary=40, heads=2, vision_layers=1, decoder_layers=2, dropout=0.0)
CONFIGS = {"causal": CAUSAL, "published": dataclasses.replace(CAUSAL, conditioning="published")}
START, STOP = 1, 2
TOKENS = np.random.default_rng(1).integers(3, 40, (2, 6))
TOKENS[:, 1] = 39  # the largest id, whose position CLIP takes for the end of the text


@pytest.fixture(scope="module")
def weights():
    """(trainable, frozen), random and far from their start, so that every part matters."""
    clip = init_params(CLIP, jax.random.key(0))
    leaves, structure = jax.tree.flatten(init_trainable(CAUSAL, jax.random.key(1)))
    random = np.random.default_rng(0)
    leaves = [leaf + 0.1 * random.normal(size=leaf.shape).astype(np.float32) for leaf in leaves]
    return jax.tree.unflatten(structure, leaves), {
        "clip": clip,
        "report_embedding": 20 * clip["text"]["token_embedding"][:40],
    }


def studies(views=((True, True), (True, False))) -> Studies:
    random = np.random.default_rng(2)
    condition = np.array([[3, 4, 49, 0], [5, 49, 0, 0]])
    images = random.integers(0, 256, (2, 2, 32, 32)).astype(np.uint8)
    return Studies(jnp.asarray(images), jnp.array(views), jnp.asarray(condition), jnp.array([2, 1]))


@functools.cache
def program(config):
    """Compiled once for all tests."""
    return jax.jit(
        lambda weights, given, tokens: report_hidden(*weights, given, tokens, jnp.ones(tokens.shape, bool), config)
    )


def hidden(weights, config, tokens, given=None):
    return np.asarray(program(config)(weights, studies() if given is None else given, tokens))


@pytest.mark.parametrize("conditioning", CONFIGS)
def test_what_follows_a_token_is_hidden_from_it_only_under_causal(weights, conditioning):
    changed = TOKENS.copy()
    changed[:, 4] = 7
    moved = np.abs(
        hidden(weights, CONFIGS[conditioning], TOKENS) - hidden(weights, CONFIGS[conditioning], changed)
    ).max((0, 2))
    assert (moved[4:] > 1e-3).all()
    if conditioning == "causal":
        np.testing.assert_array_equal(moved[:4], 0)
    else:
        assert (moved[:4] > 1e-4).all()  # the leak of the published design


def test_a_view_that_is_missing_changes_nothing_and_one_that_is_there_does(weights):
    given = studies()
    other = given.replace(images=given.images.at[1, 1].set(255 - given.images[1, 1]))
    np.testing.assert_array_equal(hidden(weights, CAUSAL, TOKENS), hidden(weights, CAUSAL, TOKENS, other))
    seen = studies(views=((True, True), (True, True)))
    assert np.abs(hidden(weights, CAUSAL, TOKENS)[1] - hidden(weights, CAUSAL, TOKENS, seen)[1]).max() > 1e-3


@pytest.mark.parametrize("conditioning", CONFIGS)
def test_three_equal_channels_are_grey_and_other_ones_are_not(weights, conditioning):
    config, grey = CONFIGS[conditioning], studies()
    equal = grey.replace(images=jnp.repeat(grey.images[..., None], 3, axis=-1))
    expected = hidden(weights, config, TOKENS)
    np.testing.assert_allclose(hidden(weights, config, TOKENS, equal), expected, atol=1e-5)
    red = equal.replace(images=equal.images.at[..., 1:].set(0))
    blue = red.replace(images=red.images[..., ::-1])
    differences = hidden(weights, config, TOKENS, red) - hidden(weights, config, TOKENS, blue)
    assert np.abs(differences).max((1, 2)).min() > 1e-3


def test_colours_reach_a_generation_that_recomputes_every_prefix(weights):
    config, grey = CONFIGS["published"], studies()
    equal = grey.replace(images=jnp.repeat(grey.images[..., None], 3, axis=-1))
    generator = generate.make_generator(config, DecodeSettings(max_new_tokens=2), START)
    found = generator(*weights, equal, row_keys(0, range(2)))
    first = np.full((2, 1), START)
    logits = hidden(weights, config, first) @ np.asarray(output_head(weights[0])).T
    np.testing.assert_array_equal(found.tokens[:, 0, 0], logits[:, 0].argmax(-1))


def test_the_condition_matters_and_its_padding_does_not(weights):
    given = studies()
    padded = given.replace(condition=given.condition.at[:, 3].set(9))
    np.testing.assert_array_equal(hidden(weights, CAUSAL, TOKENS), hidden(weights, CAUSAL, TOKENS, padded))
    other = given.replace(condition=given.condition.at[0, 0].set(9))
    assert np.abs(hidden(weights, CAUSAL, TOKENS)[0] - hidden(weights, CAUSAL, TOKENS, other)[0]).max() > 1e-4


def test_cached_generation_finds_the_likeliest_tokens_of_whole_reports(weights):
    settings = DecodeSettings(max_new_tokens=TOKENS.shape[1])
    cached = generate.make_generator(CAUSAL, settings, START)(*weights, studies(), row_keys(0, range(2)))
    tokens = np.concatenate([np.full((2, 1), START), cached.tokens[:, 0]], axis=1)
    logits = hidden(weights, CAUSAL, tokens[:, :-1]) @ np.asarray(output_head(weights[0])).T
    np.testing.assert_array_equal(logits.argmax(-1), tokens[:, 1:])
    log_probs = np.asarray(jax.nn.log_softmax(logits)).max(-1)
    # The two sum in another order, in float32.
    np.testing.assert_allclose(cached.log_probs[:, 0], log_probs, atol=1e-4)
    assert len(np.unique(tokens[:, 1:])) > 1


def test_cached_beams_equal_beams_that_recompute_every_prefix(weights):
    settings = DecodeSettings(max_new_tokens=8, beams=3, stop_ids=(STOP,))
    keys = row_keys(0, range(2))
    cached = generate.make_generator(CAUSAL, settings, START)(*weights, studies(), keys)
    anew = jax.jit(functools.partial(decode, generate.recomputing_decoder(CAUSAL, START), settings=settings))(
        weights, studies(), keys
    )
    np.testing.assert_array_equal(cached.tokens, anew.tokens)
    np.testing.assert_allclose(cached.log_probs, anew.log_probs, atol=1e-4)


def test_as_many_beams_as_words_find_the_best_of_all_pairs_of_words(weights):
    trainable, frozen = weights
    config = dataclasses.replace(CAUSAL, vocabulary=7)
    few = jax.tree.map(lambda leaf: leaf[8:15], trainable["logits"])  # rows where greedy decoding is not the best
    own = {**trainable, "logits": few}, {**frozen, "report_embedding": frozen["report_embedding"][:7]}
    pairs = np.stack(np.meshgrid(range(7), range(7), indexing="ij"), -1).reshape(-1, 2)
    read = np.stack([np.full(49, START), pairs[:, 0]], axis=1)
    both = [hidden(own, config, np.tile(row, (2, 1))) for row in read]  # of each pair, for the two studies
    log_probs = jax.nn.log_softmax(np.stack(both) @ np.asarray(output_head(own[0])).T)  # [49 2 2 7]
    sums = np.take_along_axis(np.asarray(log_probs), pairs[:, None, :, None], -1).sum((2, 3))
    settings = DecodeSettings(max_new_tokens=2, beams=7)
    found = generate.make_generator(config, settings, START)(*own, studies(), row_keys(0, range(2)))
    np.testing.assert_array_equal(found.tokens[:, 0], pairs[sums.argmax(0)])
    np.testing.assert_allclose(found.log_probs[:, 0].sum(-1), sums.max(0), atol=1e-4)
    first = np.asarray(log_probs)[0, :, 0].argmax(-1)
    assert (first != pairs[sums.argmax(0)][:, 0]).any(), "greedy decoding would begin the same: this tests too little"


@pytest.mark.parametrize(
    "change",
    [
        {"adapters": None},
        {"adapters": dataclasses.replace(CAUSAL.adapters, across=False)},
        {"adapters": dataclasses.replace(CAUSAL.adapters, within=False)},
        {"modulation": False},
        {"multi_scale": False},
    ],
    ids=["no adapters", "unimodal only", "cross-modal only", "no modulation", "single scale"],
)
def test_an_ablation_leaves_out_its_part_and_nothing_else(change):
    config = dataclasses.replace(CAUSAL, **change)
    whole, less = (jax.eval_shape(lambda key, c=c: init_trainable(c, key), jax.random.key(0)) for c in (CAUSAL, config))
    sizes = [sum(leaf.size for leaf in jax.tree.leaves(tree)) for tree in (whole, less)]
    assert sizes[1] < sizes[0]
    frozen = jax.eval_shape(lambda key: init_params(CLIP, key), jax.random.key(0))
    embedding = jax.ShapeDtypeStruct((40, 16), jnp.float32)
    shape = jax.eval_shape(
        lambda trainable, clip, embedding: report_hidden(
            trainable, {"clip": clip, "report_embedding": embedding}, studies(), TOKENS, TOKENS > 0, config
        ),
        less,
        frozen,
        embedding,
    )
    assert shape.shape == (2, 6, 17)


@pytest.mark.parametrize("conditioning", CONFIGS)
def test_what_drops_out_depends_on_the_key_and_not_on_what_was_applied_before(weights, conditioning):
    adapters = dataclasses.replace(CAUSAL.adapters, dropout=0.5)
    config = dataclasses.replace(CONFIGS[conditioning], dropout=0.5, adapters=adapters)

    @jax.jit
    def twice(rng):
        net = model.Net(*weights, config, rng)
        return [model.decoder_inputs(net, studies(), TOKENS, TOKENS > 0) for _ in range(2)]

    first, again = twice(jax.random.key(0))
    jax.tree.map(np.testing.assert_array_equal, first, again)
    other, _ = twice(jax.random.key(1))
    assert np.abs(first.text - other.text).max() > 0.1


def test_only_adapters_fusion_vision_and_decoder_are_trained():
    trainable = jax.eval_shape(lambda key: init_trainable(UniCrossConfig(), key), jax.random.key(0))
    assert set(trainable) == {"adapter0", "adapter1", "adapter2", "fusion", "vision", "decoder", "logits"}
    adapters = sum(leaf.size for k in range(3) for leaf in jax.tree.leaves(trainable[f"adapter{k}"]))
    assert adapters == 1_942_080  # that of the independent PyTorch build at the paper's sizes
    assert model.UniCrossConfig().width == 512


def test_training_starts_from_what_clip_sees():
    random = {"clip": init_params(CLIP, jax.random.key(0))}
    random["report_embedding"] = random["clip"]["text"]["token_embedding"][:40]
    trainable = init_trainable(CAUSAL, jax.random.key(1))
    without = dataclasses.replace(CAUSAL, adapters=None)

    def read(config):
        net = model.Net(trainable, random, config)
        text = net.text("embed", studies().condition)
        yes = jnp.ones((2, 1, 4), bool)
        return model.read_images(net, studies().images[:, 0], text, studies().condition_end, yes, yes).maps

    for adapted, plain in zip(*(jax.jit(read, static_argnums=0)(config) for config in (CAUSAL, without)), strict=True):
        assert 0 < np.abs(adapted - plain).max() < 0.1 * np.abs(plain).max()


def test_images_can_learn_slower_than_the_decoder():
    parameters = {name: {"w": jnp.ones(2)} for name in ("adapter0", "fusion", "vision", "decoder", "logits")}
    plain, slower = (
        optax.adamw(0.1, weight_decay=0.3),
        optax.chain(optax.adamw(0.1, weight_decay=0.3), scale_vision_updates(0.25)),
    )
    same, updates = (tx.update(parameters, tx.init(parameters), parameters)[0] for tx in (plain, slower))
    for name, tree in updates.items():
        share = 1 if name in ("decoder", "logits") else 0.25
        np.testing.assert_array_equal(tree["w"], share * same[name]["w"])
        assert (tree["w"] < 0).all()


def test_a_clip_on_whose_images_the_adapters_grids_do_not_fit_is_refused():
    with pytest.raises(UserError, match="image_size 48, expected multiples of 2 and 32"):
        dataclasses.replace(CLIP, image_size=48)
