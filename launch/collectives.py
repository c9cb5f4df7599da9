"""The bytes that a device receives from the others in one run of a compiled program, by kind of collective.

They are counted in the text of the program (HLO), as rings exchange them: of an all-gather over n devices each receives
n - 1 shares of the result, of a reduce-scatter as many of the size of its result, of an all-reduce both. What a loop of
a known number of rounds exchanges counts as often; of other loops, such as generation, one round counts.
"""

import collections
import math
import re
from collections.abc import Iterator
from typing import NamedTuple

HEADER = re.compile(r"^(ENTRY )?%?([\w.\-]+) \(.*\{$")
COLLECTIVE = re.compile(
    r"^\s*(?:ROOT )?%?[\w.\-]+ = (.*?) (all-gather|all-reduce|reduce-scatter|all-to-all|collective-permute)(-start)?\("
)
ARRAY = re.compile(r"\b(pred|[suf]\d+|bf16|f8\w+|c64|c128)\[([\d,]*)\]")
CALLED = re.compile(r"\b(?:calls|to_apply|body|condition)=%?([\w.\-]+)")
WHILE = re.compile(r" while\(.*condition=%?([\w.\-]+), body=%?([\w.\-]+)")
KNOWN_ROUNDS = re.compile(r'known_trip_count":\{"n":"(\d+)"')
ROUNDS = re.compile(r" = s32\[\]\S* constant\((\d+)\)")
GROUPS = (
    re.compile(r"replica_groups=\{\{([\d,]+)\}"),
    re.compile(r"replica_groups=\[\d+,(\d+)\]<="),
    re.compile(r"replica_groups=mesh\[([^\]]*)\] \{([^}]*)\}"),
)

Received = collections.Counter[str]


class _Call(NamedTuple):
    computation: str
    rounds: int


def received_bytes(program: str) -> dict[str, int]:
    """Bytes by kind, of an optimized program as XLA prints it; kinds that do not occur are left out."""
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
                found.update(_of_line(line))
                for called, rounds in _calls(line, computations):
                    found.update({kind: rounds * size for kind, size in total(called).items()})
        return totals[name]

    return dict(sorted(total(entry).items()))


def _of_line(line: str) -> dict[str, int]:
    match = COLLECTIVE.match(line)
    if match is None:
        return {}
    result, kind, begins = match.groups()
    sizes = list(_sizes(result))
    if begins and kind != "all-reduce":  # of operands and results, and numbers that stand for the exchange
        arrays = [size for size in sizes if size > 4]
        sizes = arrays[len(arrays) // 2 :]
    size, devices = sum(sizes), _group(line)
    shares = {
        "all-gather": size * (devices - 1) // devices,
        "all-reduce": 2 * size * (devices - 1) // devices,
        "reduce-scatter": size * (devices - 1),
        "all-to-all": size * (devices - 1) // devices,
        "collective-permute": size,
    }
    return {kind: shares[kind]}


def _sizes(shape: str) -> Iterator[int]:
    """Bytes of each array of a type."""
    for dtype, dimensions in ARRAY.findall(shape):
        bits = 8 if dtype == "pred" else int(re.sub(r"^\D+(\d+).*$", r"\1", dtype))
        yield math.prod(int(size) for size in dimensions.split(",") if size) * max(bits // 8, 1)


def _group(line: str) -> int:
    """The devices that exchange with each other; 1 where a line names no groups."""
    listed, regular, mesh = (pattern.search(line) for pattern in GROUPS)
    if listed:
        return len(listed[1].split(","))
    if regular:
        return int(regular[1])
    if mesh is None:
        return 1
    axes = dict(re.findall(r"'(\w+)'=(\d+)", mesh[1]))
    parts = re.findall(r"'(\w+)'(?::\(\d+\)(\d+))?", mesh[2])
    return math.prod(int(part or axes[axis]) for axis, part in parts)


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
