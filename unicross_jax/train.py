"""Training UniCrossAdapter: `train_run` puts the engine around `unicross_jax.model.loss`."""

import functools
import os
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import jax
import optax
from jaxtyping import Array

from common.clinical.scores import default_labeler
from common.config import owning_run_directory
from common.data.cleaning import clean_report
from common.data.packing import GlobalBatch, plan_epochs, plan_in_order
from common.data.pipeline import make_iterator
from common.data.records import Quarantine
from common.data.splits import Split
from common.data.summary import Cut, say_data, study_line
from common.data.tokenizers import WordTokenizer, save_words
from common.errors import UserError
from common.generation.draft_sources import TABLE_FILE, save_table
from common.generation.evaluation import Keep, report_evaluations
from common.generation.loop import Generated
from common.io.fingerprints import fingerprint
from common.models.attention_choice import attention_lines, say_attention
from common.report.live import study_page
from common.report.model_card import ModelCard, results_in, training_of, write_cards
from common.training.evaluation import Evaluation
from common.training.logs import check_wandb
from common.training.loop import RUN_OUTPUTS
from common.training.parallel import DeviceLayout, device_put_tree, make_device_layout
from common.training.run import accumulation, run_training, stage, supervised, this_process
from common.training.token_loss import named_loss
from common.types import PyTree
from unicross_jax.backbone import (
    ReportTokenizer,
    decode_settings,
    frozen_weights,
    load_backbone,
    without_dropout,
)
from unicross_jax.config import NEEDS, PRESETS, RunConfig
from unicross_jax.data import (
    Example,
    build_vocabulary,
    evaluation_crop,
    read_splits,
    report_batch,
    stack_studies,
    training_view,
    unknown_words,
)
from unicross_jax.generate import attention_uses, generated
from unicross_jax.model import ReportBatch, Studies, loss
from unicross_jax.task import Task, check_config, check_sizes, encode, first_weights, make_task
from unicross_jax.trained import VOCABULARY_FILE, export, load_initial

OUTPUTS = (*RUN_OUTPUTS, "quarantine.jsonl", VOCABULARY_FILE, "model", TABLE_FILE)  # of a run directory


def scale_vision_updates(rate: float) -> optax.GradientTransformation:
    """Updates of all that comes before the decoder, times `rate`."""

    def scaled(updates: PyTree, _: PyTree) -> PyTree:
        after = ("decoder", "logits")
        return {part: tree if part in after else optax.tree.scale(rate, tree) for part, tree in updates.items()}

    return optax.stateless(scaled)


def batch_maker(
    config: RunConfig, task: Task, examples: Sequence[Example], split: Split, view: Callable
) -> Callable[..., ReportBatch]:
    """What turns planned rows into arrays."""
    return functools.partial(
        report_batch,
        examples=examples,
        images=split.images,
        view=view,
        side=task.model.clip.image_size,
        views=config.data.views,
        pad_id=task.tokenizer.pad_id,
        colour=config.data.colour,
    )


def validation_batches(
    config: RunConfig, task: Task, examples: Sequence[Example], split: Split, layout: DeviceLayout
) -> Iterator[ReportBatch]:
    """The studies of a split once, in order, without augmentation."""
    lengths, rows = [len(example.tokens) - 1 for example in examples], layout.row_shards * config.micro_batch
    plan = plan_in_order(lengths, batch_rows=rows, buckets=(config.max_length - 1,))
    to_arrays = batch_maker(config, task, examples, split, evaluation_crop(config.data, task.model.clip.image_size))
    return make_iterator(plan, to_arrays, **this_process())


def written_reports(
    config: RunConfig,
    task: Task,
    examples: Sequence[Example],
    split: Split,
    frozen: PyTree,
    layout: DeviceLayout,
    keep: Keep,
) -> list[Evaluation]:
    """Scores of the reports that the model writes for validation studies, where `--metrics` names some.

    `keep` gets the reports.
    """
    tokenizer, settings = task.tokenizer, decode_settings(config, task.tokenizer)
    still = without_dropout(task.model)

    def write(trainable: PyTree, frozen: PyTree, studies: Studies, rng: Array) -> Generated:
        keys = jax.random.split(rng, len(studies.images))
        return generated(trainable, frozen, studies, keys, still, settings, tokenizer.bos_id)

    def to_batch(batch: GlobalBatch) -> Studies:
        side = task.model.clip.image_size
        view = evaluation_crop(config.data, side)
        data = config.data
        return stack_studies(batch.rows, examples, split.images, view, side=side, views=data.views, colour=data.colour)

    return report_evaluations(
        config,
        layout,
        frozen,
        write,
        to_batch,
        lambda tokens: clean_report(tokenizer.decode([token for token in tokens if token != tokenizer.eos_id])),
        [study.report for study in split.studies],
        layout.row_shards * config.micro_batch,
        keep,
    )


@owning_run_directory
def train_run(config: RunConfig, run_dir: Path) -> PyTree:
    """Train, or continue, the run in `run_dir`, and export its best weights there. Returns them.

    Raises UserError for bad input before anything is written.
    """
    check_config(config)
    check_wandb(config.wandb_project)
    layout = make_device_layout(config.parallel, config.mesh)
    accumulate = accumulation(config.batch_size, config.micro_batch, layout)
    stage(f"reading CLIP {config.model.clip}")
    backbone = load_backbone(config.model, config.seed)
    check_sizes(config, backbone)
    quarantine = Quarantine()
    splits = read_splits(config.data, quarantine)
    for name in ("train", "validation"):
        if name not in splits:
            raise UserError(f"data: there is no {name} split; expected at least one study there")
    initial = load_initial(config, backbone)
    tokenizer: ReportTokenizer = backbone.tokenizer
    if initial is not None:
        tokenizer = initial.task.tokenizer
    elif config.vocabulary.kind == "words":
        tokenizer = build_vocabulary(config.vocabulary, [study.report for study in splits["train"].studies])
    task = make_task(config, backbone, tokenizer)
    examples, cut = encode(config, task, splits["train"].studies)
    held_out, cut_held_out = encode(config, task, splits["validation"].studies)

    @functools.cache
    def data_line() -> str:
        counts = {name: len(split.studies) for name, split in splits.items()}
        of = Cut(cut + cut_held_out, config.max_length)
        unknown = unknown_words(tokenizer, [*examples, *held_out])
        return study_line(config.data, counts, quarantine, cut=of, unknown=unknown)

    def announce() -> None:
        if isinstance(tokenizer, WordTokenizer):
            save_words(run_dir / VOCABULARY_FILE, tokenizer)
        say_data(data_line())
        say_attention(attention_lines(attention_uses(task.model)))

    frozen = device_put_tree(task.frozen, layout)
    reader = default_labeler(config.data.layout)
    page = study_page(run_dir, "UniCrossAdapter", config.data.layout, splits["validation"], reader)
    training = supervised(
        config,
        layout,
        functools.partial(loss, config=task.model, chunk=config.loss_chunk, loss=named_loss(config.loss)),
        device_put_tree(first_weights(config, task) if initial is None else initial.trainable, layout),
        frozen,
        plan=plan_epochs(
            [len(example.tokens) - 1 for example in examples],
            batch_rows=config.batch_size,
            epochs=config.epochs,
            max_length=config.max_length - 1,
            packing=False,
            seed=config.seed,
        ),
        to_batch=batch_maker(
            config,
            task,
            examples,
            splits["train"],
            training_view(config.data, task.model.clip.image_size, config.seed),
        ),
        validation=functools.partial(validation_batches, config, task, held_out, splits["validation"], layout),
        validation_loss=functools.partial(loss, config=without_dropout(task.model), chunk=config.loss_chunk),
        evaluations=written_reports(config, task, held_out, splits["validation"], frozen, layout, page.keep),
        watch=page.watch,
        chunk=config.loss_chunk,
        max_steps=config.max_steps,
        accumulate=accumulate,
        then=scale_vision_updates(config.vision_lr_multiplier),
        threads=min(os.cpu_count() or 1, 16),
        base=frozen_weights(backbone, task.frozen),
        learns_from=(
            [study.id, study.report, study.indication]
            for name in ("train", "validation")
            for study in splits[name].studies
        ),
        also_from={} if initial is None else {"initial": fingerprint(initial.trainable)},
        announce=announce,
        quarantine=quarantine,
    )
    best = run_training(config, run_dir, layout, training)
    results = results_in(run_dir)
    export(config, task, best, run_dir / "model")
    card = ModelCard(
        "UniCrossAdapter: radiology reports",
        training.base,
        data_line(),
        training_of("unicross train", PRESETS, config, NEEDS),
        library="medreport-jax",
        languages=sorted({study.language for study in splits["train"].studies}),
        tags=("medical", "radiology", "report-generation"),
    )
    write_cards(run_dir, card, results)
    if jax.process_index() == 0:
        save_table(run_dir, [example.tokens[1:].tolist() for example in examples], tokenizer)
    return best
