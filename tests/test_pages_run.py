"""The pages that lead a newcomer, run from top to bottom: code and commands in order, each page in a folder of its own.

Trainings are cut to two updates and evaluations to a few reports. What `make demo` does has tests of its own.
"""

import contextlib
import importlib
import io
import re
import shlex
import sys
from pathlib import Path

import pytest

from common.command import run_cli
from tests.pages_of_documents import CONTROL, ROOT, SHELL, Block, blocks_of, shell_blocks
from tests.pages_of_documents import PAGES as ALL_PAGES
from tests.test_documents import SCRIPTS

# What is added to a command, so that it takes seconds.
SHORT = {
    "retsta train": "--parallel jit --max-steps 2 --data.validation-size 4 --data.test-size 4 --data.train-size 40",
    "retsta evaluate": "--limit 4",
    "unicross train": "--parallel jit --max-steps 2",
    "unicross evaluate": "--limit 4 --beams 1",
    "deer sample": "--parallel jit",
    "deer rl": "--parallel jit --steps 1 --data.train-size 16 --data.validation-size 4 --data.test-size 4",
}
OF_PAIRS = "--parallel jit --max-steps 2"  # `retsta train` on files, which has no sizes
ELSEWHERE = ("make", "source", "export", "docker")
PAGES = {  # and the pages before it whose files it uses
    "README.md": [],
    "docs/tutorials/standardize.md": [],
    "docs/tutorials/radiographs.md": [],
    "docs/tutorials/custom.md": [],
    "docs/how-to/labeler.md": [],
    "docs/how-to/own-data.md": [],
    "docs/how-to/own-specialty.md": ["docs/how-to/labeler.md"],
    "docs/how-to/own-idea.md": ["docs/tutorials/standardize.md", "docs/how-to/labeler.md"],
    "docs/how-to/scorers.md": ["docs/tutorials/radiographs.md"],
    "docs/quick-start.md": ["docs/tutorials/standardize.md"],
}


@pytest.fixture(scope="module")
def folders(tmp_path_factory) -> dict[str, Path]:
    """The folder of each page that has run."""
    return {}


@pytest.fixture
def run_page(folders, tmp_path_factory, monkeypatch):
    """Run a page, after those that it builds on."""

    def run(name: str) -> Path:
        if name not in folders:
            folder = tmp_path_factory.mktemp("page")
            for before in PAGES[name]:
                for entry in [*run(before).iterdir(), *run(before).glob("runs/*/predictions.jsonl")]:
                    (folder / entry.name).symlink_to(entry)
            monkeypatch.chdir(folder)
            monkeypatch.syspath_prepend(str(folder))
            for block in blocks_of(ROOT / name):
                if block.is_run:
                    run_block(block, folder)
            folders[name] = folder
        return folders[name]

    return run


def run_block(block: Block, folder: Path) -> None:
    """Code of Python, the commands of a shell, or a terminology."""
    if block.language == "csv":
        (folder / "terms.csv").write_text(block.text + "\n")
    elif block.language == "python":
        file, *continued = (block.title or "block.py").split(", ")
        (folder / file).open("a" if continued else "w").write(block.text + "\n\n\n")
        if not block.title:
            exec(compile(block.text, block.where, "exec"), {"__name__": "__main__"})
    elif block.language in SHELL:
        for line in block.text.replace("\\\n", " ").split("\n"):
            command = line.split(" #")[0].strip()
            if command and not command.startswith(("#", *CONTROL, *ELSEWHERE)):
                run_line(command, block.where)


def run_line(line: str, where: str) -> None:
    """One command, with what is piped into it or the file that it writes."""
    stdin = ""
    if echoed := re.fullmatch(r"echo (['\"])(.*?)\1 *([>|]) *(.*)", line):
        _, text, what, rest = echoed.groups()
        if what == ">":
            Path(rest).write_text(text + "\n")
            return
        stdin, line = text + "\n", rest
    line = re.sub(r'"\$\(python -c .*?\)/', f'"{ROOT}/deer_jax/', line)  # the folder of the installed package
    words = shlex.split(line)
    sys.modules.pop("mine", None)  # a page goes on writing it
    if words[0] == "python":
        exec(compile(Path(words[1]).read_text(), words[1], "exec"), {"__name__": "__main__"})
        return
    short = OF_PAIRS if "--data.corpus" in words else SHORT.get(" ".join(words[:2]), "")
    words = [word.replace("runs/demo", "runs/mine") for word in words]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(stdin.encode()), encoding="utf-8"))
        with pytest.raises(SystemExit) as stop, contextlib.redirect_stdout(io.StringIO()):
            run_cli(importlib.import_module(SCRIPTS[words[0]]).dispatch, [*words[1:], *short.split()])
    assert stop.value.code == 0, f"{where}: {line}"


def test_every_command_is_run_or_says_what_it_needs():
    left = [
        block.where
        for page in ALL_PAGES
        for block in shell_blocks(page)
        if block.is_run and page.relative_to(ROOT).as_posix() not in PAGES
    ]
    assert not left, "run them here, or begin them with `# needs ...`"


@pytest.mark.parametrize("page", PAGES)
def test_a_page_runs(page, run_page):
    run_page(page)
