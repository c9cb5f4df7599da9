"""The ablation: one training run for each component that is left out, on the same data, and one table of all.

Table 2 of the paper has `no-adapters` and `no-clip-weights`; the others vary single components of the method.
"""

import dataclasses
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from common.clinical.report_labeler import ReportLabeler
from common.clinical.scores import Scores, in_each_language, leading_scores
from common.config import check_run_directory
from common.data.records import Quarantine
from common.errors import UserError
from common.io.locks import owning
from common.io.numbers import rounded
from common.io.outputs import check_own_object, check_own_page
from common.io.safetensors import write_json
from common.io.terminal import say
from common.io.text import read_json_object
from common.report.compare_command import compare_files
from common.report.comparison import summary
from unicross_jax.config import ModelConfig, RunConfig
from unicross_jax.data import read_splits
from unicross_jax.evaluate import (
    CONSTANT,
    MADE_FROM,
    MODEL,
    NEAREST,
    evaluate_run,
    record_of,
    scores_record,
    scoring_labeler,
)
from unicross_jax.nearest import EMBEDDINGS
from unicross_jax.train import train_run
from unicross_jax.trained import load_trained

FULL = "full model"
TABLE, DIFFERENCES = "ablation.json", "differences.json"
VARIANTS: dict[str, dict[str, Any]] = {
    FULL: {},
    "no-adapters": {"adapters": "none"},
    "no-clip-weights": {"clip_weights": "random"},
    "unimodal-only": {"adapters": "within"},
    "cross-modal-only": {"adapters": "across"},
    "no-modulation": {"modulation": False},
    "single-scale": {"multi_scale": False},
}
TEXT_SCORES = (
    "coco/BLEU-1", "coco/BLEU-2", "coco/BLEU-3", "coco/BLEU-4", "nltk/METEOR", "coco/ROUGE-L", "distinct_outputs",
)  # fmt: skip


def shown_scores(scores: Scores) -> list[str]:
    """The names of the scores that tables and terminals show."""
    return in_each_language([*leading_scores(scores), *TEXT_SCORES], scores)


def variant(config: RunConfig, name: str) -> RunConfig:
    """The config with what `name` says left out. Raises UserError for an unknown name."""
    if name not in VARIANTS:
        raise UserError(f"--variants {name}: unknown; expected some of {', '.join(VARIANTS)}")
    model: ModelConfig = dataclasses.replace(config.model, **VARIANTS[name])
    return dataclasses.replace(config, model=model)


@owning("directory")
def run_ablation(
    config: RunConfig,
    directory: Path,
    variants: Sequence[str],
    seeds: Sequence[int],
    labeler: str = "",
    labeler_tokenizer: str = "",
) -> dict[str, list[Scores]]:
    """Train and evaluate every variant with every seed in `directory/<variant>-<seed>`; writes ablation.json there.

    What is finished already is not done again. The labeler is as for `scoring_labeler`. Returns for each system its
    scores, one for each seed; the constant report and the nearest training study stand beside the variants. How the
    variants differ, with the first seed, is written to differences.json and .html. Raises UserError.
    """
    if config.init_from:
        raise UserError(
            "init_from: each variant of an ablation begins from random weights; leave it out (--preset small has none)"
        )
    check_own_object(directory / TABLE, [NEAREST, CONSTANT])
    check_own_object(directory / DIFFERENCES, ["differences", "systems"])
    check_own_page((directory / DIFFERENCES).with_suffix(".html"))
    reader = record_of(scoring_labeler(config, labeler, labeler_tokenizer))
    runs = {(name, seed): dataclasses.replace(variant(config, name), seed=seed) for seed in seeds for name in variants}
    table: dict[str, list[Scores]] = {}
    for (name, seed), chosen in runs.items():
        run_dir = run_directory(directory, name, seed)
        check_run_directory(run_dir, chosen)
        systems = finished(run_dir, reader) if (run_dir / "model").is_dir() else None
        if systems is None:
            say(f"{run_dir}")
            train_run(chosen, run_dir)
            systems = evaluate_run(
                run_dir, labeler=labeler, labeler_tokenizer=labeler_tokenizer, embeddings=directory / EMBEDDINGS
            )
        table.setdefault(name, []).append(systems[MODEL])
        if name == variants[0] and seed == seeds[0]:
            table |= {baseline: [systems[baseline]] for baseline in (NEAREST, CONSTANT)}
    write_json(directory / TABLE, rounded(table))
    if len(variants) > 1:
        save_differences(directory, variants, seeds[0], scoring_labeler(config, labeler, labeler_tokenizer))
    return table


def save_differences(directory: Path, variants: Sequence[str], seed: int, labeler: ReportLabeler | None) -> None:
    """Write which differences between the variants hold, of the runs with a seed, as JSON and as a page."""
    files = {name: run_directory(directory, name, seed) / "predictions.jsonl" for name in variants}
    result = compare_files(files, labeler)
    result.save(directory / DIFFERENCES, (directory / DIFFERENCES).with_suffix(".html"))
    say(f"{summary(result.differences)}: {(directory / DIFFERENCES).with_suffix('.html')}")


def run_directory(directory: Path, name: str, seed: int) -> Path:
    """Where a variant is trained."""
    return directory / f"{name.replace(' ', '-')}-{seed}"


def finished(run_dir: Path, labeler: Mapping[str, str]) -> dict[str, Scores] | None:
    """The scores of a run that has been evaluated on its whole test split, as `run_ablation` does; None of others.

    Scores of other weights or studies than are there now, or by another labeler, are not taken, which is said.
    """
    file = run_dir / "metrics.json"
    if not file.is_file():
        return None
    found = read_json_object(file)
    whole = found.get("split") == "test" and not found.get("limit") and not found.get("decoding")
    if not whole:
        return None
    trained = load_trained(run_dir)
    test = read_splits(trained.config.data, Quarantine())["test"]
    if found.get(MADE_FROM) == scores_record(trained, test, labeler):
        return found.get("systems")
    other = "are of other weights or studies, or by another labeler"
    known = other if MADE_FROM in found else "do not say what they were made from"
    say(f"{file}: its scores {known}; the run is evaluated again")
    return None
