"""Batches of a plan as a Grain iterator, whose state is the number of global batches consumed.

Every process walks all global batches and assembles its own slice of their rows, so the state is the same on all of
them: keep `get_state()` as one small JSON item of the checkpoint. (`grain.checkpoint.CheckpointSave` writes one file
per process, and cannot restore with another number of processes.)
"""

import functools
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from typing import TypeVar

import grain

from common.data.encode import Example
from common.data.packing import GlobalBatch, Plan, assemble, plan_in_order
from common.errors import UserError
from common.types import TextBatch

Arrays = TypeVar("Arrays")


def make_iterator(
    plan: Plan,
    to_arrays: Callable[[GlobalBatch], Arrays],
    *,
    process_index: int = 0,
    process_count: int = 1,
    start: int = 0,
    threads: int = 1,
) -> grain.DatasetIterator[Arrays]:
    """This process's rows of every batch of `plan`, from batch `start` on, as `to_arrays` makes them.

    `get_state()` is `{"next_index": n}` after n global batches; `set_state` continues from there, on any number of
    processes. Process p has rows [p, p + 1) * rows / process_count. `threads` batches are made at a time.

    Raises UserError where the rows of a batch cannot be divided among the processes.
    """
    batch_rows = len(plan[0].rows)
    if batch_rows % process_count:
        raise UserError(
            f"{batch_rows} rows per batch cannot be divided among {process_count} processes; "
            f"choose a multiple of {process_count}"
        )
    local_rows = batch_rows // process_count
    mine = slice(process_index * local_rows, (process_index + 1) * local_rows)

    def local_batch(batch: GlobalBatch) -> Arrays:
        return to_arrays(replace(batch, rows=batch.rows[mine]))

    read = grain.ReadOptions(num_threads=threads, prefetch_buffer_size=2 * threads)
    iterator = iter(grain.MapDataset.source(plan).map(local_batch).to_iter_dataset(read))
    iterator.set_state({"next_index": start})
    return iterator


def text_batches(examples: Sequence[Example], pad_id: int) -> Callable[[GlobalBatch], TextBatch]:
    """Rows of tokens, for `make_iterator`; one thread makes 16 rows of 2,048 tokens in about 2 ms."""
    return functools.partial(_text_batch, examples=examples, pad_id=pad_id)


def _text_batch(batch: GlobalBatch, examples: Sequence[Example], pad_id: int) -> TextBatch:
    return assemble(batch.rows, examples, batch.length, pad_id)


def evaluation_batches(
    examples: Sequence[Example],
    pad_id: int,
    *,
    batch_rows: int,
    buckets: Sequence[int],
    process_index: int = 0,
    process_count: int = 1,
) -> Iterator[TextBatch]:
    """Every example once, padded, without shuffling: for a validation loss."""
    plan = plan_in_order([len(example.tokens) for example in examples], batch_rows=batch_rows, buckets=buckets)
    return make_iterator(plan, text_batches(examples, pad_id), process_index=process_index, process_count=process_count)
