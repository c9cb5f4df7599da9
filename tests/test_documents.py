"""What the documents say can be done: every command parses, every file and function that a page names exists."""

import importlib
import importlib.util
import re
import tomllib
from functools import cache
from pathlib import Path

import pytest

import launch.cli
from common.errors import UserError
from common.options_only import OptionsRead, only_options
from launch.recipes.command_check import SCRIPTS
from tests.pages_of_documents import PAGES, ROOT, Block, commands_of, inline_commands, shell_blocks

OTHERS = (
    "source", "export", "echo", "eval", "cd", "mkdir", "tail", "bash", "sh", "curl", "ssh-add", "docker", "uv", "hf",
    "tensorboard", "vllm", "sbatch", "scancel", "srun", "kubectl", "gcloud", "xpk", "sky", "unzip", "sudo", "git",
    "rsync", "sky/bin/pip", "green/bin/pip", "radgraph/bin/pip", "radeval/bin/pip",
)  # fmt: skip
ENGINES = ("sglang.launch_server",)  # modules of other environments
CODE = re.compile(r"`((?:common|retsta_jax|unicross_jax|deer_jax|launch|tests|docs)/[\w./-]+)(?::(\w+))?`")
NAMED = re.compile(r"`((?:common|retsta_jax|unicross_jax|deer_jax|launch)(?:\.\w+)+)`")


@pytest.fixture
def parse_alone():
    """Commands end when their options have been read."""
    with only_options():
        yield


def by_page(blocks):
    return [pytest.param(block, id=block.where) for page in PAGES for block in blocks(page)]


@pytest.mark.parametrize("block", by_page(shell_blocks))
def test_every_command_parses(block: Block, parse_alone):
    for words in commands_of(block.text):
        try:
            parse(words)
        except UserError as error:
            pytest.fail(f"{block.where}: {' '.join(words)}: {error}")


def test_every_recipe_of_a_page_can_be_made_and_is_written_or_started(capsys):
    for block in (block for page in PAGES for block in shell_blocks(page)):
        for _, *words in (words for words in commands_of(block.text) if words[:2] == ["medreport", "launch"]):
            at = words.index("--") if "--" in words else len(words)
            options, command = words[:at], words[at:]
            if options[-1] == "--help":
                continue
            if "--submit" in options:
                options.remove("--submit")
            else:
                written = options.index("--write")  # without either, nothing would happen
                del options[written : written + 2]
            assert launch.cli.dispatch([*options, "--dry-run", *command]) == 0, block.where


def test_an_option_that_does_not_exist_is_found(parse_alone):
    for words in ("retsta train --preset demo --run-dir a --epoch 1", "medreport score rows.jsonl --languages en"):
        with pytest.raises(UserError):
            parse(words.split())


def parse(words: list[str]) -> None:
    """Read a command as far as its options go. Raises UserError, or fails where it is of no known kind."""
    words = [re.sub(r"\$(\w+|\(.*\))", "1", word) for word in words]
    name, rest = words[0], words[1:]
    if name in SCRIPTS:
        if rest == ["--help"]:
            return
        with pytest.raises(OptionsRead):
            importlib.import_module(SCRIPTS[name]).dispatch(rest)
        if "--" in rest:  # a command that another one starts
            parse(rest[rest.index("--") + 1 :])
    elif name == "make":
        assert set(rest) <= make_targets(), rest
    elif name == "pip":
        extras = set(re.findall(r"\w+", "".join(re.findall(r"\[(.*?)\]", " ".join(rest)))))
        assert extras <= extras_of_package(), extras
    elif name.startswith("python"):
        parse_python(rest)
    else:
        assert name in OTHERS, f"{name}: no command that a page may show"


def parse_python(rest: list[str]) -> None:
    """A script of the project, one that the page has written, a module, or a line of code."""
    if rest[0] == "-m":
        assert rest[1] in ENGINES or importlib.util.find_spec(rest[1]) is not None, rest[1]
    elif rest[0] == "-c":
        compile(rest[1], "-c", "exec")
    elif rest[0].startswith("docs/"):
        spec = importlib.util.spec_from_file_location("example", ROOT / rest[0])
        assert spec is not None
        module = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(module)
        with pytest.raises(OptionsRead):
            module.main(rest[1:])
    else:
        titles = {block.title for page in PAGES for block in page_blocks(page)}
        assert rest[0] in titles, f"{rest[0]}: no page writes it"


@cache
def page_blocks(page: Path) -> list[Block]:
    from tests.pages_of_documents import blocks_of

    return blocks_of(page)


@cache
def make_targets() -> set[str]:
    return set(re.search(r"^\.PHONY: (.*)$", (ROOT / "Makefile").read_text("utf-8"), re.MULTILINE)[1].split())


@cache
def extras_of_package() -> set[str]:
    return set(tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))["project"]["optional-dependencies"])


@pytest.mark.parametrize("page", [pytest.param(page, id=str(page.relative_to(ROOT))) for page in PAGES])
def test_options_within_sentences_exist(page, capsys):
    for words in inline_commands(page, tuple(SCRIPTS)):
        options = {word.partition("=")[0] for word in words if word.startswith("--")}
        assert options <= help_options(tuple(words), capsys), words


def help_options(words: tuple[str, ...], capsys) -> set[str]:
    """The options that the help of a command names."""
    script, command, *rest = words
    preset = rest[rest.index("--preset") :][:2] if "--preset" in rest else []
    word = (
        [rest[0]]
        if rest
        and not rest[0].startswith("--")
        and command in ("analyse", "ablation", "table", "bench", "launch", "data")
        else []
    )
    return options_in_help(script, command, tuple(word), tuple(preset), capsys)


KNOWN: dict[tuple, set[str]] = {}


def options_in_help(script: str, command: str, word: tuple[str, ...], preset: tuple[str, ...], capsys) -> set[str]:
    key = (script, command, word, preset)
    if key not in KNOWN:
        capsys.readouterr()
        with pytest.raises(SystemExit):
            importlib.import_module(SCRIPTS[script]).dispatch([command, *word, *preset, "--help"])
        KNOWN[key] = set(re.findall(r"--[a-z][\w.-]*", capsys.readouterr().out))
    return KNOWN[key]


@pytest.mark.parametrize("page", [pytest.param(page, id=str(page.relative_to(ROOT))) for page in PAGES])
def test_files_and_functions_that_a_page_names_exist(page):
    text = page.read_text("utf-8")
    for path, name in CODE.findall(text):
        file = ROOT / path
        assert file.exists(), path
        if name:
            assert re.search(rf"^\s*(?:def|class) {name}\b|^{name}\b.* = ", file.read_text("utf-8"), re.MULTILINE), (
                f"{path}:{name}"
            )
    for dotted in NAMED.findall(text):
        module, _, name = dotted.rpartition(".")
        if importlib.util.find_spec(dotted.partition(".")[0] if "." not in module else module) is None:
            pytest.fail(dotted)
        whole = importlib.util.find_spec(dotted) if is_module(module) else None
        assert whole is not None or hasattr(importlib.import_module(module), name), dotted


def is_module(name: str) -> bool:
    """Whether a package of that name may hold modules."""
    found = importlib.util.find_spec(name)
    return found is not None and found.submodule_search_locations is not None


def test_every_command_is_in_the_reference():
    text = (ROOT / "docs" / "reference" / "commands.md").read_text("utf-8")
    for script in SCRIPTS:
        assert f"<!-- help: {script} -->" in text


def test_readme_is_short():
    assert len((ROOT / "README.md").read_text("utf-8").splitlines()) < 120
