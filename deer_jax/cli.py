"""`deer sft | sample | select | rl | label | weights | analyse | ...`: the command line of reinforcement learning."""

import importlib

from common.command import run_cli
from common.errors import UserError

USAGE = """usage: deer COMMAND ...

  sft            learn to report, supervised:       deer sft --preset NAME --run-dir DIR [any field of the config]
  sample         reports of a model for studies:    deer sample --preset NAME --output FILE.jsonl
  select         choose diverse studies:            deer select LABELS.jsonl --fraction 0.2 --seed S
  rl             reinforcement learning:            deer rl --preset NAME --run-dir DIR [any field of the config]
  label          CheXbert labels of reports:        deer label FILE.jsonl --labeler PATH [--output FILE.jsonl]
  train-labeler  train a labeler from labelled text
  weights        token weights of rollouts:         deer weights FILE.jsonl --labeler PATH --tokenizer DIR
  analyse        masking, rewards or a page:        deer analyse masking FILE.jsonl --labeler PATH --tokenizer DIR
  ablation       Tables 4 and 5, Figure 1a:       deer ablation components --directory DIR --seeds 0 1 2
  demo           a short run on drawn radiographs: deer demo --run-dir DIR
  evaluate       score anybody's outputs:           deer evaluate --predictions FILE.jsonl --labeler PATH

Each command has --help."""

COMMANDS = {
    "sft": "deer_jax.sft",
    "sample": "deer_jax.sample",
    "select": "deer_jax.select",
    "rl": "deer_jax.rl_run",
    "label": "deer_jax.label",
    "train-labeler": "common.clinical.labeler_training",
    "weights": "deer_jax.weights",
    "analyse": "deer_jax.analyse",
    "ablation": "deer_jax.ablation",
    "demo": "deer_jax.demo",
    "evaluate": "deer_jax.evaluate",
}  # each is the module whose `main` takes the arguments
ON_HOSTS = ("sft", "rl", "train-labeler", "label", "sample")  # those that several hosts do together


def main() -> None:
    """The console script."""
    run_cli(dispatch, hosts=ON_HOSTS)


def dispatch(arguments: list[str]) -> None:
    """Run the named command. Raises UserError where there is none of that name."""
    if not arguments or arguments[0] in ("-h", "--help"):
        print(USAGE)
        return
    if arguments[0] not in COMMANDS:
        raise UserError(f"deer {arguments[0]}: unknown command; expected {', '.join(COMMANDS)}")
    importlib.import_module(COMMANDS[arguments[0]]).main(arguments[1:])


if __name__ == "__main__":
    main()
