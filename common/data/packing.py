"""Which examples go into which row of which batch, and the arrays of such a batch.

The plan of a whole run is computed before it starts, on the host, from the lengths alone. It is a pure function of
lengths, seed and epoch and knows nothing of processes or devices, so the number of steps is exact, a run resumes
from a batch number alone, and any number of processes see the same global batches.

Packed, a row holds several examples as segments, found by first fit over a bounded number of open rows. Padded, a row
holds one example, and all rows of a batch share the smallest of a few lengths (buckets) that holds them. Grain's
`FirstFitPackIterDataset` packs as it reads: how many steps a run has would be known only at its end.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from jaxtyping import Int

from common.data.encode import Example
from common.errors import UserError
from common.types import TextBatch

Row = list[int]  # indices of examples; an empty row is all padding

OPEN_ROWS = 64


@dataclass(frozen=True)
class GlobalBatch:
    """Rows of one batch over all processes, all `length` tokens long; `tokens` of them are real."""

    length: int
    rows: list[Row]
    tokens: int
    epoch: int

    @property
    def capacity(self) -> int:
        """Tokens of the batch with its padding."""
        return self.length * len(self.rows)


@dataclass(frozen=True)
class Plan:
    """All batches of a run in order; a sequence, as Grain's sources are. `len(plan)` is the number of steps."""

    batches: list[GlobalBatch] = field(repr=False)

    def __len__(self) -> int:
        return len(self.batches)

    def __getitem__(self, index: int) -> GlobalBatch:
        return self.batches[index]

    @property
    def fill(self) -> float:
        """Share of real tokens; 1 minus it is the work wasted on padding."""
        return sum(batch.tokens for batch in self.batches) / sum(batch.capacity for batch in self.batches)


def plan_epochs(
    lengths: Sequence[int] | Int[np.ndarray, " examples"],
    *,
    batch_rows: int,
    epochs: int,
    max_length: int,
    packing: bool,
    buckets: Sequence[int] = (),
    seed: int = 0,
) -> Plan:
    """Batches of `batch_rows` rows in which every example occurs exactly once an epoch, in a new order each epoch.

    Packed rows are `max_length` long; padded ones as long as their bucket (none given: `max_length`). The last batch
    of an epoch, or of a bucket in an epoch, is filled up with empty rows.

    Raises UserError for lengths that do not fit, and for sizes that make no sense.
    """
    lengths = _checked_lengths(lengths, max_length)
    if batch_rows < 1 or epochs < 1 or seed < 0:
        raise UserError(
            f"batch rows {batch_rows}, epochs {epochs}, seed {seed}: expected at least 1 row, 1 epoch and a seed >= 0"
        )
    buckets = _checked_buckets(buckets or [max_length], lengths, max_length)
    batches: list[GlobalBatch] = []
    for epoch in range(epochs):
        random = np.random.default_rng([seed, epoch])
        order = random.permutation(len(lengths))
        if packing:
            rows = first_fit(lengths, order, max_length)
            batches += _batches(rows, max_length, lengths, batch_rows, epoch)
        else:
            by_bucket = _bucketed(lengths, order, buckets, batch_rows, epoch)
            batches += [by_bucket[i] for i in random.permutation(len(by_bucket))]
    return Plan(batches)


def plan_in_order(
    lengths: Sequence[int] | Int[np.ndarray, " examples"], *, batch_rows: int, buckets: Sequence[int]
) -> Plan:
    """One padded pass without shuffling, bucket after bucket: for a validation loss.

    Raises UserError where an example is longer than the largest bucket.
    """
    longest = max(buckets, default=0)
    lengths = _checked_lengths(lengths, longest)
    buckets = _checked_buckets(buckets, lengths, longest)
    return Plan(_bucketed(lengths, np.arange(len(lengths)), buckets, batch_rows, epoch=0))


def first_fit(
    lengths: Int[np.ndarray, " examples"],
    order: Int[np.ndarray, " examples"],
    max_length: int,
    open_rows: int = OPEN_ROWS,
) -> list[Row]:
    """Rows of at most `max_length` tokens, in order of closing.

    Each example goes into the first open row with room for it; where none has, the fullest row is closed. Bounding the
    open rows bounds the time, and keeps an example close to its position in the shuffled order.
    """
    closed: list[Row] = []
    rows: list[Row] = [[] for _ in range(open_rows)]
    free = np.full(open_rows, max_length)
    for example, length in zip(order.tolist(), lengths[order].tolist(), strict=True):
        slot = int((free >= length).argmax())
        if free[slot] < length:
            slot = int(free.argmin())
            closed.append(rows[slot])
            rows[slot] = []
            free[slot] = max_length
        rows[slot].append(example)
        free[slot] -= length
    return closed + [row for row in rows if row]


def assemble(rows: Sequence[Row], examples: Sequence[Example], length: int, pad_id: int) -> TextBatch:
    """The arrays of `rows`, as numpy [rows, length].

    A target's weight sits at the position that predicts it, so the last prompt token has weight 1 and the last answer
    token 0. Targets without weight at the end of a segment, and padding, are `pad_id`.
    """
    shape = (len(rows), length)
    tokens = np.full(shape, pad_id, np.int32)
    targets = np.full(shape, pad_id, np.int32)
    weights = np.zeros(shape, np.float32)
    segments = np.zeros(shape, np.int32)
    positions = np.zeros(shape, np.int32)
    for i, row in enumerate(rows):
        start = 0
        for segment, index in enumerate(row, start=1):
            example = examples[index]
            end = start + len(example.tokens)
            if end > length:
                raise ValueError(f"row {i} holds more than {length} tokens; was the plan made from other examples?")
            tokens[i, start:end] = example.tokens
            targets[i, start : end - 1] = example.tokens[1:]
            weights[i, start + example.answer_start - 1 : end - 1] = 1.0
            segments[i, start:end] = segment
            positions[i, start:end] = np.arange(end - start)
            start = end
    arrays: tuple[Any, ...] = (tokens, targets, weights, segments, positions)  # numpy until placed on devices
    return TextBatch(*arrays)


def _bucketed(
    lengths: Int[np.ndarray, " examples"],
    order: Int[np.ndarray, " examples"],
    buckets: list[int],
    batch_rows: int,
    epoch: int,
) -> list[GlobalBatch]:
    """Batches of one example a row, bucket after bucket; within a bucket the examples keep their order."""
    bucket_of = np.searchsorted(buckets, lengths[order])
    batches: list[GlobalBatch] = []
    for i, length in enumerate(buckets):
        rows = [[example] for example in order[bucket_of == i].tolist()]
        batches += _batches(rows, length, lengths, batch_rows, epoch)
    return batches


def _batches(
    rows: list[Row], length: int, lengths: Int[np.ndarray, " examples"], batch_rows: int, epoch: int
) -> list[GlobalBatch]:
    """`rows` in groups of `batch_rows`, the last one filled up with empty rows."""
    batches = []
    for start in range(0, len(rows), batch_rows):
        group = rows[start : start + batch_rows]
        tokens = int(lengths[[example for row in group for example in row]].sum())
        group += [[] for _ in range(batch_rows - len(group))]
        batches.append(GlobalBatch(length, group, tokens, epoch))
    return batches


def _checked_lengths(
    lengths: Sequence[int] | Int[np.ndarray, " examples"], max_length: int
) -> Int[np.ndarray, " examples"]:
    lengths = np.asarray(lengths, np.int64)
    if not len(lengths):
        raise UserError("no examples to make batches of; expected at least one")
    if lengths.min() < 1 or lengths.max() > max_length:
        wrong = int(lengths.argmin()) if lengths.min() < 1 else int(lengths.argmax())
        raise UserError(
            f"example {wrong} has {lengths[wrong]} tokens; expected 1 to {max_length}; "
            "raise the maximum length or leave the example out"
        )
    return lengths


def _checked_buckets(buckets: Sequence[int], lengths: Int[np.ndarray, " examples"], max_length: int) -> list[int]:
    ordered = sorted(set(buckets))
    if ordered[0] < 1 or ordered[-1] > max_length or ordered[-1] < lengths.max():
        raise UserError(
            f"length buckets {ordered}: expected lengths from 1 to {max_length}, the largest at least "
            f"{lengths.max()}, the length of the longest example"
        )
    return ordered
