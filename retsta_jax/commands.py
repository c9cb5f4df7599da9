"""`retsta train`, `evaluate`, `standardize` and `demo`: their options, and what they print."""

from pathlib import Path

from common.bounds import COUNT, COUNT_OR_NONE, bounded
from common.config import remove_run
from common.config_options import preset_parser, read_preset_options
from common.errors import Parser
from common.io.locks import locked_by_first
from common.io.tables import score_lines
from retsta_jax.config import HELP, NEEDS, PRESETS, RetstaConfig


def train(arguments: list[str]) -> None:
    """Train, or continue, a run."""
    config, chosen = read_preset_options(preset_parser("retsta train", PRESETS, HELP), PRESETS, arguments, NEEDS)
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
    print(score_lines(systems, headline(next(iter(systems.values())))))
    print(f"page: {(run_dir / 'report.html').absolute()}", flush=True)


def standardize(arguments: list[str]) -> None:
    """Rewrite the reports of a file or of standard input."""
    options = Parser(
        "retsta standardize", description="Rewrite reports in standard form, as JSONL rows {id, standard, complete}."
    )
    options.add_argument(
        "source", help='JSONL rows {"id", "report"}, or text with one report per line; "-": standard input'
    )
    options.add_argument("--run-dir", type=Path, required=True, help="the run whose best weights to use")
    options.add_argument("--output", type=Path, help="JSONL file to write or resume; default: standard output")
    options.add_argument("--batch-size", type=bounded(COUNT), default=32)
    chosen = options.parse_args(arguments)
    from retsta_jax.standardize import standardize_file

    standardize_file(chosen.run_dir, chosen.source, chosen.output, chosen.batch_size)


def demo(arguments: list[str]) -> None:
    """Train the demo preset and evaluate it before and after, beside baselines."""
    options = Parser(
        "retsta demo", description="Fine-tune the small shipped model on generated fundus reports and show the gain."
    )
    options.add_argument("--run-dir", type=Path, default=Path("runs/demo"))
    options.add_argument("--fresh", action="store_true", help="start again even where the run is already there")
    chosen = options.parse_args(arguments)
    if chosen.fresh:
        from retsta_jax.evaluate import OUTPUTS as EVALUATED
        from retsta_jax.train import OUTPUTS as TRAINED

        remove_run(chosen.run_dir, RetstaConfig, {*TRAINED, *EVALUATED})
    print("RetSTA demo: LoRA fine-tuning of a small bilingual model to standardize fundus reports", flush=True)
    with locked_by_first(chosen.run_dir):
        train_in(PRESETS["demo"], chosen.run_dir)
        evaluate_in(chosen.run_dir)
