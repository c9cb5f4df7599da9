"""How long each step took: from the end of the step before it to its own end, compiling included and named.

Steps are dispatched one ahead, so a step's end is not when its numbers are read. Steps that do their work on the host
have ended when they return.
"""

import contextlib
import time
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any, NamedTuple

import jax

COMPILE_EVENT = "/jax/core/compile/backend_compile_duration"


class _End(NamedTuple):
    """When the end of a step was seen, and of how many: a busy machine may see the next step's end at once with it."""

    at: float
    steps: int = 1


class StepClock:
    """The times of steps one after another; `now` is the time in seconds."""

    def __init__(self, now: Callable[[], float] = time.perf_counter) -> None:
        self.now = now
        self._pool = ThreadPoolExecutor(1, "step-clock")
        self._compiling = 0.0
        self._started = now()
        self._latest: Any = None

    def restart(self) -> None:
        """What has passed since the last step's end (validation, a checkpoint) belongs to no step."""
        self._started, self._compiling = self.now(), 0.0

    @contextlib.contextmanager
    def listening(self) -> Iterator[None]:
        """Within this block what JAX compiles is timed."""

        def add(event: str, duration_secs: float, **_: str | int) -> None:
            if event == COMPILE_EVENT:
                self._compiling += duration_secs

        jax.monitoring.register_event_duration_secs_listener(add)
        try:
            yield
        finally:
            jax.monitoring.unregister_event_duration_listener(add)
            self._pool.shutdown(wait=False)

    def dispatched(self, result: Any) -> Callable[[], dict[str, float]]:
        """To be called when a step has returned `result`, perhaps not computed yet.

        Returns a function that waits for the result and gives the step's `step_seconds`, and `compile_seconds` where it
        compiled. The functions of steps are to be called in the order of the steps.
        """
        compiling, self._compiling = self._compiling, 0.0
        ended: Future[_End]
        self._latest = result
        if _is_ready(result):
            ended = Future()
            ended.set_result(_End(self.now()))
        else:
            ended = self._pool.submit(self._end_of, result)

        def timings() -> dict[str, float]:
            end, steps = ended.result()
            seconds = max(end - self._started, 1e-9) / steps
            self._started += seconds
            return {"step_seconds": seconds} | ({"compile_seconds": min(compiling, seconds)} if compiling else {})

        return timings

    def _end_of(self, result: Any) -> _End:
        jax.block_until_ready(result)
        seen = self.now()
        return _End(seen, 2 if self._latest is not result and _is_ready(self._latest) else 1)


def _is_ready(result: Any) -> bool:
    return all(getattr(leaf, "is_ready", lambda: True)() for leaf in jax.tree.leaves(result))
