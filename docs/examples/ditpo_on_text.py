"""DiTPO on a text-only policy: a fine-tuned Qwen2 that standardizes fundus reports goes on learning from its own F1.

The policy is the LoRA run that `retsta demo` leaves behind, the reward the F1 of the findings that a text states. Any
run of `retsta train` on fundus reports will do, and takes the same loop to 7B. It runs on a laptop:

    python docs/examples/ditpo_on_text.py --run-dir runs/demo --steps 100 --output runs/ditpo-text.json
"""

import dataclasses
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np
from jaxtyping import Float

from common.command import run_cli
from common.data.records import Quarantine, ReportPair
from common.errors import Parser
from common.generation.generate import bucket, padded
from common.generation.sampling import Sampling
from common.generation.settings import DecodeSettings
from common.io.numbers import score_text
from common.io.text import json_text
from common.metrics.tokenize import language_of
from common.models.qwen2 import SHARDING_RULES
from common.training.optim import OptimConfig, make_optimizer
from common.training.parallel import device_put_tree, make_device_layout, place_batch
from common.training.step import init_state
from deer_jax.config import RewardConfig
from deer_jax.objective import Objective
from deer_jax.policy import text_policy
from deer_jax.rewarding import make_judge
from deer_jax.rl import StudyBatch, make_rl_step, plan_studies
from deer_jax.rl_run import make_scores
from retsta_jax.data import load_splits
from retsta_jax.evaluate import score, sources, statements
from retsta_jax.prompts import prompt_tokens
from retsta_jax.standardize import Trained, load_trained, standardize
from retsta_jax.terminology.check import load_terminology


def findings_f1(texts: Sequence[str], references: Sequence[str]) -> Float[np.ndarray, " N"]:
    """The reward: F1 of what each text states against what its reference states."""
    pairs = [
        [statements(side, language_of(reference), "fundus", load_terminology()) for side in (text, reference)]
        for text, reference in zip(texts, references, strict=True)
    ]
    return np.array([2 * len(ours & true) / max(len(ours) + len(true), 1) for ours, true in pairs])


def scores(trained: Trained, pairs: Sequence[ReportPair]) -> Any:
    """Scores of the likeliest standard reports."""
    found = standardize(trained, trained.variables, sources(pairs))
    return score([result.text for result in found], pairs, "fundus", load_terminology())


def main(arguments: list[str]) -> None:
    """The command line."""
    parser = Parser("ditpo_on_text", description=__doc__.split("\n\n")[0])
    parser.add_argument("--run-dir", type=Path, required=True, help="of retsta train or retsta demo; it is only read")
    parser.add_argument("--output", type=Path, required=True)
    parser.add_argument("--weights", default="tfidf", help="uniform (GRPO), tfidf, or module:function")
    parser.add_argument("--steps", type=int, default=100)
    parser.add_argument("--rows", type=int, default=16)
    parser.add_argument("--rate", type=float, default=3e-4)
    parser.add_argument("--test-reports", type=int, default=200)
    parser.add_argument("--seed", type=int, default=0)
    chosen = parser.parse_args(arguments)
    layout = make_device_layout("jit")
    trained = load_trained(chosen.run_dir)
    trainable, frozen = device_put_tree((trained.trainable, trained.frozen), layout)
    trained = trained._replace(trainable=trainable, frozen=frozen, layout=layout)  # one device, however many there are
    config, base = trained.config, trained.base
    splits = load_splits(config, Quarantine())
    test = splits.test[: chosen.test_reports]

    # The policy, and how its samples are judged.
    settings = DecodeSettings(
        max_new_tokens=config.max_new_tokens,
        sampling=Sampling(temperature=1.0),
        stop_ids=base.tokenizer.stop_ids,
        forbidden_ids=tuple(range(base.tokenizer.vocab_size, base.config.vocab_size)),
    )
    policy = text_policy(base.config, settings, dataclasses.replace(config.lora, dropout=0.0), config.model.loss_chunk)
    function, strength = make_scores(RewardConfig(weights=chosen.weights), None, settings.stop_ids)
    references = [pair.target for pair in splits.train]
    judge = make_judge(references, None, function, strength, reward=findings_f1)

    # The prompts, all of one length, so that one program serves every step.
    rows = [prompt_tokens(base.tokenizer, config.instruction, pair.source) for pair in splits.train]
    prompts = padded(rows, bucket(max(map(len, rows))), left=True)

    # The steps.
    tx = make_optimizer(OptimConfig(learning_rate=chosen.rate, schedule="constant", warmup_ratio=0.0), chosen.steps)
    step = make_rl_step(policy, Objective(), tx, judge, base.tokenizer, layout, group=8)
    state = device_put_tree(init_state(trained.trainable, tx), layout, SHARDING_RULES)
    before, curve, rng = scores(trained, test), [], jax.random.key(chosen.seed)
    for number, batch in enumerate(plan_studies(len(rows), chosen.rows, chosen.steps, chosen.seed), start=1):
        studies: Any = np.array([row[0] for row in batch.rows], np.int32)
        own = StudyBatch(jax.tree.map(lambda leaf, studies=studies: leaf[studies], prompts), studies)
        state, metrics = step(state, trained.frozen, place_batch(own, layout), rng)
        curve.append({name: float(value) for name, value in metrics.items() if np.isfinite(value)})
        if number % 10 == 0:
            print(f"step {number}/{chosen.steps}  reward {curve[-1]['reward']:.3f}", file=sys.stderr, flush=True)
    after = scores(trained._replace(trainable=state.trainable), test)
    options = {name: str(value) for name, value in vars(chosen).items()}
    chosen.output.parent.mkdir(parents=True, exist_ok=True)
    result = {"options": options, "before": before, "after": after, "curve": curve}
    chosen.output.write_text(json_text(result, chosen.output), encoding="utf-8")
    print(f"findings/F1 {' -> '.join(score_text(found['findings/F1']['value']) for found in (before, after))}")


if __name__ == "__main__":
    run_cli(main)
