"""`retsta baseline`: a model that was not trained here, asked by few-shot prompts and scored as a run is (RetSTA, 3.1).

Same data, same split, same scores as `retsta evaluate`; beside them the share of answers in the wrong language, and
what prompts had to leave out so that the model could read them.
"""

import contextlib
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from common.data.records import Quarantine, ReportPair
from common.data.summary import already, first_of, say_data
from common.errors import UserError
from common.fingerprints import function_record
from common.io.locks import owning
from common.io.numbers import rounded, score_text
from common.io.outputs import check_output, check_own_object, check_own_page
from common.io.resumable import claim_output, row_writer, rows_done
from common.io.terminal import printable, say
from common.io.text import read_json_object
from common.jsonl import read_rows
from common.metrics.text import warn_of_absent
from common.metrics.tokenize import unread_note
from common.options import command_line, used_settings
from common.report.environment import environment
from common.report.page import REPORT_FILE, Example, Page, Table, write_report
from common.weights import write_json
from retsta_jax.answers import answer_of, language_shares, language_table
from retsta_jax.codes import parse_codes, terminology, terminology_validity
from retsta_jax.config import NEEDS, RetstaConfig, scored_as
from retsta_jax.data import load_splits, splits_line
from retsta_jax.evaluate import (
    CONSTANT,
    EXAMPLES,
    MODEL,
    NEAREST,
    Scores,
    baselines,
    headline,
    prediction_rows,
    score,
)
from retsta_jax.few_shot import Prompt, Reference, fit_prompts, kept_parts, make_references, prompt_text
from retsta_jax.peers import Output, Peer
from retsta_jax.split_distance import distance_between, distance_table
from retsta_jax.stated import recognised
from retsta_jax.terminology import SHIPPED, Terminology, load_terminology

PREDICTIONS, METRICS, QUARANTINE = "predictions.jsonl", "metrics.json", "quarantine.jsonl"
ROW = {"prediction": str, "reference": str, "output": str, "complete": bool}


@dataclass(frozen=True)
class Baseline:
    """What a peer is asked. `data` holds the reports (and their seed) as a run's config does, `terms` the terminology
    that prompts name (None: none), `like` a run that is to stand beside, and `max_new_tokens` the longest answer.
    """

    data: RetstaConfig
    terms: Terminology | None
    shots: int = 5
    shot_seed: int = 0
    split: str = "test"
    limit: int = 0
    max_new_tokens: int = 512
    like: Path | None = None


@owning("output")
def evaluate_peer(chosen: Baseline, peer: Peer, output: Path, options: Mapping[str, Any]) -> dict[str, Scores]:
    """Ask for the standard form of each report of a split and score it.

    Writes, or continues, predictions.jsonl in the directory `output`; then metrics.json and report.html. `options` are
    those of the command, for the page. Returns scores by system, the peer first. Raises UserError.
    """
    check_directory(output)
    left_out = Quarantine()
    splits = load_splits(chosen.data, left_out)
    every: Sequence[ReportPair] = getattr(splits, chosen.split)
    asked = every[: chosen.limit] if chosen.limit else every
    if not asked:
        raise UserError(f"the {chosen.split} split is empty; expected at least one report")
    form = scored_as(chosen.data.data)
    codes = form == "openi"
    languages = [pair.language for pair in asked]
    references = make_references(languages, splits, form, chosen.terms, chosen.shots, chosen.shot_seed)
    if peer.context is not None and peer.context <= chosen.max_new_tokens:
        raise UserError(
            f"--max-new-tokens {chosen.max_new_tokens}: leaves no room for a prompt in {peer.context} tokens of "
            "context; give fewer"
        )
    limit = None if peer.context is None else peer.context - chosen.max_new_tokens
    prompts, too_long = fit_prompts(asked, references, peer.count, limit, splits.train)
    if not prompts:
        raise UserError(f"no prompt fits into {limit} tokens ({too_long.summary()}); lower --max-new-tokens")
    left_out.entries += too_long.entries
    texts = [prompt_text(references[prompt.pair.language], prompt) for prompt in prompts]
    pairs = [prompt.pair for prompt in prompts]
    file = output / PREDICTIONS
    done = rows_done(file, [pair.id for pair in pairs], ROW)
    made_with = {"peer": peer.made_with, "targets": form, "answers": function_record(answer_of)}
    claim_output(file, made_with, [[pair.id, text, pair.target] for pair, text in zip(pairs, texts, strict=True)])
    counts = {"train": len(splits.train), chosen.split: len(pairs)}
    shortened = shortening(prompts, references)
    notes = [*first_of(chosen.limit, len(every)), *([shortened_note(shortened)] if limit else []), *already(done)]
    data = say_data(splits_line(chosen.data, counts, left_out, notes=notes))
    ask(peer, pairs[done:], texts[done:], file, codes=codes)
    too_long.write(output / QUARANTINE)

    outputs = [output_of(row) for row in read_rows(file, ROW)]
    answers = [answer_of(one.text, completion=peer.completion) for one in outputs]
    terms = load_terminology(chosen.data.data.terminology or SHIPPED)
    written = {peer.name: answers, **baselines(splits.train, pairs)}
    systems = {name: score(texts, pairs, form, terms) for name, texts in written.items()}
    absent = warn_of_absent(systems, unread_note([pair.target for pair in pairs], [pair.language for pair in pairs]))
    shares = language_shares(answers, pairs)
    result: dict[str, Any] = {
        "split": chosen.split,
        "reports": len(pairs),
        "quarantined": len(too_long),
        "unfinished": sum(not one.complete and not one.failed for one in outputs),
        "unanswered": dict(Counter(one.failed for one in outputs if one.failed)),
        "shots": {name: [shot.id for shot in own.shots] for name, own in references.items()},
        "terms": {name: len(own.terms) for name, own in references.items()},
        "prompts": {"limit": limit, "form": "completion" if peer.completion else "chat", "shortened": shortened},
        "languages": shares,
    }
    said = [data, *peer_notes(chosen, peer, result), *absent]
    if codes:
        valid = terminology_validity([parse_codes(text) for text in answers], terminology(splits.train))
        said.append(f"{valid:.1%} of the codes written are in the terminology of the training part.")
    else:
        read = recognised([pair.target for pair in pairs], [pair.language for pair in pairs], terms)
        result |= read._asdict()
        said.append(read.note())
        say(read.note())
    if chosen.like is not None:
        beside, note = scores_of_run(chosen.like, chosen.split, pairs)
        said.append(note)
        systems = {peer.name: systems.pop(peer.name), **beside, **systems}
    distances = distance_between(splits.train, pairs, None if codes else terms)
    result |= {"systems": systems, "held_out": distances, "notes": absent}
    write_json(output / METRICS, rounded(result))
    tables = [language_table(shares), *([shortening_table(shortened)] if limit else []), distance_table(distances)]
    examples = examples_of(pairs, {name: written[name] for name in (peer.name, NEAREST)})
    write_report(output, page(chosen, peer.name, systems, examples, said, tables, options))
    return systems


def check_directory(output: Path) -> None:
    """Raise UserError where a directory holds something else than a baseline."""
    if (output / "config.json").exists():
        raise UserError(f"{output}: is the directory of a run; give another --output")
    for name in (PREDICTIONS, METRICS, QUARANTINE, REPORT_FILE):
        check_output(output / name)
    check_own_object(output / METRICS, ("systems", "prompts"))
    check_own_page(output / REPORT_FILE)


def ask(peer: Peer, pairs: Sequence[ReportPair], prompts: Sequence[str], file: Path, *, codes: bool) -> None:
    """Add a row to `file` for each of the pairs, in order, as its answer comes."""
    if not pairs:
        return
    with row_writer(file) as write, contextlib.closing(peer.answer(prompts, [pair.id for pair in pairs])) as outputs:
        for pair, output in zip(pairs, outputs, strict=True):
            (row,) = prediction_rows([answer_of(output.text, completion=peer.completion)], [pair], codes)
            failed = {"failed": output.failed} if output.failed else {}
            write({**row, "output": output.text, "complete": output.complete, **failed})


def output_of(row: Mapping[str, Any]) -> Output:
    """What a row says that a model wrote."""
    return Output(row["output"], row["complete"], str(row.get("failed", "")))


def shortening(prompts: Sequence[Prompt], references: Mapping[Any, Reference]) -> dict[str, dict[str, float | None]]:
    """For each language how many prompts were shortened, and what these keep on average."""
    found = {}
    for language, reference in references.items():
        own = [prompt for prompt in prompts if prompt.pair.language == language]
        shorter = [(prompt, kept_parts(reference, prompt)) for prompt in own if prompt.left_out]
        kept = [parts for _, parts in shorter]
        found[language] = {
            "reports": len(own),
            "shortened": len(kept),
            "terms": len(reference.terms),
            "terms_kept": _mean([len(parts.terms) for parts in kept]),
            "terms_without_other_names": _mean([len(parts.bare) for parts in kept]),
            "needed_left_out": sum(bool(set(p.needed) - {t.id for t in k.terms}) for p, k in shorter),
            "shots": len(reference.shots),
            "shots_kept": _mean([len(parts.shots) for parts in kept]),
        }
    return found


def _mean(values: Sequence[int]) -> float | None:
    return float(np.mean(values)) if values else None


def shortened_note(found: Mapping[str, Mapping[str, float | None]]) -> str:
    """How many prompts were shortened, for the line that names the data."""
    return f"{sum(int(own['shortened'] or 0) for own in found.values()):,} prompts shortened"


def shortening_table(found: Mapping[str, Mapping[str, float | None]]) -> Table:
    """What was left out of prompts, as a table of the page."""
    names = {
        "reports": "reports",
        "shortened": "prompts that were too long and were shortened",
        "terms": "terms in a whole prompt",
        "terms_kept": "terms in a shortened one, mean",
        "terms_without_other_names": "of these without their other names, mean",
        "needed_left_out": "prompts that lack a term that the report needs",
        "shots": "examples in a whole prompt",
        "shots_kept": "examples in a shortened one, mean",
    }

    def shown(value: float | None) -> str:
        return "–" if value is None else f"{value:,.1f}".removesuffix(".0")

    rows = [(text, *(shown(own[name]) for own in found.values())) for name, text in names.items()]
    lead = (
        "Left out first: terms that the report does not need; then other names of those that it needs; then the "
        "examples least like it; and only then what it needs."
    )
    return Table("Prompts", lead, ("", *found), rows)


def peer_notes(chosen: Baseline, peer: Peer, result: Mapping[str, Any]) -> list[str]:
    """What a reader of the scores should know of prompts and answers."""
    terms = ", ".join(f"{count} in {language}" for language, count in result["terms"].items())
    notes = [
        f"{chosen.shots} examples from the training split (seed {chosen.shot_seed}), the same for all reports of a "
        f"language; terms named in the prompt: {terms if chosen.terms else 'none'}.",
        "The model has no chat format: it continued a text, up to a blank line."
        if peer.completion
        else "Each prompt is one message of the user.",
    ]
    if result["quarantined"]:
        notes.append(f"{result['quarantined']} reports do not fit into the model's context: they are in no score.")
    if result["unfinished"]:
        notes.append(f"{result['unfinished']} answers ran into the limit of {chosen.max_new_tokens} tokens.")
    if unanswered := result["unanswered"]:
        reasons = ", ".join(f"{printable(reason)}: {count}" for reason, count in unanswered.items())
        notes.append(f"{sum(unanswered.values())} reports got no answer and count as empty ones ({reasons}).")
    return notes


def scores_of_run(run_dir: Path, split: str, pairs: Sequence[ReportPair]) -> tuple[dict[str, Scores], str]:
    """The scores that an evaluated run has for the very same reports, and what to say of them."""
    name = f"run {run_dir.resolve().name}"
    files = [run_dir / METRICS, run_dir / PREDICTIONS]
    if not all(file.is_file() for file in files):
        return {}, f"{name} is not evaluated yet: its scores are not shown beside these."
    metrics = read_json_object(files[0])
    rows = read_rows(files[1], {"id": str, "reference": str})
    same = [row["id"] for row in rows] == [pair.id for pair in pairs] and metrics.get("split") == split
    systems = metrics.get("systems")
    if not same or not isinstance(systems, dict) or MODEL not in systems:
        return {}, f"{name} was evaluated on other reports: its scores are not shown beside these."
    return {name: systems[MODEL]}, f"The scores of {name} are those of its last evaluation, of the same reports."


def examples_of(pairs: Sequence[ReportPair], outputs: Mapping[str, Sequence[str]]) -> list[Example]:
    """Some reports spread over the split, with what each system wrote."""
    places = range(0, len(pairs), len(pairs) // EXAMPLES | 1)[:EXAMPLES]
    return [
        Example(
            pair.id, pair.source, pair.target, {name: texts[place] for name, texts in outputs.items()}, pair.language
        )
        for place in places
        for pair in (pairs[place],)
    ]


def page(
    chosen: Baseline,
    name: str,
    systems: Mapping[str, Scores],
    examples: Sequence[Example],
    notes: Sequence[str],
    tables: Sequence[Table],
    options: Mapping[str, Any],
) -> Page:
    """The page of a baseline."""
    metric = "codes/F1" if "codes/F1" in systems[name] else "findings/F1"
    others = [other for other in systems if other not in (name, NEAREST, CONSTANT)]

    def shown(system: str) -> str:
        return score_text(systems[system][metric]["value"])

    settings = used_settings(chosen.data, NEEDS).items()
    of_data = {name: value for name, value in settings if name.startswith("data.") or name == "seed"}
    beside = "".join(f"{shown(other)} for {other}, " for other in others)
    return Page(
        title=f"RetSTA: {name} with {chosen.shots} examples",
        verdict=f"F1 over what the reports state: {shown(name)}; {beside}{shown(NEAREST)} for the nearest training "
        f"report, {shown(CONSTANT)} for a constant report.",
        command=command_line("retsta baseline", options),
        config={**of_data, **{name: getattr(chosen, name) for name in ("shots", "shot_seed", "max_new_tokens")}},
        environment=environment(),
        systems=systems,
        headline=headline(dict(systems[name])),
        examples=examples,
        notes=notes,
        tables=tables,
    )
