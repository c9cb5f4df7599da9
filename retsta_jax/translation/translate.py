"""`retsta translate`: report pairs in the other language, each with a check that it says the same (RetSTA, 2.3).

A translator takes pairs and returns each in the other language, or the reasons why not. The same check
(`consistency.py`) applies to every translator. A pair that fails goes to OUTPUT.quarantine.jsonl with the reasons.
"""

import contextlib
import itertools
from collections import Counter
from collections.abc import Callable, Generator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from common.data.cleaning import clean_report
from common.data.records import Language, ReportPair
from common.errors import UserError
from common.generation.processes import of_first
from common.io.jsonl import parse_rows
from common.io.locks import locked_file, owning
from common.io.resumable import claim_output, row_writer, rows_done
from common.io.terminal import printable
from common.metrics.tokenize import language_of
from retsta_jax.terminology.terms import Terminology
from retsta_jax.terminology_command import terminology_record
from retsta_jax.translation.consistency import CHINESE, NAMES, Problem, no_counterpart, pair_problems

ROW = {"source": str, "target": str, "language": str, "from": str}
FAILED_ROW = {"reasons": list}

Translator = Callable[[Sequence[ReportPair], Language, Terminology], Generator[ReportPair | list[Problem]]]


@dataclass(frozen=True)
class Translated:
    """A pair in the other language, that says what the original does. `original` is the id of that."""

    pair: ReportPair
    original: str


@dataclass(frozen=True)
class Failed:
    """Why a pair is not translated. The problems hold no text of the report but names of the terminology."""

    id: str
    problems: tuple[Problem, ...]


def translate_pairs(
    pairs: Sequence[ReportPair], translator: Translator, terms: Terminology, to: Language
) -> Generator[Translated | Failed]:
    """Each pair in the language `to`, as "<id>-<to>", or why not, in order.

    Raises UserError for a terminology of one language, for a new id that a pair has already, and as the translator
    does.
    """
    check_languages(terms)
    check_ids(pairs, to)
    reasons = {pair.id: problems for pair in pairs if (problems := _hindrances(pair, to, terms))}
    rest = [pair for pair in pairs if pair.id not in reasons]
    with contextlib.closing(translator(rest, to, terms)) as translated:
        first = [next(translated)] if rest else []  # before all others: without consent there is no result at all
        results = itertools.chain(first, translated)
        for pair in pairs:
            yield Failed(pair.id, reasons[pair.id]) if pair.id in reasons else _checked(pair, next(results), terms, to)


def new_id(pair: ReportPair, to: Language) -> str:
    """The id of a pair's translation."""
    return f"{pair.id}-{to}"


def check_languages(terms: Terminology) -> None:
    """Raise UserError for a terminology that has names in one language only."""
    if missing := [name for code, name in NAMES.items() if code not in terms.languages]:
        raise UserError(
            f"the terminology has no names in {missing[0]}, which translation needs; give --terminology FILE with "
            "columns zh and en"
        )


def check_ids(pairs: Sequence[ReportPair], to: Language) -> None:
    """Raise UserError where a translated pair would have the id of another pair."""
    ids = {pair.id for pair in pairs}
    if clash := next((pair for pair in pairs if new_id(pair, to) in ids), None):
        raise UserError(
            f"id {printable(new_id(clash, to))} belongs to a pair and would also be the id of the translation of "
            f"{printable(clash.id)}; rename one of them"
        )


def _hindrances(pair: ReportPair, to: Language, terms: Terminology) -> tuple[Problem, ...]:
    """What keeps a pair from being translated at all."""
    if pair.language == to:
        return (Problem("pair", f"is in {NAMES[to]} already"),)
    text = f"{pair.source}\n{pair.target}"
    if bool(CHINESE.search(text)) != (pair.language == "zh") and (pair.language == "zh" or language_of(text) == "zh"):
        return (Problem("pair", f"is not in {NAMES[pair.language]}"),)
    return tuple(
        Problem("pair", f"no {NAMES[to]} name", name) for name in no_counterpart(text, pair.language, to, terms)
    )


def _checked(
    pair: ReportPair, result: ReportPair | list[Problem], terms: Terminology, to: Language
) -> Translated | Failed:
    if not isinstance(result, ReportPair):
        return Failed(pair.id, tuple(result))
    result = ReportPair(new_id(pair, to), clean_report(result.source), clean_report(result.target), to)
    problems = pair_problems(pair, result, terms)
    return Failed(pair.id, tuple(problems)) if problems else Translated(result, pair.id)


@dataclass(frozen=True)
class Counts:
    """How many pairs were translated, and how many not, by the first reason."""

    translated: int
    failed: Mapping[str, int]


@owning("output", locked_file)
def translate_file(
    pairs: Sequence[ReportPair],
    translator: Translator,
    terms: Terminology,
    to: Language,
    output: Path,
    made_with: Mapping[str, Any],
    start: Callable[[int], None] = lambda done: None,
) -> Counts:
    """Write or continue OUTPUT and OUTPUT.quarantine.jsonl; of all their rows the counts.

    `made_with` records what determines the rows. `start` is given the number of pairs that are done already. With
    several processes, the first one translates. Raises UserError, also where the rows there were made otherwise.
    """
    check_languages(terms)
    check_ids(pairs, to)
    return Counts(*of_first(lambda: _write_translations(pairs, translator, terms, to, output, made_with, start)))


def _write_translations(
    pairs: Sequence[ReportPair],
    translator: Translator,
    terms: Terminology,
    to: Language,
    output: Path,
    made_with: Mapping[str, Any],
    start: Callable[[int], None],
) -> tuple[int, Mapping[str, int]]:
    """The fields of `Counts`."""
    quarantine = quarantine_of(output)
    done = pairs_done(pairs, to, output, quarantine)
    settings = {"to": to, "terminology": terminology_record(terms), **made_with}
    inputs = [[pair.id, pair.source, pair.target, pair.language] for pair in pairs]
    for path in (output, quarantine):
        claim_output(path, settings, inputs)
    start(done)
    rest = pairs[done:]
    with (
        row_writer(output) as write,
        row_writer(quarantine) as set_aside,
        contextlib.closing(translate_pairs(rest, translator, terms, to)) as results,
    ):
        for result in results:
            if isinstance(result, Translated):
                write(_row(result))
            else:
                set_aside({"id": result.id, "reasons": [str(problem) for problem in result.problems]})
    failed = [row["reasons"][0] for row in _whole_rows(quarantine)]
    return len(pairs) - len(failed), Counter(reason.split(" (")[0] for reason in failed)


def quarantine_of(output: Path) -> Path:
    """Where pairs go that are not translated."""
    return output.with_name(f"{output.stem}.quarantine.jsonl")


def pairs_done(pairs: Sequence[ReportPair], to: Language, output: Path, quarantine: Path) -> int:
    """How many of the first pairs have a row in one of the two files. Raises UserError where they hold other rows."""
    failed = {row["id"] for row in _whole_rows(quarantine)}
    done = rows_done(output, [new_id(pair, to) for pair in pairs if pair.id not in failed], ROW)
    # Where the quarantine has no whole row, a torn one is of the pair that came next.
    set_aside = [pair.id for pair in pairs if pair.id in failed] or [pair.id for pair in pairs[done : done + 1]]
    done += rows_done(quarantine, set_aside, FAILED_ROW)
    if missing := failed - {pair.id for pair in pairs[:done]}:
        raise UserError(
            f"{quarantine}: id {printable(min(missing))} comes after pairs that have no row; choose another --output, "
            f"or remove {output.name} and {quarantine.name}"
        )
    return done


def _whole_rows(path: Path) -> list[dict[str, Any]]:
    """The rows of a quarantine, without a torn last one."""
    try:
        content = path.read_bytes().rpartition(b"\n")[0]
    except OSError:  # `rows_done` says what is wrong, where something is
        return []
    with contextlib.suppress(UserError):
        return parse_rows(content, path, {"id": str, **FAILED_ROW}) if content.strip() else []
    return []


def _row(result: Translated) -> dict[str, Any]:
    pair = result.pair
    return {
        "id": pair.id,
        "source": pair.source,
        "target": pair.target,
        "language": pair.language,
        "from": result.original,
    }
