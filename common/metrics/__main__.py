"""`python -m common.metrics`: see `common.clinical.score_command`."""

from common.clinical.score_command import main
from common.command import run_cli

if __name__ == "__main__":
    run_cli(main)
