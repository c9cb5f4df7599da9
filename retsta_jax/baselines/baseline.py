"""`retsta baseline`: a model not trained here, prompted with few-shot examples and scored like a run (RetSTA, 3.1).

Same data, same split, same scores as `retsta evaluate`; also the share of answers in the wrong language, and what was
left out of prompts to fit the model.
"""

import contextlib
import dataclasses
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

from common.data.records import Language, Quarantine, ReportPair
from common.data.summary import already, first_of, say_data
from common.errors import UserError
from common.io.fingerprints import function_record
from common.io.jsonl import read_jsonl
from common.io.locks import owning
from common.io.numbers import rounded, score_text
from common.io.outputs import check_output, check_own_object, check_own_page
from common.io.resumable import claim_output, row_writer, rows_done
from common.io.safetensors import write_json
from common.io.terminal import printable, say
from common.io.text import read_json_object
from common.metrics.text import one_line, warn_of_absent
from common.metrics.tokenize import unread_note
from common.options import command_line, used_settings
from common.report.environment import environment
from common.report.findings import Marks, tally
from common.report.page import REPORT_FILE, Example, Page, Table, save_run_page
from retsta_jax.baselines.answers import answer_of, language_shares, language_table
from retsta_jax.baselines.few_shot import Prompt, Reference, make_references, prompt_text
from retsta_jax.baselines.peers import Output, Peer
from retsta_jax.baselines.shortening import fit_prompts, shortening_table, summary_of
from retsta_jax.codes import parse_codes, terminology, terminology_validity
from retsta_jax.config import NEEDS, RetstaConfig, scored_as
from retsta_jax.corpus.split_distance import distance_between, distance_table
from retsta_jax.data import Splits, load_splits, splits_line
from retsta_jax.evaluate import (
    CONSTANT,
    EXAMPLES,
    MODEL,
    NEAREST,
    Scores,
    baselines,
    headline,
    marks_of,
    prediction_rows,
    score,
)
from retsta_jax.stated import recognised
from retsta_jax.terminology.check import load_terminology
from retsta_jax.terminology.terms import SHIPPED, Terminology

PREDICTIONS, METRICS, QUARANTINE = "predictions.jsonl", "metrics.json", "quarantine.jsonl"
Result = TypeVar("Result")
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


class Asked(NamedTuple):
    """The reports of a baseline with their prompts, of at most `limit` tokens; `too_long` are without one.

    `data` is the line that names them, and `codes` whether their targets are codes.
    """

    splits: Splits
    pairs: list[ReportPair]
    prompts: list[Prompt]
    texts: list[str]
    references: dict[Language, Reference]
    limit: int | None
    too_long: Quarantine
    data: str
    codes: bool


@owning("output")
def evaluate_peer(chosen: Baseline, peer: Peer, output: Path, options: Mapping[str, Any]) -> dict[str, Scores]:
    """Ask for the standard form of each report of a split and score it.

    Writes, or continues, predictions.jsonl in the directory `output`; then metrics.json and report.html. `options` are
    those of the command, for the page. Returns scores by system, the peer first. Raises UserError.
    """
    check_directory(output)
    asked = prepare(chosen, peer)
    file = output / PREDICTIONS
    done = rows_done(file, [pair.id for pair in asked.pairs], ROW)
    made_with = {"peer": peer.made_with, "codes": asked.codes, "answers": function_record(answer_of)}
    inputs = zip(asked.pairs, asked.texts, strict=True)
    claim_output(file, made_with, [[pair.id, text, pair.target] for pair, text in inputs])
    say_data("; ".join([asked.data, *already(done)]))
    ask(peer, asked.pairs[done:], asked.texts[done:], file, codes=asked.codes)
    asked.too_long.write(output / QUARANTINE)
    outputs = [output_of(row) for row in read_jsonl(file, ROW)]
    return report(chosen, peer, asked, outputs, output, options)


def prepare(chosen: Baseline, peer: Peer) -> Asked:
    """Reports and prompts. Raises UserError where there is none of either."""
    left_out = Quarantine()
    splits = load_splits(chosen.data, left_out)
    every: Sequence[ReportPair] = getattr(splits, chosen.split)
    wanted = every[: chosen.limit] if chosen.limit else every
    if not wanted:
        raise UserError(f"the {chosen.split} split is empty; expected at least one report")
    form = scored_as(chosen.data.data)
    languages = [pair.language for pair in wanted]
    references = make_references(languages, splits, form, chosen.terms, chosen.shots, chosen.shot_seed)
    if peer.context is not None and peer.context <= chosen.max_new_tokens:
        raise UserError(
            f"--max-new-tokens {chosen.max_new_tokens}: leaves no room for a prompt in {peer.context} tokens of "
            "context; give fewer"
        )
    limit = None if peer.context is None else peer.context - chosen.max_new_tokens
    prompts, too_long = fit_prompts(wanted, references, peer.count, limit, splits.train)
    if not prompts:
        raise UserError(f"no prompt fits into {limit} tokens ({too_long.summary()}); lower --max-new-tokens")
    left_out.entries += too_long.entries
    counts = {"train": len(splits.train), chosen.split: len(prompts)}
    notes = first_of(chosen.limit, len(every))
    if limit is not None:
        notes.append(f"{sum(prompt.left_out > 0 for prompt in prompts):,} prompts shortened")
    return Asked(
        splits=splits,
        pairs=[prompt.pair for prompt in prompts],
        prompts=prompts,
        texts=[prompt_text(references[prompt.pair.language], prompt) for prompt in prompts],
        references=references,
        limit=limit,
        too_long=too_long,
        data=splits_line(chosen.data, counts, left_out, notes=notes),
        codes=form == "openi",
    )


def report(
    chosen: Baseline, peer: Peer, asked: Asked, outputs: Sequence[Output], output: Path, options: Mapping[str, Any]
) -> dict[str, Scores]:
    """Score what a peer wrote, and write metrics.json and report.html. Returns scores by system, the peer first."""
    pairs, train, limit = asked.pairs, asked.splits.train, asked.limit
    answers = [answer_of(one.text, completion=peer.completion) for one in outputs]
    terms = load_terminology(chosen.data.data.terminology or SHIPPED)
    written = {peer.name: answers, **baselines(train, pairs)}
    form = scored_as(chosen.data.data)
    systems = {name: score(texts, pairs, form, terms) for name, texts in written.items()}
    absent = warn_of_absent(systems, unread_note([pair.target for pair in pairs], [pair.language for pair in pairs]))
    shares, shortened = language_shares(answers, pairs), summary_of(asked.prompts, asked.references)
    result: dict[str, Any] = {
        "split": chosen.split,
        "reports": len(pairs),
        "quarantined": len(asked.too_long),
        "unfinished": sum(not one.complete and not one.failed for one in outputs),
        "unanswered": dict(Counter(one.failed for one in outputs if one.failed)),
        "shots": {name: [shot.id for shot in own.shots] for name, own in asked.references.items()},
        "terms": {name: len(own.terms) for name, own in asked.references.items()},
        "prompts": {"limit": limit, "form": "completion" if peer.completion else "chat", "shortened": shortened},
        "languages": shares,
    }
    notes = [asked.data, *peer_notes(chosen, peer, result), *absent]
    if asked.codes:
        valid = terminology_validity([parse_codes(text) for text in answers], terminology(train))
        notes.append(f"{valid:.1%} of the codes written are in the terminology of the training split.")
    else:
        read = recognised([pair.target for pair in pairs], [pair.language for pair in pairs], terms)
        result |= read._asdict()
        notes.append(read.note())
        say(read.note())
    if chosen.like is not None:
        beside, note = scores_of_run(chosen.like, chosen.split, pairs)
        notes.append(note)
        systems = {peer.name: systems.pop(peer.name), **beside, **systems}
    distances = distance_between(train, pairs, None if asked.codes else terms)
    result |= {"systems": systems, "held_out": distances, "notes": absent}
    write_json(output / METRICS, rounded(result))
    tables = [language_table(shares), *([shortening_table(shortened)] if limit else []), distance_table(distances)]
    outputs_shown = {name: written[name] for name in (peer.name, NEAREST)}
    marks = {name: marks_of(texts, pairs, form, terms) for name, texts in outputs_shown.items()}
    examples = examples_of(pairs, outputs_shown, marks)
    shown = page(chosen, peer.name, systems, examples, notes, tables, options)
    save_run_page(output, dataclasses.replace(shown, findings=tally(marks[peer.name])))
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
        for pair, output in _tracked(zip(pairs, outputs, strict=True), len(pairs)):
            (row,) = prediction_rows([answer_of(output.text, completion=peer.completion)], [pair], codes)
            failed = {"failed": output.failed} if output.failed else {}
            write({**row, "output": output.text, "complete": output.complete, **failed})


def _tracked(results: Iterable[Result], total: int) -> Iterable[Result]:
    """The results, with a progress bar on a terminal."""
    from rich.console import Console
    from rich.progress import track

    console = Console(stderr=True)
    return track(results, "baseline", total=total, console=console, disable=not console.is_terminal)


def output_of(row: Mapping[str, Any]) -> Output:
    """What a row says that a model wrote."""
    return Output(row["output"], row["complete"], str(row.get("failed", "")))


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
        notes.append(f"Not in any score, because they do not fit into the model's context: {result['quarantined']}.")
    if result["unfinished"]:
        notes.append(f"Answers that ran into the limit of {chosen.max_new_tokens} tokens: {result['unfinished']}.")
    if unanswered := result["unanswered"]:
        reasons = ", ".join(f"{printable(reason)}: {count}" for reason, count in unanswered.items())
        count = f"{sum(unanswered.values())} of {result['reports']}"
        notes.append(f"{count} reports got no answer and count as empty ones ({reasons}).")
    return notes


def scores_of_run(run_dir: Path, split: str, pairs: Sequence[ReportPair]) -> tuple[dict[str, Scores], str]:
    """The scores that an evaluated run has for the very same reports, and what to say of them."""
    name = f"run {run_dir.resolve().name}"
    files = [run_dir / METRICS, run_dir / PREDICTIONS]
    if not all(file.is_file() for file in files):
        return {}, f"{name} is not evaluated yet: its scores are not shown beside these."
    metrics = read_json_object(files[0])
    rows = read_jsonl(files[1], {"id": str, "reference": str})
    theirs = [(row["id"], row["reference"]) for row in rows]
    same = theirs == [(pair.id, one_line(pair.target)) for pair in pairs] and metrics.get("split") == split
    systems = metrics.get("systems")
    if not same or not isinstance(systems, dict) or MODEL not in systems:
        return {}, f"{name} was evaluated on other reports: its scores are not shown beside these."
    return {name: systems[MODEL]}, f"The scores of {name} are those of its last evaluation, of the same reports."


def examples_of(
    pairs: Sequence[ReportPair], outputs: Mapping[str, Sequence[str]], marks: Mapping[str, Sequence[Marks]]
) -> list[Example]:
    """Some reports spread over the split, with what each system wrote and how its findings are marked."""
    indices = range(0, len(pairs), len(pairs) // EXAMPLES | 1)[:EXAMPLES]
    return [
        Example(
            pair.id,
            pair.source,
            pair.target,
            {name: texts[index] for name, texts in outputs.items()},
            pair.language,
            findings={name: found[index] for name, found in marks.items()},
        )
        for index in indices
        for pair in (pairs[index],)
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
