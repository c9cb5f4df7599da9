"""Whether a command of this project can be started as it was given: checked before a job waits in a queue for it."""

import contextlib
import importlib
import io
import re
import shutil
from collections.abc import Sequence
from pathlib import PurePath

from common.config_options import HELP
from common.errors import UserError, did_you_mean
from common.io.store_objects import parse_address
from common.options_only import OptionsRead, only_options
from common.scripts import run_command

SCRIPTS = {
    "retsta": "retsta_jax.cli",
    "unicross": "unicross_jax.cli",
    "deer": "deer_jax.cli",
    "medreport": "launch.cli",
}
WRITTEN = ("--output", "--run-dir", "--directory")  # where a command writes: the first of these that it is given
# Commands whose rows go to standard output, which is a log here, without --output. By SCRIPT and words that come first.
PRINTS_ROWS = (
    ("retsta", "standardize"), ("retsta", "augment"), ("retsta", "terminology", "match"), ("unicross", "report"),
    ("deer", "label"), ("deer", "weights"), ("medreport", "decode"),
)  # fmt: skip
LITERAL = re.compile(r"~\S*|\S*\$\{?[A-Za-z_]\S*")  # what a shell would have replaced


def check_command(command: Sequence[str], hosts: int, remedy: str) -> None:
    """Read the words of a command of this project as it would itself, up to where its work begins.

    `remedy` says how to ask for one host. Raises UserError for an unknown command, preset or option, for a value of the
    wrong type or out of bounds, for a missing option, for an address that cannot be used, for rows that would stand in
    a log, and where there are several `hosts`, for a command that runs on one, and for checkpoints in `s3://`. Of other
    programs only the name is checked.
    """
    check_program(command[0])
    script, words = PurePath(command[0]).name, list(command[1:])
    if script not in SCRIPTS or HELP & set(words):
        return
    if not words:
        raise UserError(f"{script}: no command; see {script} --help")
    commands = importlib.import_module(SCRIPTS[script]).COMMANDS
    known = commands.get(words[0])
    if hosts > 1 and known is not None and known.joins and not known.several_hosts:
        raise UserError(f"{script} {words[0]}: runs on one host only; {remedy}")
    for word in words:
        check_place(word)
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
    prints = next((names for names in PRINTS_ROWS if names == (script, *words[: len(names) - 1])), None)
    if prints and not given(words, "--output"):
        raise UserError(
            f"{' '.join(prints)}: without --output its rows would stand in the job's log, and a restart would begin "
            "anew; give --output FILE.jsonl"
        )
    if (script, words[0]) == ("medreport", "doctor") and (preset := given(words, "--preset")):
        from launch.doctor_presets import PRESETS

        if preset not in PRESETS:
            raise UserError(f"--preset {preset}: unknown{did_you_mean(preset, PRESETS)}; expected {', '.join(PRESETS)}")


def check_program(program: str) -> None:
    """Raise UserError for a misspelt script of this project, and for a whole command in the place of a program.

    A program that is found here, or that is named by its path, is what was meant.
    """
    if len(program.split()) > 1:
        raise UserError(
            f"{program!r}: is one word, expected the name of a program; leave out the quotes around the command (a "
            "program whose path has spaces: -- env PATH)"
        )
    if program in SCRIPTS or "/" in program or shutil.which(program):
        return
    if nearest := did_you_mean(program, SCRIPTS):
        raise UserError(f"{program}: unknown program{nearest}; another program is started by its whole path")


def check_place(word: str) -> None:
    """Raise UserError for an address that cannot be used, and for what only a shell would read as a path."""
    option, equals, value = word.partition("=") if word.startswith("--") else ("", "", word)
    parse_address(value)
    if LITERAL.fullmatch(value):
        raise UserError(f"{option}{equals}{value}: is taken literally; give the whole path")


def given(words: Sequence[str], name: str) -> str:
    """The value of an option, the last where it is given several times; empty where it is not given."""
    found = ""
    for word, following in zip(words, [*words[1:], ""], strict=True):
        option, equals, value = word.partition("=")
        if option == name:
            found = value if equals else following
    return found


def written_path(command: Sequence[str]) -> tuple[str, str] | None:
    """The option that says where a command of this project writes, and its value; None where there is none."""
    if PurePath(command[0]).name not in SCRIPTS:
        return None
    return next(((option, value) for option in WRITTEN if (value := given(command, option))), None)
