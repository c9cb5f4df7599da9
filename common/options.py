"""Options that have no effect because of the value of another: each config has a table of them, checked here.

Otherwise a file that the user names but the chosen source does not read would be ignored silently. Values of a preset
do not count: some of them may have no effect because of others.
"""

import dataclasses
import functools
import shlex
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from common.errors import UserError
from common.io.terminal import printable


class Needs(NamedTuple):
    """`option` (a field by its path, or a folder of fields) is read only where `choice` has a certain value.

    `reads` holds the values of `choice` under which it is read, or tells of one whether it is; `give` is then what to
    give for that. `likely` narrows these values down by what else was given; `shown` is what stands before a value of a
    choice that is not an option. Without a `choice` the command never reads the option, and `give` says what to do.
    """

    option: str
    choice: str = ""
    reads: tuple[Any, ...] | Callable[[Any], bool] = ()
    give: str = ""
    likely: Callable[[Any], tuple[Any, ...]] | None = None
    shown: str = ""

    @property
    def words(self) -> str:
        """What stands before a value of the choice on the command line."""
        return self.shown or flag(self.choice)

    def is_read(self, chosen: Any) -> bool:
        """Whether `chosen`, a config or parsed arguments, reads the option."""
        if not self.choice:
            return False
        value = value_of(chosen, self.choice)
        return self.reads(value) if callable(self.reads) else value in self.reads

    def covers(self, field: str) -> bool:
        """Whether a field is the option, or one of its folder."""
        return field == self.option or field.startswith(self.option + ".")


def value_of(chosen: Any, field: str) -> Any:
    """The value of a field by its path, of a config or of parsed arguments."""
    return functools.reduce(getattr, field.split("."), chosen)


def flag(field: str) -> str:
    """The option of a field, as the command line has it."""
    return "--" + field.replace("_", "-")


def fields_of(chosen: Any, folder: str = "") -> Iterator[str]:
    """The paths of all fields of a config, in order."""
    for field in dataclasses.fields(chosen):
        value = getattr(chosen, field.name)
        if dataclasses.is_dataclass(value):
            yield from fields_of(value, f"{folder}{field.name}.")
        else:
            yield folder + field.name


def unused_options(chosen: Any, fields: Sequence[str], needs: Sequence[Needs]) -> dict[str, Needs]:
    """Those of the fields that `chosen` does not read, each with the first of `needs` that it misses."""
    missed = [need for need in needs if not need.is_read(chosen)]
    found = {field: next((need for need in missed if need.covers(field)), None) for field in fields}
    return {field: need for field, need in found.items() if need is not None}


def check_options(
    chosen: Any,
    arguments: Sequence[str],
    needs: Sequence[Needs],
    program: str,
    presets: Mapping[str, Any] | None = None,
) -> None:
    """Raise UserError for options named in `arguments` that have no effect on what they were parsed to, `chosen`.

    The message says what to give so that they have one, and which of the `presets` does.
    """
    words = (word.partition("=")[0].replace("-", "_") for word in arguments if word.startswith("--"))
    named = list(dict.fromkeys(word.removeprefix("__") for word in words))
    unused = unused_options(chosen, named, needs)
    if not unused:
        return
    first, values = next(iter(unused.values())), None
    together = []  # the options that the same remedy helps
    for field, need in unused.items():
        shared = _shared(values, need, first)
        if shared is not None:
            together.append(field)
            values = shared
    options = ", ".join(map(flag, together))
    if not first.choice:
        raise UserError(f"{options}: not read by {program.partition(' --')[0]}; {first.give or 'leave it out'}")
    if first.likely is not None:
        likely = first.likely(chosen)
        values = tuple(value for value in values or () if value in likely) or values
    remedy = first.give if callable(first.reads) else f"{first.words} {' or '.join(map(str, values or ()))}"
    reads = first.reads if callable(first.reads) else (values or ()).__contains__
    known = [name for name, preset in (presets or {}).items() if reads(value_of(preset, first.choice))]
    if known and first.choice not in named:
        remedy += f" (or --preset {' or '.join(known)})"
    value = value_of(chosen, first.choice)
    off = value is None or value is False or value == ""
    state = f"out {first.words}" if off else f" {first.words}" + ("" if value is True else f" {printable(value)}")
    raise UserError(
        f"{options}: not read with{state}; give {remedy}, or leave {'them' if len(together) > 1 else 'it'} out"
    )


def _shared(values: tuple[Any, ...] | None, need: Needs, first: Needs) -> tuple[Any, ...] | None:
    """The values of a choice that help `need` as well as those before it, the `first` among them; None: none does."""
    if need.choice != first.choice or need.give != first.give:
        return None
    if callable(need.reads) or not need.choice:
        return ()
    return tuple(value for value in need.reads if values is None or value in values) or None


def command_line(program: str, chosen: Mapping[str, Any]) -> str:
    """A command as a shell takes it; `chosen` maps options (fields) to their values, `program` is as a shell has it."""
    words = shlex.split(program)
    for field, value in chosen.items():
        own = [_word(one) for one in (value if isinstance(value, tuple | list) else [value])]
        dashed = len(own) == 1 and own[0].startswith("-")  # which would be taken for an option
        words += [f"{flag(field)}={own[0]}"] if dashed else [flag(field), *own]
    return shlex.join(words)


def training_command(
    program: str, presets: Mapping[str, Any], config: Any, run_dir: Path, needs: Sequence[Needs]
) -> str:
    """The command that trains `config` in `run_dir`: the nearest preset, and what is otherwise and has an effect."""

    def differing(name: str) -> list[str]:
        return [field for field in fields_of(config) if value_of(config, field) != value_of(presets[name], field)]

    changed = {name: differing(name) for name in presets}
    # Unused fields can be set by a preset alone: the right one has none that differs.
    unused = {name: unused_options(config, fields, needs) for name, fields in changed.items()}
    nearest = min(presets, key=lambda name: (len(unused[name]), len(changed[name])))
    own = {field: value_of(config, field) for field in changed[nearest] if field not in unused[nearest]}
    return command_line(program, {"preset": nearest, "run_dir": run_dir, **own})


def changed_options(chosen: Mapping[str, Any], defaults: Mapping[str, Any]) -> dict[str, Any]:
    """The options of a command that are not at their defaults."""
    return {name: value for name, value in chosen.items() if name not in defaults or value != defaults[name]}


def used_settings(config: Any, needs: Sequence[Needs]) -> dict[str, Any]:
    """The fields of a config that have an effect, by their paths, as plain values."""
    fields = list(fields_of(config))
    unused = unused_options(config, fields, needs)
    return {field: value_of(config, field) for field in fields if field not in unused}


def _word(value: Any) -> str:
    return repr(value) if isinstance(value, float) else str(value)
