"""`unicross COMMAND`: the command line of report generation from radiographs."""

from common.scripts import Command, run_command, run_script

COMMANDS = {
    "train": Command(
        "train on studies", "--preset NAME --run-dir DIR [any field of the config]", "unicross_jax.commands:train",
        several_hosts=True,
    ),
    "evaluate": Command(
        "score a run, with baselines", "--run-dir DIR", "unicross_jax.commands:evaluate", several_hosts=True
    ),
    "report": Command(
        "write reports for images", "IMAGE... [--checkpoint DIR] [--output FILE.jsonl]", "unicross_jax.commands:report",
        several_hosts=True,
    ),
    "rexrank": Command(
        "report ReXrank's studies", "INPUT.json OUTPUT.json IMAGES --checkpoint DIR",
        "unicross_jax.commands:rexrank", several_hosts=True,
    ),
    "ablation": Command(
        "train without each component", "--preset NAME --directory DIR [any field of the config]",
        "unicross_jax.commands:ablation",
    ),
    "demo": Command("a short run on drawn radiographs", "[--run-dir DIR]", "unicross_jax.commands:demo"),
}  # fmt: skip


def main() -> None:
    """The console script."""
    run_script("unicross", COMMANDS)


def dispatch(arguments: list[str]) -> int | None:
    """Run the named command; its exit code. Raises UserError where there is none of that name."""
    return run_command("unicross", COMMANDS, arguments)


if __name__ == "__main__":
    main()
