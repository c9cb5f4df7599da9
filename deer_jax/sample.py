"""`deer sample`: reports of a model for the studies of a data set, several of each or the likeliest one."""

import functools
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np
from jax.experimental import multihost_utils

from common.bounds import check_numbers
from common.clinical.labeler import Labeler, labeler_digests, load_labeler, replicate
from common.clinical.report_labeler import ReportLabeler, classes_of_groups
from common.config import to_json
from common.config_options import preset_parser, read_preset_options
from common.data.cleaning import clean_report
from common.data.records import Quarantine
from common.data.splits import Split, images_record
from common.data.summary import first_of, say_data, study_line
from common.errors import UserError
from common.generation.generate import PROGRAMS, DecodeSettings
from common.generation.loop import Generated
from common.io.fingerprints import model_record
from common.io.finite import check_finite, precision_remedy
from common.io.locks import locked_file, owning
from common.io.progress import counted
from common.metrics.clinical import POSITIVE
from common.models.qwen2_vl import Qwen2VLConfig
from common.models.qwen2_vl_layout import Grid, vision_layout
from common.training.parallel import (
    DeviceLayout,
    compile_rows,
    device_put_tree,
    fetch_rows,
    make_device_layout,
    place_batch,
)
from deer_jax.config import HELP, SAMPLE_NEEDS, SAMPLE_PRESETS, SampleConfig
from deer_jax.ditpo import PolicyParams
from deer_jax.prompts import prompt_length, read_splits, study_prompts
from deer_jax.resumable import continued_writer, rows_kept
from deer_jax.rl import StudyBatch, read_groups
from deer_jax.setup import Base, base_directory, decode_settings, load_base
from deer_jax.vision_policy import vision_policy

PROGRAM = "deer sample"
DESCRIPTION = """Rows {"id", "reference", "rollouts": [text, ...]}, with a labeler also "labels" for deer select; of one
report a study {"id", "reference", "prediction"}, for deer evaluate. What is written already is kept.

"""


def main(arguments: list[str]) -> None:
    """The command line."""
    options = preset_parser(PROGRAM, SAMPLE_PRESETS, DESCRIPTION + HELP, "--output FILE.jsonl")
    config, chosen = read_preset_options(options, SAMPLE_PRESETS, arguments, SAMPLE_NEEDS)
    sample_run(config, chosen.output)
    print(f"reports: {chosen.output}", flush=True)


@owning("output", locked_file)
def sample_run(config: SampleConfig, output: Path) -> None:
    """Write, or go on writing, the reports of a split. Raises UserError."""
    rollout = config.rollout
    check_numbers(config)
    if rollout.temperature == 0 and rollout.group > 1:
        raise UserError(f"{PROGRAM}: temperature 0 gives one report; set --rollout.group 1, or a temperature")
    quarantine = Quarantine()
    splits = read_splits(config.data, quarantine)
    if config.split not in splits:
        raise UserError(f"data: there is no {config.split} split; it has {', '.join(splits)}")
    split = splits[config.split]
    count = min(len(split.studies), config.limit or len(split.studies))
    ids = [config.data.ids] if config.split == "train" else []
    notes = first_of(config.limit, len(split.studies))
    if jax.process_index() == 0:
        say_data(study_line(config.data, {config.split: count}, quarantine, files=ids, notes=notes))
    text = "prediction" if rollout.group == 1 else "rollouts"
    required: dict[str, Any] = {"reference": str, text: str if rollout.group == 1 else list}
    labeler = None
    if config.labeler:
        vocabulary = config.labeler_tokenizer or None
        labeler = load_labeler(config.labeler, vocabulary, option="--labeler-tokenizer")
    inputs: dict[str | int, list[str]] = {
        study.id: [study.report, images_record(split.images, index)]
        for index, study in enumerate(split.studies[:count])
    }
    options = functools.cache(functools.partial(row_options, config, labeler))
    done = rows_kept(output, inputs, required | ({"labels": list} if config.labeler else {}), options)
    if done == count:
        return
    layout = make_device_layout(config.parallel, config.mesh)
    if config.batch_size % layout.row_shards:
        raise UserError(f"batch_size: {config.batch_size} studies do not split over {layout.row_shards} devices")
    labeler = None if labeler is None else replicate(labeler)
    base = load_base(config.model, config.data.side, config.instruction, layout)
    found = sampled_texts(config, base, split, range(done, count), layout)
    if jax.process_index() > 0:
        for _ in found:
            pass
        return
    with continued_writer(output, inputs, options) as write:
        for sampled in counted(found, -(-(count - done) // config.batch_size), "batches of studies"):
            for row in rows_of(split, sampled, labeler):
                write(row)


def row_options(config: SampleConfig, labeler: Labeler | None) -> dict[str, Any]:
    """What decides what is written of a study beside its report and its images, by content."""
    whole = to_json(config)
    options = {name: whole[name] for name in ("rollout", "instruction", "seed")}
    options["data"] = {"side": config.data.side}
    options["model"] = {name: whole["model"][name] for name in ("tuning", "dtype", "frozen_dtype")}
    options["model"] |= model_record(base_directory(config.model))
    return options | {"labeler": None if labeler is None else labeler_digests(labeler)}


def rows_of(
    split: Split, sampled: Sequence[tuple[int, list[str]]], labeler: ReportLabeler | None
) -> list[dict[str, Any]]:
    """What is written of the studies of a batch."""
    rows: list[dict[str, Any]] = []
    for study, texts in sampled:
        row: dict[str, Any] = {"id": split.studies[study].id, "reference": split.studies[study].report}
        # A prediction is read; rollouts are weighed by the characters of their tokens, and stay as they are.
        rows.append(row | ({"prediction": clean_report(texts[0])} if len(texts) == 1 else {"rollouts": texts}))
    if labeler is not None:
        ids = [row["id"] for row in rows]
        for row, classes in zip(rows, classes_of_groups(labeler, [texts for _, texts in sampled], ids), strict=True):
            row["labels"] = (classes == POSITIVE).astype(int).tolist()
    return rows


@functools.lru_cache(maxsize=PROGRAMS)
def sampling_program(
    config: Qwen2VLConfig, grid: Grid, settings: DecodeSettings, group: int, layout: DeviceLayout
) -> Callable[..., Any]:
    """`(_, params, batch, rng) -> Generated` for a batch of studies.

    Asked for again it is the same program: that of a model before its training serves after it.
    """
    policy = vision_policy(config, vision_layout(config.vision, grid), settings)

    def sample(_: Any, params: Any, batch: StudyBatch, rng: jax.Array) -> Generated:
        keys = jax.vmap(jax.random.fold_in, in_axes=(None, 0))(rng, batch.study)
        return policy.sample(PolicyParams({}, params), batch.prompts, keys, group)

    return compile_rows(sample, layout)


def sampled_texts(
    config: SampleConfig, base: Base, split: Split, studies: range, layout: DeviceLayout
) -> Iterator[list[tuple[int, list[str]]]]:
    """Of each batch the studies and their reports, in order. These depend on a study's number and the seed alone.

    Under several processes all must exhaust it.
    """
    length = prompt_length(base.encoder, config.data.views)
    settings = decode_settings(base, config.rollout)
    run = sampling_program(base.config, base.encoder.grid, settings, config.rollout.group, layout)
    rng = device_put_tree(jax.random.key(config.seed), layout)
    local = config.batch_size // jax.process_count()
    for start in range(studies.start, studies.stop, config.batch_size):
        first = start + jax.process_index() * local
        mine: Any = np.minimum(np.arange(first, first + local), studies.stop - 1).astype(np.int32)
        batch = StudyBatch(study_prompts(mine, split.images, base.encoder, config.data.views, length), mine)
        written = fetch_rows(run({}, base.params, place_batch(batch, layout), rng), layout)
        if jax.process_count() > 1:
            gathered = multihost_utils.process_allgather(written)
            written = jax.tree.map(lambda leaf: leaf.reshape(-1, *leaf.shape[2:]), gathered)
        numbers = range(start, min(start + config.batch_size, studies.stop))  # what fills up the last batch falls off
        check_finite(
            np.asarray(written.finite.all(-1))[: len(numbers)],
            [split.studies[number].id for number in numbers],
            "the model's logits",
            precision_remedy(base.config.language.dtype),
        )
        groups = read_groups(written, base.tokenizer)
        texts = ([rollout.text for rollout in group] for group in groups)
        yield list(zip(numbers, texts, strict=False))
