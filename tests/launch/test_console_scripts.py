"""The console scripts: every command has help, old spellings still work and say so, and presets are never a default."""

import importlib
import importlib.util
import json
import os
import runpy
import sys

import pytest

from common.command import run_cli
from common.errors import UserError
from common.scripts import Command, run_command, usage
from deer_jax import cli as deer
from launch import cli as medreport
from launch.malloc import KEEP_PAGES
from retsta_jax import cli as retsta
from unicross_jax import cli as unicross

SCRIPTS = {"medreport": medreport, "retsta": retsta, "unicross": unicross, "deer": deer}
EVERY = [(script, name) for script, module in SCRIPTS.items() for name in module.COMMANDS]
TRAINING = {
    "retsta train": "--run-dir x",
    "retsta paradigm": "--run-dir x",
    "retsta table 3": "--directory x",
    "unicross train": "--run-dir x",
    "unicross ablation": "--directory x",
    "deer sft": "--run-dir x",
    "deer rl": "--run-dir x",
    "deer sample": "--output x",
    "deer ablation rewards": "--directory x",
    "deer train-labeler": "--output x",
}
FORMER = {
    "common.decode": "decode",
    "common.metrics": "score",
    "common.data.builders": "prepare",
    "common.data.phantom": "phantoms",
    "common.phantoms.phantom": "phantoms",
    "launch plan": "plan",
    "launch bench": "bench",
}


def code_of(run, *arguments) -> int:
    with pytest.raises(SystemExit) as stop:
        run(*arguments)
    return stop.value.code or 0


def run_module(monkeypatch, name: str, *words: str) -> int:
    """The exit code of `python -m NAME WORDS`, in this process."""
    monkeypatch.setattr(sys, "argv", [name, *words])
    monkeypatch.setenv("GLIBC_TUNABLES", KEEP_PAGES)  # or a benchmark starts the process again
    return code_of(runpy.run_module, name, {}, "__main__", True)


@pytest.mark.parametrize(("script", "name"), EVERY)
def test_every_command_has_help_that_names_it(script, name, capsys):
    assert code_of(run_cli, SCRIPTS[script].dispatch, [name, "--help"]) == 0
    shown = capsys.readouterr()
    assert shown.out.startswith(f"usage: {script} {name}")
    assert not shown.err


@pytest.mark.parametrize("script", SCRIPTS)
def test_a_script_lists_its_commands_and_refuses_others_in_one_line(script, capsys):
    for words in ([], ["--help"]):
        assert code_of(run_cli, SCRIPTS[script].dispatch, words) == 0
        shown = capsys.readouterr().out
        assert all(f" {script} {name}" in shown for name in SCRIPTS[script].COMMANDS)
        assert max(map(len, shown.splitlines())) <= 120
    first = next(iter(SCRIPTS[script].COMMANDS))
    with pytest.raises(UserError, match=rf"^{script} {first}x: unknown command \(did you mean {first}\?\); expected "):
        SCRIPTS[script].dispatch([first + "x"])


def test_only_the_command_that_runs_is_imported(monkeypatch, tmp_path):
    (tmp_path / "counting.py").write_text("def count(words):\n    return len(words)\n")
    monkeypatch.syspath_prepend(tmp_path)
    commands = {"one": Command("counts", "A B", "counting:count"), "two": Command("fails", "", "no_such_module:main")}
    assert run_command("tool", commands, ["one", "a", "b"]) == 2
    assert "  two  fails:  tool two\n" in usage("tool", commands)
    with pytest.raises(ModuleNotFoundError):
        run_command("tool", commands, ["two"])


@pytest.mark.parametrize(("command", "words"), TRAINING.items())
def test_what_is_trained_is_never_chosen_in_silence(command, words, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    script, *arguments = command.split()
    program = " ".join(command.split()[:2])
    with pytest.raises(UserError, match=rf"^{program}: --preset NAME is missing; presets are (demo|phantom), "):
        SCRIPTS[script].dispatch([*arguments, *words.split()])
    with pytest.raises(UserError, match=r"^--preset dmo: unknown.*; presets are (demo|phantom), "):
        SCRIPTS[script].dispatch([*arguments, *words.split(), "--preset", "dmo"])
    named = ["--preset", "phantom" if "labeler" in command else "demo"]
    with pytest.raises(UserError, match=rf"^{program}: the following arguments are required: {words.split()[0]};"):
        SCRIPTS[script].dispatch([*arguments, *named])
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("command", TRAINING)
def test_help_shows_the_defaults_of_the_preset_that_is_named(command, capsys):
    script, *arguments = command.split()
    assert code_of(SCRIPTS[script].dispatch, [*arguments, "--help"]) == 0
    assert "Defaults shown below are those without a preset" in capsys.readouterr().out
    named = "phantom" if "labeler" in command else "demo"
    assert code_of(SCRIPTS[script].dispatch, [*arguments, "--preset", named, "--help"]) == 0
    shown = capsys.readouterr().out
    assert f"--preset {named}" in shown
    assert "Defaults below" not in shown


@pytest.mark.parametrize(("former", "name"), FORMER.items())
def test_a_former_name_warns_in_one_line_and_does_the_same(former, name, monkeypatch, capsys):
    module, *words = former.split()
    assert run_module(monkeypatch, module, *words, "--help") == 0
    shown = capsys.readouterr()
    assert shown.err == f"warning: `python -m {former}` is now `medreport {name}`\n"
    assert shown.out.startswith(f"usage: medreport {name}")


def test_a_former_name_passes_its_options_on(monkeypatch, capsys, tmp_path):
    rows = tmp_path / "rows.jsonl"
    rows.write_text(json.dumps({"id": 1, "prediction": "no effusion", "reference": "no effusion"}) + "\n")
    assert run_module(monkeypatch, "common.metrics", str(rows), "--convention", "coco") == 0
    former = capsys.readouterr()
    assert code_of(run_cli, medreport.dispatch, ["score", str(rows), "--convention", "coco"]) == 0
    now = capsys.readouterr()
    assert former.out == now.out
    assert former.err.splitlines()[1:] == now.err.splitlines()
    assert run_module(monkeypatch, "common.metrics", str(tmp_path / "nothing.jsonl")) == 2


def test_a_benchmark_starts_again_where_arrays_keep_their_pages(monkeypatch):
    started = []
    monkeypatch.setattr(sys, "platform", "linux")
    monkeypatch.delenv("GLIBC_TUNABLES", raising=False)
    monkeypatch.setattr(os, "execv", lambda program, words: started.append(words) or sys.exit(0))
    monkeypatch.setattr(sys, "argv", ["medreport", "bench", "sft", "--peer"])
    assert code_of(medreport.main) == 0
    assert started == [[sys.executable, "-m", "launch.cli", "bench", "sft", "--peer"]]
    assert os.environ.pop("GLIBC_TUNABLES") == KEEP_PAGES


def test_without_the_checkout_benchmarks_are_said_to_be_there(monkeypatch):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(UserError, match=r"^medreport bench: benchmarks are not part of the package; run it in a che"):
        medreport.dispatch(["bench", "sft"])
