"""`python -m tests.soak [--kills N] [--by kill|stop|full] [COMMAND ...]`: disturbs commands and starts them again.

They are killed or stopped at random moments, or meet a disk that is full at random sizes; and each is started once
beside a process that writes the same, which it is to refuse.

What a command has written in the end is compared, byte for byte, with what it writes undisturbed. The exit code is 1
where something differs, or where a command ends otherwise than by what it was sent.
"""

import argparse
import contextlib
import hashlib
import os
import random
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path

from common.devices import default_to_cpu
from tests.compile_flags import QUICK
from tests.lock_holder import held_elsewhere
from tests.runs import ROOT
from tests.soak.commands import BEGIN_AGAIN, COMMANDS, LOCKED
from tests.soak.disk import ROOMY, resize, small_disk, used
from tests.soak.nursery import End, Nursery

# Ends of names of what tells the time, and of rows in protocol buffers, whose maps have no order: they are to be there.
OTHERWISE = ("timings.jsonl", ".html", ".array_record-00000-of-00001")
REPLACED = ("README.md",)  # the model card of a run, which an evaluation adds scores to
STATE = ("checkpoints",)  # holds times, and what of it counts decides the rest
SIGNALS = {"kill": signal.SIGKILL, "stop": signal.SIGTERM}
# How a command may end; it can be stopped before it has begun to handle signals.
EXPECTED = {"kill": (-signal.SIGKILL,), "stop": (75, -signal.SIGTERM), "full": (2,)}
MARGIN = 1 << 13  # bytes that a command may take beside what it leaves


class Fault(Exception):
    """What a command did that it should not."""


def main() -> int:
    """Disturb the named commands, all by default. Returns 1 if there was a fault, otherwise 0."""
    default_to_cpu()
    parser = argparse.ArgumentParser(prog="python -m tests.soak", description=__doc__.split("\n\n")[0])
    parser.add_argument("--kills", type=int, default=50, metavar="N", help="of each command; default: %(default)s")
    parser.add_argument("--seed", type=int, default=0, help="of the moments; default: %(default)s")
    parser.add_argument(
        "--by", choices=EXPECTED, default="kill",
        help="SIGKILL, SIGTERM, or a disk that is full (for root); default: %(default)s",
    )  # fmt: skip
    parser.add_argument("commands", nargs="*", metavar="COMMAND", help="some of " + ", ".join(COMMANDS))
    options = parser.parse_args()
    if unknown := sorted({*options.commands} - {*COMMANDS}):
        parser.error(f"unknown: {', '.join(unknown)}; expected some of {', '.join(COMMANDS)}")
    faults = 0
    with tempfile.TemporaryDirectory() as programs:
        os.environ |= {
            "XLA_FLAGS": QUICK,
            "JAX_COMPILATION_CACHE_DIR": programs,
            "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0",
        }
        with Nursery() as nursery:
            for name in options.commands or COMMANDS:
                folder = Path(tempfile.mkdtemp(prefix=f"soak-{name}-"))
                (folder / "disk").mkdir()
                (folder / "material").mkdir()
                try:
                    with small_disk(folder / "disk") if options.by == "full" else contextlib.nullcontext():
                        try:
                            said = soak(name, folder, options, nursery)
                        except Fault:
                            shutil.copytree(folder / "disk", folder / "fault", symlinks=True)
                            raise
                except Fault as fault:
                    faults += 1
                    said = f"fault: {fault}; what it left is in {folder / 'fault'}"
                else:
                    shutil.rmtree(folder)
                print(f"{name}: {said}", flush=True)
    return int(faults > 0)


def soak(name: str, folder: Path, options: argparse.Namespace, nursery: Nursery) -> str:
    """Disturb a command, in a folder with an empty `material` and a `disk`; the figures. Raises Fault."""
    draw = random.Random(f"{name} {options.seed}")
    command, disk = COMMANDS[name](folder / "material"), folder / "disk"

    def start(after: float | None = None) -> End:
        return nursery.start(command(disk / "out"), folder / "said", after, SIGNALS.get(options.by, 0))

    def compare(when: str) -> None:
        """Look for files that differ from those of the undisturbed command; nothing is left of this one."""
        if different := {file for file, _ in whole ^ digests(disk)}:
            raise Fault(f"{when}, others: {', '.join(sorted(different))}")
        for file in disk.iterdir():
            shutil.rmtree(file) if file.is_dir() else file.unlink()

    # A process of its own, as users start it, which also fills the cache of programs.
    words = [sys.executable, "-m", *command(disk / "out")]
    own = subprocess.run(words, cwd=ROOT, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)
    if own.returncode:
        raise Fault(f"exit code {own.returncode} undisturbed: {own.stderr.strip()}")
    whole, size = digests(disk), used(disk) + MARGIN
    compare("undisturbed")
    began = time.monotonic()
    if (end := start()).code:
        raise Fault(f"exit code {end.code} undisturbed: {end.said}")
    seconds = time.monotonic() - began
    refuse_second(start, disk, name)
    compare("undisturbed, started again")

    codes, slowest = Counter[int](), 0.0
    while True:
        count = codes.total() - codes[0] + 1
        when = f"at the {count}. time"
        disturbed = count <= options.kills
        if options.by == "full":
            resize(disk, max(used(disk) + 1, draw.randint(0, size)) if disturbed else ROOMY)
        end = start(draw.uniform(0, seconds) if disturbed and options.by != "full" else None)
        if name in BEGIN_AGAIN and "already exists" in end.said:
            end = end._replace(code=0)  # what was disturbed was done, all but the end of the process
        codes[end.code] += 1
        if end.code not in (0, *EXPECTED[options.by]) or "Traceback" in end.said:
            raise Fault(f"exit code {end.code} {when}: {end.said}")
        if end.code:
            slowest = max(slowest, end.waited)
            left = [file for file, _ in digests(disk) - whole if is_named(file) and not file.endswith(REPLACED)]
            torn = left if name in BEGIN_AGAIN else []
            if torn:
                raise Fault(f"{when}, not whole: {', '.join(sorted(torn))}")
        else:
            compare(f"continued, {when}")
            if not disturbed:
                break
    shown = ", ".join(f"{count} times {code}" for code, count in sorted(codes.items()))
    took = f"{seconds:.1f} s undisturbed, {time.monotonic() - began:.0f} s in all"
    return f"the same bits; exit codes: {shown}; slowest end {slowest:.2f} s; {took}"


def refuse_second(start: Callable[[], End], disk: Path, name: str) -> None:
    """Start a command while another process writes what it has written: it is to say so, and change nothing."""
    before = digests(disk)
    with held_elsewhere(disk / "out" / LOCKED.get(name, "")) as pid:
        end = start()
    if end.code != 2 or f"is being written by process {pid} on {socket.gethostname()}" not in end.said:
        raise Fault(f"exit code {end.code} beside a process that writes: {end.said}")
    if different := {file for file, _ in before ^ digests(disk)}:
        raise Fault(f"beside a process that writes, others: {', '.join(sorted(different))}")


def is_named(file: str) -> bool:
    """Whether a file has the name that it is to be found by: while it is written, and locks, have hidden names."""
    return not any(part.startswith(".") or ".incomplete" in part for part in Path(file).parts)


def digests(folder: Path) -> set[tuple[str, str]]:
    """The files in a folder, with what is in them."""
    files = [file for file in folder.rglob("*") if file.is_file() and not {*STATE} & {*file.parts}]
    contents = (b"" if file.name.endswith(OTHERWISE) else file.read_bytes() for file in files)
    return {
        (str(file.relative_to(folder)), hashlib.sha256(content).hexdigest())
        for file, content in zip(files, contents, strict=True)
    }


if __name__ == "__main__":
    sys.exit(main())
