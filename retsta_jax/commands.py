"""`retsta train`, `evaluate`, `standardize` and `demo`: their options, and what they print."""

from pathlib import Path

from common.config import remove_run
from common.config_options import add_batch_size, evaluation_parser, preset_parser, read_preset_options
from common.endpoint import add_endpoint_options
from common.errors import Parser
from common.generation.draft_option import add_draft
from common.io.locks import locked_by_first
from common.io.rows import add_columns
from common.io.tables import score_lines
from common.io.terminal import say
from common.options import command_line
from common.process.first import is_first_process
from retsta_jax.config import HELP, NEEDS, PRESETS, RetstaConfig, check_given


def train(arguments: list[str]) -> None:
    """Train, or continue, a run."""
    options = preset_parser("retsta train", PRESETS, HELP)
    config, chosen = read_preset_options(options, PRESETS, arguments, NEEDS, check_given)
    from retsta_jax.train import train_run

    train_run(config, chosen.run_dir)
    say(f"trained: {chosen.run_dir}; next: {command_line('retsta evaluate', {'run_dir': chosen.run_dir})}")


def evaluate(arguments: list[str]) -> None:
    """Score a run, write its page and print the headline scores of every system."""
    options = evaluation_parser("retsta evaluate", "reports")
    add_draft(options, "prompt", "reports", "all")
    chosen = options.parse_args(arguments)
    from retsta_jax.evaluate import evaluate_run, headline

    systems = evaluate_run(chosen.run_dir, chosen.split, chosen.limit, chosen.batch_size, chosen.draft)
    if is_first_process():
        print(score_lines(systems, headline(next(iter(systems.values())))))
        say(f"page: {(chosen.run_dir / 'report.html').absolute()}")


def standardize(arguments: list[str]) -> None:
    """Rewrite the reports of a file or of standard input."""
    options = Parser(
        "retsta standardize",
        description="Rewrite reports in standard form, as JSONL rows {id, standard, complete}. With --endpoint an "
        "engine that serves what the run exported is asked, and no weights are read here.",
    )
    options.add_argument(
        "source", help='JSONL or Parquet rows {"id", "report"}, or text with one report per line; "-": standard input'
    )
    options.add_argument("--run-dir", type=Path, required=True, help="the run to use, with its best weights")
    options.add_argument("--output", type=Path, help="JSONL file to write or resume; default: standard output")
    add_columns(options)
    add_batch_size(options, "reports")
    add_draft(options, "prompt", "reports", "all")
    add_endpoint_options(options)
    chosen = options.parse_args(arguments)
    from retsta_jax.endpoint_standardizer import run_endpoint
    from retsta_jax.standardize_file import standardize_file

    output: Path | None = chosen.output
    cache = None if output is None else output.with_name(f"{output.stem}.answers.sqlite")
    endpoint = run_endpoint(chosen, arguments, "retsta standardize", cache)
    drafts = chosen.draft, chosen.columns
    standardize_file(chosen.run_dir, chosen.source, output, chosen.batch_size, *drafts, endpoint)


def demo(arguments: list[str]) -> None:
    """Train the demo preset and evaluate it before and after, with baselines."""
    options = Parser(
        "retsta demo", description="Fine-tune the small shipped model on generated fundus reports and show the gain."
    )
    options.add_argument("--run-dir", type=Path, default=Path("runs/demo"))
    options.add_argument("--fresh", action="store_true", help="start again even if the run exists")
    chosen = options.parse_args(arguments)
    if chosen.fresh:
        from retsta_jax.evaluate import OUTPUTS as EVALUATED
        from retsta_jax.train import OUTPUTS as TRAINED

        remove_run(chosen.run_dir, RetstaConfig, {*TRAINED, *EVALUATED})
    print("RetSTA demo: LoRA fine-tuning of a small bilingual model to standardize fundus reports", flush=True)
    with locked_by_first(chosen.run_dir):
        train(["--preset=demo", f"--run-dir={chosen.run_dir}"])
        evaluate([f"--run-dir={chosen.run_dir}"])
