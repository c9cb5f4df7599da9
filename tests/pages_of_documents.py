"""The documents as tests read them: blocks of code, the commands in them, and whether each command's options exist."""

import re
import shlex
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).parents[1]
NAMED = ("README.md", "CONTRIBUTING.md", "SECURITY.md")
PAGES = sorted([*(ROOT / name for name in NAMED), *(ROOT / "docs").rglob("*.md")])
NEEDS = "# needs "  # begins a block whose commands are not run: they need data, hardware, a network or much time
FENCE = re.compile(r"^( *)(`{3,})(\w*)(?: title=\"([^\"]*)\")?\s*$")
SHELL = ("", "bash", "sh")
CONTROL = ("for ", "do", "done", "set ")  # lines of a loop that start no command


class Block(NamedTuple):
    """A block of code in a page."""

    page: Path
    line: int
    language: str
    title: str
    text: str

    @property
    def where(self) -> str:
        return f"{self.page.relative_to(ROOT)}, line {self.line}"

    @property
    def is_run(self) -> bool:
        """Whether a test must run it."""
        return not self.text.startswith(NEEDS)


def blocks_of(page: Path) -> list[Block]:
    """The fenced blocks of a page, without the indentation of what they stand in."""
    found: list[Block] = []
    lines = page.read_text("utf-8").split("\n")
    number = 0
    while number < len(lines):
        opened = FENCE.match(lines[number])
        number += 1
        if opened is None:
            continue
        indent, fence, language, title = opened.groups()
        start = number
        while lines[number].strip() != fence:
            number += 1
        text = "\n".join(line.removeprefix(indent) for line in lines[start:number])
        found.append(Block(page, start, language, title or "", text))
        number += 1
    return found


def shell_blocks(page: Path) -> list[Block]:
    """Those that hold commands."""
    return [block for block in blocks_of(page) if block.language in SHELL]


def commands_of(text: str) -> Iterator[list[str]]:
    """The words of each command in a block of shell, in order; those of a pipe one after the other."""
    for line in text.replace("\\\n", " ").split("\n"):
        line = line.strip()
        if not line or line.startswith(("#", *CONTROL)):
            continue
        lexer = shlex.shlex(line, posix=True, punctuation_chars="|&;<>")
        lexer.whitespace_split = True
        words: list[str] = []
        for word in [*lexer, ";"]:
            if word in ("|", "&&", ";"):
                if words:
                    yield words
                words = []
            else:
                words.append(word)


def inline_commands(page: Path, scripts: tuple[str, ...]) -> Iterator[list[str]]:
    """Commands with options that stand within a sentence or a table, as far as they are given there."""
    text = re.sub(r"^( *)(`{3,}).*?^\1\2\s*$", "", page.read_text("utf-8"), flags=re.MULTILINE | re.DOTALL)
    for code in re.findall(r"`([^`\n]+)`", text):
        if code.split(" ")[0] in scripts and " --" in code and "..." not in code:
            yield shlex.split(code)
