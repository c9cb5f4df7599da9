"""The ablation: one training run for each part that is left out, on the same data, and one table of all.

Table 2 of the paper has `no-adapters` and `no-clip-weights`; the others take apart what the paper puts together.
"""

import dataclasses
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from common.errors import UserError
from unicross_jax.config import ModelConfig, RunConfig
from unicross_jax.evaluate import CONSTANT, MODEL, NEAREST, Scores, evaluate_run
from unicross_jax.train import train_run

FULL = "full model"
VARIANTS: dict[str, dict[str, Any]] = {
    FULL: {},
    "no-adapters": {"adapters": "none"},
    "no-clip-weights": {"clip_weights": "random"},
    "unimodal-only": {"adapters": "within"},
    "cross-modal-only": {"adapters": "across"},
    "no-modulation": {"modulation": False},
    "single-scale": {"multi_scale": False},
}
SHOWN = ("findings/F1", "coco/BLEU-1", "coco/BLEU-2", "coco/BLEU-3", "coco/BLEU-4", "coco/ROUGE-L", "distinct_outputs")


def variant(config: RunConfig, name: str) -> RunConfig:
    """The config with what `name` says left out. Raises UserError for an unknown name."""
    if name not in VARIANTS:
        raise UserError(f"--variants {name}: unknown; expected some of {', '.join(VARIANTS)}")
    model: ModelConfig = dataclasses.replace(config.model, **VARIANTS[name])
    return dataclasses.replace(config, model=model)


def run_ablation(
    config: RunConfig, directory: Path, variants: Sequence[str], seeds: Sequence[int], batch_size: int = 32
) -> dict[str, list[Scores]]:
    """Train and evaluate every variant with every seed in `directory/<variant>-<seed>`; writes ablation.json there.

    What is finished already is not done again. Returns for each system its scores, one for each seed; the constant
    report and the nearest training study stand beside the variants. Raises UserError.
    """
    runs = {(name, seed): dataclasses.replace(variant(config, name), seed=seed) for seed in seeds for name in variants}
    table: dict[str, list[Scores]] = {}
    for (name, seed), chosen in runs.items():
        run_dir = directory / f"{name.replace(' ', '-')}-{seed}"
        done = run_dir / "metrics.json"
        if done.is_file():
            systems = json.loads(done.read_text(encoding="utf-8"))["systems"]
        else:
            print(f"{run_dir}", flush=True)
            train_run(chosen, run_dir)
            systems = evaluate_run(run_dir, batch_size=batch_size)
        table.setdefault(name, []).append(systems[MODEL])
        if name == variants[0] and seed == seeds[0]:
            table |= {baseline: [systems[baseline]] for baseline in (NEAREST, CONSTANT)}
    (directory / "ablation.json").write_text(json.dumps(table, indent=2) + "\n", encoding="utf-8")
    return table


def as_markdown(table: dict[str, list[Scores]]) -> str:
    """The table: means over seeds, and behind them the 95% interval.

    Of several seeds that is the t interval of their mean; of one, the bootstrap interval over studies.
    """
    names = [name for name in SHOWN if any(name in scores for rows in table.values() for scores in rows)]
    lines = ["| | " + " | ".join(names) + " |", "|---" * (len(names) + 1) + "|"]
    for system, rows in table.items():
        lines.append(f"| {system} | " + " | ".join(_cell([row[name] for row in rows]) for name in names) + " |")
    return "\n".join(lines)


def _cell(scores: Sequence[Any]) -> str:
    values = np.array([score["value"] for score in scores], float)
    if len(values) == 1:
        low, high = scores[0].get("low"), scores[0].get("high")
        return f"{values[0]:.3f}" + ("" if low is None else f" [{low:.3f}, {high:.3f}]")
    from scipy.stats import t

    half = t.ppf(0.975, len(values) - 1) * values.std(ddof=1) / np.sqrt(len(values))
    return f"{values.mean():.3f} ± {half:.3f}"
