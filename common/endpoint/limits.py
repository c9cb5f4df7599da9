"""Rate limits of requests to an endpoint."""

import threading
import time
from collections.abc import Callable
from dataclasses import dataclass

LEAST_SLEEP = 1e-3  # seconds; so that a turn that is a rounding error away is reached


def _sleep(seconds: float, stop: threading.Event) -> None:
    stop.wait(seconds)


@dataclass(frozen=True)
class Clock:
    """Seconds on a clock that never goes back, and a sleep of some seconds that `stop` ends."""

    now: Callable[[], float] = time.monotonic
    sleep: Callable[[float, threading.Event], None] = _sleep


class RateLimit:
    """Turns for requests from any number of threads: evenly spaced, so that no minute holds more than `per_minute`."""

    def __init__(self, per_minute: int, clock: Clock) -> None:
        self._gap, self._clock = 60 / per_minute, clock
        self._next = clock.now()
        self._lock = threading.Lock()

    def wait(self, stop: threading.Event) -> None:
        """Return when it is this thread's turn, or when `stop` is set."""
        while not stop.is_set():
            with self._lock:
                now = self._clock.now()
                delay = self._next - now
                if delay <= 0:
                    self._next = now + self._gap
                    return
            self._clock.sleep(max(delay, LEAST_SLEEP), stop)

    def pause(self, seconds: float) -> None:
        """No turn for anybody before so many seconds have passed."""
        with self._lock:
            self._next = max(self._next, self._clock.now() + seconds)
