"""Whether a command of this project can be started as it was given: checked before a job waits in a queue for it."""

import contextlib
import importlib
import io
from collections.abc import Sequence
from pathlib import PurePath

from common.config_options import HELP
from common.errors import UserError, did_you_mean
from common.io.store_objects import parse_address
from common.io.terminal import printable
from common.options_only import OptionsRead, only_options
from common.scripts import run_command

SCRIPTS = {
    "retsta": "retsta_jax.cli",
    "unicross": "unicross_jax.cli",
    "deer": "deer_jax.cli",
    "medreport": "launch.cli",
}
# Commands that print rows, with the text of reports, where they are given no file.
PRINTING = {
    "retsta standardize", "retsta augment", "retsta translate", "retsta terminology match", "unicross report",
    "deer label", "deer weights", "medreport decode",
}  # fmt: skip
WRITTEN = ("--output", "--run-dir", "--directory")  # where a command writes: the first of these that it is given


def check_command(command: Sequence[str], hosts: int, remedy: str) -> None:
    """Read the words of a command of this project as it would itself, up to where its work begins.

    `remedy` says how to ask for one host. Raises UserError for an unknown command, preset or option, for a value of the
    wrong type or out of bounds, for a missing option, for a path that a shell was to complete, for an address that
    cannot be used, for report text that would go into a log, and where there are several `hosts`, for a command that
    runs on one, and for checkpoints in `s3://`. Other programs are not checked, unless they are nearly one of these.
    """
    script, words = PurePath(command[0]).name, list(command[1:])
    if script not in SCRIPTS:
        check_program(command)
        return
    if HELP & set(words):
        return
    if not words:
        raise UserError(f"{script}: no command; see {script} --help")
    commands = importlib.import_module(SCRIPTS[script]).COMMANDS
    known = commands.get(words[0])
    option, path = written_path(command) or ("", "")
    if option != "--output" and {f"{script} {' '.join(words[:count])}" for count in (1, 2)} & PRINTING:
        raise UserError(f"{script} {words[0]}: would print the text of reports into a log; give --output FILE")
    if hosts > 1 and known is not None and known.joins and not known.several_hosts:
        raise UserError(f"{script} {words[0]}: runs on one host only; {remedy}")
    if path.startswith("~") or "$" in path:
        raise UserError(f"{option} {path}: is taken as it stands, and no shell completes it; give the whole path")
    for word in words:
        parse_address(word.partition("=")[2] if word.startswith("--") else word)
    run = option == "--run-dir" or words[0] == "train-labeler"  # which holds checkpoints
    if hosts > 1 and run and path.startswith("s3://"):
        raise UserError(
            f"{option} {path}: several hosts cannot share checkpoints in s3://; give gs:// or a disk that all hosts "
            f"share, or {remedy}"
        )
    with only_options(), contextlib.suppress(OptionsRead), contextlib.redirect_stdout(io.StringIO()):
        run_command(script, commands, words)
        # What prints its usage instead gets here.
        raise UserError(f"{script} {words[0]}: no options; see {script} {words[0]} --help")


def check_program(command: Sequence[str]) -> None:
    """Raise UserError for a program that is one of this project's but for a slip."""
    program = command[0]
    if len(command) == 1 and program.partition(" ")[0] in SCRIPTS:
        raise UserError(f"{printable(program)}: is one word; give the command without quotes around it")
    nearest = "" if "/" in program else did_you_mean(program, SCRIPTS)
    if nearest:
        raise UserError(f"{printable(program)}: no command of this project{nearest}; another program: give its path")


def written_path(command: Sequence[str]) -> tuple[str, str] | None:
    """The option that says where a command of this project writes, and its value; None where there is none."""
    if PurePath(command[0]).name not in SCRIPTS:
        return None
    given = {}
    for word, following in zip(command, [*command[1:], ""], strict=True):
        option, equals, value = word.partition("=")
        given[option] = value if equals else following
    return next(((option, given[option]) for option in WRITTEN if given.get(option)), None)
