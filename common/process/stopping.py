"""SIGINT and SIGTERM end a command in an orderly way, wherever it is.

Ordinarily the first of them raises `Stopped` where the main thread is, and `common.command.run_cli` makes one line and
an exit code of it. In a block of `held` it is remembered instead: a training loop ends with its state saved, a row or a
checkpoint is written whole. A second SIGINT ends the process at once. So does the end of `GRACE_SECONDS` where nothing
is held: a main thread that compiles or waits for a device hears no signal.
"""

import contextlib
import os
import signal
import socket
import sys
import threading
import time
from collections.abc import Callable, Iterator
from typing import NoReturn

EXIT_CODES = {signal.SIGTERM: 75, signal.SIGINT: 130}  # EX_TEMPFAIL, start the same command again; 128 + SIGINT
WORDS = {signal.SIGTERM: "terminated", signal.SIGINT: "interrupted"}
GRACE_SECONDS = 10.0
TICK_SECONDS = 0.5


class Stopped(KeyboardInterrupt):
    """A signal asks the command to end. What a library does on Ctrl-C it does on this; `except Exception` passes it."""

    def __init__(self, number: int, done: str = ""):
        super().__init__(number)
        self.number, self.done = number, done

    @property
    def code(self) -> int:
        """The exit code: 75 for SIGTERM, 130 for SIGINT."""
        return exit_code(self.number)

    def __str__(self) -> str:
        return f"{stop_word(self.number)}: {self.done}" if self.done else stop_word(self.number)


class _Signals:
    """What has been received, and how many blocks hold it back. Signals belong to a process, and so does this."""

    def __init__(self) -> None:
        self.reset()

    def reset(self) -> None:
        self.received, self.raised, self.held = 0, False, 0
        self.last_line = threading.Lock()


_signals = _Signals()


def exit_code(number: int) -> int:
    """Of a command that a signal ended."""
    return EXIT_CODES.get(signal.Signals(number), 128 + number)


def stop_word(number: int) -> str:
    """What is said of it."""
    return WORDS.get(signal.Signals(number), signal.Signals(number).name)


def received() -> int:
    """The signal that asks this command to end, or 0."""
    return _signals.received


def request(number: int) -> None:
    """Do as if the signal had come: for what other hosts say. Any thread may call it."""
    os.kill(os.getpid(), number)


@contextlib.contextmanager
def handled() -> Iterator[None]:
    """Within this block SIGINT and SIGTERM are handled as the module says. For the main thread; elsewhere a no-op."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    _signals.reset()
    before = {number: signal.signal(number, _receive) for number in EXIT_CODES}
    unraisable, sys.unraisablehook = sys.unraisablehook, _say_unless_stopped(sys.unraisablehook)
    ours, theirs = socket.socketpair()
    theirs.setblocking(False)
    # Python hears a signal when the main thread next runs Python; the number arrives here at once.
    wakeup = signal.set_wakeup_fd(theirs.fileno(), warn_on_full_buffer=False)
    watcher = threading.Thread(target=_watch, args=(ours,), name="signals", daemon=True)
    watcher.start()
    try:
        yield
    finally:
        signal.set_wakeup_fd(wakeup)
        for number, handler in before.items():
            signal.signal(number, handler)
        theirs.close()
        watcher.join()
        ours.close()
        sys.unraisablehook = unraisable
        _signals.reset()


@contextlib.contextmanager
def held() -> Iterator[None]:
    """In this block a signal is remembered; where the block ends well, it is heard there."""
    _signals.held += 1
    try:
        yield
    finally:
        _signals.held -= 1
    check()


def check() -> None:
    """Raise `Stopped` where a signal has come that nothing holds back and that has not been raised yet."""
    if _signals.received and not _signals.held and not _signals.raised:
        _signals.raised = True
        raise Stopped(_signals.received)


def stop(done: str) -> NoReturn:
    """Raise `Stopped` for the signal that has come, also in a block of `held`; `done` says what is saved."""
    _signals.raised = True
    raise Stopped(_signals.received or signal.SIGTERM, done)


def _receive(number: int, _: object) -> None:
    _signals.received = _signals.received or number
    check()


def _say_unless_stopped(hook: Callable[["sys.UnraisableHookArgs"], object]) -> Callable[..., object]:
    """A hook for what Python cannot raise, as in a destructor: a `Stopped` is raised later instead."""

    def say(unraisable: "sys.UnraisableHookArgs") -> None:
        if not isinstance(unraisable.exc_value, Stopped):
            hook(unraisable)
            return
        _signals.raised = False
        threading.Timer(TICK_SECONDS, request, [_signals.received]).start()

    return say


def _watch(heard: socket.socket) -> None:
    """End the process at a second SIGINT, or where it should have ended by itself."""
    heard.settimeout(TICK_SECONDS)
    first, interrupts, idle = 0, 0, 0.0
    while True:
        before = time.monotonic()
        try:
            numbers = heard.recv(64)
            if not numbers:
                return
        except TimeoutError:
            numbers = b""
        for number in numbers:
            if number in (signal.SIGINT, signal.SIGTERM):
                first = first or number
                interrupts += number == signal.SIGINT
        if interrupts > 1:
            end_now(exit_code(signal.SIGINT), "")
        # A saving or a step that is under way is not cut off.
        idle = idle + time.monotonic() - before if first and not _signals.held else 0.0
        if idle > GRACE_SECONDS:
            end_now(exit_code(first), stop_word(first))


def last_line() -> bool:
    """True for the first who asks: a command ends with one line, whichever thread ends it."""
    return _signals.last_line.acquire(blocking=False)


def end_now(code: int, message: str) -> None:
    """End the process from any thread, without a word from any other."""
    if message and last_line():
        with contextlib.suppress(OSError):
            os.write(2, f"error: {message}\n".encode())
    os._exit(code)
