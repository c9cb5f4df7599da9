"""Evaluation of a trained run on held-out reports, compared with baselines.

Systems: the model; the base model before training; the training report nearest to the source by TF-IDF; one constant
report. Scores: text metrics of each language; precision, recall and F1 over what the report states (codes of Open-i,
or findings of a fundus report); exact match. All with bootstrap intervals over reports.
"""

import dataclasses
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from common.config import read_config
from common.data.records import Language, Quarantine, ReportPair
from common.data.summary import first_of, say_data, unknown_share
from common.errors import UserError
from common.generation.draft_option import Draft
from common.generation.processes import of_first
from common.io.jsonl import write_rows
from common.io.locks import locked_run, owning
from common.io.numbers import rounded, score_text
from common.io.outputs import check_output
from common.io.progress import counted
from common.io.safetensors import write_json
from common.io.terminal import say
from common.metrics.baselines import constant_report, nearest_reports
from common.metrics.codes import evaluate_codes
from common.metrics.text import evaluate_texts, one_line, warn_of_absent
from common.metrics.tokenize import unread_note
from common.report.environment import environment
from common.report.findings import Marks, tally
from common.report.model_card import add_results, evaluation_of
from common.report.page import REPORT_FILE, Example, Page, reproducible, save_run_page
from common.training.logs import METRICS_FILE, read_metrics
from common.types import PyTree
from retsta_jax.codes import parse_codes, terminology, terminology_validity
from retsta_jax.config import NEEDS, PRESETS, RetstaConfig, scored_as
from retsta_jax.corpus.split_distance import distance_between, distance_table
from retsta_jax.data import load_splits, splits_line
from retsta_jax.finding_marks import report_marks
from retsta_jax.readable import unusable
from retsta_jax.standardize import Trained, draft_table, load_trained, standardize
from retsta_jax.stated import recognised, stated, stated_in_standard_form
from retsta_jax.terminology.check import load_terminology
from retsta_jax.terminology.terms import SHIPPED, Terminology

MODEL, BEFORE, NEAREST, CONSTANT = "this run", "before fine-tuning", "nearest training report", "constant report"
EXAMPLES = 12
OUTPUTS = ("evaluation_quarantine.jsonl", "predictions.jsonl", "metrics.json", REPORT_FILE)  # of a run directory

Scores = dict[str, Mapping[str, float | None]]


@owning("run_dir", locked_run)
def evaluate_run(
    run_dir: Path, split: str = "test", limit: int = 0, batch_size: int = 32, draft: Draft = "auto"
) -> dict[str, Scores]:
    """Score a run on its test or validation split; writes predictions.jsonl, metrics.json and report.html there.

    `limit` reports at most, if positive; `batch_size`, the reports at a time on each device, and `draft` change the
    time alone. With several processes, each writes a share of the reports and the first one the files. Returns scores
    by system. Raises UserError.
    """
    read_metrics(run_dir / METRICS_FILE)  # for the page: a damaged file is refused before anything is written
    trained = load_trained(run_dir)
    table = draft_table(trained, run_dir, draft)
    for name in OUTPUTS:
        check_output(run_dir / name)
    left_out = Quarantine()
    splits = load_splits(trained.config, left_out)
    every: Sequence[ReportPair] = getattr(splits, split)
    pairs, quarantine = usable(trained, every[:limit] if limit else every)
    if not pairs:
        raise UserError(f"{run_dir}: the {split} split is empty ({quarantine.summary()}); expected at least one report")
    left_out.entries += quarantine.entries
    tokens = (trained.base.tokenizer.encode(source) for source in sources(pairs))
    unknown = unknown_share(trained.base.tokenizer, tokens)
    counts = {"train": len(splits.train), split: len(pairs)}
    data = say_data(splits_line(trained.config, counts, left_out, unknown, first_of(limit, len(every))))
    of_first(lambda: quarantine.write(run_dir / "evaluation_quarantine.jsonl"))
    ids = [pair.id for pair in pairs]

    def written(variables: PyTree, name: str) -> list[str]:
        own = sources(pairs), batch_size, ids, draft, table
        found = standardize(trained, variables, *own, together=True)
        return [result.text for result in counted(found, len(pairs), f"reports, {name}")]

    models = {MODEL: trained.variables, BEFORE: trained.untrained}
    outputs = {name: written(variables, name) for name, variables in models.items()}
    chosen = {"split": split, "limit": limit, "batch_size": batch_size}
    return of_first(lambda: save_scores(run_dir, trained, splits.train, pairs, outputs, quarantine, data, chosen))


def save_scores(
    run_dir: Path,
    trained: Trained,
    train: Sequence[ReportPair],
    pairs: Sequence[ReportPair],
    written: Mapping[str, list[str]],
    quarantine: Quarantine,
    data: str,
    chosen: Mapping[str, Any],
) -> dict[str, Scores]:
    """Score what models have written for `pairs`, and baselines, and write the files of an evaluation.

    `data` is the line that names the reports, `chosen` the options of the command.
    """
    outputs = {**written, **baselines(train, pairs)}
    form = scored_as(trained.config.data)
    codes = form == "openi"
    terms = load_terminology(trained.config.data.terminology or SHIPPED)
    systems = {name: score(texts, pairs, form, terms) for name, texts in outputs.items()}
    notes = [data, f"{len(pairs)} {chosen['split']} reports; best checkpoint: step {trained.step}."]
    if quarantine:
        notes.append(f"{quarantine.summary()}: they are in no score.")
    absent = warn_of_absent(systems, unread_note([pair.target for pair in pairs], [pair.language for pair in pairs]))
    notes += absent
    if codes:
        valid = terminology_validity([parse_codes(text) for text in outputs[MODEL]], terminology(train))
        notes.append(f"{valid:.1%} of the codes written are in the terminology of the training split.")
    else:
        read = recognised([pair.target for pair in pairs], [pair.language for pair in pairs], terms)
        notes.append(read.note())
        say(read.note())
    distances = distance_between(train, pairs, None if codes else terms)
    write_rows(run_dir / "predictions.jsonl", prediction_rows(outputs[MODEL], pairs, codes))
    counts = {"reports": len(pairs), "quarantined": len(quarantine)}
    if not codes:
        counts |= read._asdict()
    result = {
        "split": chosen["split"],
        **counts,
        "step": trained.step,
        "systems": systems,
        "held_out": distances,
        "notes": absent,
    }
    marks = {name: marks_of(outputs[name], pairs, form, terms) for name in written}
    shown = page(trained, read_metrics(run_dir / METRICS_FILE), pairs, outputs, systems, notes, marks)
    shown = dataclasses.replace(shown, tables=[distance_table(distances)])
    shown = reproducible(shown, "retsta", read_config(RetstaConfig, run_dir), PRESETS, NEEDS, run_dir, chosen)
    save_run_page(run_dir, shown)
    add_results(run_dir, systems, shown.headline, chosen["split"], evaluation_of("retsta", chosen), notes)
    write_json(run_dir / "metrics.json", rounded(result))  # last: where it stands, an evaluation is not done again
    return systems


def usable(trained: Trained, pairs: Sequence[ReportPair]) -> tuple[list[ReportPair], Quarantine]:
    """The pairs whose report the model can read, and the others by id and reason."""
    found = list(zip(pairs, unusable(trained.encoder, sources(pairs)), strict=True))
    quarantine = Quarantine([(pair.id, reason) for pair, reason in found if reason])
    return [pair for pair, reason in found if not reason], quarantine


def prediction_rows(texts: Sequence[str], pairs: Sequence[ReportPair], codes: bool) -> list[dict[str, Any]]:
    """Rows whose texts are as they were scored, so that `medreport score` gives the same text metrics.

    Codes, which stand on lines of their own in what the model wrote, are also listed.
    """
    rows = []
    for text, pair in zip(texts, pairs, strict=True):
        row = {"id": pair.id, "prediction": one_line(text), "reference": one_line(pair.target)}
        listed = {"codes": sorted(parse_codes(text)), "reference_codes": sorted(parse_codes(pair.target))}
        rows.append({**row, "source": pair.source, "language": pair.language, **(listed if codes else {})})
    return rows


def sources(pairs: Sequence[ReportPair]) -> list[str]:
    """The free-text reports of pairs."""
    return [pair.source for pair in pairs]


def baselines(train: Sequence[ReportPair], pairs: Sequence[ReportPair]) -> dict[str, list[str]]:
    """What the nearest training report and one constant report would answer, each within its own language."""
    nearest, constant = [""] * len(pairs), [""] * len(pairs)
    for language in {pair.language for pair in pairs}:
        indices = [index for index, pair in enumerate(pairs) if pair.language == language]
        known = [pair for pair in train if pair.language == language] or list(train)
        targets = [pair.target for pair in known]
        found = nearest_reports(
            sources(known), targets, sources([pairs[index] for index in indices]), language=language
        )
        always = constant_report(targets, language=language)
        for index, text in zip(indices, found, strict=True):
            nearest[index], constant[index] = text, always
    return {NEAREST: nearest, CONSTANT: constant}


def statements(text: str, language: Language, corpus: str, terms: Terminology) -> frozenset[str]:
    """What a report of a corpus states: its codes, the findings of a standard fundus report, or what terms tell."""
    if corpus == "openi":
        return parse_codes(text)
    return stated_in_standard_form(text, language) if corpus == "fundus" else stated(text, language, terms)


def score(texts: Sequence[str], pairs: Sequence[ReportPair], corpus: str, terms: Terminology) -> Scores:
    """All scores of one system: value, low and high by name.

    Where there are two languages, names start with theirs; what the reports state is also scored over all of them.
    """
    ours = [statements(text, pair.language, corpus, terms) for text, pair in zip(texts, pairs, strict=True)]
    theirs = [statements(pair.target, pair.language, corpus, terms) for pair in pairs]

    def statement_scores(indices: Sequence[int]) -> Scores:
        found = evaluate_codes([ours[index] for index in indices], [theirs[index] for index in indices])
        return {name if corpus == "openi" else finding_name(name): value for name, value in found.items()}

    scores = statement_scores(range(len(pairs)))
    languages = sorted({pair.language for pair in pairs})
    for language in languages:
        chosen = [index for index, pair in enumerate(pairs) if pair.language == language]
        prefix = f"{language}/" if len(languages) > 1 else ""
        if prefix:
            scores |= {prefix + name: value for name, value in statement_scores(chosen).items()}
        measured = evaluate_texts(
            [one_line(texts[index]) for index in chosen],
            [one_line(pairs[index].target) for index in chosen],
            language=language,
        )
        del measured["notes"]  # METEOR without WordNet is None; `warn_of_absent` says why
        measured["distinct_outputs"] = {"value": measured["distinct_outputs"]}
        scores |= {prefix + name: {"value": None} if value is None else value for name, value in measured.items()}
    return scores


def marks_of(texts: Sequence[str], pairs: Sequence[ReportPair], corpus: str, terms: Terminology) -> list[Marks]:
    """The findings of each text, marked by whether its pair's standard report has them."""
    languages = [pair.language for pair in pairs]
    return report_marks([pair.target for pair in pairs], texts, languages, corpus, terms)


def finding_name(name: str) -> str:
    """The score of a set of codes, named for the findings of fundus reports: a finding's head is its term."""
    return name.replace("codes/", "findings/").replace("heads/", "terms/")


def page(
    trained: Trained,
    history: Sequence[Mapping[str, Any]],
    pairs: Sequence[ReportPair],
    outputs: dict[str, list[str]],
    systems: dict[str, Scores],
    notes: list[str],
    marks: Mapping[str, Sequence[Marks]],
) -> Page:
    """The run page of an evaluation; `history` are the rows of the run's log, `marks` those of systems' findings."""

    def shown(system: str, name: str) -> str:
        return score_text(systems[system][name]["value"])

    name = "codes/F1" if "codes/F1" in systems[MODEL] else "findings/F1"
    verdict = (
        f"F1 over what the reports state: {shown(MODEL, name)} after fine-tuning, {shown(BEFORE, name)} before, "
        f"{shown(NEAREST, name)} for the nearest training report, {shown(CONSTANT, name)} for a constant report."
    )
    # Spread over the split, so that both languages and easy and hard reports are seen.
    indices = range(0, len(pairs), len(pairs) // EXAMPLES | 1)[:EXAMPLES]
    return Page(
        title=f"RetSTA: {trained.config.data.corpus} reports",
        verdict=verdict,
        command="",
        environment=environment(),
        rows=history,
        systems=systems,
        headline=headline(systems[MODEL]),
        examples=[
            Example(
                pairs[index].id,
                pairs[index].source,
                pairs[index].target,
                {name: outputs[name][index] for name in (MODEL, BEFORE)},
                pairs[index].language,
                findings={name: found[index] for name, found in marks.items()},
            )
            for index in indices
        ],
        notes=notes,
        findings=tally(marks[MODEL]),
    )


def headline(scores: Scores) -> list[str]:
    """The few metrics to draw large."""
    stated = ("codes/F1", "heads/F1", "findings/F1", "findings/exact-match")  # over all languages
    return [name for name in scores if name in stated or name.endswith(("coco/BLEU-4", "coco/ROUGE-L"))]
