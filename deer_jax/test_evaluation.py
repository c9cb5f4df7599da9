"""Evaluation of a model on the held-out studies of a data set, with a constant and the nearest report as baselines."""

import dataclasses
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np

from common.clinical.report_labeler import ReportLabeler
from common.clinical.scores import Scores, score_systems
from common.data.splits import Split
from common.io.finite import check_finite, precision_remedy
from common.io.jsonl import read_jsonl
from common.io.safetensors import disk_errors
from common.metrics.baselines import constant_reports
from common.models.quantized import stored_as
from common.training.parallel import DeviceLayout, compile_rows, fetch_rows, place_batch
from deer_jax.config import RlConfig, RolloutConfig, SampleConfig
from deer_jax.prompts import prompt_length, study_prompts
from deer_jax.rl import StudyBatch
from deer_jax.sample import sample_run
from deer_jax.setup import Base
from deer_jax.vision_policy import image_features

NEAREST, CONSTANT = "nearest training study", "constant report"
AT_ONCE = 32  # studies
SMALLEST = 1e-30  # length that a vector is divided by: a study that is the mean of its split has no direction
F1 = ("findings/F1", "promptmrg/F1")


def sampling(config: RlConfig, model: Path, rollout: RolloutConfig, **more: Any) -> SampleConfig:
    """How the model in a directory is sampled on the data that `config` trains on.

    Adapters that were trained on a base in fewer bits are in the whole weights: these are read as they are stored.
    """
    stored: Any = stored_as(config.model.param_dtype)[0]
    return SampleConfig(
        data=dataclasses.replace(config.data, ids=""),
        model=dataclasses.replace(config.model, base=str(model), param_dtype=stored),
        rollout=rollout,
        mesh=config.mesh,
        parallel=config.parallel,
        instruction=config.instruction,
        **more,
    )


class Reports(NamedTuple):
    """What a model writes for each test study: the likeliest report, and one drawn at temperature 1, as RL draws."""

    greedy: list[str]
    sampled: list[str]


def held_out_reports(config: RlConfig, model: Path, directory: Path) -> Reports:
    """The reports of the model in `model`; they are kept in `directory`, and not written twice."""
    found = []
    with disk_errors(directory):
        directory.mkdir(parents=True, exist_ok=True)
    for name, temperature in zip(Reports._fields, (0.0, 1.0), strict=True):
        rollout = RolloutConfig(group=1, max_new_tokens=config.rollout.max_new_tokens, temperature=temperature)
        output = directory / f"{name}.jsonl"
        sample_run(sampling(config, model, rollout, split="test", batch_size=AT_ONCE), output)
        rows = read_jsonl(output, {"id": str, "prediction": str, "reference": str})
        found.append([row["prediction"] for row in rows])
    return Reports(*found)


def score_model(reports: Reports, split: Split, labeler: ReportLabeler | None) -> Scores:
    """Scores of the greedy reports, and beside them the F1 of the sampled ones, named "sampled/..."."""
    both = score_systems(reports._asdict(), split.studies, labeler)
    return both["greedy"] | {f"sampled/{name}": both["sampled"][name] for name in F1 if name in both["sampled"]}


def baselines(base: Base, train: Split, test: Split, views: int, layout: DeviceLayout) -> dict[str, list[str]]:
    """A constant report, and for each study the report of the training study most alike by the tower's features."""
    constant = constant_reports(
        [study.report for study in train.studies],
        [study.language for study in train.studies],
        [study.language for study in test.studies],
    )
    known, asked = (features(base, one, views, layout) for one in (train, test))
    nearest = [train.studies[index].report for index in (asked @ known.T).argmax(1)]
    return {NEAREST: nearest, CONSTANT: constant}


def features(base: Base, split: Split, views: int, layout: DeviceLayout) -> np.ndarray:
    """The mean of the tower's features of each study [N, D], centred over the split and of length 1."""
    length = prompt_length(base.encoder, views)

    def mean(_: Any, params: Any, batch: StudyBatch, rng: Any) -> jax.Array:
        return image_features(base.config, params, batch.prompts, base.layout).mean((1, 2))

    run: Callable[..., Any] = compile_rows(mean, layout)
    count, rows = len(split.studies), AT_ONCE * layout.row_shards
    found = []
    for start in range(0, count, rows):
        studies: Any = np.minimum(np.arange(start, start + rows), count - 1).astype(np.int32)
        batch = StudyBatch(study_prompts(studies, split.images, base.encoder, views, length), studies)
        own = fetch_rows(run({}, base.params, place_batch(batch, layout), jax.random.key(0)), layout)
        found.append(np.asarray(own, np.float32)[: count - start])
    stacked = np.concatenate(found)
    ids = [study.id for study in split.studies]
    remedy = precision_remedy(base.config.vision.dtype)
    check_finite(np.asarray(np.isfinite(stacked).all(-1)), ids, "the vision tower's features", remedy)
    stacked -= stacked.mean(0)
    return stacked / np.maximum(np.linalg.norm(stacked, axis=-1, keepdims=True), SMALLEST)
