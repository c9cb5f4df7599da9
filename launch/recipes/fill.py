"""Recipes as plain text: templates whose blanks are filled in, and words quoted so that they arrive unchanged."""

import argparse
import json
import os.path
import re
import shlex
from collections.abc import Mapping, Sequence
from pathlib import Path

TEMPLATES = Path(__file__).parent / "templates"
BLANK = re.compile(r"\{\{ (\w+) \}\}")
PLAIN = re.compile(r"[\w@%+=:,./-]+", re.ASCII)  # means the same to a shell, a `#SBATCH` line and YAML
TIME = re.compile(r"(\d+-)?\d+(:\d\d){0,2}", re.ASCII)  # what Slurm accepts
MEMORY = re.compile(r"0|[1-9]\d*[KMGT]", re.ASCII)
NAME = re.compile(r"[a-z]([a-z0-9-]{0,38}[a-z0-9])?")  # what Kubernetes and Google Cloud accept


def fill(template: str, blanks: Mapping[str, str]) -> str:
    """The template with each `{{ name }}` filled in.

    A line with an empty blank is left out. A blank on a line of its own may hold several lines, which are indented.
    """
    lines: list[str] = []
    for line in (TEMPLATES / template).read_text("utf-8").split("\n"):
        names = BLANK.findall(line)
        if any(not blanks[name] for name in names):
            continue
        if BLANK.fullmatch(line.strip()):
            indent = line[: len(line) - len(line.lstrip())]
            lines += [f"{indent}{part}".rstrip(" ") for part in blanks[names[0]].split("\n")]
        else:
            lines.append(BLANK.sub(lambda found: blanks[found[1]], line))
    return "\n".join(lines)


def bash_words(command: Sequence[str]) -> str:
    """The words of a bash array, each option on a line of its own."""
    lines: list[list[str]] = [[]]
    for word in command:
        if word.startswith("-") and lines[-1]:
            lines.append([])
        lines[-1].append(quoted(word))
    return "\n".join(" ".join(line) for line in lines)


def quoted(word: str) -> str:
    """The word for bash, on one line: `#SBATCH` and YAML would read a line break in it."""
    if word.isprintable():
        return shlex.quote(word)
    escaped = "".join(
        char if char.isprintable() and char not in "'\\" else "".join(f"\\{byte:03o}" for byte in char.encode())
        for char in word
    )
    return f"$'{escaped}'"


def yaml_words(command: Sequence[str]) -> str:
    """The words as a YAML list for Kubernetes, which would otherwise expand `$(NAME)` in them."""
    words = (json.dumps(word.replace("$", "$$"), ensure_ascii=False) for word in command)
    return "\n".join(
        "- " + "".join(char if char.isprintable() else f"\\U{ord(char):08x}" for char in word) for word in words
    )


def plain(text: str) -> str:
    """The type of an option that enters a recipe unquoted."""
    if not PLAIN.fullmatch(text):
        raise argparse.ArgumentTypeError(f"{text!r}: expected letters, digits and @%+=:,./_- only, without spaces")
    return text


def plain_words(text: str) -> str:
    """The type of an option that holds several such words."""
    return " ".join(plain(word) for word in text.split())


def mount_point(text: str) -> str:
    """The type of an option that says where a disk is mounted."""
    if not plain(text).startswith("/") or not os.path.normpath(text).strip("/"):
        raise argparse.ArgumentTypeError(f"{text!r}: expected an absolute path of a directory below /, such as /runs")
    return text


def duration(text: str) -> str:
    """The type of an option that says how long a job may run."""
    if not TIME.fullmatch(text):
        raise argparse.ArgumentTypeError(f"{text!r}: expected hours as 24:00:00, days as 2-00:00:00, or minutes as 90")
    return text


def seconds_of(text: str) -> int:
    """The seconds of a duration as Slurm reads it: MINUTES[:SECONDS], HOURS:MINUTES:SECONDS or DAYS-HOURS[:...]."""
    days, dash, rest = text.rpartition("-")
    parts = [int(part) for part in rest.split(":")]
    units = (3600, 60, 1) if dash or len(parts) == 3 else (60, 1)
    return 86_400 * int(days or 0) + sum(part * unit for part, unit in zip(parts, units, strict=False))


def memory_size(text: str) -> str:
    """The type of an option that says how much memory a node has."""
    if not MEMORY.fullmatch(text):
        raise argparse.ArgumentTypeError(f"{text!r}: expected a number with K, M, G or T, such as 500G, or 0")
    return text


def name(text: str) -> str:
    """The type of the option that names a job: a DNS label."""
    if not NAME.fullmatch(text):
        raise argparse.ArgumentTypeError(f"{text!r}: expected up to 40 lowercase letters, digits and -, a letter first")
    return text
