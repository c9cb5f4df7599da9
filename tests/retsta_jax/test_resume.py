"""A run that is killed, stopped or refused by the disk, and started again, ends as if nothing had happened."""

import json
import random
import resource
import shutil
import signal
import subprocess
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.runs import Material, retsta, start

STEPS = 20


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
    assert len(told) == 1, told
    assert told[0].startswith(f"error: {run_dir}/checkpoints/latest: the checkpoint could not be written")
    assert before == {name for name in saved(run_dir) if name.isdigit()} == {"18"}

    assert retsta(material.train(run_dir)) == 0
    assert contents(run_dir) == contents(reference)


def test_a_finished_run_started_again_changes_nothing(material, reference):
    before, checkpoints = contents(reference), saved(reference)
    assert retsta(material.train(reference)) == 0
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
