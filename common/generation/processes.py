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
from common.io.stores import publish, refetch
from common.io.text import parse_json
from common.process.hosts import meet
from common.process.stopping import Stopped, held, received
from common.training.parallel import DeviceLayout

PER_SHARE = 16  # times the rows in all slots of a process, between two exchanges
AT_HAND = "the rows at hand"  # what a signal waits for

Item = TypeVar("Item")
Found = TypeVar("Found")


def over_processes(
    rows: Sequence[int], written: Callable[[Sequence[int]], Iterable[Any]], at_once: int, layout: DeviceLayout
) -> Iterator[Any]:
    """What `written` gives for each row, of JSON's types, in the order of the rows; all processes must exhaust it.

    `written` is called with a process's share of the rows, of one length in all where the devices work in step, and
    gives something for each. `at_once` is the number of rows in all slots of a process. Where a signal comes to any
    process, all give what stands before the first row that is missing, and raise `Stopped`.
    """
    count = jax.process_count()
    if count == 1:
        yield from written(rows)
        return
    in_step = layout.mode == "mesh"
    share = at_once if in_step else at_once * PER_SHARE
    for start in range(0, len(rows), share * count):
        part = rows[start : start + share * count]
        mine = list(part[jax.process_index() :: count])
        missing = -(-len(part) // count) - len(mine) if in_step else 0
        with contextlib.ExitStack() as block:
            found = _until_stopped(written([*mine, *[part[-1]] * missing]), block, in_step)
            parts, signals = zip(*of_all([found[: len(mine)], received()]), strict=True)
            yield from _in_turn(parts)
        if any(signals):
            raise Stopped(max(signals))


def _until_stopped(written: Iterable[Any], block: contextlib.ExitStack, in_step: bool) -> list[Any]:
    """What is written until a signal comes, which `block` holds back from the first row on.

    Before it, programs are compiled, which may take minutes, and there is nothing to lose. Devices that work in step
    end their share.
    """
    found: list[Any] = []
    try:
        for row in written:
            if not found:
                block.enter_context(held(AT_HAND))
            found.append(row)
            if received() and not in_step:
                break
    except Stopped:
        if in_step:
            raise
    if not found:
        block.enter_context(held(AT_HAND))
    return found


def _in_turn(parts: Sequence[Sequence[Item]]) -> Iterator[Item]:
    """One of each part in turn, up to the first that is missing."""
    for place in itertools.count():
        part, index = parts[place % len(parts)], place // len(parts)
        if index >= len(part):
            return
        yield part[index]


def of_all(mine: Any) -> list[Any]:
    """What each process holds, of JSON's types, in the order of the processes."""
    from jax.experimental import multihost_utils

    text = np.frombuffer(json.dumps(mine).encode(), np.uint8)
    lengths = multihost_utils.process_allgather(np.int32(len(text)))
    texts = multihost_utils.process_allgather(np.pad(text, (0, int(lengths.max()) - len(text))))
    return [parse_json(text[:length].tobytes(), "another process") for text, length in zip(texts, lengths, strict=True)]


def of_first(find: Callable[[], Found]) -> Found:
    """What `find` gives in the first process, where alone it is called, of JSON's types, in all.

    What it wrote to the address of a store, the others have a copy of. Raises UserError in all where it does.
    """
    if jax.process_count() == 1:
        return find()
    mine: list[Any] = [None, None]
    if jax.process_index() == 0:
        try:
            mine = [find(), None]
            publish()
        except UserError as error:
            mine = [None, str(error)]
    meet("first")
    found, problem = of_all(mine)[0]
    if problem is not None:
        raise UserError(problem)
    if jax.process_index() != 0:
        refetch()
    return found


def writer_of_first(path: Path | None) -> AbstractContextManager[Callable[[Mapping[str, Any]], None]]:
    """`row_writer` in the first process; in others a function that does nothing."""
    return row_writer(path) if jax.process_index() == 0 else contextlib.nullcontext(lambda row: None)


def in_parts(items: Iterable[Item], count: int) -> Iterator[list[Item]]:
    """The items, so many at a time; where a signal ends them, what came before it is the last part."""
    source = iter(items)
    while True:
        part: list[Item] = []
        try:
            for item in itertools.islice(source, count):
                part.append(item)
        except Stopped:
            if part:
                yield part
            raise
        if not part:
            return
        yield part
