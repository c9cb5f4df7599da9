"""Greedy reports of a policy for validation studies during training."""

from collections.abc import Callable
from typing import Any

import jax
import numpy as np

from common.data.cleaning import clean_report
from common.data.packing import GlobalBatch
from common.data.splits import Split
from common.generation.evaluation import Keep, Write, report_evaluations
from common.generation.loop import Generated
from common.training.evaluation import Evaluation
from common.training.parallel import DeviceLayout
from common.types import PyTree
from deer_jax.config import RolloutConfig, RunConfig
from deer_jax.ditpo import PolicyParams
from deer_jax.prompts import prompt_length, study_prompts
from deer_jax.rl import StudyBatch
from deer_jax.setup import Base, decode_settings
from deer_jax.vision_policy import vision_policy


def greedy_writer(config: RunConfig, base: Base, max_new_tokens: int) -> Write:
    """The likeliest report of each study of a `StudyBatch`, as a pure function."""
    settings = decode_settings(base, RolloutConfig(max_new_tokens=max_new_tokens, temperature=0.0))
    policy = vision_policy(base.config, base.layout, settings, config.lora)

    def write(trainable: PyTree, frozen: PyTree, batch: StudyBatch, rng: jax.Array) -> Generated:
        keys = jax.random.split(rng, batch.study.shape[0])
        return policy.sample(PolicyParams(trainable, frozen), batch.prompts, keys, 1)

    return write


def study_batches(config: RunConfig, base: Base, split: Split) -> Callable[[GlobalBatch], StudyBatch]:
    """What turns planned studies into prompts; further studies of a row are its spare ones."""
    length = prompt_length(base.encoder, config.data.views)

    def of(studies: Any, spares: tuple[StudyBatch, ...] = ()) -> StudyBatch:  # numpy until placed on devices
        prompts = study_prompts(studies, split.images, base.encoder, config.data.views, length)
        return StudyBatch(prompts, studies, spares)

    def make(batch: GlobalBatch) -> StudyBatch:
        first, *spares = np.array(batch.rows, np.int32).T
        return of(first, tuple(of(studies) for studies in spares))

    return make


def written_reports(
    config: RunConfig,
    layout: DeviceLayout,
    base: Base,
    frozen: PyTree,
    split: Split,
    max_new_tokens: int,
    keep: Keep = lambda step, written: None,
) -> list[Evaluation]:
    """Scores of the reports that the model writes for validation studies, where `--metrics` names some.

    `keep` gets the reports.
    """
    stops = base.tokenizer.stop_ids

    def text(tokens: list[int]) -> str:
        return clean_report(base.tokenizer.decode([token for token in tokens if token not in stops]))

    return report_evaluations(
        config,
        layout,
        frozen,
        greedy_writer(config, base, max_new_tokens),
        study_batches(config, base, split),
        text,
        [study.report for study in split.studies],
        layout.row_shards * config.micro_batch,
        keep,
    )
