"""`python -m tests.soak [--kills N] [COMMAND ...]`: kills commands at random moments and starts them again.

What a command has written in the end is compared, byte for byte, with what it writes undisturbed. The exit code is 1
where something differs, or where a command ends otherwise than by what it was sent.
"""

import argparse
import hashlib
import os
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path

from common.devices import default_to_cpu
from tests.compile_flags import QUICK
from tests.runs import ROOT
from tests.soak.commands import BEGIN_AGAIN, COMMANDS
from tests.soak.nursery import End, Nursery

CLOCK = ("timings.jsonl", "report.html")  # what tells the time: is to be there
STATE = ("checkpoints",)  # holds times, and what of it counts decides the rest
SIGNALS = {"kill": signal.SIGKILL, "stop": signal.SIGTERM}
EXPECTED = {signal.SIGKILL: (-signal.SIGKILL,), signal.SIGTERM: (75, -signal.SIGTERM)}  # also before it can be handled


def main() -> int:
    """Disturb the named commands, all by default. Returns 1 if there was a fault, otherwise 0."""
    default_to_cpu()
    parser = argparse.ArgumentParser(prog="python -m tests.soak", description=__doc__.split("\n\n")[0])
    parser.add_argument("--kills", type=int, default=50, metavar="N", help="of each command; default: %(default)s")
    parser.add_argument("--seed", type=int, default=0, help="of the moments; default: %(default)s")
    parser.add_argument("--by", choices=SIGNALS, default="kill", help="SIGKILL, or SIGTERM; default: %(default)s")
    parser.add_argument("commands", nargs="*", metavar="COMMAND", help="some of " + ", ".join(COMMANDS))
    options = parser.parse_args()
    if unknown := sorted({*options.commands} - {*COMMANDS}):
        parser.error(f"unknown: {', '.join(unknown)}; expected some of {', '.join(COMMANDS)}")
    with tempfile.TemporaryDirectory() as programs:
        os.environ |= {
            "XLA_FLAGS": QUICK,
            "JAX_COMPILATION_CACHE_DIR": programs,
            "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0",
        }
        with Nursery() as nursery:
            faults = [
                soak(name, options.kills, options.seed, SIGNALS[options.by], nursery)
                for name in options.commands or COMMANDS
            ]
    return int(any(faults))


def soak(name: str, kills: int, seed: int, number: signal.Signals, nursery: Nursery) -> bool:
    """Whether a fault was found."""
    draw = random.Random(f"{name} {seed}")
    with tempfile.TemporaryDirectory() as made:
        folder = Path(made)
        (folder / "material").mkdir()
        command = COMMANDS[name](folder / "material")

        def fault(what: str) -> bool:
            print(f"{name}: fault: {what}", flush=True)
            return True

        def start(after: float | None) -> End:
            return nursery.start(command(folder / "out"), folder / "said", after, number)

        def others() -> list[str]:
            """The files that differ from those of the undisturbed command; nothing is left of this one."""
            different = {file for file, _ in whole ^ digests(folder)}
            for file in written_by(folder):
                shutil.rmtree(file) if file.is_dir() else file.unlink()
            return sorted(different)

        # A process of its own, as users start it, which also fills the cache of programs.
        words = [sys.executable, "-m", *command(folder / "out")]
        own = subprocess.run(words, cwd=ROOT, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)
        if own.returncode:
            return fault(f"exit code {own.returncode} undisturbed: {own.stderr.strip()}")
        whole = digests(folder)
        others()
        began = time.monotonic()
        if (end := start(None)).code:
            return fault(f"exit code {end.code} undisturbed: {end.said}")
        seconds = time.monotonic() - began
        if different := others():
            return fault(f"others undisturbed: {', '.join(different)}")

        codes, slowest = Counter[int](), 0.0
        while True:
            signals = codes.total() - codes[0]
            end = start(draw.uniform(0, seconds) if signals < kills else None)
            codes[end.code] += 1
            if end.code not in (0, *EXPECTED[number]):
                return fault(f"exit code {end.code} after signal {signals}: {end.said}")
            if end.code:
                slowest = max(slowest, end.waited)
                if name in BEGIN_AGAIN and (torn := [file for file, _ in digests(folder) - whole if is_named(file)]):
                    return fault(f"after signal {signals + 1}, not whole: {', '.join(sorted(torn))}")
            elif different := others():
                return fault(f"after signal {signals}, others: {', '.join(different)}")
            elif signals >= kills:
                break
    shown = ", ".join(f"{count} times {code}" for code, count in sorted(codes.items()))
    took = f"{seconds:.1f} s undisturbed, {time.monotonic() - began:.0f} s in all"
    print(f"{name}: the same bits; exit codes: {shown}; slowest end {slowest:.2f} s; {took}", flush=True)
    return False


def is_named(file: str) -> bool:
    """Whether a file has the name that it is to be found by: while it is written, and locks, have hidden names."""
    return not any(part.startswith(".") or ".incomplete" in part for part in Path(file).parts)


def written_by(folder: Path) -> list[Path]:
    """What a command wrote: a file or a directory `out`, and what it puts beside it."""
    return sorted([*folder.glob("out*"), *folder.glob(".out*")])


def digests(folder: Path) -> set[tuple[str, str]]:
    """The files that a command wrote, with what is in them."""
    inside = [file for path in written_by(folder) for file in ([path] if path.is_file() else path.rglob("*"))]
    own = [file for file in inside if file.is_file() and not {*STATE} & {*file.relative_to(folder).parts}]
    contents = (b"" if file.name in CLOCK else file.read_bytes() for file in own)
    return {
        (str(file.relative_to(folder)), hashlib.sha256(content).hexdigest())
        for file, content in zip(own, contents, strict=True)
    }


if __name__ == "__main__":
    sys.exit(main())
