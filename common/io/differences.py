"""Differences between two JSON records, such as the configs of two runs."""

from typing import Any, NamedTuple

from common.io.terminal import printable


class Difference(NamedTuple):
    """A field of a config, by its path, that two configs have different values of."""

    field: str
    old: Any
    new: Any

    def __str__(self) -> str:
        return f"{self.field} was {printable(repr(self.old))} and is now {printable(repr(self.new))}"


def differences(old: Any, new: Any, name: str = "") -> list[Difference]:
    """What differs between two configs as `to_json` gives them, in the order of the fields' names."""
    if isinstance(old, dict) and isinstance(new, dict):
        names = sorted(old.keys() | new.keys())
        return [found for key in names for found in differences(old.get(key), new.get(key), f"{name}.{key}".strip("."))]
    return [] if old == new else [Difference(name, old, new)]
