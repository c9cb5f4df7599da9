import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from common.data.encode import Example, encode_examples
from common.data.packing import assemble, first_fit, plan_epochs, plan_in_order
from common.data.records import Quarantine
from common.errors import UserError
from common.models.qwen2 import Qwen2, init_params, output_head
from common.training.losses import answer_loss, token_logprobs
from tests import tiny

PAD = 0
CONFIG = dataclasses.replace(tiny.CONFIG, vocab_size=41, tie_word_embeddings=True)


def random_examples(count, seed=0, shortest=2, longest=20):
    random = np.random.default_rng(seed)
    examples = []
    for i in range(count):
        length = int(random.integers(shortest, longest + 1))
        tokens = random.integers(1, CONFIG.vocab_size, length).astype(np.int32)
        examples.append(Example(f"e{i}", tokens, int(random.integers(1, length))))
    return examples


def lengths_of(examples):
    return [len(example.tokens) for example in examples]


def both_plans(examples, **changes):
    arguments = {"batch_rows": 4, "epochs": 1, "max_length": 32, "seed": 3} | changes
    lengths = lengths_of(examples)
    packed = plan_epochs(lengths, packing=True, **arguments)
    padded = plan_epochs(lengths, packing=False, buckets=[16, 32], **arguments)
    return {"packed": packed, "padded": padded}


@pytest.fixture(scope="module")
def params():
    # Weights of this size make attention sharp enough for a leak to show far above rounding.
    init = jax.jit(init_params, static_argnums=0)
    return jax.tree.map(lambda x: x * 10 if x.ndim > 2 else x, init(CONFIG, jax.random.key(0)))


@jax.jit
def logprobs(params, batch):
    hidden, _ = Qwen2(CONFIG).apply({"params": params}, batch.tokens, batch.positions, batch.segments)
    return token_logprobs(hidden, output_head(params), batch.targets, head_trained=True)


@jax.jit
def loss_and_gradient(params, batch):
    def total(params):
        loss = answer_loss(logprobs(params, batch), batch.weights)
        return loss.total, loss

    (_, loss), gradient = jax.value_and_grad(total, has_aux=True)(params)
    return loss, gradient


def logprobs_by_example(params, rows, examples):
    """Log-probabilities of tokens 1.. of each example, found by walking the rows and not the segments."""
    logp = np.asarray(logprobs(params, assemble(rows, examples, 32, PAD)))
    found = {}
    for i, row in enumerate(rows):
        start = 0
        for index in row:
            end = start + len(examples[index].tokens)
            found[index] = logp[i, start : end - 1]
            start = end
    return found


@jax.jit
def dense_logprobs(params, tokens):
    """Log-probability of tokens 1.. of one text a row, through the logits and without segments to tell apart."""
    ones = jnp.ones_like(tokens)
    hidden, _ = Qwen2(CONFIG).apply({"params": params}, tokens, jnp.cumsum(ones, axis=1) - 1, ones)
    logp = jax.nn.log_softmax(hidden[:, :-1] @ output_head(params).T)
    return jnp.take_along_axis(logp, tokens[:, 1:, None], axis=-1)[..., 0]


def test_each_packed_example_has_the_log_probabilities_it_has_alone(params):
    examples = random_examples(11, longest=12)
    (batch,) = both_plans(examples)["packed"].batches
    assert max(len(row) for row in batch.rows) >= 3
    packed = logprobs_by_example(params, batch.rows, examples)
    assert sorted(packed) == list(range(11))
    # One example a row; what follows it is hidden from it by causality.
    alone = np.ones((11, 12), np.int32)
    for index, example in enumerate(examples):
        alone[index, : len(example.tokens)] = example.tokens
    expected = dense_logprobs(params, alone)
    for index, logp in packed.items():
        np.testing.assert_allclose(logp, expected[index, : len(logp)], rtol=0, atol=1e-5)


def test_changing_one_example_changes_no_other_in_its_row(params):
    examples = random_examples(4, longest=8)
    rows = [[2, 0, 3, 1], [], [], []]
    before = logprobs_by_example(params, rows, examples)
    for changed in range(4):
        tokens = examples[changed].tokens % (CONFIG.vocab_size - 1) + 1
        others = [dataclasses.replace(e, tokens=tokens) if i == changed else e for i, e in enumerate(examples)]
        after = logprobs_by_example(params, rows, others)
        assert np.abs(after[changed] - before[changed]).max() > 1e-2
        for index in set(range(4)) - {changed}:
            np.testing.assert_array_equal(after[index], before[index])


def test_packed_and_padded_batches_give_the_same_loss_and_gradient_over_an_epoch(params):
    examples = random_examples(17)
    sums = {}
    for name, plan in both_plans(examples).items():
        parts = [loss_and_gradient(params, assemble(b.rows, examples, b.length, PAD)) for b in plan.batches]
        sums[name] = jax.tree.map(lambda *leaves: np.sum(leaves, axis=0, dtype=np.float64), *parts)
    (packed_loss, packed_gradient), (padded_loss, padded_gradient) = sums["packed"], sums["padded"]
    assert packed_loss.weight == padded_loss.weight == sum(len(e.tokens) - e.answer_start for e in examples)
    np.testing.assert_allclose(packed_loss.total, padded_loss.total, rtol=1e-6)
    scale = max(np.abs(leaf).max() for leaf in jax.tree.leaves(padded_gradient))
    for one, other in zip(jax.tree.leaves(packed_gradient), jax.tree.leaves(padded_gradient), strict=True):
        np.testing.assert_allclose(one, other, rtol=1e-4, atol=1e-6 * scale)


def slow_assemble(rows, examples, length, pad_id):
    """Token by token, from the definition of TextBatch."""
    batch: dict[str, list] = {name: [] for name in ("tokens", "targets", "weights", "segments", "positions")}
    for row in rows:
        cells = []
        for number, index in enumerate(row):
            tokens = examples[index].tokens.tolist()
            for i, token in enumerate(tokens):
                last = i + 1 == len(tokens)
                target = pad_id if last else tokens[i + 1]
                predicts_answer = not last and i + 1 >= examples[index].answer_start
                cells.append((token, target, float(predicts_answer), number + 1, i))
        cells += [(pad_id, pad_id, 0.0, 0, 0)] * (length - len(cells))
        for name, column in zip(batch, zip(*cells, strict=True), strict=True):
            batch[name].append(column)
    return batch


@pytest.mark.parametrize("seed", range(5))
def test_assembled_rows_equal_a_token_by_token_reference(seed):
    examples = random_examples(30, seed)
    for plan in both_plans(examples, seed=seed).values():
        for batch in plan.batches:
            fast = assemble(batch.rows, examples, batch.length, pad_id=40)
            for name, expected in slow_assemble(batch.rows, examples, batch.length, pad_id=40).items():
                np.testing.assert_array_equal(getattr(fast, name), expected, err_msg=name)
            assert fast.tokens.dtype == fast.segments.dtype == np.int32
            assert fast.weights.dtype == np.float32


def test_every_answer_token_counts_once_and_nothing_else_does():
    example = Example("e", np.array([5, 6, 7, 8, 9], np.int32), answer_start=3)
    batch = assemble([[0, 0], []], [example], 12, PAD)
    weighted = batch.targets[batch.weights > 0]
    assert weighted.tolist() == [8, 9, 8, 9]
    assert batch.weights.sum() == 4
    assert not batch.weights[1].any()
    assert not batch.segments[1].any()


def test_a_row_too_long_for_its_batch_is_refused_and_not_cut():
    with pytest.raises(ValueError, match="more than 8 tokens"):
        assemble([[0, 0]], [Example("e", np.arange(1, 6, dtype=np.int32), 2)], 8, PAD)


@pytest.mark.parametrize("batch_rows", [1, 4, 7])
@pytest.mark.parametrize("name", ["packed", "padded"])
def test_every_example_is_in_every_epoch_once_and_no_row_is_too_long(name, batch_rows):
    examples = random_examples(101, longest=32)
    lengths = lengths_of(examples)
    plan = both_plans(examples, epochs=3, batch_rows=batch_rows)[name]
    assert [batch.epoch for batch in plan.batches] == sorted(batch.epoch for batch in plan.batches)
    for epoch in range(3):
        batches = [batch for batch in plan.batches if batch.epoch == epoch]
        seen = [index for batch in batches for row in batch.rows for index in row]
        assert sorted(seen) == list(range(101))
    for batch in plan.batches:
        assert len(batch.rows) == batch_rows
        assert max(sum(lengths[i] for i in row) for row in batch.rows) <= batch.length <= 32
        assert batch.tokens == sum(lengths[i] for row in batch.rows for i in row)
    expected = 3 * sum(lengths) / sum(batch.length * batch_rows for batch in plan.batches)
    assert plan.fill == pytest.approx(expected)


def test_a_padded_batch_has_one_example_a_row_in_the_smallest_bucket_that_holds_it():
    examples = random_examples(60, longest=32)
    for batch in both_plans(examples)["padded"].batches:
        for row in batch.rows:
            assert len(row) <= 1
            for index in row:
                assert batch.length == min(b for b in (16, 32) if b >= len(examples[index].tokens))


@pytest.mark.parametrize("name", ["packed", "padded"])
def test_the_order_follows_from_the_seed_and_changes_with_the_epoch(name):
    examples = random_examples(80)
    plan = both_plans(examples, epochs=2)[name]
    assert plan == both_plans(examples, epochs=2)[name]
    assert plan != both_plans(examples, epochs=2, seed=4)[name]
    first, second = ([b.rows for b in plan.batches if b.epoch == epoch] for epoch in (0, 1))
    assert first != second
    # A longer run starts with the same epochs.
    assert plan.batches == both_plans(examples, epochs=3)[name].batches[: len(plan)]


def test_shuffling_mixes_the_whole_epoch():
    lengths = [100] * 4000
    plan = plan_epochs(lengths, batch_rows=4, epochs=1, max_length=1000, packing=True)
    order = [index for batch in plan.batches for row in batch.rows for index in row]
    correlation = np.corrcoef(order, np.arange(4000))[0, 1]
    assert abs(correlation) < 0.1


def test_first_fit_takes_the_first_row_with_room():
    lengths = np.array([6, 5, 4, 5, 9, 1, 1])
    assert first_fit(lengths, np.arange(7), 10) == [[0, 2], [1, 3], [4, 5], [6]]
    # With one open row there is nothing to choose: a row is closed as soon as the next example does not fit.
    assert first_fit(lengths, np.arange(7), 10, open_rows=1) == [[0], [1, 2], [3], [4, 5], [6]]


def test_packing_report_like_lengths_wastes_less_than_a_tenth():
    random = np.random.default_rng(0)
    lengths = np.clip(np.exp(random.normal(5.3, 0.6, 20_000)).astype(int), 16, 2048)
    packed = plan_epochs(lengths, batch_rows=16, epochs=1, max_length=2048, packing=True)
    padded = plan_epochs(lengths, batch_rows=16, epochs=1, max_length=2048, packing=False, buckets=[512, 2048])
    assert packed.fill > 0.95
    assert packed.fill > padded.fill


def test_a_plan_in_order_keeps_the_order_within_a_bucket():
    plan = plan_in_order([3, 20, 4, 7, 21], batch_rows=2, buckets=[8, 32])
    assert [(batch.length, batch.rows) for batch in plan.batches] == [
        (8, [[0], [2]]),
        (8, [[3], []]),
        (32, [[1], [4]]),
    ]


@pytest.mark.parametrize(
    ("lengths", "changes", "message"),
    [
        ([], {}, "no examples"),
        ([3, 33], {}, "example 1 has 33 tokens"),
        ([3, 0], {}, "example 1 has 0 tokens"),
        ([3], {"batch_rows": 0}, "at least 1 row"),
        ([3], {"epochs": 0}, "1 epoch"),
        ([3], {"seed": -1}, "seed"),
        ([20], {"packing": False, "buckets": [8, 16]}, "buckets"),
        ([20], {"packing": False, "buckets": [64]}, "buckets"),
        ([20], {"packing": False, "buckets": [0, 32]}, "buckets"),
    ],
)
def test_impossible_plans_are_refused(lengths, changes, message):
    arguments = {"batch_rows": 2, "epochs": 1, "max_length": 32, "packing": True} | changes
    with pytest.raises(UserError, match=message):
        plan_epochs(lengths, **arguments)


def test_an_example_is_its_prompt_followed_by_its_answer():
    (example,) = encode_examples([("a", [5, 6, 7], [8, 2])], 5, Quarantine())
    assert example.id == "a"
    assert example.tokens.tolist() == [5, 6, 7, 8, 2]
    assert example.tokens.dtype == np.int32
    assert example.tokens[example.answer_start :].tolist() == [8, 2]


def test_unusable_examples_are_quarantined_and_the_others_kept_whole():
    quarantine = Quarantine()
    encoded = [("long", [1, 2, 3], [4, 5, 6]), ("kept", [1, 2, 3], [4, 5]), ("mute", [1], []), ("bare", [], [1])]
    assert [example.id for example in encode_examples(encoded, 5, quarantine)] == ["kept"]
    assert quarantine.entries == [
        ("long", "longer than 5 tokens"),
        ("mute", "no answer tokens"),
        ("bare", "no prompt tokens"),
    ]


def test_no_usable_example_is_an_error_that_counts_the_reasons():
    with pytest.raises(UserError, match=r"2 records quarantined \(longer than 3 tokens: 2\)"):
        encode_examples([("a", [1, 2], [3, 4]), ("b", [1, 2], [3, 4])], 3, Quarantine())
