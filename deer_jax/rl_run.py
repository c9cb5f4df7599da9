"""`deer rl`: reinforcement learning of report generation, GRPO or DiTPO by the token weights that are chosen."""

import dataclasses
import functools
import math
from pathlib import Path

import jax
import numpy as np

from common.bounds import POSITIVE, check_number
from common.clinical.labeler import Labeler, labeler_digests, load_labeler, replicate
from common.clinical.scores import default_labeler
from common.config import owning_run_directory
from common.config_options import preset_parser, read_preset_options
from common.data.cleaning import clean_report
from common.data.packing import GlobalBatch
from common.data.pipeline import make_iterator
from common.data.records import Quarantine
from common.data.splits import Split
from common.data.summary import say_data
from common.errors import UserError
from common.generation.draft_sources import DRAFT_TOKENS, report_table
from common.generation.evaluation import Keep
from common.io.fingerprints import data_record
from common.io.functions import load_function
from common.io.terminal import say
from common.metrics.clinical import COMPETITION, FINDINGS
from common.models.attention_choice import attention_lines, say_attention
from common.models.qwen2_vl import SHARDING_RULES
from common.options import command_line
from common.report.bands import Bands
from common.report.live import Curves, study_page
from common.report.model_card import results_in, training_of, write_cards
from common.training.evaluation import Check, Evaluation
from common.training.loop import RUN_OUTPUTS
from common.training.optim import make_optimizer, make_schedule, with_average
from common.training.parallel import (
    DeviceLayout,
    compile_rows,
    device_put_tree,
    fetch_rows,
    make_device_layout,
    place_batch,
)
from common.training.run import Training, accumulation, base_weights, run_training, stage, this_process
from common.types import PyTree, TrainState
from deer_jax.config import (
    HELP,
    LABELER_HELP,
    RL_NEEDS,
    RL_PRESETS,
    RewardConfig,
    RlConfig,
    check_rewarded,
)
from deer_jax.ditpo import ADVANTAGES, RATIOS, TOKEN_WEIGHTS, ditpo_loss
from deer_jax.flops import step_flops
from deer_jax.measures import REWARD_OF
from deer_jax.objective import METHODS_OWN
from deer_jax.prompts import prompt_length, splits_line
from deer_jax.rewarding import make_judge, score_function
from deer_jax.rewards import Reward, phase_gamma
from deer_jax.rl import Judge, make_rl_step, plan_studies, read_groups
from deer_jax.setup import (
    Base,
    base_directory,
    check_positions,
    check_run,
    decode_settings,
    export,
    initial_trees,
    learnt_rows,
    load_base,
    load_studies,
    report_card,
)
from deer_jax.token_weights import STRENGTH, uniform_scores
from deer_jax.vision_policy import attention_uses, vision_policy
from deer_jax.written import greedy_writer, study_batches, written_reports

NOT_FINITE = "the policy's logits are not finite (NaN or infinity), so this validation has no value"
OUTPUTS = (*RUN_OUTPUTS, "quarantine.jsonl", "adapter", "model")  # of a run directory
LABEL_BATCH = 64  # reports
PAPERS = -1  # the strength that stands for the paper's
REWARD = "val/reward"
CURVES: Curves = {
    "Reward": {"reward": "reward", "label F1": "label_f1", "BLEU-2": "bleu2"},
    "Reward by finding of the reference": {name: REWARD_OF + name for name in (*COMPETITION, "No Finding")},
    "F1 of findings, validation": {name: f"f1/{name}" for name in COMPETITION},
    "KL divergence": {"from the first policy": "kl"},
    "Entropy": {"entropy of a token, nats": "entropy"},
    "Length of reports": {"tokens": "new_tokens"},
    "Advantages of reports": Bands("advantage", ADVANTAGES, 0),
    "Weights of tokens": Bands("token_weight", TOKEN_WEIGHTS, 1),
    "Probability ratios of tokens": Bands("ratio", RATIOS, 1),
}
SHOWN = ("reward", "kl", "new_tokens", "clipped", "entropy")


def main(arguments: list[str]) -> None:
    """The command line."""
    options = preset_parser("deer rl", RL_PRESETS, HELP + LABELER_HELP)
    config, chosen = read_preset_options(options, RL_PRESETS, arguments, RL_NEEDS, check_rewarded)
    train_run(config, chosen.run_dir)
    following = command_line("deer sample", {"model.base": chosen.run_dir / "model"})
    say(f"trained: {chosen.run_dir}; next: {following}")


def check_config(config: RlConfig) -> None:
    """Raise UserError for a number out of its bounds, and for numbers that do not go together."""
    check_run(config)
    rollout, reward = config.rollout, config.reward
    if rollout.group < 2:
        raise UserError(
            f"rollout.group: {rollout.group} is too small for a comparison within the group; expected 2 or more"
        )
    check_number("rollout.temperature", rollout.temperature, POSITIVE)
    if len(reward.phase_ends) != len(reward.gammas) - 1 or sorted(reward.phase_ends) != list(reward.phase_ends):
        raise UserError(
            "reward: expected one end in phase_ends for each phase of gammas except the last, in increasing order"
        )
    for name in ("clip_low", "clip_high"):
        value = getattr(config.objective, name)
        if METHODS_OWN < value < 0:
            raise UserError(f"objective.{name}: {value}; expected at least 0, or {METHODS_OWN} for that of the method")
    if reward.strength != PAPERS and reward.strength < 0:
        raise UserError(f"reward.strength must be at least 0, or {PAPERS} for the paper's, found {reward.strength}")


def reward_labeler(reward: RewardConfig) -> Labeler | None:
    """The labeler that rewards are given by, where one is named. Raises UserError."""
    if not reward.labeler:
        return None
    vocabulary = reward.labeler_tokenizer or None
    return load_labeler(reward.labeler, vocabulary, option="--reward.labeler-tokenizer", batch_size=LABEL_BATCH)


def make_scores(reward: RewardConfig, labeler: Labeler | None, stop_ids: tuple[int, ...]):
    """The score function of the token weights, and the strength by which they are multiplied. Raises UserError."""
    strength = STRENGTH.get(reward.weights, 1.0) if reward.strength == PAPERS else reward.strength
    if ":" in reward.weights:
        return load_function(reward.weights, "--reward.weights"), strength
    return score_function(reward.weights, labeler, stop_ids, reward.uncertain, option="--reward.labeler"), strength


def judge_of(
    config: RlConfig, split: Split, labeler: Labeler | None, stop_ids: tuple[int, ...], learning: bool
) -> Judge:
    """What gives rewards, and for `learning` weights, to rollouts of the studies of a split. Raises UserError."""
    reward = config.reward
    own: Reward | None = load_function(reward.function, "--reward.function") if reward.function else None
    scores, strength = make_scores(reward, labeler, stop_ids) if learning else (uniform_scores, 0.0)
    return make_judge(
        [study.report for study in split.studies],
        labeler,
        scores,
        strength,
        gamma=lambda step: phase_gamma(reward.gammas, reward.phase_ends, step / config.steps),
        reward=own,
        names=(f"--reward.function {reward.function}", f"--reward.weights {reward.weights}"),
        option="--reward.labeler",
        ids=[study.id for study in split.studies],
        learning=learning,
    )


def reward_evaluation(
    config: RlConfig, base: Base, split: Split, frozen: PyTree, judge: Judge, layout: DeviceLayout, keep: Keep
) -> Evaluation:
    """The mean reward of the greedy reports of a split, by the last phase's reward; with a labeler, F1 of each finding.

    `keep` gets the reports of this process. An F1 is NaN where neither reports nor references have the finding. The
    mean is over finite rewards, as that of training is. It is NaN, which is never the best, where there is none, or
    where a report comes from logits that are not finite.
    """
    run = compile_rows(greedy_writer(config, base, config.rollout.max_new_tokens), layout)
    rng = device_put_tree(jax.random.key(0), layout)
    rows = layout.row_shards * config.micro_batch
    make = study_batches(config, base, split)
    count = len(split.studies)
    local = rows // jax.process_count()
    by_finding = [f"f1/{name}" for name in FINDINGS] if config.reward.labeler else []

    def measure(state: TrainState, check: Check) -> dict[str, float]:
        sums, counts = np.zeros(2), np.zeros((len(FINDINGS), 3))
        read: dict[int, tuple[str, float | None]] = {}
        for start in range(0, count, rows):
            check()
            first = start + jax.process_index() * local
            studies = [[min(index, count - 1)] for index in range(first, first + local)]
            batch = make(GlobalBatch(1, studies, local, 0))
            written = fetch_rows(run(state.trainable, frozen, place_batch(batch, layout), rng), layout)
            groups = read_groups(written, base.tokenizer)
            judged = judge(np.asarray(batch.study), groups, config.steps)
            real = np.arange(first, first + local) < count
            rewards, finite = judged.rewards[real, 0], np.isfinite(judged.rewards[real, 0])
            for row in np.flatnonzero(real):
                read[first + int(row)] = clean_report(groups[row][0].text), float(judged.rewards[row, 0])
            sums += rewards[finite].sum(), finite.sum()
            if judged.found is not None:
                counts += judged.found[real, 0].sum(0)
            for study in np.asarray(batch.study)[real & ~written.finite[:, 0]]:
                say(f"warning: validation: id {split.studies[study].id!r}: {NOT_FINITE}", error=True)
                sums[0] = np.nan
        keep(int(state.step), read)
        if jax.process_count() > 1:
            from jax.experimental import multihost_utils

            sums, counts = (part.sum(0) for part in multihost_utils.process_allgather((sums, counts)))
        total, known = sums
        measured = {REWARD: float(total / known) if known else math.nan}
        for name, (right, said, true) in zip(by_finding, counts, strict=False):
            measured[name] = float(2 * right / (said + true)) if said + true else math.nan
        return measured

    return Evaluation(config.evaluate_every, measure, (REWARD, *by_finding))


@owning_run_directory
def train_run(config: RlConfig, run_dir: Path) -> PyTree:
    """Train, or continue, the run in `run_dir`, and export its best weights there. Returns what was trained.

    Raises UserError for bad input before anything is written.
    """
    check_config(config)
    layout = make_device_layout(config.parallel, config.mesh)
    accumulate = accumulation(config.batch_size, config.micro_batch, layout)
    labeler = reward_labeler(config.reward)
    labeler = None if labeler is None else replicate(labeler)
    quarantine = Quarantine()
    splits = load_studies(config.data, quarantine)
    stage(f"reading the base model {base_directory(config.model)}")
    base = load_base(config.model, config.data.side, config.instruction, layout)
    check_positions(base, config.data.views, config.rollout.max_new_tokens, "--rollout.max-new-tokens")
    judge, held_out = (
        judge_of(config, splits[name], labeler, base.tokenizer.stop_ids, learning)
        for name, learning in (("train", True), ("validation", False))
    )
    settings, table = decode_settings(base, config.rollout), None
    if config.draft == "reports":
        table = report_table(base.tokenizer, [study.report for study in splits["train"].studies])
        settings = dataclasses.replace(settings, drafts=DRAFT_TOKENS)
    make_policy = functools.partial(
        vision_policy, base.config, base.layout, lora=config.lora, chunk=config.model.loss_chunk
    )
    policy = make_policy(settings)
    tx = with_average(make_optimizer(config.optim, config.steps * config.updates), config.optim.average)
    schedule = make_schedule(config.optim, config.steps * config.updates)
    trainable, frozen = initial_trees(config, base, layout)
    length = prompt_length(base.encoder, config.data.views)
    uses = attention_uses(base.config, base.layout, length, config.rollout.max_new_tokens)
    attention = attention_lines(uses, config.model.attention)

    data = splits_line(config.data, splits, quarantine)

    def announce() -> None:
        say_data(data)
        say_attention(attention)

    known, reader = splits["validation"], default_labeler(config.data.layout) or labeler
    page = study_page(run_dir, "DEER, reinforcement learning", config.data.layout, known, reader, CURVES)
    training = Training(
        trainable=trainable,
        frozen=frozen,
        batches=make_iterator(
            plan_studies(
                len(splits["train"].studies),
                config.batch_size,
                config.steps,
                config.seed,
                config.objective.form.refills,
            ),
            study_batches(config, base, splits["train"]),
            **this_process(),
        ),
        step=make_rl_step(
            policy,
            config.objective,
            tx,
            judge,
            base.tokenizer,
            layout,
            group=config.rollout.group,
            updates=config.updates,
            accumulate=accumulate,
            reference=jax.tree.map(lambda leaf: leaf.copy(), trainable) if config.objective.kl else None,
            ids=[study.id for study in splits["train"].studies],
            loss=load_function(config.loss, "--loss") if config.loss else ditpo_loss,
            table=table,
        ),
        tx=tx,
        total_steps=config.steps,
        schedule=lambda step: schedule(step * config.updates),
        evaluations=[
            reward_evaluation(config, base, splits["validation"], frozen, held_out, layout, page.keep),
            *written_reports(config, layout, base, frozen, splits["validation"], config.rollout.max_new_tokens),
        ],
        watch=page.watch,
        base=base_weights(base.directory),
        learns_from=learnt_rows(splits),
        also_from={} if labeler is None else {"labeler": data_record([labeler_digests(labeler)])},
        announce=announce,
        quarantine=quarantine,
        rules=SHARDING_RULES,
        shown=SHOWN,
        flops=step_flops(
            make_policy(dataclasses.replace(settings, drafts=0)),
            config,
            trainable,
            frozen,
            base.config.vision.full_attention_share,
        ),
    )
    best = run_training(config, run_dir, layout, training)
    results = results_in(run_dir)
    export(config, base, best, frozen, run_dir)
    command = training_of("deer rl", RL_PRESETS, config, RL_NEEDS)
    write_cards(run_dir, report_card("DEER, reinforcement learning", training.base, data, command), results)
    return best
