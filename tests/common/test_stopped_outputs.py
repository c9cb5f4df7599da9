"""SIGTERM in commands that write whole files: exit code 75, nothing half-written, and the same command ends as ever."""

import importlib
import itertools
import os
import signal
from pathlib import Path

import pytest

from common.command import run_cli
from tests.soak import commands
from tests.soak.__main__ import OTHERWISE

# Of each command the function in whose first, or later, call the signal comes.
POINTS = {
    "deer-label": ("deer_jax.label.check_labels", 70),
    "deer-evaluate": ("deer_jax.evaluate.score_reports", 1),
    "unicross-report": ("unicross_jax.report.in_order", 1),
    "unicross-evaluate": ("unicross_jax.evaluate.write_rows", 1),
    "retsta-evaluate": ("retsta_jax.evaluate.evaluate_codes", 1),
}


def exit_code(words: list[str]) -> int:
    module, *command = words
    with pytest.raises(SystemExit) as end:
        run_cli(importlib.import_module(module).dispatch, command)
    return end.value.code


def contents(out: Path) -> dict[str, bytes]:
    """The bytes of what a command wrote, of a file or of the files of a directory, without what tells the time."""
    files = [*out.rglob("*")] if out.is_dir() else [out] if out.is_file() else []
    return {
        file.relative_to(out.parent).as_posix(): file.read_bytes()
        for file in files
        if file.is_file() and not file.name.endswith(OTHERWISE) and "checkpoints" not in file.parts
    }


@pytest.mark.parametrize("name", POINTS)
def test_a_stopped_command_leaves_whole_files_and_starts_again(name, tmp_path, monkeypatch):
    (tmp_path / "material").mkdir()
    command = commands.COMMANDS[name](tmp_path / "material")
    whole, cut = ((tmp_path / part / "out") for part in ("whole", "cut"))
    for out in (whole, cut):
        out.parent.mkdir()
    assert exit_code(command(whole)) == 0
    path, number = POINTS[name]
    module, function = path.rsplit(".", 1)
    own, calls = getattr(importlib.import_module(module), function), itertools.count(1)

    def stopped(*arguments, **options):
        if next(calls) == number:
            os.kill(os.getpid(), signal.SIGTERM)
        return own(*arguments, **options)

    with monkeypatch.context() as patch:
        patch.setattr(f"{module}.{function}", stopped)
        assert exit_code(command(cut)) == 75
    expected, left = contents(whole), contents(cut)
    appended = name not in commands.BEGIN_AGAIN
    before = contents(tmp_path / "material" / "run")  # of what is evaluated; its model card gets the scores
    for file, found in left.items():
        if appended:
            assert expected[file].startswith(found)
        else:
            assert found in (expected[file], before.get(file.replace("out", "run", 1)))
    assert left != expected
    assert exit_code(command(cut)) == 0
    assert contents(cut) == expected
    assert not [*cut.parent.glob(".*.partial")]
