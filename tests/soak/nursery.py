"""A process that has imported every command and forks one child for each start, which then takes no seconds of imports.

What a command imports only where it needs it is imported after its first start. No backend of JAX is started before the
fork. A child is a process of its own that runs the console script's `main`, and is sent real signals. Requests come as
lines of JSON on standard input, answers go to standard output.
"""

import atexit
import contextlib
import gc
import importlib
import json
import os
import select
import signal
import subprocess
import sys
import time
from pathlib import Path
from types import TracebackType
from typing import Any, NamedTuple, Self

from tests.runs import ROOT

SCRIPTS = ("retsta_jax.cli", "unicross_jax.cli", "deer_jax.cli", "launch.cli")


class End(NamedTuple):
    """How a start ended: its exit code, its standard error, and the seconds from signal to end."""

    code: int
    said: str
    waited: float


class Nursery:
    """The process; use it as a context manager."""

    def __init__(self) -> None:
        words, pipe = [sys.executable, "-m", "tests.soak.nursery"], subprocess.PIPE
        self.process = subprocess.Popen(words, cwd=ROOT, stdin=pipe, stdout=pipe, text=True)
        self._answer()

    def start(self, words: list[str], said: Path, after: float | None, number: int) -> End:
        """Run a module's `main` with words; it gets a signal after so many seconds. It writes its errors to `said`."""
        print(json.dumps([words, str(said), after, number]), file=self.process.stdin, flush=True)
        code, waited = self._answer()
        return End(code, said.read_text("utf-8", "replace").strip(), waited)

    def _answer(self) -> Any:
        return json.loads((self.process.stdout or sys.stdin).readline())

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.process.kill()
        self.process.wait()


def serve() -> list[str] | None:
    """Answer requests until there are no more (None); in a child, the words that it is to run."""
    for script in SCRIPTS:
        for command in importlib.import_module(script).COMMANDS.values():
            importlib.import_module(command.function.partition(":")[0])
    print(json.dumps("ready"), flush=True)
    for line in sys.stdin:
        words, said, after, number = json.loads(line)
        learned = Path(f"{said}.modules")
        gc.freeze()  # what is imported is not looked at again in each child
        child = os.fork()
        if not child:
            _redirect(said)
            atexit.register(_teach, learned, {*sys.modules})
            return list(words)
        answer = _end_of(child, after, number)
        if learned.exists():
            _learn(json.loads(learned.read_text()))
            learned.unlink()
        print(json.dumps(answer), flush=True)
    return None


def _teach(learned: Path, before: set[str]) -> None:
    """Write down which modules a command has imported when it needed them."""
    aside = learned.with_suffix(".partial")
    aside.write_text(json.dumps([name for name in sys.modules if name not in before]))
    aside.rename(learned)


def _learn(names: list[str]) -> None:
    """Import what a command imported, for the children that follow."""
    for name in names:
        with contextlib.suppress(Exception):  # some are made by others, and are no files
            importlib.import_module(name)


def _redirect(said: str) -> None:
    for stream, path in ((0, os.devnull), (1, os.devnull), (2, said)):
        file = os.open(path, os.O_RDWR | os.O_CREAT | (os.O_TRUNC if stream == 2 else 0), 0o644)
        os.dup2(file, stream)
        os.close(file)
    sys.stdin = open(os.devnull)  # noqa: SIM115 - the old one has read ahead


def _end_of(child: int, after: float | None, number: int) -> tuple[int, float]:
    """The exit code of a child, negative for a signal, and the seconds that it took from a signal to its end."""
    handle = os.pidfd_open(child)
    ended, _, _ = select.select([handle], [], [], after)
    sent = time.monotonic()
    if not ended:
        signal.pidfd_send_signal(handle, number)
    code = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    os.close(handle)
    return code, 0.0 if ended else time.monotonic() - sent


def main() -> Any:
    """Serve; in a child, run what was asked for, to the end of the interpreter."""
    if words := serve():
        module, *arguments = words
        sys.argv = [module, *arguments]
        importlib.import_module(module).main()


if __name__ == "__main__":
    main()
