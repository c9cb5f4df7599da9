"""Console scripts as tables: for each command its name, purpose, an example and the function that runs it."""

import functools
import importlib
import sys
from collections.abc import Mapping
from typing import NamedTuple

from common.command import run_cli
from common.errors import UserError, did_you_mean


class Command(NamedTuple):
    """A command of a console script."""

    does: str  # in a few words
    example: str  # what stands after the names of the script and of the command
    function: str  # module:function of its arguments, which returns an exit code or None; imported when it is run
    several_hosts: bool = False  # can be started on several hosts, which then work together
    joins: bool = True  # False: on several hosts, each runs it by itself


def run_script(script: str, commands: Mapping[str, Command]) -> None:
    """Run what the words of this process ask for, and exit."""
    hosts = [name for name, command in commands.items() if command.several_hosts]
    apart = [name for name, command in commands.items() if not command.joins]
    run_cli(functools.partial(run_command, script, commands), hosts=hosts, apart=apart)


def run_command(script: str, commands: Mapping[str, Command], arguments: list[str]) -> int | None:
    """The exit code of the command that `arguments` name first. Raises UserError where there is none of that name."""
    if not arguments or arguments[0] in ("-h", "--help"):
        print(usage(script, commands))
        return None
    name, *rest = arguments
    if name not in commands:
        nearest = did_you_mean(name, commands)
        raise UserError(f"{script} {name}: unknown command{nearest}; expected {', '.join(commands)}")
    module, _, function = commands[name].function.partition(":")
    return getattr(importlib.import_module(module), function)(rest)


def usage(script: str, commands: Mapping[str, Command]) -> str:
    """The table as text."""
    names, does = max(map(len, commands)), max(len(command.does) for command in commands.values())
    lines = [
        f"  {name:{names}}  {command.does + ':':{does + 1}} {script} {name} {command.example}".rstrip()
        for name, command in commands.items()
    ]
    return "\n".join([f"usage: {script} COMMAND ...", "", *lines, "", "Each command has --help."])


def run_former(module: str, name: str, function: str) -> None:
    """Do what `python -m MODULE` did before it became `medreport NAME`, and warn of the new name."""
    warn_of_former(module, name)
    sys.argv.insert(1, name)
    run_script("medreport", {name: Command("", "", function)})


def warn_of_former(former: str, *name: str) -> None:
    """Say that `python -m FORMER` is now a command of `medreport`."""
    print(f"warning: `python -m {former}` is now `{' '.join(['medreport', *name])}`", file=sys.stderr, flush=True)
