"""Work on the content of a file in a separate process with bounded time and memory.

A regular expression can backtrack forever and a pickle of shared containers can unfold forever, and neither can be
detected in advance.
"""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

from common.errors import UserError
from common.io.text import parse_json

SECONDS = 5  # of processor time
BYTES = 4 << 30
WAITING = 60  # as many times longer may it take on a busy machine
# Isolated and without site-packages: what runs is the standard library and the named file.
START = """
import resource, runpy, sys
for kind, most in ((resource.RLIMIT_CPU, int(sys.argv[2])), (resource.RLIMIT_AS, int(sys.argv[3]))):
    hard = resource.getrlimit(kind)[1]
    resource.setrlimit(kind, (most if hard == resource.RLIM_INFINITY else min(most, hard), hard))
runpy.run_path(sys.argv[1], run_name="__main__")
"""


def run_bounded(script: Path, request: Any, what: str) -> Any:
    """The JSON that `script`, which needs the standard library alone, writes in answer to a JSON `request`.

    Raises UserError, beginning with `what`, where it uses more than SECONDS or BYTES.
    """
    command = [sys.executable, "-I", "-S", "-c", START, str(script), str(SECONDS), str(BYTES)]
    wait = SECONDS * WAITING
    try:
        done = subprocess.run(command, input=json.dumps(request).encode(), capture_output=True, timeout=wait)
    except subprocess.TimeoutExpired as error:
        raise UserError(f"{what}: not finished after {wait} seconds") from error
    except OSError as error:
        raise UserError(f"{what}: the Python that reads it cannot be started ({error.strerror})") from error
    if done.returncode != 0:
        raise UserError(
            f"{what}: takes more than {SECONDS} seconds of processor time or {BYTES >> 30} GB of memory to read"
        )
    return parse_json(done.stdout, what)
