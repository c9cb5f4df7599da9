"""Rows over several processes: each writes a share of them, and the first has them all, in order."""

import contextlib
import itertools
import json
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any, TypeVar

import jax
import numpy as np

from common.errors import UserError
from common.io.resumable import row_writer
from common.io.text import parse_json
from common.process.hosts import meet
from common.training.parallel import DeviceLayout

PER_SHARE = 16  # times the rows in all slots of a process, between two exchanges

Item = TypeVar("Item")
Found = TypeVar("Found")


def over_processes(
    rows: Sequence[int], written: Callable[[Sequence[int]], Iterable[Any]], at_once: int, layout: DeviceLayout
) -> Iterator[Any]:
    """What `written` gives for each row, of JSON's types, in the order of the rows; all processes must exhaust it.

    `written` is called with a process's share of the rows, of one length in all where the devices work in step, and
    gives something for each. `at_once` is the number of rows in all slots of a process.
    """
    count = jax.process_count()
    if count == 1:
        yield from written(rows)
        return
    in_step = layout.mode == "mesh"
    share = at_once if in_step else at_once * PER_SHARE
    for start in range(0, len(rows), share * count):
        part = rows[start : start + share * count]
        each = -(-len(part) // count)
        mine = list(part[jax.process_index() * each : (jax.process_index() + 1) * each])
        filled = [*mine, *[part[-1]] * (each - len(mine))] if in_step else mine
        found = list(written(filled))[: len(mine)]
        yield from itertools.chain.from_iterable(of_all(found))


def of_all(mine: Any) -> list[Any]:
    """What each process holds, of JSON's types, in the order of the processes."""
    from jax.experimental import multihost_utils

    text = np.frombuffer(json.dumps(mine).encode(), np.uint8)
    lengths = multihost_utils.process_allgather(np.int32(len(text)))
    texts = multihost_utils.process_allgather(np.pad(text, (0, int(lengths.max()) - len(text))))
    return [parse_json(text[:length].tobytes(), "another process") for text, length in zip(texts, lengths, strict=True)]


def of_first(find: Callable[[], Found]) -> Found:
    """What `find` gives in the first process, where alone it is called, of JSON's types, in all.

    Raises UserError in all where it does.
    """
    if jax.process_count() == 1:
        return find()
    mine: list[Any] = [None, None]
    if jax.process_index() == 0:
        try:
            mine = [find(), None]
        except UserError as error:
            mine = [None, str(error)]
    meet("first")
    found, problem = of_all(mine)[0]
    if problem is not None:
        raise UserError(problem)
    return found


def writer_of_first(path: Path | None) -> AbstractContextManager[Callable[[Mapping[str, Any]], None]]:
    """`row_writer` in the first process; in others a function that does nothing."""
    return row_writer(path) if jax.process_index() == 0 else contextlib.nullcontext(lambda row: None)


def in_parts(items: Iterable[Item], count: int) -> Iterator[list[Item]]:
    """The items, so many at a time."""
    source = iter(items)
    while part := list(itertools.islice(source, count)):
        yield part
