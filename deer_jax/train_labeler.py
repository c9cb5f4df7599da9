"""`deer train-labeler`: train a labeler on labelled reports, and score it on its test reports."""

from pathlib import Path

import jax

from common.clinical.labeler import load_labeler
from common.clinical.labeler_config import NEEDS, PRESETS, LabelerRunConfig, check_given
from common.clinical.labeler_scores import as_markdown, score_labeler
from common.clinical.labeler_training import export, train_run
from common.clinical.labelled_reports import LabeledCorpus
from common.config_options import preset_parser, read_preset_options
from common.io.numbers import rounded
from common.io.safetensors import write_json
from common.io.terminal import say
from common.options import command_line
from common.report.live import live_page

DESCRIPTION = """Rows of FILE.jsonl are {"id", "report", "labels"}, labels being 14 class ids in CheXbert's order. The
output becomes a run directory, which deer label takes as its --labeler.

Data by --data; every file that is named here must be given:
  phantom     generated; no file                                                    (preset phantom)
  openi       --archive NLMCXR_reports.tgz --gold openi_gld_std14.csv --test-ids openi-testset.txt  (preset openi)
  FILE.jsonl  the file alone; --validation FILE.jsonl and --test FILE.jsonl where there are such, otherwise a
              tenth is held out (preset chexbert)
"""


def main(arguments: list[str]) -> None:
    """Train a labeler, or continue, and print how it does on the test reports. Raises UserError."""
    options = preset_parser("deer train-labeler", PRESETS, DESCRIPTION, "--output DIR")
    options.add_argument("--export", type=Path, metavar="DIR", help="also export the labeler by itself")
    config, chosen = read_preset_options(options, PRESETS, arguments, NEEDS, check_given)
    corpus = train_run(config, chosen.output, live_page(chosen.output, "Labeler of reports").watch)
    if jax.process_index() == 0:
        finish(config, corpus, chosen.output, chosen.export)


def finish(config: LabelerRunConfig, corpus: LabeledCorpus, run_dir: Path, export_to: Path | None) -> None:
    """Score the labeler that a run wrote, on the test reports; print tables and write `metrics.json`."""
    labeler = load_labeler(run_dir)
    scores = {name: score_labeler(labeler, reports) for name, reports in corpus.tests.items()}
    write_json(run_dir / "metrics.json", rounded(scores))
    for name, found in scores.items():
        say(f"{name}\n\n{as_markdown(found)}\n")
    if export_to is not None:
        export(config, labeler, export_to)
    following = command_line("deer label FILE.jsonl", {"labeler": export_to or run_dir})
    say(f"trained: {run_dir}; next: {following}")
