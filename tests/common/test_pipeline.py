import json

import grain
import jax
import numpy as np
import pytest

from common.data.encode import Example
from common.data.packing import plan_epochs
from common.data.pipeline import evaluation_batches, make_iterator, text_batches
from common.errors import UserError

PAD = 0


def random_examples(count):
    random = np.random.default_rng(7)
    sizes = random.integers(2, 20, count)
    return [
        Example(str(i), random.integers(1, 99, n).astype(np.int32), int(random.integers(1, n)))
        for i, n in enumerate(sizes)
    ]


EXAMPLES = random_examples(90)
BATCHES = text_batches(EXAMPLES, PAD)


@pytest.fixture(params=["packed", "padded"])
def plan(request):
    return plan_epochs(
        [len(example.tokens) for example in EXAMPLES],
        batch_rows=4,
        epochs=2,
        max_length=32,
        packing=request.param == "packed",
        buckets=[8, 32],
        seed=1,
    )


def assert_same(batches, others):
    assert len(batches) == len(others)
    for one, other in zip(batches, others, strict=True):
        jax.tree.map(np.testing.assert_array_equal, one, other)


def all_processes(plan, process_count, start=0):
    """Global batches put together from the slices of `process_count` iterators."""
    iterators = [
        make_iterator(plan, BATCHES, process_index=p, process_count=process_count, start=start)
        for p in range(process_count)
    ]
    return [jax.tree.map(lambda *parts: np.concatenate(parts), *slices) for slices in zip(*iterators, strict=True)]


@pytest.mark.parametrize("process_count", [2, 4])
def test_the_global_batches_do_not_depend_on_the_number_of_processes(plan, process_count):
    whole = list(make_iterator(plan, BATCHES))
    assert len(whole) == len(plan)
    assert_same(all_processes(plan, process_count), whole)


def test_an_epoch_trains_on_every_answer_token_once(plan):
    answers = sum(len(example.tokens) - example.answer_start for example in EXAMPLES)
    weights = [batch.weights.sum() for batch in make_iterator(plan, BATCHES)]
    for epoch in range(2):
        assert sum(w for w, batch in zip(weights, plan.batches, strict=True) if batch.epoch == epoch) == answers


@pytest.mark.parametrize("consumed", [0, 1, 11])
@pytest.mark.parametrize("process_count", [1, 2])
def test_a_run_resumes_with_the_batches_it_would_have_seen(plan, consumed, process_count):
    whole = list(make_iterator(plan, BATCHES))
    stopped = make_iterator(plan, BATCHES, process_index=1, process_count=4)
    for _ in range(consumed):
        next(stopped)
    state = json.loads(json.dumps(stopped.get_state()))
    assert state == {"next_index": consumed}  # of batches consumed, not of batches prefetched
    assert_same(all_processes(plan, process_count, start=state["next_index"]), whole[consumed:])


def test_the_state_can_be_set_on_an_iterator_in_use(plan):
    iterator = make_iterator(plan, BATCHES)
    whole = [next(iterator) for _ in range(6)]
    iterator.set_state({"next_index": 2})
    assert_same([next(iterator) for _ in range(4)], whole[2:])
    assert isinstance(iterator, grain.DatasetIterator)


def test_an_iterator_ends_with_the_plan_and_stays_ended(plan):
    iterator = make_iterator(plan, BATCHES, start=len(plan) - 1)
    next(iterator)
    assert iterator.get_state() == {"next_index": len(plan)}
    with pytest.raises(StopIteration):
        next(iterator)
    with pytest.raises(StopIteration):
        next(make_iterator(plan, BATCHES, start=len(plan)))


def test_rows_that_cannot_be_divided_among_processes_are_refused(plan):
    with pytest.raises(UserError, match="4 rows per batch cannot be divided among 3 processes"):
        make_iterator(plan, BATCHES, process_count=3)


@pytest.mark.parametrize("process_count", [1, 2])
def test_evaluation_sees_every_example_once_in_order(process_count):
    seen = []
    slices = [
        evaluation_batches(EXAMPLES, PAD, batch_rows=8, buckets=[32], process_index=p, process_count=process_count)
        for p in range(process_count)
    ]
    for parts in zip(*slices, strict=True):
        batch = jax.tree.map(lambda *rows: np.concatenate(rows), *parts)
        assert batch.tokens.shape == (8, 32)
        seen += [row[real].tolist() for row, real in zip(batch.tokens, batch.segments > 0, strict=True) if real.any()]
    assert seen == [example.tokens.tolist() for example in EXAMPLES]
