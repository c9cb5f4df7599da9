"""Processes that hold locks, for tests of commands that must be refused while they live, and take over when not."""

import contextlib
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).parents[1]
# Told a path it tries to lock it, and says what came of it; it holds what it has got until it is told the next.
PROGRAM = """
import contextlib, sys
from pathlib import Path
from common.errors import UserError
from common.io.locks import locked_directory, locked_file
print("ready", flush=True)
with contextlib.ExitStack() as stack:
    for line in sys.stdin:
        stack.close()
        path = Path(line.strip())
        if not line.strip():
            print("free", flush=True)
            continue
        try:
            stack.enter_context(locked_directory(path) if path.is_dir() else locked_file(path))
            print("held", flush=True)
        except UserError as error:
            print(error, flush=True)
"""


class Locker:
    """A process that locks what it is told to."""

    def __init__(self) -> None:
        self.process = subprocess.Popen(
            [sys.executable, "-c", PROGRAM], cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )
        self.answer()

    def ask(self, path: Path | str) -> None:
        """Let go of what is held, and try to lock `path`, if it names one."""
        assert self.process.stdin is not None
        self.process.stdin.write(f"{path}\n")
        self.process.stdin.flush()

    def answer(self) -> str:
        """What came of it: "held", "free" or why not."""
        assert self.process.stdout is not None
        return self.process.stdout.readline().strip()

    def lock(self, path: Path | str) -> str:
        """`ask`, then `answer`."""
        self.ask(path)
        return self.answer()

    def kill(self) -> None:
        """SIGKILL: what it holds is left behind."""
        self.process.kill()
        self.process.wait()

    def __enter__(self) -> "Locker":
        return self

    def __exit__(self, *_: object) -> None:
        self.kill()
        for stream in (self.process.stdin, self.process.stdout):
            if stream is not None:
                stream.close()


@contextlib.contextmanager
def held_elsewhere(path: Path) -> Iterator[int]:
    """Another process, whose number this gives, holds the lock of a file or directory."""
    with Locker() as other:
        assert other.lock(path) == "held"
        yield other.process.pid
        other.lock("")
