"""`python -m tests.fuzz [--seconds N] [TARGET ...]`: damages valid files of each target and reads them.

A reader may refuse a file with a UserError of one line; any other exception is a fault. Hypothesis shrinks the
file that causes it, which is kept in `fuzz-faults/`, and the exit code is 1.
"""

import argparse
import resource
import tempfile
import time
import traceback
import warnings
from pathlib import Path

from hypothesis import HealthCheck, Phase, given, seed, settings

from tests.fuzz.damage import damaged
from tests.fuzz.targets import TARGETS, Target, try_file

FAULTS = Path("fuzz-faults")
AT_ONCE = 200  # files between two looks at the clock
MOST_MEMORY = 8 << 30  # bytes of this process


def main() -> int:
    """Fuzz the named targets, all by default. Returns 1 if there was a fault, otherwise 0."""
    parser = argparse.ArgumentParser(prog="python -m tests.fuzz", description=__doc__.split("\n\n")[0])
    parser.add_argument("--seconds", type=float, default=60.0, help="time for each target; default: %(default)s")
    parser.add_argument(
        "targets", nargs="*", metavar="TARGET", help="some of " + ", ".join(TARGETS) + " (default: all)"
    )
    options = parser.parse_args()
    if unknown := sorted({*options.targets} - {*TARGETS}):
        parser.error(f"unknown: {', '.join(unknown)}; expected some of {', '.join(TARGETS)}")
    resource.setrlimit(resource.RLIMIT_AS, (MOST_MEMORY, MOST_MEMORY))
    warnings.simplefilter("ignore")
    return int(sum([fuzz(name, TARGETS[name], options.seconds) for name in options.targets or TARGETS]) > 0)


def fuzz(name: str, target: Target, seconds: float) -> bool:
    """Whether a fault was found in this time."""
    ends, tried, last = time.monotonic() + seconds, 0, b""
    with tempfile.TemporaryDirectory() as made:
        folder = Path(made)
        seeds = target.seeds(folder)

        def one(content: bytes) -> None:
            nonlocal tried, last
            tried, last = tried + 1, content
            try_file(target, folder, content)

        for number in range(1 << 30):
            if time.monotonic() > ends:
                print(f"{name}: {tried} files, no fault", flush=True)
                return False
            try:
                run = settings(
                    max_examples=AT_ONCE,
                    deadline=None,
                    database=None,
                    phases=(Phase.generate, Phase.shrink),
                    suppress_health_check=list(HealthCheck),
                )
                seed(number)(run(given(damaged(seeds))(one)))()
            except Exception:  # whatever a reader raises is what is looked for
                FAULTS.mkdir(exist_ok=True)
                kept = FAULTS / f"{name}-{Path(target.name).name}"
                kept.write_bytes(last)
                print(
                    f"{name}: fault after {tried} files, kept as {kept}\n{traceback.format_exc(limit=-4)}", flush=True
                )
                return True
    return False


if __name__ == "__main__":
    raise SystemExit(main())
