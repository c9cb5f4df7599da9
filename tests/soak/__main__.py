"""`python -m tests.soak [--kills N] [COMMAND ...]`: kills commands at random moments and starts them again.

What a command has written in the end is compared, byte for byte, with what it writes undisturbed. The exit code is 1
where something differs, or where a command ends otherwise than by what it was sent.
"""

import argparse
import hashlib
import itertools
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
from tests.runs import ROOT
from tests.soak.commands import COMMANDS, Command

CLOCK = ("timings.jsonl", "report.html")  # what tells the time
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
    names = options.commands or [*COMMANDS]
    return int(any([soak(name, options.kills, options.seed, SIGNALS[options.by]) for name in names]))


def soak(name: str, kills: int, seed: int, number: signal.Signals) -> bool:
    """Whether a fault was found."""
    draw = random.Random(f"{name} {seed}")
    with tempfile.TemporaryDirectory() as made:
        folder = Path(made)
        (folder / "material").mkdir()
        command = COMMANDS[name](folder / "material")
        began = time.monotonic()
        code, said, _ = start(command, folder / "whole", None, number)
        seconds = time.monotonic() - began
        if code:
            print(f"{name}: fault: exit code {code} undisturbed: {said}", flush=True)
            return True
        whole, codes, slowest = digests(folder / "whole"), Counter[int](), 0.0
        for count in itertools.count(1):
            after = draw.uniform(0, seconds) if count <= kills else None
            code, said, waited = start(command, folder / "out", after, number)
            codes[code], slowest = codes[code] + 1, max(slowest, waited)
            if code not in (0, *EXPECTED[number]):
                print(f"{name}: fault: exit code {code} after signal {count}: {said}", flush=True)
                return True
            if code:
                continue
            if different := [file for file, _ in whole ^ digests(folder / "out")]:
                print(f"{name}: fault: after signal {count}, others: {', '.join(sorted(set(different)))}", flush=True)
                return True
            if count > kills:
                break
            for file in folder.glob("out*"):  # it was faster than the signal
                shutil.rmtree(file) if file.is_dir() else file.unlink()
    shown = ", ".join(f"{count} times {code}" for code, count in sorted(codes.items()))
    print(f"{name}: the same bits; {seconds:.0f} s undisturbed; exit codes: {shown}; slowest end {slowest:.1f} s")
    return False


def start(command: Command, out: Path, after: float | None, number: signal.Signals) -> tuple[int, str, float]:
    """The exit code of a command that gets a signal after so many seconds, its last line, and the seconds it took."""
    words = [sys.executable, "-m", *command(out)]
    with tempfile.TemporaryFile() as errors:
        running = subprocess.Popen(words, cwd=ROOT, stdout=subprocess.DEVNULL, stderr=errors)
        sent = time.monotonic()
        try:
            running.wait(after)
        except subprocess.TimeoutExpired:
            sent = time.monotonic()
            running.send_signal(number)
        code = running.wait()
        waited = time.monotonic() - sent if code else 0.0
        errors.seek(0)
        return code, errors.read().decode(errors="replace").strip().rpartition("\n")[2], waited


def digests(path: Path) -> set[tuple[str, str]]:
    """The files that a command wrote, with what is in them."""
    files = [path] if path.is_file() else [file for file in path.rglob("*") if file.is_file()]
    own = [file for file in files if file.name not in CLOCK and not {*STATE} & {*file.relative_to(path).parts}]
    return {(str(file.relative_to(path)), hashlib.sha256(file.read_bytes()).hexdigest()) for file in own}


if __name__ == "__main__":
    sys.exit(main())
