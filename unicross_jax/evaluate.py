"""Scoring a trained run on held-out studies, beside the baselines that any reader should ask for.

Systems: the model; the report of the training study whose images CLIP finds most alike; one constant report. Scores:
text metrics, and those of findings (`common.clinical.scores`), which a labeler reads from reports: CheXbert where it is
named, on phantoms the rules for their reports. All with bootstrap intervals over studies. Text metrics stand twice:
against whole references, and against references cut as published figures cut them.
"""

import dataclasses
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import jax

from common.clinical.labeler import load_labeler, replicate
from common.clinical.report_labeler import ReportLabeler, check_findings
from common.clinical.scores import (
    Scores,
    default_labeler,
    difference,
    in_each_language,
    leading_scores,
    measure_systems,
    scores_of,
)
from common.config import read_config
from common.data.images import Pixels, resize_crop
from common.data.records import Language, Quarantine
from common.data.splits import Split, images_record
from common.data.summary import Cut, first_of, say_data, study_line
from common.errors import UserError
from common.generation.draft_option import Draft
from common.generation.memory import halved, slot_memory, without_drafts
from common.generation.processes import of_first
from common.io.fingerprints import data_record, fingerprint
from common.io.jsonl import write_rows
from common.io.locks import locked_run, owning
from common.io.numbers import interval_text, rounded, score_text
from common.io.outputs import check_output
from common.io.progress import counted
from common.io.safetensors import write_json
from common.io.terminal import say
from common.metrics.baselines import constant_reports
from common.metrics.text import evaluate_texts, one_line, warn_of_absent
from common.metrics.tokenize import unread_note
from common.options import check_options, flag
from common.phantoms.source import draw_again
from common.report.environment import environment
from common.report.findings import Marks, mark_labels, tally
from common.report.model_card import add_results, evaluation_of
from common.report.page import REPORT_FILE, Page, reproducible, save_run_page
from common.report.page import Example as Shown
from common.training.logs import METRICS_FILE, read_metrics
from unicross_jax.config import NEEDS, PRESETS, RunConfig
from unicross_jax.data import Example, read_splits, unknown_words
from unicross_jax.nearest import EMBEDDINGS, nearest_reports
from unicross_jax.report import Written, attention_of, draft_table, generate_reports
from unicross_jax.task import encode
from unicross_jax.trained import Trained, initial_directory, load_initial, load_trained

MODEL, NEAREST, CONSTANT = "this run", "nearest training study", "constant report"
BEFORE = "before training"  # the weights that a run began from, where these were no random ones
TEXT_SCORES = ("coco/BLEU-4", "coco/ROUGE-L")  # of the headline
TITLES = {"findings/F1": "F1 over the findings that reports state", "promptmrg/F1": "F1 of each report's findings"}
MADE_FROM = "made_from"  # in metrics.json
OUTPUTS = ("evaluation_quarantine.jsonl", "predictions.jsonl", "metrics.json", REPORT_FILE)  # of a run directory
SHOWN, SHOWN_SIDE = 12, 256  # examples on the page; pixels of their images, at least where they can be drawn


@owning("run_dir", locked_run)
def evaluate_run(
    run_dir: Path,
    split: str = "test",
    limit: int = 0,
    batch_size: int = 32,
    *,
    labeler: str = "",
    labeler_tokenizer: str = "",
    draft: Draft = "auto",
    embeddings: Path | None = None,
    **decoding: Any,
) -> dict[str, Scores]:
    """Score a run on its test or validation split; writes predictions.jsonl, metrics.json and report.html there.

    `limit` studies at most, if positive; `batch_size` of them at a time on each device. `labeler` and
    `labeler_tokenizer` are as for `scoring_labeler`. `decoding`: beams and length_penalty where not those of the
    config; `draft` changes the time alone. `embeddings` is where those of training images are kept, by default in the
    run directory (`unicross_jax.nearest`). With several processes, each writes a share of the reports and the first one
    the files. Returns scores by system. Raises UserError.
    """
    history = read_metrics(run_dir / METRICS_FILE)
    reader = scoring_labeler(read_config(RunConfig, run_dir), labeler, labeler_tokenizer)
    trained = load_trained(run_dir)
    for name in OUTPUTS:
        check_output(run_dir / name)
    trained = trained._replace(config=dataclasses.replace(trained.config, **decoding))
    check_options(trained.config, [flag(name) for name in decoding], NEEDS, "unicross evaluate")
    table = draft_table(trained, run_dir, draft)
    quarantine = Quarantine()
    splits = read_splits(trained.config.data, quarantine)
    if split not in splits:
        raise UserError(f"{run_dir}: the data has no {split} split")
    train, held_out = splits["train"], first(splits[split], limit)
    examples, longer = encode(trained.config, trained.task, held_out.studies)
    data = study_line(
        trained.config.data,
        {"train": len(train.studies), split: len(held_out.studies)},
        quarantine,
        cut=Cut(longer, trained.config.max_length),
        unknown=unknown_words(trained.task.tokenizer, examples),
        notes=first_of(limit, len(splits[split].studies)),
    )
    say_data(data)
    of_first(lambda: quarantine.write(run_dir / "evaluation_quarantine.jsonl"))
    left_out = [f"{quarantine.summary()} of all splits: they are in no score."] if quarantine else []
    ids = [study.id for study in held_out.studies]
    texts = generate_reports(trained, examples, held_out.images, batch_size=batch_size, ids=ids, table=table)
    fewer = halved("--batch-size", batch_size, used=-(-len(examples) // jax.device_count()))
    with slot_memory(fewer, without_drafts(table is not None)):
        written = list(counted(texts, len(examples), "reports"))
        before = before_training(trained, held_out, batch_size)
    nearest = nearest_reports(trained, train, held_out, embeddings or run_dir / EMBEDDINGS)

    def save_scores() -> dict[str, Scores]:
        outputs = (
            {MODEL: [report.text for report in written]}
            | before
            | {
                NEAREST: nearest,
                CONSTANT: constant_reports(
                    [study.report for study in train.studies],
                    [study.language for study in train.studies],
                    [study.language for study in held_out.studies],
                ),
            }
        )
        cut, languages = cut_references(trained, examples), [study.language for study in held_out.studies]
        measured, unread = measure_systems(outputs, held_out.studies, reader)
        record = record_of(reader)
        systems = {
            name: {**scores_of(measured[name]), **cut_scores(texts, cut, languages)} for name, texts in outputs.items()
        }
        write_rows(
            run_dir / "predictions.jsonl",
            [
                {"id": study.id, "prediction": text, "reference": study.report}
                for study, text in zip(held_out.studies, outputs[MODEL], strict=True)
            ],
        )
        above = {name: difference(measured[MODEL], measured[name]) for name in outputs if name != MODEL}
        counts = {
            "studies": len(held_out.studies),
            "quarantined": quarantine.counts(),
            "step": trained.step,
            "limit": limit,
            "decoding": decoding,
            "labeler": record,
        }
        absent = warn_of_absent(systems, unread_note([study.report for study in held_out.studies], languages))
        clinical = [labeler_note(record), *unread]
        found = {"split": split, **counts, "systems": systems, "above": above, "notes": [*absent, *clinical]}
        found[MADE_FROM] = scores_record(trained, held_out, record)
        marks = {
            name: mark_labels(*own.labels, reader.labels)
            for name, own in measured.items()
            if own.labels is not None and reader is not None
        }
        shown = page(trained, history, held_out, examples, written, outputs, systems, split, marks)
        named = {"labeler": labeler, "labeler_tokenizer": labeler_tokenizer}
        chosen = {"split": split, "limit": limit, "batch_size": batch_size, **decoding}
        chosen |= {name: value for name, value in named.items() if value}
        shown = reproducible(shown, "unicross", read_config(RunConfig, run_dir), PRESETS, NEEDS, run_dir, chosen)
        paired = [described(name, above[name], shown.headline) for name in above]
        notes = [data, *left_out, *paired, *shown.notes, *clinical, *absent]
        save_run_page(run_dir, dataclasses.replace(shown, notes=notes))
        add_results(run_dir, systems, shown.headline, split, evaluation_of("unicross", chosen), notes)
        write_json(run_dir / "metrics.json", rounded(found))  # last: where it stands, a run is not evaluated again
        print("\n".join([*left_out, *paired, *clinical]), flush=True)
        return systems

    return of_first(save_scores)


def scoring_labeler(config: RunConfig, path: str = "", tokenizer: str = "") -> ReportLabeler | None:
    """What reads findings from reports: the labeler at `path`, as `load_labeler` takes it, else that of the data.

    Raises UserError, also for a labeler of other labels than CheXbert's 14.
    """
    if not path:
        return default_labeler(config.data.layout)
    labeler = load_labeler(path, tokenizer or None, option="--labeler-tokenizer")
    check_findings(labeler)
    return replicate(labeler)


def record_of(labeler: ReportLabeler | None) -> dict[str, str]:
    """What tells a labeler from others (`ReportLabeler.record`); empty where there is none."""
    return {} if labeler is None else labeler.record()


def labeler_note(record: Mapping[str, str]) -> str:
    """What a reader of scores should know of the labeler that read the findings."""
    if not record:
        return "There are no clinical scores: they need a labeler of reports, such as --labeler chexbert.pth."
    digest = f" (sha256 of its weights {record['weights'][:12]})" if "weights" in record else ""
    return f"Findings are read from reports by: {record['name']}{digest}."


def scores_record(trained: Trained, split: Split, labeler: Mapping[str, str]) -> dict[str, str]:
    """Digests of the weights and of the studies that scores are of, and of a labeler that has any in its record."""
    studies = (
        [study.id, study.report, study.indication, images_record(split.images, index)]
        for index, study in enumerate(split.studies)
    )
    frozen = fingerprint(trained.task.frozen)
    record = {"weights": data_record([fingerprint(trained.trainable), frozen]), "studies": data_record(studies)}
    digests = {what: digest for what, digest in labeler.items() if what != "name"}
    return record | ({"labeler": data_record([digests])} if digests else {})


def before_training(trained: Trained, held_out: Split, batch_size: int) -> dict[str, list[str]]:
    """What the weights that a run began from write of the same studies; nothing where it began from random ones."""
    if not trained.config.init_from:
        return {}
    if not of_first(initial_directory(trained.config).is_dir):
        if jax.process_index() == 0:
            where = initial_directory(trained.config)
            say(f"warning: {where}: no such directory; scores before training are left out")
        return {}
    initial = load_initial(trained.config, trained.task.backbone)
    assert initial is not None
    initial = initial._replace(config=dataclasses.replace(trained.config, init_from=""))
    examples, _ = encode(initial.config, initial.task, held_out.studies)
    ids = [study.id for study in held_out.studies]
    texts = generate_reports(initial, examples, held_out.images, batch_size=batch_size, ids=ids)
    return {BEFORE: [report.text for report in counted(texts, len(examples), "reports before training")]}


def headline(scores: Scores) -> list[str]:
    """The names of the scores that are drawn large."""
    return in_each_language([*leading_scores(scores), *TEXT_SCORES], scores)


def described(baseline: str, above: Mapping[str, Mapping[str, float]], names: Sequence[str]) -> str:
    """By how much the model is above a baseline in these scores, in words."""
    shown = ", ".join(f"{name} {interval_text(above[name], sign=True)}" for name in names)
    named = baseline if baseline == BEFORE else f"the {baseline}"
    return f"Difference to {named}, with the 95% interval over studies: {shown}."


def cut_references(trained: Trained, examples: Sequence[Example]) -> list[str]:
    """Reports as R2Gen's code and those that follow it score them: rare words unknown, ends cut at `max_length`."""
    tokenizer = trained.task.tokenizer
    return [one_line(tokenizer.decode([*example.tokens[1:], tokenizer.eos_id])) for example in examples]


def cut_scores(texts: Sequence[str], references: Sequence[str], languages: Sequence[Language]) -> Scores:
    """COCO's scores against cut references, as "coco-cut/..."; higher than "coco/..." for reports that are cut."""
    found = evaluate_texts([one_line(text) for text in texts], references, language=languages, convention="coco")
    return {name.replace("coco/", "coco-cut/"): score for name, score in found.items() if "coco/" in name and score}


def shown_images(trained: Trained, held_out: Split, split: str, index: int) -> list[Pixels]:
    """The squares that the model saw of a study, to look at: phantoms are drawn again, larger."""
    config, side = trained.config.data, trained.task.model.clip.image_size
    if config.layout != "phantom" or side >= SHOWN_SIDE:
        return [resize_crop(image, config.resize, side) for image in held_out.images[index]]
    resize = config.resize * SHOWN_SIDE // side
    phantom = draw_again(config.phantom_seed, split, index, resize, config.phantom_scanner)
    return [resize_crop(image, resize, SHOWN_SIDE) for image in (phantom.frontal, phantom.lateral)[: config.views]]


def first(split: Split, limit: int) -> Split:
    """The first `limit` studies, or all. Raises UserError where there is none."""
    count = min(limit, len(split.studies)) if limit else len(split.studies)
    if not count:
        raise UserError("no study to evaluate")
    return Split(split.studies[:count], split.images)


def page(
    trained: Trained,
    history: Sequence[Mapping[str, Any]],
    held_out: Split,
    examples: Sequence[Example],
    written: Sequence[Written],
    outputs: dict[str, list[str]],
    systems: dict[str, Scores],
    split: str,
    marks: Mapping[str, Sequence[Marks]],
) -> Page:
    """The run page of an evaluation; `history` are the rows of the run's log, `marks` those of systems' findings."""
    name = headline(systems[MODEL])[0]
    title = TITLES.get(name, name.replace("coco/", ""))
    shown = {system: score_text(scores[name]["value"]) for system, scores in systems.items()}
    before = f" ({shown[BEFORE]} before training)" if BEFORE in shown else ""
    verdict = (
        f"{title}: {shown[MODEL]}{before}; {shown[NEAREST]} for the report of the nearest training study, "
        f"{shown[CONSTANT]} for a constant report."
    )
    count = len(held_out.studies)
    indices = list(range(0, count, count // SHOWN | 1)[:SHOWN])
    attention = attention_of(
        trained,
        [examples[index] for index in indices],
        [held_out.images[index] for index in indices],
        [written[index] for index in indices],
        ids=[held_out.studies[index].id for index in indices],
    )
    phantoms = trained.config.data.layout == "phantom"
    notes = [
        f"{count} {split} studies; best checkpoint: step {trained.step}.",
        f"Conditioning: {trained.config.model.conditioning}. Attention is that of the decoder to the images, a mean "
        "over layers and heads; it shows where the model looked, not why it wrote a word.",
    ]
    if phantoms:
        notes.append("The images are drawn, not taken: no number on this page says how a model does on patients.")
    return Page(
        title=f"UniCrossAdapter: {'phantom radiographs' if phantoms else trained.config.data.layout}",
        verdict=verdict,
        command="",
        environment=environment(),
        rows=history,
        systems=systems,
        headline=headline(systems[MODEL]),
        examples=[
            Shown(
                held_out.studies[index].id,
                "",
                held_out.studies[index].report,
                {system: texts[index] for system, texts in outputs.items() if system != CONSTANT},
                held_out.studies[index].language,
                images=shown_images(trained, held_out, split, index),
                attention=attention[row],
                findings={system: found[index] for system, found in marks.items()},
            )
            for row, index in enumerate(indices)
        ],
        notes=notes,
        findings=tally(marks[MODEL]) if marks else None,
    )
