"""What the PyTorch peers of `medreport bench` share: a child process that does the same work as ours, when told to.

`Peer` is the parent's side and imports no PyTorch. The child (`python -m launch.bench.peer_qwen2`)
is `serve`: it reads one JSON request a line from standard input and answers with the seconds its work took; between
requests it waits and uses no CPU.

Both sides run at their best: all threads, and a malloc that keeps the pages of large arrays (`launch.malloc`).
"""

import json
import os
import subprocess
import sys
from collections.abc import Callable
from types import TracebackType
from typing import Any

from common.errors import UserError
from launch.malloc import KEEP_PAGES

# By name; each returns the seconds it took, or these as "seconds" beside what it made.
Works = dict[str, Callable[..., float | dict[str, Any]]]


class Peer:
    """The child process as a context; `call` sends it work and returns the seconds. Raises UserError if it dies."""

    def __init__(self, module: str, setup: dict[str, Any]) -> None:
        environment = {**os.environ, "GLIBC_TUNABLES": KEEP_PAGES, "TRANSFORMERS_VERBOSITY": "error"}
        self._process = subprocess.Popen(
            [sys.executable, "-m", module],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env=environment,
        )
        self.versions: dict[str, Any] = self._ask(setup)

    def call(self, work: str, **arguments: Any) -> float:
        """Do `work` once; its seconds, without the transfer of the arguments."""
        return self.ask(work, **arguments)["seconds"]

    def ask(self, work: str, **arguments: Any) -> dict[str, Any]:
        """Do `work` once; its seconds, and what it made where it says so."""
        return self._ask({"work": work, **arguments})

    def _ask(self, request: dict[str, Any]) -> dict[str, Any]:
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        try:
            self._process.stdin.write(json.dumps(request) + "\n")
            self._process.stdin.flush()
        except BrokenPipeError:
            line = ""
        else:
            line = self._process.stdout.readline()
        if not line:
            raise UserError(
                f"--peer: the PyTorch process ended with code {self._process.wait()} (its message is above); "
                "it needs torch, transformers and peft: pip install -r requirements-parity.txt"
            )
        return json.loads(line)

    def __enter__(self) -> "Peer":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._process.stdin:
            self._process.stdin.close()
        self._process.wait()


def serve(start: Callable[[dict[str, Any], str], tuple[dict[str, str], Works]]) -> None:
    """The child's side, until standard input ends.

    `start(setup, device)` returns the versions of what it runs on, and the works that may be asked for.
    """
    import torch

    answers = os.fdopen(os.dup(sys.stdout.fileno()), "w")
    os.dup2(sys.stderr.fileno(), sys.stdout.fileno())  # whatever a library prints must not be taken for an answer
    torch.set_num_threads(len(os.sched_getaffinity(0)))
    device = "cuda" if torch.cuda.is_available() else "cpu"
    versions, works = start(json.loads(sys.stdin.readline()), device)
    print(json.dumps({"torch": torch.__version__, **versions}), file=answers, flush=True)
    for line in sys.stdin:
        request = json.loads(line)
        done = works[request.pop("work")](**request)
        print(json.dumps(done if isinstance(done, dict) else {"seconds": done}), file=answers, flush=True)
