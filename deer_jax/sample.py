"""`deer sample`: reports of a model for the studies of a data set, several of each or the likeliest one.

The model is a directory, or one that an engine serves (`deer_jax.endpoint_sampling`).
"""

import dataclasses
import functools
import os
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np

from common.bounds import check_numbers
from common.clinical.labeler import Labeler, labeler_digests, load_labeler, replicate
from common.clinical.report_labeler import ReportLabeler, classes_of_groups
from common.config import to_json
from common.config_options import preset_parser, read_preset_options
from common.data.cleaning import clean_report
from common.data.records import Quarantine
from common.data.splits import Split, images_record
from common.data.summary import first_of, say_data, study_line
from common.endpoint import Endpoint, add_endpoint_options, endpoint_settings
from common.errors import UserError
from common.generation.draft_sources import DRAFT_TOKENS, draft_sources, report_table
from common.generation.generate import PROGRAMS
from common.generation.memory import halved, slot_memory, without_drafts
from common.generation.processes import in_parts, over_processes
from common.generation.settings import DecodeSettings
from common.generation.slots import Request, Slots, in_order, make_slots, run_slots
from common.io.fingerprints import model_record
from common.io.finite import check_finite, precision_remedy
from common.io.locks import locked_file, owning
from common.io.progress import counted
from common.io.terminal import say
from common.metrics.clinical import POSITIVE
from common.models.lora import LoraConfig
from common.models.qwen2_vl import Qwen2VLConfig
from common.models.qwen2_vl_layout import Grid, vision_layout
from common.options import check_options
from common.process.stopping import held
from common.training.parallel import DeviceLayout, all_row_shards, generation_layout, processes
from deer_jax.config import HELP, SAMPLE_NEEDS, SAMPLE_PRESETS, SampleConfig, check_data, check_given
from deer_jax.ditpo import PolicyParams
from deer_jax.endpoint_sampling import ENDPOINT_NEEDS, endpoint_record, endpoint_texts
from deer_jax.prompts import prompt_length, read_splits, study_prompts
from deer_jax.resumable import continued_writer, rows_kept
from deer_jax.rl import read_groups
from deer_jax.setup import Base, base_directory, check_positions, decode_settings, load_base
from deer_jax.vision_policy import study_decoder, without_images

PROGRAM = "deer sample"
DESCRIPTION = """Rows {"id", "reference", "rollouts": [text, ...]}, with a labeler also "labels" for deer select; of one
report a study {"id", "reference", "prediction"}, for deer evaluate. What is written already is kept.
With --endpoint the images of the studies are sent there, which are patient data; --model.base is not read then.

"""


def main(arguments: list[str]) -> None:
    """The command line."""
    options = preset_parser(PROGRAM, SAMPLE_PRESETS, DESCRIPTION + HELP, "--output FILE.jsonl")
    add_endpoint_options(options)
    asked = any(word.partition("=")[0] == "--endpoint" for word in arguments)  # whose model is not read here
    check = check_data if asked else check_given
    config, chosen = read_preset_options(options, SAMPLE_PRESETS, arguments, SAMPLE_NEEDS, check)
    cache = chosen.output.with_name(f"{chosen.output.stem}.answers.sqlite")
    endpoint = endpoint_settings(chosen, cache, config.rollout.max_new_tokens)
    if endpoint is not None:
        check_options(config, arguments, ENDPOINT_NEEDS, f"{PROGRAM} with an endpoint")
        # JAX would take most of the accelerator's memory for a labeler, and leave none for an engine beside it.
        os.environ.setdefault("XLA_PYTHON_CLIENT_PREALLOCATE", "false")
    sample_run(config, chosen.output, endpoint)
    say(f"reports: {chosen.output}")


@owning("output", locked_file)
def sample_run(config: SampleConfig, output: Path, endpoint: Endpoint | None = None) -> None:
    """Write, or go on writing, the reports of a split, by the model of an endpoint if there is one.

    Raises UserError.
    """
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
    options = functools.cache(functools.partial(row_options, config, labeler, endpoint))
    done = rows_kept(output, inputs, required | ({"labels": list} if config.labeler else {}), options)
    if done == count:
        return
    labeler = None if labeler is None else replicate(labeler)
    studies = range(done, count)
    if endpoint is None:
        layout = generation_layout(config.mesh, config.parallel)
        base = load_base(config.model, config.data.side, config.instruction, layout)
        check_positions(base, config.data.views, config.rollout.max_new_tokens, "--rollout.max-new-tokens")
        known = [study.report for study in splits["train"].studies] if "train" in splits else []
        found = sampled_texts(config, base, split, studies, layout, known)
    elif jax.process_index() == 0:  # which alone asks
        records = [record for _, record in list(inputs.values())[done:]]
        found = endpoint_texts(config, endpoint, split, studies, records)
    else:
        return
    if jax.process_index() > 0:
        for _ in found:
            pass
        return
    with continued_writer(output, inputs, options) as write:
        for sampled in in_parts(counted(found, count - done, "studies"), config.batch_size):
            with held("the labels of the reports at hand"):  # writing the reports took longer
                for row in rows_of(split, sampled, labeler):
                    write(row)


def row_options(config: SampleConfig, labeler: Labeler | None, endpoint: Endpoint | None = None) -> dict[str, Any]:
    """What decides what is written of a study beside its report and its images, by content."""
    whole = to_json(config)
    options = {name: whole[name] for name in ("rollout", "instruction", "seed")}
    options["data"] = {"side": config.data.side}
    if endpoint is None:
        options["model"] = {name: whole["model"][name] for name in ("tuning", "dtype", "param_dtype")}
        options["model"] |= model_record(base_directory(config.model))
    else:
        options["endpoint"] = endpoint_record(endpoint)
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
def sampling_slots(
    config: Qwen2VLConfig, grid: Grid, settings: DecodeSettings, count: int, layout: DeviceLayout
) -> Slots:
    """The programs that write reports of studies, with the whole model as `PolicyParams.frozen`.

    Asked for again they are the same: those of a model before its training serve after it.
    """
    decoder = study_decoder(config, vision_layout(config.vision, grid), LoraConfig())
    return make_slots(decoder, without_images(settings, config), count, layout)


def sampled_texts(
    config: SampleConfig, base: Base, split: Split, studies: range, layout: DeviceLayout, known: Sequence[str]
) -> Iterator[tuple[int, list[str]]]:
    """Of each study its number and its reports, in order. These depend on the study's number and the seed alone.

    `known` are reports that drafts may come from.

    Under several processes all must exhaust it; each writes the reports of a share of the studies.
    """
    length = prompt_length(base.encoder, config.data.views)
    table = None
    if "reports" in draft_sources(config.draft):
        table = report_table(base.tokenizer, known)
    settings = decode_settings(base, config.rollout)
    settings = dataclasses.replace(settings, group=config.rollout.group, drafts=0 if table is None else DRAFT_TOKENS)
    count = max(min(config.batch_size, -(-len(studies) // all_row_shards(layout))), 1)
    slots = sampling_slots(base.config, base.encoder.grid, settings, count, layout)

    def written(numbers: Sequence[int]) -> Iterator[list[Any]]:
        queue = (
            Request(
                np.int32(number),
                jax.tree.map(
                    lambda leaf: leaf[0],
                    study_prompts([number], split.images, base.encoder, config.data.views, length),
                ),
            )
            for number in numbers
        )
        for generated in in_order(run_slots(slots, PolicyParams({}, base.params), queue, config.seed, table)):
            (group,) = read_groups(jax.tree.map(lambda leaf: leaf[None], generated), base.tokenizer)
            yield [bool(generated.finite.all()), [rollout.text for rollout in group]]

    found = over_processes(studies, written, count * layout.row_shards // processes(layout), layout)
    remedy = precision_remedy(base.config.language.dtype)
    fewer = halved("--batch-size", config.batch_size, used=count), without_drafts(settings.drafts)
    rollout = config.rollout
    shorter = halved("--rollout.group", rollout.group), halved("--rollout.max-new-tokens", rollout.max_new_tokens)
    with slot_memory(*fewer, *shorter):
        for number, (finite, texts) in zip(studies, found, strict=True):
            check_finite([finite], [split.studies[number].id], "the model's logits", remedy)
            yield number, texts
