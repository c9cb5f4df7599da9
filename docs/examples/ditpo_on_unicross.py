"""DiTPO on a policy of another make: the decoder of UniCrossAdapter, on phantom radiographs.

The optimisation of `deer_jax` takes any `Policy`. Here the shipped UniCrossAdapter, which has learnt from phantoms by
supervision, is the policy; its images are encoded once, and reinforcement learning trains decoder and logits. It runs
on a laptop:

    python docs/examples/ditpo_on_unicross.py --weights gradient --seed 0 --output runs/ditpo-gradient-0.json
"""

import dataclasses
import sys
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int, Key

from common.clinical.labeler import load_labeler
from common.command import run_cli
from common.data.records import Quarantine
from common.data.splits import Split
from common.errors import Parser
from common.generation.loop import Generated, generate, prefill
from common.generation.sampling import Sampling
from common.generation.settings import DecodeSettings
from common.io.numbers import score_text
from common.io.text import json_text
from common.metrics.bootstrap import summarize
from common.metrics.clinical import clinical_measures
from common.models.decoding import Prompts
from common.phantoms.labels import label_report
from common.training.losses import token_logprobs
from common.training.optim import OptimConfig, make_optimizer
from common.training.parallel import device_put_tree, make_device_layout, place_batch
from common.training.step import init_state
from common.types import PyTree
from deer_jax.config import RewardConfig
from deer_jax.ddsampling import diversity, select
from deer_jax.ditpo import Policy, PolicyParams
from deer_jax.objective import Objective
from deer_jax.rewarding import make_judge
from deer_jax.rl import StudyBatch, make_rl_step, plan_studies
from deer_jax.rl_run import make_scores
from unicross_jax.backbone import without_dropout
from unicross_jax.config import EMBEDDED_RUN
from unicross_jax.data import read_splits
from unicross_jax.model import Encoded, Net, UniCrossConfig, bind_report, encode_studies, output_head, report_context
from unicross_jax.report import studies_of
from unicross_jax.task import encode
from unicross_jax.trained import load_trained

TRAINED = ("decoder", "logits")
CHUNK = 32  # studies whose images are read at once


def unicross_policy(config: UniCrossConfig, settings: DecodeSettings, bos_id: int) -> Policy:
    """The report side of a UniCrossAdapter (`causal`); prompts are what it has read of the images (`Encoded`)."""

    def net(params: PolicyParams) -> Net:
        own = {**params.frozen["fixed"], **params.trainable}
        return Net(own, {name: params.frozen[name] for name in ("clip", "report_embedding")}, config)

    def sample(params: PolicyParams, prompts: Encoded, keys: Key[Array, " B"], group: int) -> Generated:
        model = net(params)
        start = jnp.full((prompts.memory.shape[0], 1), bos_id, jnp.int32)
        context = report_context(model, prompts)
        report = bind_report(model, context)
        read = prefill(report, Prompts(start, jnp.ones(start.shape, bool))).replace(context=context)
        return generate(report, output_head(model.trainable), read, keys, dataclasses.replace(settings, group=group))

    def logprobs(
        params: PolicyParams, prompts: Encoded, tokens: Int[Array, "B G T"], mask: Bool[Array, "B G T"]
    ) -> Float[Array, "B G T"]:
        model, (batch, group, length) = net(params), tokens.shape
        images = jax.tree.map(lambda leaf: jnp.repeat(leaf, group, axis=0), prompts)
        rows, kept = tokens.reshape(-1, length), mask.reshape(-1, length)
        before = jnp.concatenate([jnp.full((batch * group, 1), bos_id, jnp.int32), rows[:, :-1]], axis=1)
        positions = jnp.broadcast_to(jnp.arange(length), before.shape)
        report = bind_report(model, report_context(model, images))
        hidden, _ = report(before, positions, segments=kept.astype(jnp.int32))
        head = output_head(model.trainable)
        logp = token_logprobs(
            hidden, head, rows, wanted=kept, head_trained=True, forbidden=settings.forbidden(head.shape[0])
        )
        return logp.reshape(tokens.shape)

    return Policy(sample, logprobs)


class Material(NamedTuple):
    """The policy before RL, and studies that are encoded: prompts, reports and labels of each split."""

    trainable: PyTree
    frozen: PyTree
    config: UniCrossConfig
    tokenizer: Any
    settings: DecodeSettings
    prompts: dict[str, Encoded]
    reports: dict[str, list[str]]


def load(directory: Path, train_size: int, test_size: int) -> Material:
    """The shipped model and phantom studies that it has not been trained on."""
    trained = load_trained(directory)
    data = dataclasses.replace(
        trained.config.data, phantom_seed=77, train_size=train_size, validation_size=0, test_size=test_size
    )
    trained = trained._replace(config=dataclasses.replace(trained.config, data=data))
    task, tokenizer = trained.task, trained.task.tokenizer
    config = without_dropout(task.model)
    read = jax.jit(lambda studies: encode_studies(Net(trained.trainable, task.frozen, config), studies))

    def encoded(split: Split) -> Encoded:
        examples, _ = encode(trained.config, task, split.studies)
        count = len(examples)
        chunks = [
            read(studies_of(trained, examples, split.images, range(start, min(start + CHUNK, count)), CHUNK))
            for start in range(0, count, CHUNK)
        ]
        return jax.tree.map(lambda *leaves: np.concatenate(leaves)[:count], *chunks)

    splits = read_splits(data, Quarantine())
    prompts = {name: encoded(split) for name, split in splits.items()}
    reports = {name: [study.report for study in split.studies] for name, split in splits.items()}
    settings = DecodeSettings(
        max_new_tokens=trained.config.max_length - 1,
        sampling=Sampling(temperature=1.0),
        stop_ids=(tokenizer.eos_id,),
        forbidden_ids=tuple({tokenizer.pad_id, tokenizer.bos_id} - {tokenizer.eos_id}),
    )
    trainable = {name: trained.trainable[name] for name in TRAINED}
    fixed = {name: tree for name, tree in trained.trainable.items() if name not in TRAINED}
    return Material(trainable, {**task.frozen, "fixed": fixed}, config, tokenizer, settings, prompts, reports)


def write(material: Material, trainable: PyTree, name: str, group: int, top_p: float, temperature: float, seed: int):
    """Reports of every study of a split, `group` of each."""
    sampling = Sampling(temperature=temperature, top_p=top_p)
    settings = dataclasses.replace(material.settings, sampling=sampling)
    policy = unicross_policy(material.config, settings, material.tokenizer.bos_id)
    sample = jax.jit(policy.sample, static_argnums=3)
    prompts, texts = material.prompts[name], []
    for start in range(0, len(prompts.memory), 50):
        own = jax.tree.map(lambda leaf, start=start: leaf[start : start + 50], prompts)
        keys = jax.random.split(jax.random.fold_in(jax.random.key(seed), start), len(own.memory))
        found = jax.device_get(sample(PolicyParams(trainable, material.frozen), own, keys, group))
        texts += [
            [material.tokenizer.decode(row[:length]) for row, length in zip(*rows, strict=True)]
            for rows in zip(found.tokens, found.lengths, strict=True)
        ]
    return texts


def scores(material: Material, trainable: PyTree) -> dict[str, dict[str, float]]:
    """Clinical scores of the likeliest reports of the test split, by the rules that know phantom reports."""
    written = [group[0] for group in write(material, trainable, "test", 1, 1.0, 0.0, 0)]
    predicted, expected = (
        np.array([label_report(text) for text in texts]) for texts in (written, material.reports["test"])
    )
    return summarize(clinical_measures(predicted, expected), with_intervals=True, seed=0)


def main(arguments: list[str]) -> None:
    """The command line."""
    parser = Parser("ditpo_on_unicross", description=__doc__.split("\n\n")[0])
    parser.add_argument("--output", type=Path, required=True)
    parser.add_argument("--weights", default="gradient", help="uniform (GRPO), tfidf, gradient, or module:function")
    parser.add_argument("--labeler", default="phantom", help="a labeler of CheXbert's labels; default: the shipped one")
    parser.add_argument("--fraction", type=float, default=1.0, help="of the studies, chosen by DDSampling")
    parser.add_argument("--studies", type=int, default=800)
    parser.add_argument("--test-studies", type=int, default=400)
    parser.add_argument("--steps", type=int, default=150)
    parser.add_argument("--rows", type=int, default=16)
    parser.add_argument("--rate", type=float, default=1e-4)
    parser.add_argument("--seed", type=int, default=0)
    chosen = parser.parse_args(arguments)
    material = load(EMBEDDED_RUN, chosen.studies, chosen.test_studies)
    labeler = load_labeler(chosen.labeler)
    studies = np.arange(chosen.studies)
    if chosen.fraction < 1:
        rollouts = write(material, material.trainable, "train", 10, 0.9, 1.0, chosen.seed)
        labels = np.array([[label_report(text) for text in group] for group in rollouts]) == 1
        studies = select(diversity(labels), round(chosen.fraction * chosen.studies), seed=chosen.seed)
    references = [material.reports["train"][study] for study in studies]
    prompts = jax.tree.map(lambda leaf: np.asarray(leaf)[studies], material.prompts["train"])
    function, strength = make_scores(RewardConfig(weights=chosen.weights), labeler, material.settings.stop_ids)
    judge = make_judge(references, labeler, function, strength)
    tx = make_optimizer(OptimConfig(learning_rate=chosen.rate, schedule="constant", warmup_ratio=0.0), chosen.steps)
    layout = make_device_layout("jit")
    policy = unicross_policy(material.config, material.settings, material.tokenizer.bos_id)
    step = make_rl_step(policy, Objective(), tx, judge, material.tokenizer, layout, group=8)
    state, frozen = (
        device_put_tree(init_state(material.trainable, tx), layout),
        device_put_tree(material.frozen, layout),
    )
    before, curve, rng = scores(material, material.trainable), [], jax.random.key(chosen.seed)
    for number, batch in enumerate(plan_studies(len(studies), chosen.rows, chosen.steps, chosen.seed), start=1):
        rows: Any = np.array([row[0] for row in batch.rows], np.int32)
        own = StudyBatch(jax.tree.map(lambda leaf, rows=rows: leaf[rows], prompts), rows)
        state, metrics = step(state, frozen, place_batch(own, layout), rng)
        curve.append({name: float(value) for name, value in metrics.items() if np.isfinite(value)})
        if number % 10 == 0:
            print(f"step {number}/{chosen.steps}  reward {curve[-1]['reward']:.3f}", file=sys.stderr, flush=True)
    result = {"options": {name: str(value) for name, value in vars(chosen).items()}, "before": before}
    result |= {"after": scores(material, state.trainable), "curve": curve}
    chosen.output.parent.mkdir(parents=True, exist_ok=True)
    chosen.output.write_text(json_text(result, chosen.output), encoding="utf-8")
    found = [score_text(scores["promptmrg/F1"]["value"]) for scores in (result["before"], result["after"])]
    print(f"promptmrg/F1 {' -> '.join(found)}")


if __name__ == "__main__":
    run_cli(main)
