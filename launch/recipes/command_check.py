"""Whether a command of this project can be started as it was given: checked before a job waits in a queue for it."""

import contextlib
import importlib
import io
from collections.abc import Sequence
from pathlib import PurePath

from common.config_options import HELP
from common.errors import UserError
from common.options_only import OptionsRead, only_options
from common.scripts import run_command

SCRIPTS = {
    "retsta": "retsta_jax.cli",
    "unicross": "unicross_jax.cli",
    "deer": "deer_jax.cli",
    "medreport": "launch.cli",
}
WRITTEN = ("--output", "--run-dir", "--directory")  # where a command writes: the first of these that it is given


def check_command(command: Sequence[str], hosts: int, remedy: str) -> None:
    """Read the words of a command of this project as it would itself, up to where its work begins.

    `remedy` says how to ask for one host. Raises UserError for an unknown command, preset or option, for a value of the
    wrong type or out of bounds, for a missing option, and where there are several `hosts`, for a command that runs on
    one, and for checkpoints in `s3://`. Other programs are not checked.
    """
    script, words = PurePath(command[0]).name, list(command[1:])
    if script not in SCRIPTS or HELP & set(words):
        return
    if not words:
        raise UserError(f"{script}: no command; see {script} --help")
    commands = importlib.import_module(SCRIPTS[script]).COMMANDS
    known = commands.get(words[0])
    if hosts > 1 and known is not None and known.joins and not known.several_hosts:
        raise UserError(f"{script} {words[0]}: runs on one host only; {remedy}")
    option, path = written_path(command) or ("", "")
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


def written_path(command: Sequence[str]) -> tuple[str, str] | None:
    """The option that says where a command of this project writes, and its value; None where there is none."""
    if PurePath(command[0]).name not in SCRIPTS:
        return None
    given = {}
    for word, following in zip(command, [*command[1:], ""], strict=True):
        option, equals, value = word.partition("=")
        given[option] = value if equals else following
    return next(((option, given[option]) for option in WRITTEN if given.get(option)), None)
