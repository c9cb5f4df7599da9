"""Typed frozen dataclasses <-> config.json of a run directory.

A config is a frozen dataclass of plain values and further such dataclasses. `config.json` in a run directory records
it, and unknown names in that file are errors. `common.config_options` reads a config from a command line.

A field that is not recorded, because it is newer than the run, has the default of its class: the default of a new field
must stand for the previous behaviour, or earlier runs change their meaning.

A field affects the result of a run, unless its type says otherwise (`Mark`).
"""

import contextlib
import dataclasses
import enum
import functools
import json
import os
import re
import shutil
import types
import typing
from collections.abc import Callable, Collection, Mapping
from pathlib import Path
from typing import Annotated, Any, Concatenate, ParamSpec, TypeVar

from common.bounds import check_numbers
from common.devices import programs_kept
from common.errors import UserError, did_you_mean
from common.io.differences import Difference, differences
from common.io.files import atomic_file
from common.io.locks import is_lock, lock_of, locked_by_first, locked_directory
from common.io.mirror import address_text
from common.io.stores import stage
from common.io.terminal import printable
from common.io.text import json_text, read_json, read_json_object
from common.process.first import is_first_process

Config = TypeVar("Config")
Result = TypeVar("Result")
Rest = ParamSpec("Rest")

_ASIDE = re.compile(r"\.config\.json\.\d+\.partial")  # of a command that was killed while it wrote

CONFIG_FILE = "config.json"
PROGRAMS = "compiled"  # programs of accelerators, which may be there before the config
TRAINED_ON = "trained_on.json"  # digests of the base, the data and what else a run learns from, by their names


class Mark(enum.Enum):
    """What the type of a field says of it: `base: MovablePath = ""`, `tensorboard: Incidental[bool] = True`."""

    MOVABLE = "a path: what lies there is known by its contents, and may move"
    INCIDENTAL = "how a run is spread, and what it writes: nothing that is trained depends on it"
    EACH_START = "what one start of a run does beside training: the next may do otherwise"


Field = TypeVar("Field")
MovablePath = Annotated[str, Mark.MOVABLE]
Incidental = Annotated[Field, Mark.INCIDENTAL]
EachStart = Annotated[Field, Mark.EACH_START]


def marked_fields(config_class: type, *marks: Mark, prefix: str = "") -> frozenset[str]:
    """The paths of the fields of a config, and of configs within it, that have one of the marks."""
    found: set[str] = set()
    for name, hint in typing.get_type_hints(config_class, include_extras=True).items():
        own, *said = typing.get_args(hint) if typing.get_origin(hint) is Annotated else (hint,)
        if isinstance(own, type) and dataclasses.is_dataclass(own):
            found |= marked_fields(own, *marks, prefix=f"{prefix}{name}.")
        elif any(mark in said for mark in marks):
            found.add(prefix + name)
    return frozenset(found)


def to_json(config: Any) -> dict[str, Any]:
    """The config as nested dictionaries of JSON values. What has an address in a store is recorded by it."""
    return _mapped(json.loads(json.dumps(dataclasses.asdict(config))), lambda text: address_text(text) or text)


def _mapped(values: Any, change: Callable[[str], str]) -> Any:
    """JSON values with every text within them changed."""
    if isinstance(values, str):
        return change(values)
    if isinstance(values, list):
        return [_mapped(value, change) for value in values]
    return {name: _mapped(value, change) for name, value in values.items()} if isinstance(values, dict) else values


def from_json(config_class: type[Config], values: Mapping[str, Any], where: str) -> Config:
    """The config that `to_json` recorded, with the defaults of the fields that are missing there.

    Fields are also read by their former names, where the class has a mapping of these, `FORMER`. Raises UserError for
    unknown names, values of a wrong type, and a missing field that has no default.
    """
    if not isinstance(values, Mapping):
        raise UserError(f"{where}: expected a JSON object, found {type(values).__name__}")
    values = _with_new_names(values, getattr(config_class, "FORMER", {}))
    fields = {field.name: field for field in dataclasses.fields(typing.cast(Any, config_class))}
    hints = {name: hint for name, hint in typing.get_type_hints(config_class).items() if name in fields}
    for name in values:
        if name not in hints:
            nearest = did_you_mean(name.replace("-", "_"), hints)
            other = nearest or "; expected a run that this command can read, of this version or an earlier one"
            raise UserError(f"{where}: unknown field {printable(repr(name))}{other}")
    given = {name: _value(hints[name], value, f"{where}: {name}") for name, value in values.items()}
    for name, field in fields.items():
        if name not in given and field.default is field.default_factory is dataclasses.MISSING:
            raise UserError(f"{where}: missing field {name!r}; it was written by another version")
    return config_class(**given)


def _with_new_names(values: Mapping[str, Any], former: Mapping[str, str]) -> Mapping[str, Any]:
    """Recorded values, where fields with a `former` name, a path, have their new one in the same folder."""
    for old, new in former.items():
        folder, _, rest = old.partition(".")
        if not rest and old in values:
            values = {new if name == old else name: value for name, value in values.items()}
        elif rest and isinstance(values.get(folder), Mapping):
            values = {**values, folder: _with_new_names(values[folder], {rest: new.partition(".")[2]})}
    return values


def changed_fields(recorded: dict[str, Any], config: Any, *marks: Mark) -> list[Difference]:
    """What differs between a config as `to_json` recorded it and another, apart from fields with one of the marks."""
    # One of another class or version stays as it is: the differences tell.
    with contextlib.suppress(UserError):
        recorded = to_json(from_json(type(config), recorded, CONFIG_FILE))
    free = marked_fields(type(config), *marks)
    return [found for found in differences(recorded, to_json(config)) if found.field not in free]


def _value(hint: Any, value: Any, where: str) -> Any:
    if isinstance(hint, type) and dataclasses.is_dataclass(hint):
        if isinstance(value, dict):
            return from_json(hint, value, where)
    elif typing.get_origin(hint) is tuple:
        if isinstance(value, list):
            return tuple(_value(typing.get_args(hint)[0], item, where) for item in value)
    elif typing.get_origin(hint) is typing.Literal:
        if value in typing.get_args(hint):
            return value
    elif typing.get_origin(hint) is types.UnionType:
        if value is None or isinstance(value, typing.get_args(hint)):
            return value
    elif hint is float and isinstance(value, int) and not isinstance(value, bool):
        return float(value)
    elif isinstance(value, hint) and (hint is bool or not isinstance(value, bool)):
        return value
    choices = typing.get_args(hint) if typing.get_origin(hint) is typing.Literal else [hint]
    expected = " or ".join(getattr(choice, "__name__", str(choice)) for choice in choices)
    raise UserError(f"{where}: found {printable(repr(value))}, expected {expected}")


def check_run_directory(run_dir: Path, config: Any) -> None:
    """Raise UserError where `run_dir` cannot be the directory of a run of this config. Writes nothing.

    It must be new, empty, or hold a run of the same config, whose files may have moved; and it must be possible to
    write there.
    """
    path = run_dir / CONFIG_FILE
    existing = next(folder for folder in (run_dir, *run_dir.absolute().parents) if folder.exists())
    if not existing.is_dir():
        raise UserError(f"{run_dir}: cannot be made, because {existing} is not a directory; choose another directory")
    if not os.access(existing, os.W_OK | os.X_OK):
        raise UserError(f"{run_dir}: cannot be written (no permission for {existing}); choose another directory")
    if existing != run_dir:
        return
    if not path.exists():
        if any(not (_ASIDE.fullmatch(name) or name == PROGRAMS or is_lock(name)) for name in os.listdir(run_dir)):
            raise UserError(f"{run_dir}: is not empty and contains no config.json; choose another directory")
        return
    found = read_json(path, "the config of a run; choose another directory")
    if not isinstance(found, dict):
        raise UserError(f"{path}: expected a JSON object, found {type(found).__name__}; choose another directory")
    marks = (Mark.EACH_START, Mark.MOVABLE) if (run_dir / TRAINED_ON).exists() else (Mark.EACH_START,)
    if different := changed_fields(found, config, *marks):
        raise UserError(
            f"{run_dir}: contains a run with a different config ({'; '.join(map(str, different[:3]))}); "
            "give the same options to continue it, or choose another directory"
        )


def check_trained_on(run_dir: Path, trained_on: Mapping[str, str]) -> None:
    """Raise UserError where a run learns from something else than these digests name; no record: nothing is known."""
    file = run_dir / TRAINED_ON
    known = read_json_object(file) if file.exists() else {}
    for name, digest in trained_on.items():
        if known.get(name, digest) != digest:
            raise UserError(
                f"{run_dir}: is a run with another {name}: its digest was {str(known[name])[:16]} and is now "
                f"{digest[:16]}; give the {name} that it was started with, or choose another directory"
            )


def claim_run_directory(run_dir: Path, config: Any, trained_on: Mapping[str, str] | None = None) -> None:
    """Make `run_dir` the directory of this config by writing config.json, where it is not that already.

    `trained_on` are digests of what the run learns from, which are recorded too. Raises UserError as
    `check_run_directory` and `check_trained_on` do, and where the disk refuses.
    """
    check_run_directory(run_dir, config)
    check_trained_on(run_dir, trained_on or {})
    try:
        run_dir.mkdir(parents=True, exist_ok=True)
        # Written also where it is there already: a run continues only where it can write.
        with atomic_file(run_dir / CONFIG_FILE) as aside:
            aside.write_text(json_text(to_json(config), run_dir / CONFIG_FILE, indent=2) + "\n", encoding="utf-8")
        if trained_on:
            with atomic_file(run_dir / TRAINED_ON) as aside:
                aside.write_text(json.dumps(trained_on, indent=2) + "\n", encoding="utf-8")
    except OSError as error:
        raise UserError(f"{run_dir}: cannot be written ({error.strerror}); choose another directory") from error


def owning_run_directory(
    train: Callable[Concatenate[Config, Path, Rest], Result],
) -> Callable[Concatenate[Config, Path, Rest], Result]:
    """A decorator for what trains by a config in a run directory: the directory is checked, and locked meanwhile.

    Programs of accelerators are kept in it.

    Raises UserError as `check_run_directory` does, and where another process writes there.
    """

    @functools.wraps(train)
    def run(config: Config, run_dir: Path, *rest: Rest.args, **more: Rest.kwargs) -> Result:
        if is_first_process():
            check_run_directory(run_dir, config)
        with locked_by_first(run_dir), programs_kept(run_dir / PROGRAMS):
            return train(config, run_dir, *rest, **more)

    return run


def read_config(config_class: type[Config], run_dir: Path) -> Config:
    """The config of a run directory. Raises UserError where there is none."""
    path = run_dir / CONFIG_FILE
    if not path.exists():
        raise UserError(f"{run_dir}: no config.json there; expected the directory of a training run")
    try:
        config = from_json(config_class, _mapped(read_json(path, "the config of a run"), stage), str(path))
    except UserError as error:
        inside = ", ".join(sorted(printable(file.parent.name) for file in run_dir.glob("*/config.json")))
        raise UserError(f"{error}; runs inside it: {inside}" if inside else str(error)) from error
    check_numbers(config, f"{path}: ")
    return config


def remove_run(
    run_dir: Path, config_class: type, outputs: Collection[str], *, inside: str = "", beside: Collection[str] = ()
) -> None:
    """Remove a run, so that it starts again; nothing is done where there is none, without a config.json.

    `outputs` are the names of what a run of this kind writes, besides its config. `inside` is the folder of `run_dir`
    that is the run itself, where others stand `beside` it. Raises UserError, and removes nothing, unless the config is
    one of `config_class`, all entries have names of ours, and nobody writes there.
    """
    if (run_dir / inside / CONFIG_FILE).exists():
        with locked_directory(run_dir), locked_directory(run_dir / inside):
            _remove_run(run_dir, config_class, {CONFIG_FILE, TRAINED_ON, *outputs}, inside, beside)


def _remove_run(
    run_dir: Path, config_class: type, outputs: Collection[str], inside: str, beside: Collection[str]
) -> None:
    run = run_dir / inside
    try:
        read_config(config_class, run)
    except UserError as error:
        raise UserError(
            f"{error}; so it is not recognised as a run of this command: remove {run_dir} yourself"
        ) from error
    if inside:
        check_own_names(run_dir, {inside, *beside})
    check_own_names(run, outputs)
    try:
        # Renamed first, so that who begins there meanwhile begins in a new directory.
        real = Path(os.path.realpath(run_dir))
        shutil.rmtree(real.rename(real.with_name(f".{real.name}.{os.getpid()}.old")))
    except OSError as error:
        why = error.strerror or error
        raise UserError(f"{run_dir}: cannot be removed ({why}); choose another directory") from error


def check_own_names(folder: Path, names: Collection[str]) -> None:
    """Raise UserError where a folder holds something else than what has these names, what comes with it, and locks."""
    own = re.compile(rf"\.?({'|'.join(map(re.escape, names))})(\.config\.json)?(\.\d+)?(\.partial|\.old)?")
    entries = folder.iterdir() if folder.is_dir() else ()
    ours = {"", *names, *(f"{name}.config.json" for name in names)}
    foreign = sorted(entry.name for entry in entries if not (own.fullmatch(entry.name) or lock_of(entry.name) in ours))
    if foreign:
        raise UserError(
            f"{folder}: contains {printable(foreign[0])}, which does not belong to a run; move it elsewhere, or "
            "choose another directory"
        )
