"""`medreport launch PLATFORM [options] -- COMMAND ...`: a recipe, a short file that starts a command on many devices.

The recipe is printed. `--write` keeps it and `--submit` starts it with the platform's own tool; otherwise nothing is
started or written.
"""

import os
import re
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

from common.errors import Parser, UserError, did_you_mean
from common.io.files import atomic_file
from common.io.terminal import printable, say
from launch.recipes.command_check import check_command
from launch.recipes.platforms import PLATFORMS, Platform

OTHER_NAMES = {
    "kubernetes": "gke", "k8s": "gke", "kubectl": "gke", "jobset": "gke", "gcp": "gke", "sbatch": "slurm",
    "srun": "slurm", "gcloud": "tpu", "sky": "skypilot", "localhost": "local",
}  # of platforms  # fmt: skip
SECRET = re.compile(r"""(?<![\w$.-])(\w*(?:KEY|TOKEN|SECRET|PASSWORD))=(?!["']?\$)["']?[^\s"';]""")
SECRETS = "docs/how-to/hosts.md says how a job gets a secret"


def main(arguments: Sequence[str]) -> int:
    """Print, write or start a recipe. Returns the exit code of what was started, otherwise 0. Raises UserError."""
    if not arguments or arguments[0] in ("-h", "--help"):
        print(usage())
        return 0
    name, *rest = arguments
    if name not in PLATFORMS:
        raise UserError(
            f"medreport launch {name}: unknown platform{nearest_platform(name)}; expected {', '.join(PLATFORMS)}"
        )
    platform = PLATFORMS[name]
    words, command = split_command(rest)
    parser = parser_of(name, platform)
    if "--" not in rest and (begin := parser.first_word_apart(words)):
        raise UserError(
            f"medreport launch {name}: put -- before the command: medreport launch {name} [options] -- "
            f"{printable(' '.join(begin[:2]))} ..."
        )
    options = parser.parse_args(words)
    if options.dry_run and options.submit:
        raise UserError(f"medreport launch {name}: --dry-run starts nothing, and --submit does; give one of them")
    if not command or not command[0].strip():
        raise UserError(f"medreport launch {name}: no command; expected -- COMMAND ... at the end")
    for word in command:
        check_word(word)
    text = platform.recipe(options, command)
    check_setup(getattr(options, "setup", ""))
    check_command(command, platform.hosts(options), platform.one_host)
    platform.check_storage(options, command)
    for name in secrets_in([getattr(options, "setup", ""), *command]):
        say(f"warning: {name} is given a value, which stands in the recipe for all to read; {SECRETS}", error=True)
    if options.dry_run:
        print(text, end="")
        return 0
    return act(platform, text, options.write, options.submit)


def nearest_platform(name: str) -> str:
    """The end of a message on an unknown platform: the one that is meant, or nothing."""
    return (
        f" (did you mean {OTHER_NAMES[name.lower()]}?)"
        if name.lower() in OTHER_NAMES
        else did_you_mean(name, PLATFORMS)
    )


def act(platform: Platform, text: str, file: Path | None, submit: bool) -> int:
    """Write and start a recipe as asked for. Returns the exit code. Raises UserError before anything is started."""
    if submit and shutil.which(platform.tool) is None:
        raise UserError(
            f"{platform.tool}: not found, so nothing was started; {platform.remedy}, or use --write FILE and start the "
            f"file on a machine that has {platform.tool}"
        )
    if file:
        write_new(file, text)
    print(text, end="", flush=True)
    if not submit:
        again = f"start it with `{' '.join([*platform.words, str(file)])}`" if file else "--submit starts it"
        print(f"{'written' if file else 'nothing was started'}; {again}", file=sys.stderr)
        return 0
    if platform.words == ("bash",):
        for stream in (sys.stdout, sys.stderr):
            stream.flush()
        # Replaces this process, so that a signal reaches the script, which passes it on.
        os.execvp("bash", ["bash", "-c", text, str(file or "medreport-launch")])
    with tempfile.TemporaryDirectory() as folder:
        taken = file or Path(folder) / "recipe"
        if not file:
            taken.write_text(text, "utf-8")
        return subprocess.run([*platform.words, str(taken)]).returncode


def write_new(file: Path, text: str) -> None:
    """Write the file atomically. Raises UserError where it exists already or cannot be written."""
    if file.exists() or file.is_symlink():
        raise UserError(f"{file}: exists; choose another file, or remove it")
    try:
        with atomic_file(file) as aside:
            aside.write_text(text, "utf-8")
    except OSError as error:
        raise UserError(f"{file}: cannot be written ({error.strerror}); choose another file") from error


def split_command(words: Sequence[str]) -> tuple[list[str], list[str]]:
    """The options, and the command that follows `--`."""
    at = words.index("--") if "--" in words else len(words)
    return list(words[:at]), list(words[at + 1 :])


def check_word(word: str) -> None:
    """Raise UserError for a word of the command that is not valid UTF-8."""
    try:
        word.encode("utf-8")
    except UnicodeEncodeError as error:
        raise UserError(f"{word!r}: is not valid UTF-8, as every word of the command must be") from error


def check_setup(lines: str) -> None:
    """Raise UserError for a --setup that bash cannot read. Where there is no bash, nothing is checked."""
    if not lines.strip() or shutil.which("bash") is None:
        return
    environment = os.environ | {"LC_ALL": "C"}
    read = subprocess.run(["bash", "-n"], input=lines, capture_output=True, text=True, env=environment, check=False)
    if read.returncode:
        reason = printable(read.stderr.strip().split("\n")[0].removeprefix("bash: "))
        raise UserError(f"--setup: bash cannot read it ({reason}); give whole commands, separated by ; or line breaks")


def secrets_in(texts: Sequence[str]) -> list[str]:
    """The variables for a secret that are given a value in clear, not that of another variable or command."""
    return list(dict.fromkeys(found for text in texts for found in SECRET.findall(text)))


def parser_of(name: str, platform: Platform) -> Parser:
    """The parser of a platform's options."""
    parser = Parser(
        f"medreport launch {name}",
        usage=f"medreport launch {name} [options] [--dry-run | --write FILE] [--submit] -- COMMAND ...",
        description=f"Start a command on {platform.does}.",
    )
    platform.add_options(parser)
    for action in parser._actions:
        if action.required:
            action.help = f"{action.help} (required)"
    shown = parser.add_mutually_exclusive_group()
    shown.add_argument("--dry-run", action="store_true", help="print the recipe and do nothing else")
    shown.add_argument("--write", type=Path, metavar="FILE", help="write the recipe to FILE")
    parser.add_argument("--submit", action="store_true", help="start the recipe (nothing is started otherwise)")
    return parser


def usage() -> str:
    """The platforms as text."""
    lines = [f"  {name:{max(map(len, PLATFORMS))}}  {platform.does}" for name, platform in PLATFORMS.items()]
    return "\n".join(
        ["usage: medreport launch PLATFORM [options] -- COMMAND ...", "", *lines, "", "Each platform has --help."]
    )
