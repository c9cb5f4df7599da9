"""A run that is killed, stopped or refused by the disk, and started again, ends as if nothing had happened."""

import json
import os
import random
import resource
import shutil
import signal
import subprocess
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from common.training import loop
from tests.runs import Material, retsta, start

STEPS, YEAR = 20, 366 * 86_400


def contents(run_dir: Path) -> dict[str, bytes]:
    """What a finished run has for others to see; timings are those of the clock."""
    files = [run_dir / "config.json", run_dir / "metrics.jsonl", run_dir / "quarantine.jsonl"]
    return {str(file.relative_to(run_dir)): file.read_bytes() for file in [*files, *(run_dir / "adapter").iterdir()]}


def saved(run_dir: Path) -> set[str]:
    """Names in the directory of the latest checkpoints, also of unfinished ones."""
    directory = run_dir / "checkpoints" / "latest"
    return {entry.name for entry in directory.iterdir()} if directory.is_dir() else set()


def last_step(run_dir: Path) -> int:
    """The step of the last whole row of the log."""
    file = run_dir / "metrics.jsonl"
    lines = file.read_bytes().split(b"\n")[:-1] if file.exists() else []
    return json.loads(lines[-1])["step"] if lines else 0


def send_when(process: subprocess.Popen[str], number: int, reached: Callable[[], bool]) -> tuple[int, str]:
    """Send a signal as soon as `reached`; exit code and standard error."""
    deadline = time.monotonic() + 300
    try:
        while not reached():
            assert process.poll() is None, process.communicate()[1]
            assert time.monotonic() < deadline, "the run makes no progress"
            time.sleep(0.001)  # polled, because a killed process cannot say where it is
        process.send_signal(number)
        errors = process.communicate(timeout=300)[1]
    finally:
        process.kill()
    return process.returncode, errors


@pytest.fixture(scope="module")
def reference(material: Material, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run that nothing interrupts."""
    run_dir = tmp_path_factory.mktemp("reference") / "run"
    assert retsta(material.train(run_dir)) == 0
    return run_dir


def test_a_run_killed_at_any_moment_continues_to_the_same_bits(material, reference, tmp_path):
    rows = [json.loads(line) for line in (reference / "metrics.jsonl").read_text().splitlines()]
    assert [row["step"] for row in rows] == list(range(1, STEPS + 1))
    assert len(rows[-1]["weights_sha256"]) == 64
    assert rows[-1]["loss"] < rows[0]["loss"]

    run_dir = tmp_path / "run"
    command = material.train(run_dir)
    draw = random.Random(2)
    kill_after = draw.randint(3, 8)
    code, _ = send_when(start(command), signal.SIGKILL, lambda: last_step(run_dir) >= kill_after)
    assert code == -signal.SIGKILL
    before = saved(run_dir)
    code, _ = send_when(start(command), signal.SIGKILL, lambda: bool(saved(run_dir) - before))  # while it is written
    assert code == -signal.SIGKILL
    kill_after = last_step(run_dir) + draw.randint(1, 3)
    code, _ = send_when(start(command), signal.SIGKILL, lambda: last_step(run_dir) >= kill_after)
    assert code == -signal.SIGKILL
    stop_after = last_step(run_dir) + 1
    code, errors = send_when(start(command), signal.SIGTERM, lambda: last_step(run_dir) >= stop_after)
    assert code == 75, errors
    assert last_step(run_dir) < STEPS
    assert str(last_step(run_dir)) in saved(run_dir)

    assert retsta(command) == 0
    assert contents(run_dir) == contents(reference)


def test_neither_clocks_nor_places_matter(material, reference, tmp_path, monkeypatch, capsys):
    """The clock is a year ahead, then behind, and the run has moved meanwhile: the log says that it continues."""
    run_dir, real, save = tmp_path / "run", time.time, loop.save_latest

    def stop_at_nine(checkpoints, state, data):
        save(checkpoints, state, data)
        if int(state.step) == 9:
            os.kill(os.getpid(), signal.SIGTERM)

    with monkeypatch.context() as patch:
        patch.setattr(time, "time", lambda: real() + YEAR)
        patch.setattr(time, "time_ns", lambda: int((real() + YEAR) * 1e9))
        patch.setattr(loop, "save_latest", stop_at_nine)
        assert retsta(material.train(run_dir)) == 75
    assert f"training: {STEPS} updates; the first one compiles the step\n" in capsys.readouterr().out
    moved = (tmp_path / "elsewhere").resolve() / "moved"
    moved.parent.mkdir()
    shutil.move(run_dir, moved)
    monkeypatch.setattr(time, "time", lambda: real() - YEAR)
    monkeypatch.setattr(time, "time_ns", lambda: int((real() - YEAR) * 1e9))
    stopped_after = max(map(int, saved(moved)))
    assert retsta(material.train(moved)) == 0
    said = [f"training: continuing after step {stopped_after} of {STEPS}; the next update compiles the step"]
    assert said == [line for line in capsys.readouterr().out.splitlines() if line.startswith("training")]
    assert contents(moved) == contents(reference)
    predicted = []
    for place in (shutil.copytree(reference, tmp_path / "copy"), moved):
        assert retsta(["evaluate", "--run-dir", str(place), "--limit", "1"]) == 0
        predicted.append((place / "predictions.jsonl").read_bytes() + (place / "metrics.json").read_bytes())
    assert predicted[0] == predicted[1]


def test_a_copy_that_was_made_while_the_run_wrote_is_whole_or_says_what_it_lacks(material, reference, tmp_path, capsys):
    """Such as by rsync, which copies the files of a directory before what is in its folders."""
    copy = shutil.copytree(reference, tmp_path / "copy")
    lines = (copy / "metrics.jsonl").read_bytes().splitlines(keepends=True)
    (copy / "metrics.jsonl").write_bytes(b"".join(lines[:18]))
    shutil.rmtree(copy / "adapter")
    assert retsta(material.train(copy)) == 2
    said = capsys.readouterr().err.splitlines()[-1]
    assert f"metrics.jsonl: ends at step 18, before the checkpoint of step {STEPS}" in said
    assert f"remove checkpoints/latest/{STEPS} to continue" in said
    shutil.rmtree(copy / "checkpoints" / "latest" / str(STEPS))
    assert retsta(material.train(copy)) == 0
    assert contents(copy) == contents(reference)


def test_a_full_disk_leaves_the_earlier_checkpoints_good(material, reference, tmp_path):
    run_dir = tmp_path / "run"
    shutil.copytree(reference, run_dir)
    shutil.rmtree(run_dir / "checkpoints" / "latest" / str(STEPS))
    shutil.rmtree(run_dir / "adapter")
    before = saved(run_dir)
    # The limit below would also cut the entries of the shared compile cache, so none are written.
    process = start(material.train(run_dir), JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS="1000000")
    # No file may grow beyond 16 KiB: the log fits and the next checkpoint does not.
    resource.prlimit(process.pid, resource.RLIMIT_FSIZE, (1 << 14, 1 << 14))
    errors = process.communicate(timeout=300)[1].splitlines()
    assert process.returncode == 2, errors
    told = [line for line in errors if not line.startswith("step ")]
    assert len(told) == 2, told
    assert told[0].startswith(f"warning: {run_dir}/live.html: not written (")
    assert told[1].startswith(f"error: {run_dir}/checkpoints/latest: the checkpoint could not be written")
    assert before == {name for name in saved(run_dir) if name.isdigit()} == {"18"}

    assert retsta(material.train(run_dir)) == 0
    assert contents(run_dir) == contents(reference)


def test_a_finished_run_started_again_changes_nothing(material, reference, capsys):
    before, checkpoints = contents(reference), saved(reference)
    assert retsta(material.train(reference)) == 0
    assert f"training: all {STEPS} updates are done\n" in capsys.readouterr().out
    assert contents(reference) == before
    assert saved(reference) == checkpoints


def test_a_directory_of_another_config_is_refused_by_field(material, reference, capsys):
    before = contents(reference)
    assert retsta(material.train(reference, optim__learning_rate=0.5)) == 2
    error = capsys.readouterr().err
    assert error.startswith("error: ")
    assert error.count("\n") == 1
    assert "optim.learning_rate was 0.01 and is now 0.5" in error
    assert contents(reference) == before


def test_another_base_of_the_same_shapes_is_refused_by_name(material, tmp_path, capsys):
    base, run_dir = tmp_path / "link", tmp_path / "run"
    base.symlink_to(material.base)
    command = material.train(run_dir, model__base=base, max_steps=1)
    assert retsta(command) == 0
    before = contents(run_dir)
    capsys.readouterr()
    base.unlink()
    base.symlink_to(material.other_base)
    standardize = ["standardize", "--run-dir", str(run_dir), str(material.data / "reports.txt")]
    for refused, said in (
        (command, "is a run with another base"),
        (standardize, "the given base is other-base (sha256 "),
    ):
        assert retsta(refused) == 2
        error = capsys.readouterr().err
        assert error.startswith("error: ")
        assert error.count("\n") == 1
        assert said in error
    assert contents(run_dir) == before
