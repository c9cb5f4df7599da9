"""SIGINT and SIGTERM end a command in an orderly way, wherever it is.

Ordinarily the first of them raises `Stopped` where the main thread is, and `common.command.run_cli` makes one line and
an exit code of it. In a block of `held` it is remembered instead: a training loop ends with its state saved, a row or a
checkpoint is written whole; where that takes long, a line says what is waited for. A second SIGINT ends the process at
once, and so does a second SIGTERM `AGAIN_SECONDS` later. So does the end of `GRACE_SECONDS` where nothing is held: a
main thread that compiles or waits for a device hears no signal.
"""

import contextlib
import os
import signal
import socket
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from typing import NoReturn

EXIT_CODES = {signal.SIGTERM: 75, signal.SIGINT: 130}  # EX_TEMPFAIL, start the same command again; 128 + SIGINT
WORDS = {signal.SIGTERM: "terminated", signal.SIGINT: "interrupted"}
GRACE_SECONDS = 10.0
TICK_SECONDS = 0.5
SAY_SECONDS = 2.0  # after which a command that goes on says what it waits for
AGAIN_SECONDS = 5.0  # schedulers signal a script and its processes, or a job twice: what comes together is one signal


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
    """What has been received, and the blocks that hold it back. Signals belong to a process, and so does this."""

    def __init__(self) -> None:
        self.reset()

    def reset(self) -> None:
        self.received, self.raised = 0, False
        self.held: set[object] = set()  # the blocks; one that is closed late, after a reset, is in it no more
        self.waits: list[str] = []  # what is waited for, in blocks within blocks
        self.requests = 0  # signals that this process is about to get from itself
        self.later: list[threading.Timer] = []  # which ask for them
        self.last_line, self.said = threading.Lock(), threading.Event()
        self.stderr = 2


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
    _signals.requests += 1
    os.kill(os.getpid(), number)


@contextlib.contextmanager
def handled() -> Iterator[None]:
    """Within this block SIGINT and SIGTERM are handled as the module says. For the main thread; elsewhere a no-op."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    _signals.reset()
    before = {number: signal.getsignal(number) for number in EXIT_CODES}
    unraisable, sys.unraisablehook = sys.unraisablehook, _say_unless_stopped(sys.unraisablehook)
    ours, theirs = socket.socketpair()
    theirs.setblocking(False)
    # Python hears a signal when the main thread next runs Python; the number arrives here at once.
    wakeup = signal.set_wakeup_fd(theirs.fileno(), warn_on_full_buffer=False)
    watcher = threading.Thread(target=_watch, args=(ours,), name="signals", daemon=True)
    watcher.start()
    try:
        for number in EXIT_CODES:  # last: a signal may come at once, and ends this block before it began
            signal.signal(number, _receive)
        yield
    finally:
        _signals.raised = True
        for later in _signals.later:  # which would end a process that handles signals no more
            later.cancel()
            later.join()
        signal.set_wakeup_fd(wakeup)
        for number, handler in before.items():
            signal.signal(number, handler)
        theirs.close()
        watcher.join()
        ours.close()
        sys.unraisablehook = unraisable
        _signals.reset()


@contextlib.contextmanager
def held(what: str = "what is being written") -> Iterator[None]:
    """In this block a signal is remembered; where the block ends well, it is heard there. `what` is waited for."""
    block = object()
    _signals.held.add(block)
    try:
        with named(what):
            yield
    finally:
        _signals.held.discard(block)
    check()


@contextlib.contextmanager
def named(what: str) -> Iterator[None]:
    """Where a signal is held back, what is waited for in this block."""
    _signals.waits.append(what)
    try:
        yield
    finally:
        with contextlib.suppress(ValueError):  # closed late, as above
            _signals.waits.remove(what)


def check() -> None:
    """In the main thread, raise `Stopped` where a signal has come that nothing holds back, once."""
    here = threading.current_thread() is threading.main_thread()
    if here and _signals.received and not _signals.held and not _signals.raised:
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
        later = threading.Timer(TICK_SECONDS, request, [_signals.received])
        _signals.later.append(later)
        later.start()

    return say


def _watch(heard: socket.socket) -> None:
    """End the process at a second signal, or where it should have ended by itself; say what it waits for."""
    heard.settimeout(TICK_SECONDS)
    first, since, idle, interrupts, said = 0, 0.0, 0.0, 0, False
    asked = 0.0  # when the first signal came that this process did not send itself
    while True:
        before = time.monotonic()
        try:
            numbers = heard.recv(64)
            if not numbers:
                return
        except TimeoutError:
            numbers = b""
        now = time.monotonic()
        for number in filter(EXIT_CODES.__contains__, numbers):
            # Other hosts are told of it also while the main thread hears nothing.
            first = _signals.received = _signals.received or number
            since = since or now
            if _signals.requests:
                _signals.requests -= 1
                continue
            interrupts += number == signal.SIGINT
            if interrupts > 1:
                end_now(exit_code(signal.SIGINT), "")
            asked = asked or now
            if now - asked > AGAIN_SECONDS:
                end_now(exit_code(first), f"{stop_word(first)} at once by a second signal")
        waits = _signals.waits[-1:]
        if first and _signals.held and waits and not said and now - since > SAY_SECONDS:
            said = True
            _say(f"{stop_word(first)}: waiting for {waits[0]}; a second signal ends at once")
        # A saving or a step that is under way is not cut off.
        idle = idle + now - before if first and not _signals.held else 0.0
        if idle > GRACE_SECONDS:
            end_now(exit_code(first), stop_word(first))


def _say(line: str) -> None:
    with contextlib.suppress(OSError):
        os.write(_signals.stderr, f"{line}\n".encode())


@contextlib.contextmanager
def quiet_stderr() -> Iterator[None]:
    """Keep what compilers write to file descriptor 2 off the terminal, but not the last line of the process."""
    sys.stderr.flush()
    kept = os.dup(2)
    with tempfile.TemporaryFile() as aside:
        _signals.stderr = kept
        os.dup2(aside.fileno(), 2)
        try:
            yield
        finally:
            os.dup2(kept, 2)
            _signals.stderr = 2
            os.close(kept)


def say_last(line: str, say: Callable[[str], None] = _say) -> None:
    """Say the line that a command ends with: one, whichever thread ends it. Where another is at it, wait for that."""
    if _signals.last_line.acquire(blocking=False):
        try:
            say(line)
        finally:
            _signals.said.set()
    else:
        _signals.said.wait(GRACE_SECONDS)


def end_now(code: int, message: str) -> None:
    """End the process from any thread, after one line of it or of another thread."""
    if message:
        say_last(f"error: {message}")
    os._exit(code)
