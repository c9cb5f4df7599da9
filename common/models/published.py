"""The entries of a published `config.json`, read with type and bounds checks.

Writers omit entries, write null, or keep entries that no longer apply. So null counts as absent, an entry that is used
must have the right type and bounds, and what the tensors determine is not read from the config.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from common.bounds import MOST, POSITIVE, Within
from common.errors import UserError
from common.io.terminal import printable
from common.io.text import read_json_object

WIDTH = Within(1, 1 << 24)  # vocabulary, hidden units; no published model has a hundredth of it
SIZE = Within(1, 4096)  # layers, heads, pixels of a patch
POSITIONS = Within(1, 2**31 - 1)
NUMBER = POSITIVE


class Entries:
    """The entries of an object in the file `where`; methods raise UserError naming file and entry.

    null counts as absent; `null` are the names of such entries, for where it means something of its own.
    """

    def __init__(
        self, values: Mapping[str, Any], where: str | Path, of: str = "", names: Mapping[str, str] | None = None
    ):
        self.values = {name: value for name, value in values.items() if value is not None}
        self.null = frozenset(values) - self.values.keys()
        self.where, self._of, self._names = where, of, names or {}

    def __contains__(self, name: str) -> bool:
        return name in self.values

    def error(self, name: str, expected: str) -> UserError:
        """That the entry is not what was expected."""
        found = printable(repr(self.values[name])) if name in self.values else "missing"
        return UserError(f"{self.where}: {self._of}{self._names.get(name, name)} is {found}, expected {expected}")

    def renamed(self, names: Mapping[str, str]) -> "Entries":
        """The entries of a file that has its own names, {ours: the file's}, for some; errors say the file's."""
        values = dict.fromkeys(self.null) | self.values
        ours = {theirs: name for name, theirs in names.items()}
        # What the file says under a name of ours is of something else, as `vocab_size` is in ChatGLM.
        kept = {name: value for name, value in values.items() if name not in names}
        return Entries({ours.get(name, name): value for name, value in kept.items()}, self.where, self._of, names)

    def whole(self, name: str, bounds: Within, default: int | None = None) -> int:
        """A whole number."""
        value = self.values.get(name, default)
        if type(value) is not int or value not in bounds:
            raise self.error(name, f"a whole number, {bounds}")
        return value

    def number(self, name: str, bounds: Within = NUMBER, default: float | None = None) -> float:
        """A number."""
        value = self.values.get(name, default)
        if not isinstance(value, int | float) or isinstance(value, bool) or value not in bounds:
            raise self.error(name, f"a number, {bounds}")
        return float(value)

    def flag(self, name: str, default: bool = False) -> bool:
        """True or false."""
        value = self.values.get(name, default)
        if type(value) is not bool:
            raise self.error(name, "true or false")
        return value

    def choice(self, name: str, choices: Sequence[str], default: str | None = None) -> str:
        """One of several texts."""
        value = self.values.get(name, default)
        if not isinstance(value, str) or value not in choices:
            raise self.error(name, " or ".join(map(repr, choices)))
        return value

    def items(self, name: str, kind: type, default: Sequence[Any] = (), bounds: Within | None = None) -> list[Any]:
        """A list of values of one type, of numbers within bounds."""
        values = self.values.get(name, default)
        numbers = (int, float) if kind is float else (kind,)
        right = isinstance(values, list | tuple) and all(type(value) in numbers for value in values)
        if not right or len(values) > MOST or (bounds is not None and not all(value in bounds for value in values)):
            expected = {int: "whole numbers", float: "numbers", str: "texts"}[kind]
            raise self.error(name, f"a list of {expected}" + ("" if bounds is None else f", each {bounds}"))
        return list(values)

    def part(self, name: str) -> "Entries":
        """The entries of an object within this one; none where it is absent."""
        value = self.values.get(name, {})
        if not isinstance(value, dict):
            raise self.error(name, "an object")
        return Entries(value, self.where, f"{self._of}{name} ")


def read_entries(file: str | Path) -> Entries:
    """The entries of a JSON file. Raises UserError where it holds no object."""
    return Entries(read_json_object(file), file)
