"""`retsta COMMAND`: the command line of report standardization."""

from common.scripts import Command, run_command, run_script

COMMANDS = {
    "train": Command(
        "fine-tune on report pairs", "--preset NAME --run-dir DIR [any field of the config]",
        "retsta_jax.commands:train", several_hosts=True,
    ),
    "evaluate": Command(
        "score a run, with baselines", "--run-dir DIR", "retsta_jax.commands:evaluate", several_hosts=True
    ),
    "baseline": Command(
        "score a model by few-shot prompts", "--model DIR --shots 5 --terminology --output DIR",
        "retsta_jax.baselines.command:baseline",
    ),
    "standardize": Command(
        "rewrite reports", "--run-dir DIR FILE|- [--output FILE.jsonl]", "retsta_jax.commands:standardize",
        several_hosts=True,
    ),
    "augment": Command(
        "make more pairs from few", "PAIRS.jsonl --factor 5 --output FILE.jsonl", "retsta_jax.augmentation.command:run"
    ),
    "label": Command(
        "make pairs from many reports", "--run-dir DIR FILE --output DIR", "retsta_jax.labelling.command:label",
        several_hosts=True,
    ),
    "translate": Command(
        "pairs in Chinese or English", "PAIRS.jsonl --to en --output OUT.jsonl",
        "retsta_jax.translation.command:translate",
    ),
    "paradigm": Command(
        "terminology to two models", "--preset NAME --run-dir DIR [any field of its config]",
        "retsta_jax.paradigm.command:paradigm", several_hosts=True,
    ),
    "table": Command(
        "Tables 1 to 5 of the paper", "N --preset NAME --directory DIR --seeds 0 1 2",
        "retsta_jax.paradigm.tables_command:table",
    ),
    "seeds": Command("paradigms side by side", "RUN...", "retsta_jax.paradigm.seeds:main"),
    "terminology": Command(
        "check one, or find its terms", "check [FILE] | match FILE", "retsta_jax.terminology_command:terminology"
    ),
    "demo": Command("a short run on generated reports", "[--run-dir DIR]", "retsta_jax.commands:demo"),
}  # fmt: skip


def main() -> None:
    """The console script."""
    run_script("retsta", COMMANDS)


def dispatch(arguments: list[str]) -> int | None:
    """Run the named command; its exit code. Raises UserError where there is none of that name."""
    return run_command("retsta", COMMANDS, arguments)


if __name__ == "__main__":
    main()
