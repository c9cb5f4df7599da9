"""What the benchmarks share: a shape's fields as flags, works done in turns, and rates beside those of a peer."""

import argparse
import dataclasses
import resource
import statistics
import time
from collections.abc import Callable
from typing import Any

import jax

from common.training.flops import utilisation

Timed = Callable[[], float]  # does the work once and returns its seconds


def add_flags(parser: argparse.ArgumentParser, default: Any, with_peer: bool = True) -> None:
    """A flag for every field of the dataclass `default`, and `--peer`; several numbers are joined by commas."""

    def numbers(text: str) -> tuple[int, ...]:
        return tuple(int(number) for number in text.split(","))

    if with_peer:
        parser.add_argument("--peer", action="store_true", help="measure PyTorch beside it, in turns")
    for field in dataclasses.fields(default):
        value = getattr(default, field.name)
        kind = numbers if isinstance(value, tuple) else type(value)
        parser.add_argument(f"--{field.name.replace('_', '-')}", type=kind, default=value, help="(%(default)s)")


def in_turns(works: dict[str, Timed], repetitions: int) -> dict[str, list[float]]:
    """Seconds of each work, done in turns A B A B, so that what slows the machine for a while slows all of them."""
    seconds: dict[str, list[float]] = {name: [] for name in works}
    for _ in range(repetitions):
        for name, work in works.items():
            seconds[name].append(work())
    return seconds


def timed(work: Callable[[], Any]) -> float:
    """Seconds of a work that waits for its result."""
    started = time.perf_counter()
    work()
    return time.perf_counter() - started


def compared(
    ours: list[float], theirs: dict[str, list[float]], amount: int, unit: str, flops: float, devices: list[jax.Device]
) -> dict[str, Any]:
    """Rates of `amount` things in these seconds, with `flops` model FLOPs, beside those of the peer's variants.

    `ratio` is to the first variant, which does what is done by default; `ratio_to_best` to the fastest.
    """
    median = statistics.median(ours)
    result: dict[str, Any] = {
        **rates(ours, amount, unit),
        "model_tflops": flops / median / 1e12,
        "utilisation": utilisation(flops, median, devices),
    }
    if theirs:
        result["peer"] = {name: rates(seconds, amount, unit) for name, seconds in theirs.items()}
        rate = f"{unit}_per_second"
        ratios = [result[rate] / variant[rate] for variant in result["peer"].values()]
        result["ratio"], result["ratio_to_best"] = ratios[0], min(ratios)
    return result


def rates(seconds: list[float], amount: int, unit: str) -> dict[str, float]:
    """Median rate of `amount` things in these seconds, the lowest and highest, and the median of the seconds."""
    return {
        f"{unit}_per_second": amount / statistics.median(seconds),
        "lowest": amount / max(seconds),
        "highest": amount / min(seconds),
        "seconds": statistics.median(seconds),
    }


def against_goals(ratios: dict[str, float], goals: dict[str, float]) -> dict[str, Any]:
    """The ratios, and which of the goals they meet."""
    met = {
        name: {"at_least": goals[name], "met": ratio >= goals[name]} for name, ratio in ratios.items() if name in goals
    }
    return {"ratios": ratios, "goals": met}


def about(work: str, shape: Any) -> dict[str, Any]:
    """What was measured, and where."""
    return {
        "work": work,
        "device": jax.devices()[0].device_kind,
        "devices": len(jax.devices()),
        "jax": jax.__version__,
        "shape": dataclasses.asdict(shape),
    }


def peak_bytes() -> int:
    """Most bytes in use on an accelerator; on a CPU, the most this process has held."""
    of_device = jax.devices()[0].memory_stats() or {}
    if "peak_bytes_in_use" in of_device:
        return int(of_device["peak_bytes_in_use"])
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
