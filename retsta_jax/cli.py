"""`retsta COMMAND`: the command line of report standardization."""

from collections.abc import Callable
from pathlib import Path

from common.bounds import COUNT, COUNT_OR_NONE, bounded
from common.command import run_cli
from common.config import choose_preset, parse, remove_run
from common.errors import Parser, UserError
from common.io.locks import locked_by_first
from common.io.numbers import score_text
from retsta_jax.config import HELP, NEEDS, PRESETS, RetstaConfig

USAGE = """usage: retsta COMMAND ...

  train        fine-tune on report pairs:   retsta train --preset NAME --run-dir DIR [any field of the config]
  evaluate     score a run, with baselines: retsta evaluate --run-dir DIR
  baseline     score a model with examples: retsta baseline --model DIR --shots 5 --terminology --output DIR
  standardize  rewrite reports:             retsta standardize --run-dir DIR FILE|- [--output FILE.jsonl]
  augment      make more pairs of few:      retsta augment PAIRS.jsonl --factor 5 --output FILE.jsonl
  label        make pairs of many reports:  retsta label --run-dir DIR FILE --output DIR
  translate    pairs in Chinese or English: retsta translate PAIRS.jsonl --to en --output OUT.jsonl
  paradigm     terminology to two models:   retsta paradigm --preset NAME --run-dir DIR [any field of its config]
  table        Tables 1 to 5 of the paper:  retsta table N --directory DIR --preset NAME --seeds 0 1 2
  seeds        paradigms side by side:      retsta seeds RUN...
  terminology  check one, find its terms:   retsta terminology check [FILE]; retsta terminology match FILE
  demo         all of it, on generated fundus reports and a small model, in minutes

Each command has --help. Presets: {presets}."""


def main() -> None:
    """The console script."""
    run_cli(dispatch, hosts=("train", "label"))


def dispatch(arguments: list[str]) -> int | None:
    """Run the named command; its exit code. Raises UserError where there is none of that name."""
    commands: dict[str, Callable[[list[str]], int | None]] = {
        "train": train,
        "evaluate": evaluate,
        "baseline": baseline,
        "standardize": standardize,
        "augment": augment,
        "label": label,
        "translate": translate,
        "paradigm": paradigm,
        "table": table,
        "seeds": seeds,
        "terminology": terminology,
        "demo": demo,
    }
    if not arguments or arguments[0] in ("-h", "--help"):
        print(USAGE.format(presets=", ".join(PRESETS)))
        return None
    if arguments[0] not in commands:
        raise UserError(f"retsta {arguments[0]}: unknown command; expected {', '.join(commands)}")
    return commands[arguments[0]](arguments[1:])


def train(arguments: list[str]) -> None:
    """Train, or continue, a run."""
    first = Parser("retsta train", add_help=False)
    first.add_argument("--preset", default="demo")
    first.add_argument("--run-dir", type=Path)
    chosen, rest = first.parse_known_args(arguments)
    if {"-h", "--help"} & set(rest):
        print(f"retsta train --run-dir DIR [--preset {'|'.join(PRESETS)}] [any field of the config]\n\n{HELP}")
    program = f"retsta train --preset {chosen.preset}"
    config = parse(RetstaConfig, choose_preset(PRESETS, chosen.preset), rest, program, NEEDS, PRESETS)
    if chosen.run_dir is None:
        raise UserError("retsta train: --run-dir DIR is missing; name a directory for the run")
    train_in(config, chosen.run_dir)


def train_in(config: RetstaConfig, run_dir: Path) -> None:
    """Train in `run_dir` and say where the results are."""
    from retsta_jax.train import train_run

    train_run(config, run_dir)
    print(f"trained: {run_dir}; next: retsta evaluate --run-dir {run_dir}", flush=True)


def evaluate(arguments: list[str]) -> None:
    """Score a run and write its page."""
    options = Parser(
        "retsta evaluate",
        description="Score a run beside baselines; writes metrics.json, predictions.jsonl, report.html.",
    )
    options.add_argument("--run-dir", type=Path, required=True)
    options.add_argument("--split", choices=("test", "validation"), default="test")
    options.add_argument(
        "--limit", type=bounded(COUNT_OR_NONE), default=0, help="at most so many reports; 0, the default: all"
    )
    options.add_argument("--batch-size", type=bounded(COUNT), default=32)
    chosen = options.parse_args(arguments)
    evaluate_in(chosen.run_dir, chosen.split, chosen.limit, chosen.batch_size)


def evaluate_in(run_dir: Path, split: str = "test", limit: int = 0, batch_size: int = 32) -> None:
    """Evaluate and print the headline scores of every system."""
    from retsta_jax.evaluate import evaluate_run, headline

    systems = evaluate_run(run_dir, split, limit, batch_size)
    names = headline(next(iter(systems.values())))
    for system, scores in systems.items():
        print(f"{system:>24}  " + "  ".join(f"{name} {score_text(scores[name]['value'])}" for name in names))
    print(f"page: {(run_dir / 'report.html').absolute()}", flush=True)


def baseline(arguments: list[str]) -> None:
    """Score a model that was not trained here, asked by few-shot prompts."""
    from retsta_jax.baselines.command import baseline as run

    run(arguments)


def standardize(arguments: list[str]) -> None:
    """Rewrite the reports of a file or of standard input."""
    options = Parser(
        "retsta standardize", description="Rewrite reports in standard form, as JSONL rows {id, standard, complete}."
    )
    options.add_argument(
        "source", help='JSONL rows {"id", "report"}, or text with one report a line; "-": standard input'
    )
    options.add_argument("--run-dir", type=Path, required=True, help="the run whose best weights to use")
    options.add_argument("--output", type=Path, help="JSONL file to write or resume; default: standard output")
    options.add_argument("--batch-size", type=bounded(COUNT), default=32)
    chosen = options.parse_args(arguments)
    from retsta_jax.standardize import standardize_file

    standardize_file(chosen.run_dir, chosen.source, chosen.output, chosen.batch_size)


def augment(arguments: list[str]) -> None:
    """Make more report pairs of few."""
    from retsta_jax.augmentation.command import run

    run(arguments)


def label(arguments: list[str]) -> None:
    """Label free-text reports and filter the pairs."""
    from retsta_jax.labelling.command import label as run

    run(arguments)


def translate(arguments: list[str]) -> None:
    """Translate report pairs into the other language."""
    from retsta_jax.translation.command import translate as run

    run(arguments)


def paradigm(arguments: list[str]) -> None:
    """Run all stages from a terminology and pairs to two evaluated models."""
    from retsta_jax.paradigm.command import paradigm as run

    run(arguments)


def table(arguments: list[str]) -> None:
    """Run a table of the paper, over seeds."""
    from retsta_jax.paradigm.tables_command import table as run

    run(arguments)


def seeds(arguments: list[str]) -> None:
    """Print finished paradigms on lists of codes side by side."""
    from retsta_jax.paradigm.seeds import main as run

    run(arguments)


def terminology(arguments: list[str]) -> int | None:
    """Check a terminology, or find its terms in reports."""
    from retsta_jax.terminology_command import terminology as run

    return run(arguments)


def demo(arguments: list[str]) -> None:
    """Train the demo preset and evaluate it before and after, beside baselines."""
    options = Parser(
        "retsta demo", description="Fine-tune the small shipped model on generated fundus reports and show the gain."
    )
    options.add_argument("--run-dir", type=Path, default=Path("runs/demo"))
    options.add_argument("--fresh", action="store_true", help="start again even where the run is already there")
    chosen = options.parse_args(arguments)
    if chosen.fresh:
        from retsta_jax import evaluate, train

        remove_run(chosen.run_dir, RetstaConfig, {*train.OUTPUTS, *evaluate.OUTPUTS})
    print("RetSTA demo: LoRA fine-tuning of a small bilingual model to standardize fundus reports", flush=True)
    with locked_by_first(chosen.run_dir):
        train_in(PRESETS["demo"], chosen.run_dir)
        evaluate_in(chosen.run_dir)


if __name__ == "__main__":
    main()
