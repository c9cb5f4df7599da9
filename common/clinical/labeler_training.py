"""Training of a labeler on labelled reports.

The loss is CheXbert's, the sum over labels of the cross-entropy of each head; `train_run` puts the engine around it.
"""

import dataclasses
import functools
from collections.abc import Iterator, Sequence
from pathlib import Path

import jax
import numpy as np
from jaxtyping import Int

from common.clinical.labeler import (
    IN_RUN,
    Labeler,
    encode,
    load_tokenizer,
    save_vocabulary,
    texts_line,
    train_tokenizer,
)
from common.clinical.labeler_config import LabelerRunConfig, check_config, check_given
from common.clinical.labeler_loss import LabelBatch, label_batch, labeler_loss
from common.clinical.labelled_reports import LabeledCorpus, LabeledReport, openi_corpus, phantom_corpus, rows_corpus
from common.config import owning_run_directory
from common.data.packing import plan_epochs, plan_in_order
from common.data.pipeline import make_iterator
from common.data.records import Quarantine
from common.data.summary import say_data
from common.errors import UserError
from common.io.exports import atomic_directory
from common.io.fingerprints import fingerprint
from common.models.attention_choice import attention_lines, say_attention
from common.models.bert import ClassifierConfig, attention_use, init_classifier
from common.models.bert_weights import encoder_config, load_encoder, save_classifier
from common.training.logs import check_wandb
from common.training.loop import Watch, unwatched
from common.training.parallel import DeviceLayout, check_rows, make_device_layout
from common.training.run import BaseWeights, run_training, supervised, this_process

PHANTOM_SEED = 7_000  # away from the studies that policies learn from


def load_corpus(config: LabelerRunConfig, quarantine: Quarantine) -> LabeledCorpus:
    """The reports that the config names; `quarantine` counts what cannot be used. Raises UserError."""
    check_given(config)
    if config.data == "phantom":
        return phantom_corpus(
            config.train_size, config.validation_size, config.test_size, config.damaged, config.seed + PHANTOM_SEED
        )
    if config.data == "openi":
        files = Path(config.archive), Path(config.gold), Path(config.test_ids)
        return openi_corpus(*files, config.validation_size, config.seed, quarantine)
    return rows_corpus(Path(config.data), config.validation, config.test, config.seed)


def make_labeler(config: LabelerRunConfig, corpus: LabeledCorpus) -> Labeler:
    """The labeler before training, on the first local device: `init`'s encoder, or all at random. Raises UserError."""
    tokenizer = (
        load_tokenizer(Path(config.init))
        if config.init
        else train_tokenizer([report.text for report in corpus.train], config.encoder.vocab_size)
    )
    encoder = encoder_config(Path(config.init) / "config.json") if config.init else config.encoder
    if not config.init:
        encoder = dataclasses.replace(encoder, vocab_size=tokenizer.get_vocab_size())
    if tokenizer.get_vocab_size() > encoder.vocab_size:
        raise UserError(
            f"{config.init}: the vocabulary has {tokenizer.get_vocab_size()} words, but the encoder embeddings for "
            f"{encoder.vocab_size}"
        )
    classifier = ClassifierConfig(encoder, corpus.labels, corpus.classes)
    params = init_classifier(classifier, jax.random.key(config.seed))
    if config.init:
        params |= {"bert": load_encoder(config.init)[1]}
    return Labeler(classifier, params, tokenizer)


@owning_run_directory
def train_run(config: LabelerRunConfig, run_dir: Path, watch: Watch = unwatched) -> LabeledCorpus:
    """Train, or continue, the run in `run_dir`, and write its best weights as a labeler there. Returns its reports.

    `watch` shows the run as it goes.

    Raises UserError for bad input before anything is written.
    """
    check_config(config)
    check_wandb(config.wandb_project)
    layout = make_device_layout(config.parallel, config.mesh)
    check_rows(config.batch_size, 1, layout)
    quarantine = Quarantine()
    corpus = load_corpus(config, quarantine)
    labeler = make_labeler(config, corpus)
    ids, labels = encode_reports(labeler, corpus.train)

    def announce() -> None:
        if quarantine:
            print(quarantine.summary(), flush=True)
        say_data(corpus_line(config, corpus, labeler))
        say_attention(attention_lines([attention_use(labeler.config.encoder)]))

    training = supervised(
        config,
        layout,
        functools.partial(labeler_loss, config=labeler.config, dropout=True),
        labeler.params,
        {},
        plan=plan_epochs(
            [len(own) for own in ids],
            batch_rows=config.batch_size,
            epochs=config.epochs,
            max_length=labeler.window,
            packing=False,
            buckets=fitting_buckets(config, labeler),
            seed=config.seed,
        ),
        to_batch=functools.partial(
            label_batch,
            ids=ids,
            labels=labels,
            stop=labeler.tokenizer.token_to_id(".") if config.shuffle else None,
            seed=config.seed,
        ),
        validation=functools.partial(validation_batches, config, labeler, corpus.validation, layout),
        validation_loss=functools.partial(labeler_loss, config=labeler.config, dropout=False),
        max_steps=config.max_steps,
        base=BaseWeights(Path(config.init).name or "random", fingerprint(labeler.params)),
        learns_from=([report.text, [*map(int, report.labels)]] for report in (*corpus.train, *corpus.validation)),
        announce=announce,
        quarantine=quarantine,
        watch=watch,
    )
    best = run_training(config, run_dir, layout, training)
    export(config, labeler._replace(params=best), run_dir / IN_RUN)
    return corpus


def validation_batches(
    config: LabelerRunConfig, labeler: Labeler, reports: Sequence[LabeledReport], layout: DeviceLayout
) -> Iterator[LabelBatch]:
    """Labelled reports once, in order."""
    ids, labels = encode_reports(labeler, reports)
    buckets, rows = fitting_buckets(config, labeler), layout.row_shards * -(-32 // layout.row_shards)
    plan = plan_in_order([len(own) for own in ids], batch_rows=rows, buckets=buckets)
    to_arrays = functools.partial(label_batch, ids=ids, labels=labels, stop=None, seed=0)
    return make_iterator(plan, to_arrays, **this_process())


def corpus_line(config: LabelerRunConfig, corpus: LabeledCorpus, labeler: Labeler) -> str:
    """The line that names the reports of a config."""
    kinds = {"phantom": f"phantom, seed {config.seed}", "openi": "openi"}
    paths = {"phantom": (), "openi": ("archive", "gold", "test_ids")}.get(config.data, ("data", "validation", "test"))
    files = [file for name in paths if (file := getattr(config, name))]
    splits = {"train": corpus.train, "validation": corpus.validation, **corpus.tests}
    counts = {name: len(reports) for name, reports in splits.items()}
    texts = [report.text for reports in splits.values() for report in reports]
    return texts_line(files, counts, labeler, texts, kinds.get(config.data, "rows"))


def encode_reports(
    labeler: Labeler, reports: Sequence[LabeledReport]
) -> tuple[list[list[int]], Int[np.ndarray, "N K"]]:
    """Tokens and classes of reports."""
    encoded = encode(labeler, [report.text for report in reports])
    return encoded.ids, np.array([report.labels for report in reports])


def fitting_buckets(config: LabelerRunConfig, labeler: Labeler) -> list[int]:
    """The config's buckets as far as they fit into the window, and the window."""
    return [*(size for size in sorted(config.buckets) if size < labeler.window), labeler.window]


def export(config: LabelerRunConfig, labeler: Labeler, directory: Path) -> None:
    """Write the labeler as `load_labeler` reads it."""
    params = jax.tree.map(lambda leaf: leaf.astype(config.export_dtype), labeler.params)
    with atomic_directory(directory) as aside:
        save_classifier(aside, labeler.config, params)
        if jax.process_index() == 0:
            save_vocabulary(aside / "vocab.txt", labeler.tokenizer)
