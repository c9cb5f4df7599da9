"""`deer COMMAND`: the command line of reinforcement learning of reports."""

from common.scripts import Command, run_command, run_script

COMMANDS = {
    "sft": Command(
        "supervised fine-tuning", "--preset NAME --run-dir DIR [any field of the config]", "deer_jax.sft:main",
        several_hosts=True,
    ),
    "sample": Command(
        "reports of a model for studies", "--preset NAME --output FILE.jsonl", "deer_jax.sample:main",
        several_hosts=True,
    ),
    "select": Command("choose diverse studies", "LABELS.jsonl --fraction 0.2 --seed S", "deer_jax.select:main"),
    "rl": Command(
        "reinforcement learning", "--preset NAME --run-dir DIR [any field of the config]", "deer_jax.rl_run:main",
        several_hosts=True,
    ),
    "label": Command(
        "CheXbert labels of reports", "FILE.jsonl --labeler PATH [--output FILE.jsonl]", "deer_jax.label:main",
        several_hosts=True,
    ),
    "train-labeler": Command(
        "train a labeler on labelled text", "--preset NAME --output DIR [any field]",
        "deer_jax.train_labeler:main", several_hosts=True,
    ),
    "weights": Command(
        "token weights of rollouts", "FILE.jsonl --labeler PATH --tokenizer DIR", "deer_jax.weights:main"
    ),
    "analyse": Command(
        "masking, rewards or a page", "masking FILE.jsonl --labeler PATH --tokenizer DIR", "deer_jax.analyse:main"
    ),
    "ablation": Command(
        "Tables 4 and 5, Figure 1a", "components --preset NAME --directory DIR --seeds 0 1 2", "deer_jax.ablation:main"
    ),
    "demo": Command("a short run on drawn radiographs", "[--run-dir DIR]", "deer_jax.demo:main"),
    "evaluate": Command(
        "score any system's outputs", "--predictions FILE.jsonl --labeler PATH", "deer_jax.evaluate:main",
        several_hosts=True,
    ),
}  # fmt: skip


def main() -> None:
    """The console script."""
    run_script("deer", COMMANDS)


def dispatch(arguments: list[str]) -> int | None:
    """Run the named command; its exit code. Raises UserError where there is none of that name."""
    return run_command("deer", COMMANDS, arguments)


if __name__ == "__main__":
    main()
