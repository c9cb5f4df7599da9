"""`python -m launch plan | bench`: does a training step fit a TPU slice, and how fast is this device."""

import sys

from common.command import run_cli
from common.errors import UserError
from launch.malloc import keep_pages

USAGE = (
    "usage: python -m launch plan|bench sft|bench decode|bench unicross|bench rl|bench duplicates ...; "
    "add --help to any for its options"
)


def main(arguments: list[str]) -> int:
    """Run a subcommand. Imports are the subcommand's own: bench must run where half of the dependencies are missing."""
    command, *rest = arguments or [""]
    if command in ("-h", "--help"):
        print(USAGE)
        return 0
    if command == "plan":
        from launch import plan

        return plan.main(rest)
    if command == "bench":
        from launch.bench import command as bench

        return bench.main(rest)
    raise UserError(f"launch: {command!r} is no command; {USAGE}")


if __name__ == "__main__":
    if sys.argv[1:2] == ["bench"]:
        keep_pages(sys.argv[1:])
    run_cli(main, sys.argv[1:])
