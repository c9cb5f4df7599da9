"""SIGINT and SIGTERM at any moment: one line, a defined exit code, and nothing lost of what was to be kept."""

import gc
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from common import command
from common.command import run_cli
from common.io.exports import atomic_directory
from common.io.resumable import row_writer
from common.process import stopping
from common.process.stopping import handled
from common.training.checkpoint import save_latest
from common.training.evaluation import LOSS
from tests.common.test_train_loop import Counted, run

ROOT = Path(__file__).parents[2]

CODES = {signal.SIGTERM: 75, signal.SIGINT: 130}
both = pytest.mark.parametrize("number", CODES)


def ended(main, capsys) -> tuple[int, str]:
    """The exit code of a command that gets a signal, and what it says."""
    with pytest.raises(SystemExit) as stop:
        run_cli(lambda arguments: main(), [])
    return stop.value.code, capsys.readouterr().err


@both
def test_a_command_ends_where_it_is(number, capsys):
    word = {signal.SIGTERM: "terminated", signal.SIGINT: "interrupted"}[number]
    assert ended(lambda: os.kill(os.getpid(), number), capsys) == (CODES[number], f"error: {word}\n")


def test_handlers_are_those_of_before_afterwards(capsys):
    before = [signal.getsignal(number) for number in CODES]
    ended(lambda: os.kill(os.getpid(), signal.SIGTERM), capsys)
    assert [signal.getsignal(number) for number in CODES] == before


def test_a_signal_that_comes_before_the_command_begins(capsys, monkeypatch):
    before, install = [signal.getsignal(number) for number in CODES], signal.signal

    def installed(number, handler):
        install(number, handler)
        if handler is stopping._receive:
            os.kill(os.getpid(), number)

    monkeypatch.setattr(signal, "signal", installed)
    assert ended(lambda: None, capsys) == (75, "error: terminated\n")
    assert [signal.getsignal(number) for number in CODES] == before


@both
def test_a_signal_that_comes_when_the_command_is_done(number, capsys, monkeypatch):
    monkeypatch.setattr(command, "_leave_hosts", lambda error: error or os.kill(os.getpid(), number))
    assert ended(lambda: None, capsys)[0] == CODES[number]


class Signalling(dict):
    """A row during whose writing a signal comes."""

    def __init__(self, number, **values):
        super().__init__(**values)
        self.number = number

    def items(self):
        os.kill(os.getpid(), self.number)
        return super().items()


@both
def test_rows_are_written_whole(number, tmp_path, capsys):
    def main():
        with row_writer(tmp_path / "out.jsonl") as write:
            write({"id": 1})
            write(Signalling(number, id=2))
            write({"id": 3})

    assert ended(main, capsys)[0] == CODES[number]
    assert (tmp_path / "out.jsonl").read_text() == '{"id": 1}\n{"id": 2}\n'


@both
def test_an_export_is_replaced_whole(number, tmp_path, capsys, monkeypatch):
    rename = Path.rename

    def signalling(path, target):
        monkeypatch.setattr(Path, "rename", rename)  # a second one would end the process at once
        os.kill(os.getpid(), number)
        return rename(path, target)

    def main(text):
        with atomic_directory(tmp_path / "model") as aside:
            (aside / "config.json").write_text(text)

    main("old")
    monkeypatch.setattr(Path, "rename", signalling)
    assert ended(lambda: main("new"), capsys)[0] == CODES[number]
    assert (tmp_path / "model" / "config.json").read_text() == "new"
    assert [entry.name for entry in tmp_path.iterdir()] == ["model"]


class Slow:
    def __del__(self):
        os.kill(os.getpid(), signal.SIGTERM)
        for _ in range(100):
            time.sleep(0.01)


def test_a_signal_in_a_destructor_is_not_lost(capsys):
    def main():
        slow = Slow()
        del slow
        gc.collect()
        for _ in range(1000):
            time.sleep(0.01)  # until the signal is raised once more
        raise AssertionError("the signal was lost")

    assert ended(main, capsys) == (75, "error: terminated\n")


STUCK = """
import hashlib, os, sys, threading
from common.process import stopping
from common.training.checkpoint import save_latest
from common.command import run_cli
stopping.GRACE_SECONDS = 0.5
def main(arguments):
    for count, number in enumerate(map(int, arguments), start=1):
        threading.Timer(count / 10, os.kill, [os.getpid(), number]).start()
    if len(arguments) == 1:
        with stopping.quiet_stderr():
            os.write(2, b"a compiler's warning")
            hashlib.pbkdf2_hmac("sha256", b"", b"", 2**31 - 1)  # a library that takes minutes
    with stopping.held():
        hashlib.pbkdf2_hmac("sha256", b"", b"", 2**31 - 1)
run_cli(main)
"""


@pytest.mark.parametrize(
    ("numbers", "code", "said"),
    [([signal.SIGTERM], 75, "error: terminated\n"), ([signal.SIGINT, signal.SIGINT], 130, "")],
)
def test_a_main_thread_that_hears_nothing_is_ended(numbers, code, said):
    """By time where there is nothing to save, by a second SIGINT where there is."""
    command = [sys.executable, "-c", STUCK, *(str(int(number)) for number in numbers)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (code, said)


TWICE = """
import os, threading, time
from common.process import stopping
begun = threading.Event()
def slowly(line):
    begun.set()
    time.sleep(0.5)
    os.write(2, line.encode())
threading.Thread(target=stopping.say_last, args=("error: the first", slowly)).start()
begun.wait()
stopping.end_now(75, "the second")
"""


def test_a_thread_that_ends_the_process_waits_for_the_line_of_another():
    done = subprocess.run([sys.executable, "-c", TWICE], cwd=ROOT, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (75, "error: the first")


HELD = """
import hashlib, os, signal, sys, threading
from common.process import stopping
from common.command import run_cli
stopping.SAY_SECONDS, stopping.AGAIN_SECONDS = 0.2, 1.0
DO = {"signal": lambda: os.kill(os.getpid(), signal.SIGTERM), "say": lambda: os.write(2, b"still here\\n"),
      "host": lambda: stopping.request(signal.SIGTERM)}
def main(arguments):
    for after, what in enumerate(arguments):
        threading.Timer(0.5 + after * 0.7, DO.get(what, int)).start()
    with stopping.held("the update at hand"), stopping.named("a validation"):
        hashlib.pbkdf2_hmac("sha256", b"", b"", 2**31 - 1)  # a library that takes minutes
run_cli(main)
"""


@pytest.mark.parametrize("moments", ["signal signal say signal", "host - signal say - signal"])
def test_what_is_waited_for_is_said_and_a_second_signal_ends_the_wait(moments):
    """Those that come together, as a scheduler sends them, and those of other hosts are not taken for a second one."""
    done = subprocess.run(
        [sys.executable, "-c", HELD, *moments.split()], cwd=ROOT, stderr=subprocess.PIPE, text=True, check=False
    )
    waiting = "terminated: waiting for a validation; a second signal ends at once\n"
    assert done.stderr == waiting + "still here\nerror: terminated at once by a second signal\n"
    assert done.returncode == 75


DEAF = """
import hashlib, os, signal, threading
from common.process import stopping
from common.command import run_cli
def main(arguments):
    threading.Timer(0.1, os.kill, [os.getpid(), signal.SIGTERM]).start()
    threading.Timer(0.5, lambda: os._exit(stopping.received())).start()
    hashlib.pbkdf2_hmac("sha256", b"", b"", 2**31 - 1)
run_cli(main)
"""


def test_other_hosts_can_be_told_while_the_main_thread_hears_nothing():
    done = subprocess.run([sys.executable, "-c", DEAF], cwd=ROOT, check=False)
    assert done.returncode == signal.SIGTERM


CRASHING = """
import atexit, os, signal
from common.command import run_cli
def main(arguments):
    atexit.register(os.abort)  # as libraries do at times that are left while they compile or write
    os.kill(os.getpid(), signal.SIGTERM)
run_cli(main)
"""


def test_a_stopped_process_does_not_tidy_up():
    done = subprocess.run([sys.executable, "-c", CRASHING], cwd=ROOT, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (75, "error: terminated\n")


# Of a training: signals in a step, in a validation, while a checkpoint is written, and before the first step.


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """The log of a run that nothing interrupts."""
    run_dir = tmp_path_factory.mktemp("whole")
    run(run_dir)
    return (run_dir / "metrics.jsonl").read_bytes()


def signalled(number, step):
    """A validation during which a signal comes at a step, once."""
    waiting = [step]

    def validation(state, check):
        if waiting == [int(state.step)]:
            os.kill(os.getpid(), waiting.pop() and number)
        check()
        return {LOSS: float(state.step)}

    return validation


@both
@pytest.mark.parametrize("step", [2, 4, 6])
def test_an_interrupted_validation_is_repeated(number, step, whole, tmp_path, capsys):
    code, said = ended(lambda: run(tmp_path, checked=signalled(number, step)), capsys)
    word = {signal.SIGTERM: "terminated", signal.SIGINT: "interrupted"}[number]
    *_, line = said.splitlines()
    assert (code, line) == (
        CODES[number],
        f"error: {word}: the state after step {step} is saved; the same command continues",
    )
    assert whole.startswith((tmp_path / "metrics.jsonl").read_bytes())
    assert {entry.name for entry in (tmp_path / "checkpoints" / "latest").iterdir()} == {
        str(saved) for saved in (step - 2, step) if saved
    }
    # Once more, in the repeated validation; then to the end.
    assert ended(lambda: run(tmp_path, checked=signalled(number, step)), capsys)[0] == CODES[number]
    run(tmp_path)
    assert (tmp_path / "metrics.jsonl").read_bytes() == whole


@both
@pytest.mark.parametrize("step", [1, 3, 6])
def test_a_signal_in_a_step_ends_the_run_behind_it(number, step, whole, tmp_path, capsys):
    batches = Counted()
    batches.before[step] = lambda: os.kill(os.getpid(), number)
    code, said = ended(lambda: run(tmp_path, batches=batches), capsys)
    assert code == CODES[number]
    saved = step if step > 1 else 0  # before the first step there is nothing to save
    assert (tmp_path / "checkpoints" / "latest" / str(saved)).exists() == bool(saved)
    assert ("is saved" in said) == bool(saved)
    run(tmp_path)
    assert (tmp_path / "metrics.jsonl").read_bytes() == whole


@both
def test_a_signal_during_the_last_save_ends_the_command(number, whole, tmp_path, capsys, monkeypatch):
    def save(checkpoints, state, data):
        save_latest(checkpoints, state, data)
        if int(state.step) == 6:
            os.kill(os.getpid(), number)

    monkeypatch.setattr("common.training.loop.save_latest", save)
    assert ended(lambda: run(tmp_path), capsys)[0] == CODES[number]
    monkeypatch.undo()
    run(tmp_path)
    assert (tmp_path / "metrics.jsonl").read_bytes() == whole


def test_a_signal_that_a_destructor_swallowed_does_not_come_after_the_command():
    """It would end the process that ran the command, such as a notebook's."""
    heard = []
    before = signal.signal(signal.SIGTERM, lambda number, _: heard.append(number))
    try:
        with handled():
            slow = Slow()
            del slow
        time.sleep(2 * stopping.TICK_SECONDS)
    finally:
        signal.signal(signal.SIGTERM, before)
    assert heard == []
