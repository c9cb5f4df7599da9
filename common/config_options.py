"""A config from a command line: a preset, and any of its fields by name (`--optim.learning-rate 1e-4`).

The options of a command are those of its own parser and every field of its config, which tyro parses and shows with
default and comment. When tyro rejects a value, it draws a box on standard error and exits, without a public way to ask
what was wrong. So each option is then parsed alone, and the first rejected one is named in the error.
"""

import argparse
import contextlib
import dataclasses
import io
import re
import types
import typing
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar

from common.bounds import COUNT, COUNT_OR_NONE, bounded, check_numbers
from common.errors import Parser, UserError, did_you_mean
from common.io.terminal import printable, say
from common.options import Needs, check_options, flag
from common.options_only import end_of_options

Config = TypeVar("Config")

HELP = frozenset({"-h", "--help"})
OPTION = re.compile(r"--?(?!(inf|infinity|nan)$)[a-z]", re.IGNORECASE)  # how one begins, unlike a negative number
WORDS = {int: "a whole number", float: "a number", bool: "True or False", str: "text", types.NoneType: "None"}


def preset_parser(
    program: str, presets: Mapping[str, Any], description: str, output: str = "--run-dir DIR", *, choice: str = ""
) -> Parser:
    """A parser for `read_preset_options`, to which a command adds its own options.

    `output` is the option for where it writes, and `choice` what the usage has before all options.
    """
    option, metavar = output.split()
    options = Parser(
        program,
        usage=" ".join(filter(None, [program, choice, "--preset NAME", output, "[options] [any field of the config]"])),
        description=description,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        add_help=False,
    )
    options.add_argument("--preset", metavar="NAME", help=f"starting point of the config: {', '.join(presets)}")
    where = "output directory; the same command continues an existing run"
    options.add_argument(option, type=Path, metavar=metavar, required=True, help=where)
    return options


def evaluation_parser(program: str, of: str) -> Parser:
    """A parser for a command that scores a run on reports or studies (`of`); it may add options of its own."""
    options = Parser(
        program, description="Score a run and its baselines; writes metrics.json, predictions.jsonl, report.html."
    )
    options.add_argument("--run-dir", type=Path, required=True)
    options.add_argument("--split", choices=("test", "validation"), default="test")
    limit = f"maximum number of {of}; 0 (default): all"
    options.add_argument("--limit", type=bounded(COUNT_OR_NONE), default=0, help=limit)
    add_batch_size(options, of)
    return options


def add_batch_size(options: argparse.ArgumentParser, of: str, default: int = 32) -> None:
    """Add `--batch-size`, which means the same in every command that writes or labels."""
    options.add_argument(
        "--batch-size", type=bounded(COUNT), default=default, metavar="N",
        help=f"{of} at a time on each device; it changes time and memory, not what is written; default: %(default)s",
    )  # fmt: skip


def read_preset_options(
    options: Parser,
    presets: Mapping[str, Config],
    arguments: Sequence[str],
    needs: Sequence[Needs] = (),
    check: Callable[[Config], None] | None = None,
) -> tuple[Config, argparse.Namespace]:
    """The config that `arguments` make of the preset they name, and the command's own options, as `read_options` does.

    `check` raises UserError for a config that lacks what it needs; it opens no file, and no device.
    Raises UserError also where no preset is named: what is trained, and on what data, is never chosen in silence.
    """
    first, program = Parser(options.prog, add_help=False), options.prog
    first.add_argument("--preset")
    name = first.parse_known_args(arguments)[0].preset
    if name is not None:
        default = choose_preset(presets, name)
        return read_options(options, default, arguments, needs, presets, f"{program} --preset {name}", check)
    if HELP & set(arguments):
        options.epilog = "Defaults shown below are those without a preset; --preset NAME --help shows the preset's."
        return read_options(options, type(next(iter(presets.values())))(), arguments)
    raise UserError(f"{program}: --preset NAME is missing; presets are {', '.join(presets)}")


def first_word(program: str, choices: Collection[Any], arguments: Sequence[str]) -> tuple[str, list[str]]:
    """The word of `choices` that a command line begins with, and the rest. Raises UserError, unless help is asked."""
    if arguments and arguments[0] in map(str, choices):
        return arguments[0], list(arguments[1:])
    if HELP & set(arguments):
        return "", list(arguments)
    raise UserError(f"{program}: expected one of {', '.join(map(str, choices))} as the first word")


def choose_preset(presets: Mapping[str, Config], name: str) -> Config:
    """The preset of that name. Raises UserError with the nearest match."""
    if name not in presets:
        raise UserError(f"--preset {name}: unknown{did_you_mean(name, presets)}; presets are {', '.join(presets)}")
    return presets[name]


def read_options(
    options: Parser,
    default: Config,
    arguments: Sequence[str],
    needs: Sequence[Needs] = (),
    presets: Mapping[str, Config] | None = None,
    program: str = "",
    check: Callable[[Config], None] | None = None,
) -> tuple[Config, argparse.Namespace]:
    """The config that `arguments` make of `default`, and the command's own options; `--help` prints both and exits.

    Raises UserError as `parse` does.
    """
    if HELP & set(arguments):
        options.print_help()
        print()
        return parse(type(default), default, ["--help"], program or options.prog), argparse.Namespace()
    chosen, rest = options.parse_known_args(arguments)
    return parse(type(default), default, rest, program or options.prog, needs, presets, check), chosen


def with_new_names(arguments: Sequence[str], former: Mapping[str, str]) -> list[str]:
    """The arguments, where an option by its `former` name is taken by its new one, with a warning."""
    found = []
    for argument in arguments:
        option, equals, value = argument.partition("=")
        new = former.get(option.removeprefix("--").replace("-", "_"), "") if option.startswith("--") else ""
        if new:
            say(f"warning: {option} is now {flag(new)}", error=True)
        found.append(f"{flag(new)}{equals}{value}" if new else argument)
    return found


def parse(
    config_class: type[Config],
    default: Config,
    arguments: Sequence[str],
    program: str,
    needs: Sequence[Needs] = (),
    presets: Mapping[str, Config] | None = None,
    check: Callable[[Config], None] | None = None,
) -> Config:
    """The config that `arguments` make of `default`; `--help` prints and exits.

    Raises UserError in one line, also for an option that by `needs` has no effect; one of the `presets` may be the
    remedy. `check` raises one for what is lacking.
    """
    arguments = with_new_names(arguments, getattr(config_class, "FORMER", {}))
    read = _read(config_class, default, arguments, program)
    if read is None or read[1]:
        raise UserError(f"{program}: {_complaint(config_class, default, arguments)}; see {program} --help")
    check_options(read[0], arguments, needs, program, presets)
    check_numbers(read[0])
    if check is not None:
        check(read[0])
    end_of_options()
    return read[0]


def _read(
    config_class: type[Config], default: Config, arguments: Sequence[str], program: str = ""
) -> tuple[Config, list[str]] | None:
    """What tyro makes of the words, and those that are none of its; None where it refuses a value."""
    import tyro

    loud = bool(HELP & set(arguments))
    try:
        with contextlib.nullcontext() if loud else contextlib.redirect_stderr(io.StringIO()):
            return tyro.cli(
                config_class,
                default=default,
                args=list(arguments),
                prog=program,
                config=(tyro.conf.FlagConversionOff,),
                return_unknown_args=True,
                console_outputs=loud,
            )
    except SystemExit as stop:
        if not stop.code:
            raise
        return None


def _complaint(config_class: type[Config], default: Config, arguments: Sequence[str]) -> str:
    """What is wrong with the first option, or other word, that tyro does not take."""
    fields = dict(_fields(config_class))
    for words in _by_option(arguments):
        option, assigned, value = words[0].partition("=")
        hint = fields.get(option.replace("_", "-"))
        if not OPTION.match(option):
            return f"{printable(option)}: unknown argument"
        if hint is None:
            return f"{printable(option)}: unknown option{_alternatives(option.replace('_', '-'), fields)}"
        read = _read(config_class, default, words)
        if read is None:
            found = value if assigned else " ".join(words[1:])
            return f"{option}: expected {_expected(hint)}, found {printable(repr(found)) if found else 'nothing'}"
        if read[1]:
            return f"{option}: takes one value, found {printable(repr(read[1][0]))} after it"
    return "these options cannot be read together"


def _alternatives(option: str, options: Collection[str]) -> str:
    """The options of a folder that was named alone, otherwise the nearest option."""
    if inside := [one for one in options if one.startswith(f"{option}.")]:
        return f"; there are {', '.join(inside)}"
    return did_you_mean(option, options)


def _by_option(arguments: Sequence[str]) -> Iterator[list[str]]:
    """Each option with what follows it."""
    words: list[str] = []
    for word in arguments:
        if OPTION.match(word) and words:
            yield words
            words = []
        words.append(word)
    if words:
        yield words


def _fields(config_class: Any, folder: str = "") -> Iterator[tuple[str, Any]]:
    """The option of each field, and the field's type."""
    for name, hint in typing.get_type_hints(config_class).items():
        if dataclasses.is_dataclass(hint):
            yield from _fields(hint, f"{folder}{name}.")
        else:
            yield flag(folder + name), hint


def _expected(hint: Any) -> str:
    """The values of a type, in words."""
    origin, inner = typing.get_origin(hint), typing.get_args(hint)
    if origin is typing.Literal:
        return " or ".join(map(str, inner))
    if origin is types.UnionType:
        return " or ".join(map(_expected, inner))
    if origin is tuple:
        return f"{_expected(inner[0])} each"
    return WORDS.get(hint, getattr(hint, "__name__", str(hint)))
