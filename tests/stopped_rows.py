"""A command that writes rows with other hosts, in one of which a signal comes: for tests that start it."""

import os
import signal
import sys
from pathlib import Path

import jax

from common.command import run_cli
from common.generation.processes import over_processes, writer_of_first
from common.training.parallel import generation_layout


def main(arguments: list[str]) -> None:
    """`rows FILE ROWS HOST ROW NUMBER`: before it finds ROW, HOST gets the signal NUMBER; then it finds no more."""
    host, row, number = map(int, arguments[3:])

    def written(rows):
        for found in rows:
            if jax.process_index() == host and found == row:
                os.kill(os.getpid(), number)
            yield {"id": found}

    with writer_of_first(Path(arguments[1])) as write:
        for found in over_processes(range(int(arguments[2])), written, 1, generation_layout()):
            write(found)


if __name__ == "__main__":
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    run_cli(main, sys.argv[1:], hosts={"rows"})
