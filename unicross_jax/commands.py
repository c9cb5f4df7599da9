"""The commands of `unicross`: their options, and what they print."""

import argparse
from pathlib import Path

from common.bounds import FEW, SEED, bounded
from common.config import remove_run
from common.config_options import add_batch_size, evaluation_parser, preset_parser, read_preset_options
from common.errors import Parser, UserError
from common.generation.draft_option import add_draft
from common.io.locks import locked_by_first
from common.io.tables import score_lines
from common.io.terminal import say
from common.options import Needs, check_options, command_line
from common.process.first import is_first_process
from unicross_jax.config import ABLATION_NEEDS, HELP, LENGTH_PENALTY, NEEDS, PRESETS, RunConfig, check_given

LABELER_NEEDS = (Needs("labeler_tokenizer", "labeler", bool, "--labeler PATH"),)


def train(arguments: list[str]) -> None:
    """Train, or continue, a run."""
    options = preset_parser("unicross train", PRESETS, HELP)
    config, chosen = read_preset_options(options, PRESETS, arguments, NEEDS, check_given)
    from unicross_jax.train import train_run

    train_run(config, chosen.run_dir)
    say(f"trained: {chosen.run_dir}; next: {command_line('unicross evaluate', {'run_dir': chosen.run_dir})}")


def evaluate(arguments: list[str]) -> None:
    """Score a run, write its page and print the headline scores of every system."""
    options = evaluation_parser("unicross evaluate", "studies")
    options.add_argument("--beams", type=bounded(FEW), help="number of beams; 1: greedy (default: as in the run)")
    options.add_argument(
        "--length-penalty", type=bounded(LENGTH_PENALTY, float), help="of beam search (default: as in the run)"
    )
    add_draft(options, "reports")
    add_labeler(options)
    chosen = options.parse_args(arguments)
    check_options(chosen, arguments, LABELER_NEEDS, "unicross evaluate")
    own = {"beams": chosen.beams, "length_penalty": chosen.length_penalty, "draft": chosen.draft}
    own |= named_labeler(chosen)
    told = {name: value for name, value in own.items() if value is not None}
    from unicross_jax.ablation import shown_scores
    from unicross_jax.evaluate import evaluate_run

    systems = evaluate_run(chosen.run_dir, chosen.split, chosen.limit, chosen.batch_size, **told)
    if is_first_process():
        print(score_lines(systems, shown_scores(next(iter(systems.values())))))
        say(f"page: {(chosen.run_dir / 'report.html').absolute()}")


def add_labeler(options: Parser) -> None:
    """Add the options that name what reads findings from reports."""
    options.add_argument(
        "--labeler", metavar="PATH",
        help="reads the findings of reports: chexbert.pth, what deer train-labeler wrote, or 'phantom' for the one "
        "shipped for phantom reports (default: of phantoms their rules, of other data none)",
    )  # fmt: skip
    options.add_argument("--labeler-tokenizer", metavar="DIR", help="with the vocab.txt of chexbert.pth")


def named_labeler(chosen: argparse.Namespace) -> dict[str, str]:
    """The options of `add_labeler`, as `evaluate_run` takes them."""
    return {"labeler": chosen.labeler or "", "labeler_tokenizer": chosen.labeler_tokenizer or ""}


def report(arguments: list[str]) -> None:
    """Write reports for images."""
    options = Parser("unicross report", description='Write a report for images, as JSONL rows {"images", "report"}.')
    options.add_argument("images", nargs="+", metavar="IMAGE", help="PNG, JPEG or DICOM files")
    options.add_argument("--checkpoint", type=Path, help="run directory, or its model/ (default: the shipped demo)")
    options.add_argument("--output", type=Path, help="JSONL file to write; default: standard output")
    options.add_argument("--page", type=Path, help="HTML page to write (default: beside the output)")
    options.add_argument(
        "--study",
        default="each",
        help="'each': every image is a study (default); 'one': all are one study; otherwise a regular expression, and "
        "images in whose paths it finds the same text are one study",
    )
    options.add_argument("--indication", default="", help="reason for the examination, if the model should know it")
    add_batch_size(options, "studies")
    add_draft(options, "reports")
    chosen = options.parse_args(arguments)
    from unicross_jax.images import report_images

    if chosen.output is not None and not chosen.output.name:
        raise UserError(f"{chosen.output}: is a directory; name a file with --output")
    page = chosen.page or (chosen.output.with_suffix(".html") if chosen.output else Path("unicross-report.html"))
    report_images(
        chosen.images, chosen.study, chosen.checkpoint, chosen.indication, chosen.output, page, chosen.batch_size,
        chosen.draft,
    )  # fmt: skip


def rexrank(arguments: list[str]) -> None:
    """Report the studies of ReXrank's file."""
    options = Parser(
        "unicross rexrank", description="Add a report (model_prediction) to each study of ReXrank's JSON file."
    )
    words = {
        "input_json_file": ("INPUT.json", "studies as ReXrank publishes them"),
        "save_json_file": ("OUTPUT.json", "file to write"),
        "img_root_dir": ("IMAGES", "folder under which the images have their paths"),
    }
    for place, (name, (shown, does)) in enumerate(words.items()):
        # ReXrank's first round gives three words, its second names them.
        options.add_argument(f"--{name}", type=Path, metavar=shown, help=does)
        options.add_argument(f"word{place}", type=Path, nargs="?", metavar=shown, help=f"the same, without --{name}")
    options.add_argument("--checkpoint", type=Path, required=True, help="run directory, or its model/")
    add_batch_size(options, "studies")
    chosen = options.parse_args(arguments)
    from unicross_jax.rexrank import report_studies

    given = [chosen.word0, chosen.word1, chosen.word2]
    named = [getattr(chosen, name) for name in words]
    if (None in given and None in named) or (given != [None] * 3 and named != [None] * 3):
        raise UserError(
            "unicross rexrank: expected INPUT.json OUTPUT.json IMAGES, or all of them by "
            f"{', '.join(f'--{name}' for name in words)}"
        )
    input_file, output, images = given if None in named else named
    report_studies(input_file, output, images, chosen.checkpoint, chosen.batch_size)


def ablation(arguments: list[str]) -> None:
    """Train and evaluate without each part, and print the table."""
    from common.report.table import as_markdown
    from unicross_jax.ablation import VARIANTS, run_ablation, shown_scores

    names = " ".join(f"'{name}'" for name in VARIANTS)
    options = preset_parser("unicross ablation", PRESETS, HELP, "--directory DIR")
    options.add_argument("--variants", nargs="+", default=list(VARIANTS), metavar="NAME", help=f"only some of {names}")
    options.add_argument("--seeds", nargs="+", type=bounded(SEED), default=[0], metavar="N", help="default: 0")
    add_labeler(options)
    config, chosen = read_preset_options(options, PRESETS, arguments, ABLATION_NEEDS, check_given)
    check_options(chosen, arguments, LABELER_NEEDS, "unicross ablation")
    table = run_ablation(config, chosen.directory, chosen.variants, chosen.seeds, **named_labeler(chosen))
    print(as_markdown(table, shown_scores(next(iter(table.values()))[0])), flush=True)


def demo(arguments: list[str]) -> None:
    """Train the demo preset and evaluate it with baselines."""
    options = Parser(
        "unicross demo",
        description="Train the small shipped model further, on phantom radiographs of another scanner.",
    )
    options.add_argument("--run-dir", type=Path, default=Path("runs/unicross-demo"))
    options.add_argument("--fresh", action="store_true", help="start again even if the run exists")
    chosen = options.parse_args(arguments)
    if chosen.fresh:
        from unicross_jax.evaluate import OUTPUTS as EVALUATED
        from unicross_jax.train import OUTPUTS as TRAINED

        remove_run(chosen.run_dir, RunConfig, {*TRAINED, *EVALUATED})
    print(
        "UniCrossAdapter demo: adapters around a small frozen CLIP learn to report the images of another scanner",
        flush=True,
    )
    with locked_by_first(chosen.run_dir):
        train(["--preset=demo", f"--run-dir={chosen.run_dir}"])
        evaluate([f"--run-dir={chosen.run_dir}"])
