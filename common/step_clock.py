"""How long each step took: from the end of the step before it to its own end, compiling included and named.

Steps are dispatched one ahead, so a step's end is not when its numbers are read. Steps that do their work on the host
have ended when they return.
"""

import contextlib
import time
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any

import jax

COMPILE_EVENT = "/jax/core/compile/backend_compile_duration"


class StepClock:
    """The times of steps one after another; `now` is the time in seconds."""

    def __init__(self, now: Callable[[], float] = time.perf_counter) -> None:
        self.now = now
        self._pool = ThreadPoolExecutor(1, "step-clock")
        self._compiling = 0.0
        self._started = now()

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
        ended: Future[float]
        if all(getattr(leaf, "is_ready", lambda: True)() for leaf in jax.tree.leaves(result)):
            ended = Future()
            ended.set_result(self.now())
        else:
            ended = self._pool.submit(self._end_of, result)

        def timings() -> dict[str, float]:
            end = ended.result()
            seconds, self._started = max(end - self._started, 1e-9), max(end, self._started)
            return {"step_seconds": seconds} | ({"compile_seconds": min(compiling, seconds)} if compiling else {})

        return timings

    def _end_of(self, result: Any) -> float:
        jax.block_until_ready(result)
        return self.now()
