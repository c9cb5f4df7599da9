"""Signals between the hosts of one run: that they are alive, that they end, and that a signal was received.

Each writes a beat into the key-value store of JAX's coordination service, which host 0 keeps, and reads the others'. A
host that is silent for too long, or that ended with an error, ends the rest: one line that names it, and an exit code.
JAX alone would abort with a C++ stack trace, or wait forever.
"""

import contextlib
import ctypes
import re
import signal
import threading
import time
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

from common.process import stopping

BEAT_SECONDS = 1.0
BEATS_TO_NAME = 4  # beats after which a host is named where a collective has already failed
UNWIND_SECONDS = 5.0  # for the main thread to end by itself
LOST_CODE = 75
ROOT = "medreport"
# What collectives and the coordination service raise where a host is gone; they have no type of their own.
LOSS = re.compile(
    r"gloo|nccl|connection (closed|reset|refused)|socket closed|coordination|heartbeat|barrier|DEADLINE_EXCEEDED|"
    r"UNAVAILABLE",
    re.IGNORECASE,
)


class Ending(NamedTuple):
    """Why this host is to end."""

    code: int
    message: str


class Watch:
    """The thread that beats and listens, and what it knows. `client` is that of JAX's coordination service."""

    def __init__(self, client: Any, number: int, count: int, lost_after: float) -> None:
        self.client, self.number, self.count, self.lost_after = client, number, count, lost_after
        self.ending: Ending | None = None
        self._ended = threading.Event()
        self._polls, self._target, self._lock = 0, 0, threading.Lock()
        self._heard = {other: (b"", time.monotonic()) for other in range(count) if other != number}
        self._answered = time.monotonic()
        self._thread = threading.Thread(target=self._run, name="hosts", daemon=True)
        self._thread.start()

    def stop_asked(self) -> bool:
        """Whether to end at this call: all hosts call equally often, and are told at the same call."""
        with self._lock:
            self._polls += 1
            return bool(self._target) and self._polls >= self._target

    def lost(self) -> Ending:
        """Who is gone, after a collective has failed: waits until it is known."""
        deadline = time.monotonic() + 2 * self.lost_after  # a busy machine may hear of a last beat late
        while self.ending is None and time.monotonic() < deadline:
            with contextlib.suppress(Exception):  # as in `_run`
                self._look(self._all("end"))
            silent = self._silent(BEATS_TO_NAME * BEAT_SECONDS)
            if silent and self.ending is None:
                return silent
            time.sleep(BEAT_SECONDS / 4)
        return self.ending or Ending(LOST_CODE, "another host was lost; start the same command again on all")

    def leave(self, code: int) -> None:
        """Tell the others that this host ends. Host 0, which the others depend on, waits a little for them."""
        if self._ended.is_set():
            return
        self._ended.set()
        self._thread.join(BEAT_SECONDS * 5)
        with contextlib.suppress(Exception):  # whatever the service says: this host ends
            self._set("end", str(code))
            deadline = time.monotonic() + UNWIND_SECONDS + 3 * BEAT_SECONDS
            while code and self.number == 0 and time.monotonic() < deadline and len(self._all("end")) < self.count:
                time.sleep(BEAT_SECONDS / 4)

    def _run(self) -> None:
        beat, told, ending_since = 0, False, 0.0
        while not self._ended.wait(BEAT_SECONDS):
            beat += 1
            try:
                self._set("beat", str(beat))
                self._listen(self._all("beat"))
                if stopping.received() and not told:
                    told = True
                    self._set("stop", str(stopping.received()))
                self._agree(self._all("stop"))
                self._look(self._all("end"))
            except Exception:  # JAX documents no list of errors; a service that is gone is host 0
                self.ending = self._silent(self.lost_after) or self.ending
            if self.ending is None:
                continue
            ending_since = ending_since or time.monotonic()
            if time.monotonic() - ending_since > UNWIND_SECONDS:
                with contextlib.suppress(Exception):
                    self._set("end", str(self.ending.code))
                stopping.end_now(*self.ending)

    def _listen(self, beats: Mapping[int, str]) -> None:
        now = self._answered = time.monotonic()
        for other, (before, _) in self._heard.items():
            if beats.get(other, "").encode() != before:
                self._heard[other] = beats[other].encode(), now
        gone = self._silent(self.lost_after)
        if gone:
            ended = self._all("end")
            if any(ended.get(other) != "0" for other in self._quiet(self.lost_after)):
                self.ending = self.ending or gone

    def _quiet(self, seconds: float) -> list[int]:
        now = time.monotonic()
        return [other for other, (_, heard) in self._heard.items() if now - heard > seconds]

    def _silent(self, seconds: float) -> Ending | None:
        quiet = self._quiet(seconds)
        if time.monotonic() - self._answered > seconds:
            quiet = [0]
        if not quiet:
            return None
        return Ending(
            LOST_CODE,
            f"host {', '.join(map(str, quiet[:10]))} of {self.count} was lost (no sign of life); start the same "
            "command again on all hosts: a training continues from its last checkpoint",
        )

    def _agree(self, stops: Mapping[int, str]) -> None:
        """Where a signal came anywhere: end at a poll that no host has passed."""
        if not stops or self._target:
            return
        if not stopping.received():
            stopping.request(int(next(iter(stops.values()))))
        with self._lock:  # `stop_asked` waits meanwhile
            self._set("at", str(self._polls))
            deadline = time.monotonic() + self.lost_after
            while len(at := self._all("at")) < self.count and not self._all("end") and time.monotonic() < deadline:
                time.sleep(BEAT_SECONDS / 10)
            self._target = max(map(int, at.values()), default=self._polls) + 1

    def _look(self, ends: Mapping[int, str]) -> None:
        for other, code in ends.items():
            if code != "0" and other != self.number and self.ending is None:
                why = f"host {other} of {self.count} ended with exit code {code}; its own last line says why"
                self.ending = Ending(int(code), why)

    def _set(self, kind: str, value: str) -> None:
        self.client.key_value_set(f"{ROOT}/{kind}/{self.number}", value, allow_overwrite=True)

    def _all(self, kind: str) -> dict[int, str]:
        rows = self.client.key_value_dir_get(f"{ROOT}/{kind}/")
        return {int(key.rpartition("/")[2]): value for key, value in rows}


_watch: list[Watch] = []  # of this process, where it is one of several hosts
_on_abort: list[Any] = []  # ctypes does not keep what it is given


def begin_watch(client: Any, number: int, count: int, lost_after: float) -> None:
    """Begin to tell the other hosts that this one is alive, and to listen to them."""
    _watch.append(Watch(client, number, count, lost_after))


def say_on_abort(code: int, message: str) -> None:
    """What is said, in place of a C++ stack, where JAX's service aborts the process."""

    def ended(_: int) -> None:
        known = _watch[0].ending if _watch else None
        if stopping.received():
            stopping.end_now(stopping.exit_code(stopping.received()), stopping.stop_word(stopping.received()))
        stopping.end_now(*(known or (code, message)))

    _on_abort[:] = [ctypes.CFUNCTYPE(None, ctypes.c_int)(ended)]
    libc = ctypes.CDLL(None)
    libc.signal.restype = ctypes.c_void_p  # SIGABRT comes from another thread, which Python's own handlers never see
    libc.signal(int(signal.SIGABRT), _on_abort[0])


def watch() -> Watch | None:
    """That of this process, where it is one of several hosts."""
    return _watch[0] if _watch else None


def stop_asked() -> Callable[[], bool]:
    """A function that says whether to end: a signal came, to this process or, of several, to any.

    All processes are to call it equally often, and are told at the same call.
    """
    return _watch[0].stop_asked if _watch else lambda: bool(stopping.received())


def ending_of(error: BaseException) -> Ending | None:
    """How to end where this error, or what it came from, tells that another host is gone; None where it does not."""
    if not _watch:
        return None
    cause: BaseException | None = error
    while cause is not None:
        if not isinstance(cause, OSError) and LOSS.search(str(cause)):
            if stopping.received():
                number = stopping.received()
                return Ending(stopping.exit_code(number), stopping.stop_word(number))
            return _watch[0].lost()
        cause = cause.__cause__ or cause.__context__
    return None
