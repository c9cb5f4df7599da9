"""`deer sft`: the supervised stage. The language model is frozen; vision tower and projector learn to report."""

import functools
from collections.abc import Callable, Iterator
from pathlib import Path

from common.clinical.scores import default_labeler
from common.config import owning_run_directory
from common.config_options import preset_parser, read_preset_options
from common.data.packing import plan_epochs, plan_in_order
from common.data.pipeline import make_iterator
from common.data.records import Quarantine
from common.data.splits import Split
from common.data.summary import Cut, say_data
from common.io.terminal import say
from common.models.attention_choice import attention_lines, say_attention
from common.models.qwen2_vl import SHARDING_RULES
from common.options import command_line
from common.report.live import study_page
from common.report.model_card import results_in, training_of, write_cards
from common.training.parallel import DeviceLayout, make_device_layout
from common.training.run import accumulation, base_weights, run_training, stage, supervised, this_process
from common.training.token_loss import named_loss
from common.types import PyTree
from deer_jax.config import HELP, NEEDS, SFT_PRESETS, SftConfig, check_given
from deer_jax.prompts import ReportRows, prompt_length, report_rows, report_tokens, splits_line
from deer_jax.setup import (
    Base,
    base_directory,
    check_positions,
    check_run,
    export,
    initial_trees,
    learnt_rows,
    load_base,
    load_studies,
    report_card,
)
from deer_jax.vision_policy import attention_uses, sft_loss
from deer_jax.written import written_reports


def main(arguments: list[str]) -> None:
    """The command line."""
    options = preset_parser("deer sft", SFT_PRESETS, HELP)
    config, chosen = read_preset_options(options, SFT_PRESETS, arguments, NEEDS, check_given)
    train_run(config, chosen.run_dir)
    following = command_line("deer rl", {"model.base": chosen.run_dir / "model"})
    say(f"trained: {chosen.run_dir}; next: deer sample, or {following}")


def batch_maker(config: SftConfig, base: Base, split: Split) -> tuple[Callable[..., ReportRows], int]:
    """What turns planned rows into arrays, and how many reports were cut."""
    found = [report_tokens(base.encoder, study.report, config.max_length) for study in split.studies]
    length = prompt_length(base.encoder, config.data.views) + config.max_length
    reports = [tokens for tokens, _ in found]
    make = functools.partial(
        report_rows, images=split.images, reports=reports, encoder=base.encoder, views=config.data.views, length=length
    )
    return make, sum(cut for _, cut in found)


def validation_batches(config: SftConfig, base: Base, split: Split, layout: DeviceLayout) -> Iterator[ReportRows]:
    """The studies of a split once, in order."""
    plan = plan_in_order([1] * len(split.studies), batch_rows=layout.row_shards * config.micro_batch, buckets=(1,))
    return make_iterator(plan, batch_maker(config, base, split)[0], **this_process())


@owning_run_directory
def train_run(config: SftConfig, run_dir: Path) -> PyTree:
    """Train, or continue, the run in `run_dir`, and export its best weights there. Returns what was trained.

    Raises UserError for bad input before anything is written.
    """
    check_run(config)
    layout = make_device_layout(config.parallel, config.mesh)
    accumulate = accumulation(config.batch_size, config.micro_batch, layout)
    quarantine = Quarantine()
    splits = load_studies(config.data, quarantine)
    stage(f"reading the base model {base_directory(config.model)}")
    base = load_base(config.model, config.data.side, config.instruction, layout)
    check_positions(base, config.data.views, config.max_length, "--max-length")
    make, cut = batch_maker(config, base, splits["train"])
    cut += batch_maker(config, base, splits["validation"])[1]
    length = prompt_length(base.encoder, config.data.views) + config.max_length
    attention = attention_lines(attention_uses(base.config, base.layout, length), config.model.attention)

    data = splits_line(config.data, splits, quarantine, Cut(cut, config.max_length))

    def announce() -> None:
        say_data(data)
        say_attention(attention)

    trainable, frozen = initial_trees(config, base, layout)
    loss = functools.partial(
        sft_loss, config=base.config, layout=base.layout, lora=config.lora, chunk=config.model.loss_chunk
    )
    reader = default_labeler(config.data.layout)
    page = study_page(run_dir, "DEER, supervised", config.data.layout, splits["validation"], reader)
    training = supervised(
        config,
        layout,
        functools.partial(loss, loss=named_loss(config.loss)),
        trainable,
        frozen,
        plan=plan_epochs(
            [1] * len(splits["train"].studies),
            batch_rows=config.batch_size,
            epochs=config.epochs,
            max_length=1,
            packing=False,
            seed=config.seed,
        ),
        to_batch=make,
        validation=functools.partial(validation_batches, config, base, splits["validation"], layout),
        evaluations=written_reports(config, layout, base, frozen, splits["validation"], config.max_length, page.keep),
        watch=page.watch,
        validation_loss=loss,
        chunk=config.model.loss_chunk,
        true_share=base.config.vision.full_attention_share,
        max_steps=config.max_steps,
        accumulate=accumulate,
        base=base_weights(base.directory),
        learns_from=learnt_rows(splits),
        announce=announce,
        quarantine=quarantine,
        rules=SHARDING_RULES,
    )
    best = run_training(config, run_dir, layout, training)
    results = results_in(run_dir)
    export(config, base, best, frozen, run_dir)
    command = training_of("deer sft", SFT_PRESETS, config, NEEDS)
    write_cards(run_dir, report_card("DEER, supervised", training.base, data, command), results)
    return best
