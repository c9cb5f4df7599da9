"""Locks: one holder at a time, the dead are succeeded at once, and by one process only."""

import contextlib
import json
import os
import signal
import threading
import time

import pytest

from common.errors import UserError
from common.io import locks
from common.io.lock_holder import STALE_SECONDS, process_start, writer_of
from common.io.locks import is_lock, lock_of, locked_directory, locked_file, locked_run, owning
from tests.lock_holder import Locker, held_elsewhere

NOBODY = 2**22 + 1  # Linux numbers processes up to 2**22


@pytest.fixture(scope="module")
def lockers():
    with contextlib.ExitStack() as stack:
        yield [stack.enter_context(Locker()) for _ in range(4)]


@pytest.fixture(autouse=True)
def impatient(monkeypatch):
    """Nobody listens for long."""
    monkeypatch.setattr(locks, "LISTEN_SECONDS", 0.1)


def names(folder):
    return sorted(path.name for path in folder.iterdir())


def left_behind(folder, **changed):
    """The lock of a process that is no longer there."""
    with locked_directory(folder):
        holder = json.loads((folder / ".lock").read_text())
    (folder / ".lock").write_text(json.dumps(holder | {"pid": NOBODY, "token": "0" * 32} | changed))


def test_the_second_process_is_told_in_one_line_who_writes_and_changes_nothing(tmp_path) -> None:
    run = tmp_path / "run"
    run.mkdir()
    with held_elsewhere(run) as pid:
        before = (run / ".lock").read_text()
        with pytest.raises(UserError) as refused, locked_directory(run):
            pass
        said = str(refused.value)
        assert f"run: is being written by process {pid} on {os.uname().nodename}, since 20" in said
        assert "\n" not in said
        assert (run / ".lock").read_text() == before
        assert names(run) == [".lock"]
        assert writer_of(run).pid == pid
    assert writer_of(run) is None
    with locked_directory(run):
        assert writer_of(run) is None  # of others
    assert names(run) == []


def test_a_lock_is_asked_for_again_within_the_process_and_let_go_once(tmp_path) -> None:
    file = tmp_path / "rows [1].jsonl"
    with locked_file(file), locked_file(tmp_path / "." / file.name):
        with locked_file(file):
            pass
        assert names(tmp_path) == [".rows [1].jsonl.lock"]
    assert names(tmp_path) == []


def test_a_symbolic_link_leads_to_the_same_lock(tmp_path, lockers) -> None:
    (tmp_path / "real").mkdir()
    (tmp_path / "link").symlink_to(tmp_path / "real")
    with locked_directory(tmp_path / "link"):
        assert "is being written by" in lockers[0].lock(tmp_path / "real")


def test_a_directory_is_made_and_not_left_behind_empty(tmp_path) -> None:
    with locked_directory(tmp_path / "a" / "b"):
        assert (tmp_path / "a" / "b").is_dir()
    assert names(tmp_path) == []
    with locked_directory(tmp_path / "a"):
        (tmp_path / "a" / "config.json").touch()
    assert names(tmp_path / "a") == ["config.json"]
    with locked_run(tmp_path / "nowhere"):
        assert names(tmp_path) == ["a"]


def test_an_exception_lets_go(tmp_path, lockers) -> None:
    with pytest.raises(SystemExit), locked_directory(tmp_path):
        raise SystemExit(75)
    assert lockers[0].lock(tmp_path) == "held"
    assert lockers[0].lock("") == "free"


def test_what_a_killed_process_left_is_taken_over_at_once(tmp_path) -> None:
    run = tmp_path / "run"
    run.mkdir()
    with Locker() as killed:
        assert killed.lock(run) == "held"
        os.kill(killed.process.pid, signal.SIGSTOP)
        with pytest.raises(UserError, match="is being written by"), locked_directory(run):
            pass  # stopped is not dead
        os.kill(killed.process.pid, signal.SIGKILL)
        killed.process.wait()
        assert names(run) == [".lock"]
        with locked_directory(run):
            assert json.loads((run / ".lock").read_text())["pid"] == os.getpid()
    assert names(run) == []


def test_a_number_that_another_process_has_now_is_not_taken_for_the_dead_one(tmp_path) -> None:
    left_behind(tmp_path, pid=os.getppid(), started="1")  # alive, but started at another time
    with locked_directory(tmp_path):
        pass
    left_behind(tmp_path, pid=os.getppid(), started=process_start(os.getppid()))
    with pytest.raises(UserError, match=f"process {os.getppid()}"), locked_directory(tmp_path):
        pass


@pytest.mark.parametrize("elsewhere", [{"host": "node7"}, {"boot": "another start"}, {"namespace": "pid:[1]"}])
def test_another_machine_s_or_container_s_lock_is_taken_over_when_it_is_silent(tmp_path, elsewhere) -> None:
    left_behind(tmp_path, **elsewhere)
    lock = tmp_path / ".lock"
    with pytest.raises(UserError, match=r"last sign of life \d+ s ago; it counts as dead after 120 s"):
        with locked_directory(tmp_path):
            pass
    now = time.time()
    os.utime(lock, (now - STALE_SECONDS + 20,) * 2)
    with pytest.raises(UserError, match="last sign of life 10"), locked_directory(tmp_path):
        pass
    assert writer_of(tmp_path) is not None
    os.utime(lock, (now - STALE_SECONDS - 1,) * 2)
    assert writer_of(tmp_path) is None
    with locked_directory(tmp_path):
        assert json.loads(lock.read_text())["pid"] == os.getpid()
    assert names(tmp_path) == []


def test_ages_do_not_depend_on_this_machine_s_clock(tmp_path, monkeypatch) -> None:
    left_behind(tmp_path, host="node7")
    monkeypatch.setattr(time, "time", lambda: 1e12)
    with pytest.raises(UserError, match="last sign of life"), locked_directory(tmp_path):
        pass


@pytest.mark.parametrize("jump", [-366 * 86400.0, 366 * 86400.0])
def test_a_clock_of_the_file_system_that_jumps_makes_nobody_dead_and_nobody_immortal(
    tmp_path, monkeypatch, jump
) -> None:
    """By its times the lock was touched a year ago, or will be in a year; its holder is on another machine."""
    left_behind(tmp_path, host="node7")
    lock = tmp_path / ".lock"
    os.utime(lock, (time.time() + jump,) * 2)
    with monkeypatch.context() as patch:
        patch.setattr(locks, "LISTEN_SECONDS", 60.0)
        beat = threading.Timer(0.1, os.utime, [lock])
        beat.start()
        with pytest.raises(UserError, match=r"is being written by .* on node7"), locked_directory(tmp_path):
            pass
        beat.join()
    os.utime(lock, (time.time() + jump,) * 2)
    with locked_directory(tmp_path):
        assert json.loads(lock.read_text())["pid"] == os.getpid()


@pytest.mark.parametrize("content", [b"", b"{", b"[" * 5000, b'{"pid": 1}', b"\xff", b'{"token": 1}'])
def test_a_lock_that_says_nothing_is_somebody_s_until_it_is_old(tmp_path, content) -> None:
    (tmp_path / ".lock").write_bytes(content)
    with pytest.raises(UserError, match="on an unknown machine"), locked_directory(tmp_path):
        pass
    os.utime(tmp_path / ".lock", (1, 1))
    with locked_directory(tmp_path):
        pass
    assert names(tmp_path) == []


def test_of_many_that_take_a_dead_one_s_lock_one_succeeds(tmp_path, lockers) -> None:
    for number in range(40):
        run = tmp_path / str(number)
        run.mkdir()
        left_behind(run)
        for other in lockers:
            other.ask(run)
        answers = [other.answer() for other in lockers]
        assert answers.count("held") == 1
        assert sum("is being written by" in answer for answer in answers) == len(lockers) - 1
        winner = lockers[answers.index("held")]
        assert json.loads((run / ".lock").read_text())["pid"] == winner.process.pid
        assert winner.lock("") == "free"
        assert names(run) == []


def test_who_died_while_taking_over_is_succeeded_too(tmp_path, lockers) -> None:
    left_behind(tmp_path)
    dead = json.loads((tmp_path / ".lock").read_text())
    mark = tmp_path / f".lock.{dead['token']}.taken"
    mark.write_text(json.dumps(dead | {"token": "1" * 32}))
    (tmp_path / f".lock.{'1' * 32}.partial").write_text(mark.read_text())
    with locked_directory(tmp_path):
        assert names(tmp_path) == [".lock"]
        assert "is being written by" in lockers[0].lock(tmp_path)
    left_behind(tmp_path)
    pid = lockers[0].process.pid
    mark.write_text(json.dumps(dead | {"pid": pid, "started": process_start(pid), "token": "1" * 32}))
    with pytest.raises(UserError, match=f"process {pid} on"), locked_directory(tmp_path):
        pass  # it lives, and is about to have the lock


def test_a_file_system_without_hard_links_is_locked_too(tmp_path, monkeypatch, lockers) -> None:
    def refuse(*_: object) -> None:
        raise PermissionError(1, "Operation not permitted")

    monkeypatch.setattr(os, "link", refuse)
    left_behind(tmp_path)
    with locked_directory(tmp_path):
        assert "is being written by" in lockers[0].lock(tmp_path)
    assert names(tmp_path) == []


def test_the_holder_gives_signs_of_life_and_ends_where_it_was_succeeded(tmp_path, monkeypatch) -> None:
    monkeypatch.setattr(locks, "BEAT_SECONDS", 0.01)
    ended = threading.Event()
    monkeypatch.setattr(locks, "end_now", lambda code, message: ended.set())
    lock = tmp_path / ".lock"
    with locked_directory(tmp_path):
        os.utime(lock, (1, 1))
        deadline = time.monotonic() + 20
        while lock.stat().st_mtime == 1 and time.monotonic() < deadline:
            threading.Event().wait(0.01)
        assert lock.stat().st_mtime > 1
        other = json.loads(lock.read_text()) | {"token": "2" * 32, "host": "node7"}
        (tmp_path / "other").write_text(json.dumps(other))
        os.replace(tmp_path / "other", lock)
        assert ended.wait(20)
    assert names(tmp_path) == [".lock"]  # it is the other's


def test_devices_and_missing_folders_need_no_lock(tmp_path) -> None:
    with locked_file(None), locked_file(tmp_path / "nowhere" / "rows.jsonl"):
        pass
    before = set(os.listdir("/dev"))
    with locked_file(type(tmp_path)("/dev/null")):
        assert set(os.listdir("/dev")) == before


def test_names_of_locks_are_known() -> None:
    token = "0f" * 16
    assert [lock_of(name) for name in (".lock", ".rows.jsonl.lock", f".a.b.lock.{token}.taken")] == [
        "",
        "rows.jsonl",
        "a.b",
    ]
    assert is_lock(f".lock.{token}.partial")
    assert not any(map(is_lock, ("lock", ".lock.partial", "uv.lock", ".lock.0f.taken", ".locks")))


def test_a_function_owns_its_argument_while_it_runs(tmp_path, lockers) -> None:
    @owning("directory")
    def write(number: int, directory, more: int = 0) -> str:
        return lockers[number].lock(directory)

    assert "is being written by" in write(0, directory=tmp_path / "new")
    assert "is being written by" in write(1, tmp_path)
    assert names(tmp_path) == []
