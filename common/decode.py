"""`python -m common.decode`: see `common.generation.command`."""

from common.command import run_cli
from common.generation.command import main

if __name__ == "__main__":
    run_cli(main)
