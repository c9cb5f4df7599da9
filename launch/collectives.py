"""The bytes that a device receives from the others in one run of a compiled program, by kind of collective.

They are counted in the text of the program (HLO), as rings exchange them: of an all-gather over n devices each receives
n - 1 shares of the result, of a reduce-scatter as many of the size of its result, of an all-reduce both. What a loop of
a known number of rounds exchanges counts as often; of other loops, such as generation, one round counts.

Between nodes, the devices of a node share what comes from the others: a ring through k nodes brings (k - 1) / k of a
gathered result into each, once, however many of its devices are in the ring.
"""

import collections
import functools
import math
import re
from collections.abc import Callable, Iterator, Sequence
from typing import NamedTuple

import numpy as np

HEADER = re.compile(r"^(ENTRY )?%?([\w.\-]+) \(.*\{$")
COLLECTIVE = re.compile(
    r"^\s*(?:ROOT )?%?[\w.\-]+ = (.*?) (all-gather|all-reduce|reduce-scatter|all-to-all|collective-permute)(-start)?\("
)
ARRAY = re.compile(r"\b(pred|[suf]\d+|bf16|f8\w+|c64|c128)\[([\d,]*)\]")
CALLED = re.compile(r"\b(?:calls|to_apply|body|condition)=%?([\w.\-]+)")
WHILE = re.compile(r" while\(.*condition=%?([\w.\-]+), body=%?([\w.\-]+)")
KNOWN_ROUNDS = re.compile(r'known_trip_count":\{"n":"(\d+)"')
ROUNDS = re.compile(r" = s32\[\]\S* constant\((\d+)\)")
# Groups as a list, as numbers that are reshaped and transposed, or as axes (or parts of axes) of a named mesh.
LISTED = re.compile(r"replica_groups=\{(\{[\d,]+\}(?:,\{[\d,]+\})*)\}")
_IOTA = r"\[([\d,]+)\](?:T\(([\d,]+)\))?"
REGULAR = re.compile(r"replica_groups=\[([\d,]+)\]<=" + _IOTA)
MESH = re.compile(r"replica_groups=mesh\[([^\]]*)\](?:, device_ids=\(" + _IOTA + r"\))? \{([^}]*)\}")
PAIRS = re.compile(r"source_target_pairs=\{(\{\d+,\d+\}(?:,\{\d+,\d+\})*)\}")

Received = collections.Counter[str]
Groups = tuple[tuple[int, ...], ...]


class _Call(NamedTuple):
    computation: str
    rounds: int


class _Exchange(NamedTuple):
    """One collective: the bytes of its result on a device, and the devices that exchange with each other."""

    kind: str
    size: int
    groups: Groups


def received_bytes(program: str) -> dict[str, int]:
    """Bytes by kind, of an optimized program as XLA prints it; kinds that do not occur are left out."""
    return _summed(program, _received)


def bytes_between_nodes(program: str, nodes: Sequence[int]) -> dict[str, int]:
    """The part of `received_bytes` that each device's share of its node's network brings from other nodes.

    `nodes` has the node of each device, in the order of the mesh. Kinds that stay within nodes are left out.
    """
    found = _summed(program, functools.partial(_from_other_nodes, nodes=nodes))
    return {kind: size for kind, size in found.items() if size}


def _summed(program: str, measure: Callable[[_Exchange], int]) -> dict[str, int]:
    computations: dict[str, list[str]] = {}
    entry, lines = "", computations.setdefault("", [])
    for line in program.splitlines():
        if header := HEADER.match(line):
            lines = computations.setdefault(header[2], [])
            entry = header[2] if header[1] else entry
        else:
            lines.append(line)
    totals: dict[str, Received] = {}

    def total(name: str) -> Received:
        if name not in totals:
            totals[name] = found = Received()
            for line in computations.get(name, ()):
                if exchange := _exchange(line):
                    found.update({exchange.kind: measure(exchange)})
                for called, rounds in _calls(line, computations):
                    found.update({kind: rounds * size for kind, size in total(called).items()})
        return totals[name]

    return dict(sorted(total(entry).items()))


def _exchange(line: str) -> _Exchange | None:
    match = COLLECTIVE.match(line)
    if match is None:
        return None
    result, kind, begins = match.groups()
    sizes = list(_sizes(result))
    if begins and kind != "all-reduce":  # of operands and results, and numbers that stand for the exchange
        arrays = [size for size in sizes if size > 4]
        sizes = arrays[len(arrays) // 2 :]
    return _Exchange(kind, sum(sizes), _groups(line))


def _received(exchange: _Exchange) -> int:
    size = exchange.size
    if exchange.kind == "collective-permute":
        return size
    devices = max((len(group) for group in exchange.groups), default=1)
    if exchange.kind == "reduce-scatter":
        return size * (devices - 1)
    return (2 if exchange.kind == "all-reduce" else 1) * size * (devices - 1) // devices


def _from_other_nodes(exchange: _Exchange, nodes: Sequence[int]) -> int:
    size = exchange.size
    if exchange.kind == "collective-permute":
        return size if any(nodes[source] != nodes[target] for source, target in exchange.groups) else 0
    most = 0
    for group in exchange.groups:
        own = collections.Counter(nodes[device] for device in group)
        ways, members = len(own), min(own.values())
        if exchange.kind == "reduce-scatter":
            found = size * len(group) * (ways - 1) // ways // members
        elif exchange.kind == "all-to-all":
            found = size * (len(group) - members) // len(group)
        else:
            found = (2 if exchange.kind == "all-reduce" else 1) * size * (ways - 1) // ways // members
        most = max(most, found)
    return most


def _sizes(shape: str) -> Iterator[int]:
    """Bytes of each array of a type."""
    for dtype, dimensions in ARRAY.findall(shape):
        bits = 8 if dtype == "pred" else int(re.sub(r"^\D+(\d+).*$", r"\1", dtype))
        yield math.prod(int(size) for size in dimensions.split(",") if size) * max(bits // 8, 1)


def _groups(line: str) -> Groups:
    """Devices that exchange with each other, by their places in the mesh; of a permutation the pairs."""
    for pattern in (LISTED, PAIRS):
        if listed := pattern.search(line):
            return tuple(tuple(_whole(group)) for group in listed[1][1:-1].split("},{"))
    if regular := REGULAR.search(line):
        return _rows(_iota(regular[2], regular[3]).reshape(_whole(regular[1])))
    if mesh := MESH.search(line):
        sizes = {name: int(size) for name, size in re.findall(r"'(\w+)'=(\d+)", mesh[1])}
        ids = _iota(mesh[2], mesh[3]) if mesh[2] else np.arange(math.prod(sizes.values()))
        chosen = re.findall(r"'(\w+)'(?::\((\d+)\)(\d+))?", mesh[4])
        return _rows(_along(ids.reshape(tuple(sizes.values())), list(sizes), chosen))
    return ()


def _along(ids: np.ndarray, names: list[str], chosen: list[tuple[str, str, str]]) -> np.ndarray:
    """A row for each group that lies along the axes chosen; (`before`, `size`) cut a part out of an axis."""
    shape: list[int] = []
    ours: list[int] = []
    for axis, name in enumerate(names):
        length, done = ids.shape[axis], 1
        for _, before, size in sorted((one for one in chosen if one[0] == name), key=lambda one: int(one[1] or 1)):
            first, part = int(before or 1), int(size or length)
            shape += [first // done]
            ours.append(len(shape))
            shape.append(part)
            done = first * part
        shape.append(length // done)
    cut = ids.reshape(shape)
    others = [axis for axis in range(cut.ndim) if axis not in ours]
    return cut.transpose([*others, *ours]).reshape(-1, math.prod(shape[axis] for axis in ours))


def _iota(shape: str, order: str | None) -> np.ndarray:
    sizes = _whole(shape)
    ids = np.arange(math.prod(sizes)).reshape(sizes)
    return (ids.transpose(_whole(order)) if order else ids).reshape(-1)


def _rows(groups: np.ndarray) -> Groups:
    return tuple(tuple(int(device) for device in group) for group in groups)


def _whole(numbers: str) -> list[int]:
    return [int(number) for number in numbers.split(",")]


def _calls(line: str, computations: dict[str, list[str]]) -> Iterator[_Call]:
    if loop := WHILE.search(line):
        known = KNOWN_ROUNDS.search(line)
        bounds = [match[1] for own in computations.get(loop[1], ()) if (match := ROUNDS.search(own))]
        rounds = int(known[1]) if known else int(bounds[0]) if len(bounds) == 1 else 1
        yield _Call(loop[2], rounds)
        return
    if " all-reduce" in line or " reduce" in line:
        return  # `to_apply` adds two numbers
    for called in CALLED.findall(line):
        yield _Call(called, 1)
