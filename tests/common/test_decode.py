"""Cached generation sees what the whole sequence shows, keeps rows apart, and stops where it should."""

import dataclasses
import functools
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from common.generation.beams import beam_search
from common.generation.generate import (
    bucket,
    generate_rows,
    make_generator,
    make_scorer,
    padded,
    qwen2_slots,
    row_keys,
)
from common.generation.loop import generate, prefill
from common.generation.sampling import Sampling
from common.generation.settings import DecodeSettings
from common.models.decoding import Prompts
from common.models.lora import scaled
from common.models.qwen2 import SHARDING_RULES, Qwen2, bind, output_head
from common.training.parallel import MeshConfig, device_put_tree, make_device_layout
from tests import tiny

LONGEST, NEW, GROUP = 9, 7, 3
STOPS = (5, 11)
FORBIDDEN = (2, 3, 40)


@functools.cache
def variables():
    """Larger weights than training starts from, so that tokens differ; with an adapter."""
    base = jax.tree.map(lambda leaf: leaf * 6 if leaf.ndim > 1 else leaf, tiny.params())
    return {"params": base, "lora": scaled(tiny.lora(base), tiny.LORA, base)}


def some_prompts() -> list[list[int]]:
    rng = np.random.default_rng(0)
    return [rng.integers(0, tiny.CONFIG.vocab_size, length).tolist() for length in (1, 4, LONGEST, 6)]


@functools.cache
def sampled():
    """Prompts, and three samples of each at temperature 0.8 within top-p 0.9."""
    settings = DecodeSettings(NEW, Sampling(0.8, top_p=0.9), group=GROUP, stop_ids=STOPS, forbidden_ids=FORBIDDEN)
    generator = make_generator(tiny.CONFIG, settings)
    return generator, generator(variables(), padded(some_prompts(), LONGEST, left=True), row_keys(0, range(4)))


def test_log_probs_while_sampling_are_those_of_the_whole_sequence():
    _, result = sampled()
    lengths = np.asarray(result.lengths)
    wholes = [  # of each prompt its samples
        prompt + result.tokens[row, sample, : lengths[row, sample]].tolist()
        for row, prompt in enumerate(some_prompts())
        for sample in range(GROUP)
    ]

    @jax.jit
    def log_probs(tokens, mask):
        hidden, _ = Qwen2(tiny.CONFIG).apply(variables(), tokens, jnp.arange(tokens.shape[1])[None], mask.astype(int))
        logits = hidden @ output_head(variables()["params"]).T / 0.8
        return jax.nn.log_softmax(logits.at[..., jnp.array(FORBIDDEN)].set(-jnp.inf))

    rows = padded(wholes, LONGEST + NEW, left=False)
    expected = np.asarray(log_probs(rows.tokens, rows.mask))
    for number, (whole, length) in enumerate(zip(wholes, lengths.ravel(), strict=True)):
        new = np.arange(len(whole) - length, len(whole))
        found = np.asarray(result.log_probs).reshape(-1, NEW)[number, :length]
        np.testing.assert_allclose(found, expected[number, new - 1, np.array(whole)[new]], atol=1e-4)


def test_sampling_and_the_loss_function_agree():
    """Contract 9, through `token_logprobs`, without forbidden tokens."""
    generator = make_generator(tiny.CONFIG, DecodeSettings(NEW, Sampling(0.8), group=1))
    prompts = padded(some_prompts(), LONGEST, left=True)
    result = generator(variables(), prompts, row_keys(3, range(4)))
    completions = Prompts(result.tokens[:, 0], result.mask[:, 0])
    again = make_scorer(tiny.CONFIG, 0.8)(variables(), prompts, completions)
    np.testing.assert_allclose(again, result.log_probs[:, 0], atol=1e-4)


def test_samples_of_a_group_differ_and_never_hold_a_forbidden_token():
    _, result = sampled()
    written = np.asarray(result.tokens)[np.asarray(result.mask)]
    assert not np.isin(written, FORBIDDEN).any()
    assert len({tuple(sample) for sample in result.tokens.reshape(-1, NEW).tolist()}) > len(some_prompts())


def test_a_continuation_ends_with_its_first_stop_token_and_is_empty_after_it():
    _, result = sampled()
    tokens, lengths = np.asarray(result.tokens), np.asarray(result.lengths)
    stop = np.isin(tokens, STOPS) & np.asarray(result.mask)
    first = np.where(stop.any(-1), stop.argmax(-1) + 1, NEW)
    np.testing.assert_array_equal(lengths, first)
    np.testing.assert_array_equal(result.stopped, stop.any(-1))
    assert stop.any()
    assert not tokens[~np.asarray(result.mask)].any()
    assert not np.asarray(result.log_probs)[~np.asarray(result.mask)].any()


def test_a_prompts_samples_do_not_depend_on_the_rows_beside_it_or_on_its_padding():
    generator, result = sampled()
    order = [2, 0, 3, 1]
    prompts = padded([some_prompts()[row] for row in order], LONGEST, left=True)
    again = generator(variables(), prompts, row_keys(0, order))
    np.testing.assert_array_equal(again.tokens, result.tokens[jnp.array(order)])
    wider = generator(variables(), padded(some_prompts(), LONGEST + 5, left=True), row_keys(0, range(4)))
    np.testing.assert_array_equal(wider.tokens, result.tokens)
    np.testing.assert_allclose(wider.log_probs, result.log_probs, atol=1e-5)


def test_the_loop_over_stacked_layers_that_tpus_run_gives_the_same(monkeypatch):
    _, result = sampled()
    monkeypatch.setattr(jax, "default_backend", lambda: "tpu")
    settings = DecodeSettings(NEW, Sampling(0.8, top_p=0.9), group=GROUP, stop_ids=STOPS, forbidden_ids=FORBIDDEN)
    config = dataclasses.replace(tiny.CONFIG, attention="xla")
    stacked = make_generator(config, settings)
    again = stacked(variables(), padded(some_prompts(), LONGEST, left=True), row_keys(0, range(4)))
    np.testing.assert_array_equal(again.tokens, result.tokens)


@pytest.mark.parametrize("sizes", [MeshConfig(data=2, fsdp=2, tensor=2)], ids=["data 2, fsdp 2, tensor 2"])
def test_sharded_weights_give_the_same_tokens(sizes):
    _, result = sampled()
    layout = make_device_layout("mesh", sizes)
    settings = DecodeSettings(NEW, Sampling(0.8, top_p=0.9), group=GROUP, stop_ids=STOPS, forbidden_ids=FORBIDDEN)
    with layout.context():
        placed = device_put_tree(variables(), layout, SHARDING_RULES)
        again = make_generator(tiny.CONFIG, settings)(
            placed, padded(some_prompts(), LONGEST, left=True), row_keys(0, range(4))
        )
        again = jax.device_get(again)
    np.testing.assert_array_equal(again.tokens, result.tokens)
    np.testing.assert_allclose(again.log_probs, result.log_probs, atol=1e-4)


def test_one_beam_is_greedy_until_it_stops():
    """One beam has no rival, so without stop tokens it is the greedy choice."""
    prompts = padded(some_prompts(), LONGEST, left=True)

    @jax.jit
    def both(variables):
        forward, head = bind(tiny.CONFIG, variables), output_head(variables["params"])
        read = forward, head, prefill(forward, prompts)
        greedy = generate(*read, row_keys(0, range(4)), DecodeSettings(NEW))
        return greedy, beam_search(*read, DecodeSettings(NEW)).generated

    greedy, beam = both(variables())
    np.testing.assert_array_equal(greedy.tokens, beam.tokens)
    np.testing.assert_allclose(greedy.log_probs, beam.log_probs, atol=1e-5)


def test_rows_of_many_lengths_come_back_in_their_order():
    rng = np.random.default_rng(1)
    prompts = [rng.integers(1, 90, length).tolist() for length in (40, 3, 20, 33, 7)]
    slots = qwen2_slots(tiny.CONFIG, DecodeSettings(3, stop_ids=STOPS), 2, make_device_layout("jit"))
    together = list(generate_rows(slots, variables(), prompts, range(5)))
    for row, prompt in enumerate(prompts):
        (alone,) = generate_rows(slots, variables(), [prompt], [row])
        assert alone[0].token_ids == together[row][0].token_ids


@pytest.mark.parametrize(
    ("length", "size"), [(1, 64), (64, 64), (65, 96), (97, 128), (129, 192), (700, 768), (769, 1024)]
)
def test_buckets_are_powers_of_two_and_their_midpoints(length, size):
    assert bucket(length) == size


def test_caches_are_written_in_place():
    """The compiled loop copies none of them; those before it make one buffer for each cache of the same zeros."""
    settings = DecodeSettings(NEW, Sampling(1.0), group=GROUP)
    inputs = variables(), padded(some_prompts(), LONGEST, left=True), row_keys(0, range(4))
    program = make_generator(tiny.CONFIG, settings).lower(*inputs).compile().as_text()
    config = tiny.CONFIG
    cache = re.escape(f"f32[4,{GROUP},{config.num_key_value_heads},{NEW},{config.head_dim}]")
    assert re.search(rf"= {cache}", program)
    assert len(re.findall(rf"= {cache}\S* copy\(", program)) <= 2 * config.num_hidden_layers
