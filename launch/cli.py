"""`medreport COMMAND`: what all systems share, from data to benchmarks."""

import importlib.util
import sys

from common.errors import UserError
from common.scripts import Command, run_command, run_script
from launch.malloc import keep_pages

COMMANDS = {
    "decode": Command(
        "continue prompts, or score answers", "--model DIR --prompts FILE.jsonl", "common.generation.command:main",
        several_hosts=True,
    ),
    "score": Command("text metrics of predictions", "FILE.jsonl", "common.clinical.score_command:main"),
    "compare": Command(
        "which differences between systems hold", "A.jsonl B.jsonl ...", "common.report.compare_command:main"
    ),
    "submission": Command(
        "predictions as a leaderboard reads them",
        "FILE.jsonl --format rexrank --output FILE",
        "common.data.submission_command:main",
    ),
    "wordnet": Command("fetch WordNet, which METEOR needs", "", "common.metrics.wordnet:main", joins=False),
    "prepare": Command(
        "a data set of studies with images",
        "--layout NAME --source PATH --output FOLDER",
        "common.data.builders.command:main",
    ),
    "data": Command(
        "a card of a data set", "show --layout NAME --source PATH --output FILE", "launch.data_card.command:main"
    ),
    "phantoms": Command("a sheet of drawn radiographs", "--sheet FILE.png", "common.phantoms.phantom:main"),
    "app": Command("all systems on a local page", "[--retsta DIR]", "launch.app.command:main", joins=False),
    "doctor": Command("check this machine", "[--preset NAME]", "launch.doctor:main", joins=False),
    "plan": Command(
        "whether a step fits a TPU slice or GPUs", "--preset NAME --topology v5e:2x4|h100:8", "launch.plan:main"
    ),
    "launch": Command(
        "start a command on many devices",
        "slurm|gke|tpu|skypilot|ssh|local -- COMMAND ...",
        "launch.recipes.command:main",
    ),
    "bench": Command(
        "speed of this device",
        "sft|decode|slots|unicross|rl|labeler|... [--peer]",
        "launch.cli:bench",
    ),
}  # fmt: skip


def main() -> None:
    """The console script."""
    if sys.argv[1:2] == ["bench"]:
        keep_pages(sys.argv[1:])
    run_script("medreport", COMMANDS)


def dispatch(arguments: list[str]) -> int | None:
    """Run the named command; its exit code. Raises UserError where there is none of that name."""
    return run_command("medreport", COMMANDS, arguments)


def bench(arguments: list[str]) -> int:
    """Run a benchmark. Raises UserError where they are not installed."""
    if importlib.util.find_spec("launch.bench") is None:
        raise UserError("medreport bench: benchmarks are not part of the package; run it in a checkout of the project")
    from launch.bench import command

    return command.main(arguments)


if __name__ == "__main__":
    main()
