"""What is written for a prompt depends on nothing but the prompt, its key and the settings.

Not on the number of slots and devices, on the rows beside it, or on drafts, whichever way tokens are chosen.
"""

import dataclasses
import functools

import jax
import numpy as np
import pytest

from common.generation.drafts import NO_DRAFTS, START, Drafts, propose
from common.generation.generate import (
    generate_rows,
    make_generator,
    padded,
    qwen2_decoder,
    qwen2_slots,
    row_keys,
)
from common.generation.ngrams import build_table
from common.generation.sampling import Sampling
from common.generation.settings import DecodeSettings
from common.generation.slots import decode
from common.models.lora import scaled
from common.training.parallel import MeshConfig, device_put_tree, make_device_layout
from tests import tiny

NEW = 12
WAYS = {
    "greedy": DecodeSettings(NEW, stop_ids=(5, 11)),
    "temperature": DecodeSettings(NEW, Sampling(0.7), stop_ids=(5, 11), forbidden_ids=(2, 3)),
    "groups": DecodeSettings(NEW, Sampling(1.2, top_k=30, top_p=0.9), group=3, stop_ids=(5,)),
    "beams": DecodeSettings(NEW, beams=3, stop_ids=(5, 11)),
}
LAYOUTS = {
    "1 slot": ("jit", 1, 1),
    "more slots than rows": ("jit", 1, 12),
    "4 devices": ("pmap", 4, 2),
    "a mesh": ("mesh", 8, 1),
    "a mesh that is refilled": ("mesh", 4, 2),
}
DRAFTED = [
    ("greedy", 1, "4 devices"),
    ("greedy", 20, "3 slots"),
    ("temperature", 4, "3 slots"),
    ("groups", 4, "a mesh"),
    ("temperature", 4, "a mesh that is refilled"),
]


@functools.cache
def weights():
    base = jax.tree.map(lambda leaf: leaf * 6 if leaf.ndim > 1 else leaf, tiny.params())
    return {"params": base, "lora": scaled(tiny.lora(base), tiny.LORA, base)}


def prompts():
    rng = np.random.default_rng(0)
    lengths = [3, 70, 9, 1, 30, 66, 12, 5, 8]
    return [rng.integers(0, tiny.CONFIG.vocab_size, length).tolist() for length in lengths]


def layout_of(mode, devices):
    return make_device_layout(mode, MeshConfig(fsdp=2, tensor=2), jax.devices()[:devices])


def written(settings, mode="jit", devices=1, count=4, seed=7, **sources):
    layout = layout_of(mode, devices)
    slots = qwen2_slots(tiny.CONFIG, settings, count, layout)
    found = list(generate_rows(slots, device_put_tree(weights(), layout), prompts(), range(9), seed=seed, **sources))
    return [[(one.token_ids, one.stopped) for one in row] for row in found], found


@functools.cache
def plain(way):
    """One prompt after the other, in the program that writes all at once."""
    settings = WAYS[way]
    run = make_generator(tiny.CONFIG, settings)
    rows = []
    for row, prompt in enumerate(prompts()):
        found = jax.device_get(run(weights(), padded([prompt], 96, left=True), row_keys(7, [row])))
        rows.append(
            [
                (tokens[:length].tolist(), bool(stopped))
                for tokens, length, stopped in zip(found.tokens[0], found.lengths[0], found.stopped[0], strict=True)
            ]
        )
    return rows


def good_references(way):
    """For each prompt what will be written, so that drafts stand, and something else."""
    return [[[9, 9], *(tokens for tokens, _ in row)] for row in plain(way)]


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("way", WAYS)
def test_slots_and_devices_change_nothing(way, layout):
    assert written(WAYS[way], *LAYOUTS[layout])[0] == plain(way)


@pytest.mark.parametrize(("mode", "devices", "reads"), [("jit", 1, 4), ("mesh", 4, 3)])
def test_a_slot_is_refilled_while_others_go_on(mode, devices, reads):
    """7 and 2 prompts of two buckets: one device fills its 4 slots one by one, a mesh all 4 of them at first."""
    layout = layout_of(mode, devices)
    slots = qwen2_slots(tiny.CONFIG, WAYS["greedy"], 4 // layout.row_shards, layout)
    seen = []

    def admit(weights, seed, batch, state, places):
        seen.append(not np.asarray(state.done).all())
        return slots.admit(weights, seed, batch, state, places)

    list(generate_rows(slots._replace(admit=admit), device_put_tree(weights(), layout), prompts(), range(9)))
    assert sum(seen) >= reads


@pytest.mark.parametrize(("way", "drafts", "layout"), DRAFTED)
def test_drafts_change_nothing_but_the_number_of_passes(way, drafts, layout):
    settings = dataclasses.replace(WAYS[way], drafts=drafts)
    texts = [tokens for row in plain(way) for tokens, _ in row]
    table = jax.device_put(build_table(texts[::2]))
    tokens, found = written(settings, *LAYOUTS.get(layout, ("jit", 1, 3)), references=good_references(way), table=table)
    assert tokens == plain(way)
    drafted = sum(sum(one.drafted) for row in found for one in row)
    assert drafted > 0.2 * sum(len(one.token_ids) for row in found for one in row)


def test_log_probs_do_not_depend_on_drafts_either():
    _, without = written(WAYS["temperature"])
    settings = dataclasses.replace(WAYS["temperature"], drafts=4)
    _, found = written(settings, references=good_references("temperature"))
    for one, other in zip(found, without, strict=True):
        # The products sum over other numbers of rows, in float32.
        np.testing.assert_allclose(one[0].log_probs, other[0].log_probs, atol=2e-5)


def test_drafts_that_never_stand_change_nothing():
    settings = dataclasses.replace(WAYS["greedy"], drafts=3)
    tokens, found = written(settings, references=[[[1] * 40]] * 9)
    assert tokens == plain("greedy")
    assert sum(sum(one.drafted) for row in found for one in row) < 10


def test_samples_with_drafts_have_the_distribution_of_samples_without():
    """Of many prompts that are the same, under another key each; the drafts are the likeliest tokens."""
    settings = DecodeSettings(3, Sampling(1.0), stop_ids=(5,), group=1)
    rows = 4000
    batch = padded([[4, 7]] * rows, 2, left=True)
    greedy = make_generator(tiny.CONFIG, DecodeSettings(3))(weights(), batch, row_keys(0, range(rows)))
    reference = np.tile(np.concatenate([np.full(4, START), greedy.tokens[0, 0]]), (rows, 1))
    counts = []
    for count, sources, seed in ((0, NO_DRAFTS, 1), (2, Drafts(reference), 2)):
        run = make_generator(tiny.CONFIG, dataclasses.replace(settings, drafts=count))
        generated = run(weights(), batch, row_keys(seed, range(rows)), sources)
        assert (np.asarray(generated.drafted).sum() > rows / 100) == (count > 0)
        found = np.asarray(generated.tokens[:, 0])
        counts.append(np.array([np.bincount(column, minlength=tiny.CONFIG.vocab_size) for column in found.T]))
    same = np.where(sum(counts) >= 10)
    one, other = (count[same].astype(float) for count in counts)
    chi2 = ((one - other) ** 2 / (one + other)).sum()
    freedom = len(one)
    assert abs(chi2 - freedom) < 4 * np.sqrt(2 * freedom)


def test_a_draft_is_what_followed_the_longest_context():
    texts = [[1, 2, 3, 4, 5, 6, 7], [9, 3, 4, 8, 8], [9, 3, 4, 8, 8]]
    table = jax.device_put(build_table(texts))
    tokens = np.zeros((4, 1, 6), np.int32)
    for row, start in enumerate(([1, 2, 3, 4], [9, 3, 4], [6, 3, 4], [30])):
        tokens[row, 0, : len(start)] = start
    lengths = np.array([[4], [3], [3], [1]])
    found = np.asarray(propose(Drafts(None, table), tokens, lengths, 3))[:, 0]
    assert found.tolist() == [[5, 6, 7], [8, 8, 8], [8, 8, 8], [0, 0, 0]]
    reference = np.array([[START, 3, 4, 20, 21, START, 4, 22, START]] * 4)
    found = np.asarray(propose(Drafts(reference), tokens, lengths, 3))[:, 0]
    assert found.tolist()[:3] == [[20, 21, 0]] * 3
    both = np.asarray(propose(Drafts(reference, table), tokens, lengths, 3))[:, 0]
    assert both.tolist()[:3] == [[5, 6, 7], [20, 21, 0], [20, 21, 0]]


def test_a_table_predicts_unseen_reports_of_the_same_templates():
    """Against a dictionary of contexts, which needs no hashing."""
    rng = np.random.default_rng(3)
    sentences = [rng.integers(10, 400, rng.integers(3, 12)).tolist() for _ in range(60)]
    texts = [[t for s in rng.choice(60, 5, p=np.arange(60) / 1770) for t in sentences[s]] + [1] for _ in range(400)]
    table = jax.device_put(build_table(texts[:300]))
    known = {}
    for text in texts[:300]:
        padded_text = [START] * 6 + text
        for end in range(7, len(padded_text)):
            for length in range(1, 7):
                context = tuple(padded_text[end - length : end])
                known.setdefault(context, {}).setdefault(padded_text[end], 0)
                known[context][padded_text[end]] += 1
    hits = [0, 0]
    for text in texts[300:]:
        tokens = np.tile(np.array(text, np.int32), (len(text) - 1, 1, 1))
        lengths = np.arange(1, len(text))[:, None]
        found = np.asarray(propose(Drafts(None, table), tokens, lengths, 1))[:, 0, 0]
        hits[0] += int((found == np.array(text[1:])).sum())
        padded_text = [START] * 6 + text
        for end in range(7, len(padded_text)):
            context = next((c for n in range(6, 0, -1) if (c := tuple(padded_text[end - n : end])) in known), None)
            best = max(known[context].items(), key=lambda item: (item[1], -item[0]))[0] if context else 0
            hits[1] += best == padded_text[end]
    assert hits[0] > 0.97 * hits[1] > 0


def test_weights_are_gathered_once_for_reading_and_decoding():
    """Gathered twice they are two copies in the program of a rollout, a third of its memory for DEER."""
    gathered = []

    def gather(tree):
        gathered.append(tree)
        return tree

    decoder = qwen2_decoder(tiny.CONFIG)._replace(gather=gather)
    inputs = padded(prompts()[:2], 96, left=True), row_keys(7, [0, 1])
    jax.eval_shape(lambda tree: decode(decoder, tree, *inputs, WAYS["groups"]), weights())
    assert len(gathered) == 1
