"""`retsta terminology check | match`: check a terminology, and find its terms in reports."""

import dataclasses
import itertools
import re
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from common.bounds import COUNT, bounded
from common.data.records import Language
from common.data.summary import already, data_line, say_data
from common.errors import Parser, UserError
from common.io.fingerprints import data_record
from common.io.locks import locked_file, owning
from common.io.resumable import claim_output, row_writer, rows_done
from common.io.terminal import printable
from common.io.text import json_text
from common.metrics.tokenize import language_of
from retsta_jax.corpus.fundus import NAMED_TERMS, unreachable_terms
from retsta_jax.reports import read_reports
from retsta_jax.terminology.check import load_terminology, summary_of
from retsta_jax.terminology.matching import find_terms
from retsta_jax.terminology.terms import SHIPPED, Table, Terminology, read_table
from retsta_jax.terminology.uncovered import uncovered

USAGE = """usage: retsta terminology check [FILE]          check a terminology; prints one JSON object
       retsta terminology match FILE|- [...]    the terms of reports, with eye and certainty"""
TABLE = "CSV, TSV or JSON table of terms; default: the shipped one"
CANDIDATES = 50  # phrases that a summary lists
LONGEST_PHRASE = {"zh": 8, "en": 3}  # characters, words


def terminology(arguments: list[str]) -> int | None:
    """Run `check` or `match`."""
    commands = {"check": check, "match": match}
    if not arguments or arguments[0] in ("-h", "--help"):
        print(USAGE)
        return None
    if arguments[0] not in commands:
        raise UserError(f"retsta terminology {arguments[0]}: unknown command; expected {', '.join(commands)}")
    return commands[arguments[0]](arguments[1:])


def check(arguments: list[str]) -> int:
    """Print what a terminology holds and what is wrong with it; 2 where something is."""
    options = Parser(
        "retsta terminology check",
        description="Print a terminology in numbers, and its errors, as one JSON object; exit code 2 where it has any.",
    )
    options.add_argument(
        "file", nargs="?", type=Path, default=SHIPPED, help="CSV, TSV or JSON; default: the shipped one"
    )
    file = options.parse_args(arguments).file
    table = read_table(file)
    found = summary_of(table)
    if file == SHIPPED:
        found["errors"] += corpus_errors(table)
    print(json_text(found, "the summary", indent=2))
    return 2 if found["errors"] else 0


def corpus_errors(table: Table) -> list[str]:
    """Terms of the shipped table that the generated corpus cannot reach, and those that it needs and does not find."""
    ids = {term.id for term in table.terms}
    lacking = [f"no term has the id {id_}, which the generated corpus names" for id_ in NAMED_TERMS if id_ not in ids]
    return lacking + [
        f"line {term.line}: the generated corpus never mentions {printable(term.id)}; give it a frequency, or let a "
        "term that has one name it as related"
        for term in unreachable_terms(table.terms)
    ]


def match(arguments: list[str]) -> None:
    """Write the terms of each report, or sum them up."""
    options = Parser(
        "retsta terminology match",
        description="Find the terms of reports: rows {id, matches: [{term, name, text, start, end, eye, status}]}.",
    )
    options.add_argument(
        "source", help='JSONL rows {"id", "report"}, or text with one report per line; "-": standard input'
    )
    options.add_argument("--terminology", type=Path, default=SHIPPED, help=TABLE)
    options.add_argument("--output", type=Path, help="JSONL file to write or resume; default: standard output")
    options.add_argument(
        "--summary",
        action="store_true",
        help="print coverage, and the frequent phrases that the terminology lacks, as one JSON object",
    )
    options.add_argument(
        "--min-reports",
        type=bounded(COUNT),
        default=5,
        help="a phrase is listed only where so many reports have it; few may tell of one patient",
    )
    chosen = options.parse_args(arguments)
    terms = load_terminology(chosen.terminology)
    reports = read_reports(chosen.source)
    if chosen.output is not None or not chosen.summary:
        write_matches(terms, reports, chosen.source, chosen.output)
    if chosen.summary:
        print(json_text(summary(terms, [report for _, report in reports], chosen.min_reports), "the summary", indent=2))


@owning("output", locked_file)
def write_matches(
    terms: Terminology, reports: Sequence[tuple[str | int, str]], source: str, output: Path | None
) -> None:
    """Write or continue the rows of reports."""
    if output is not None and output.exists() and source != "-" and output.samefile(source):
        raise UserError(f"{output}: is the file of the reports; choose another --output")
    done = 0 if output is None else rows_done(output, [id_ for id_, _ in reports], {"matches": list})
    say_data(
        data_line(
            ["standard input" if source == "-" else source], "reports", {"reports": len(reports)}, notes=already(done)
        ),
        rows_on_stdout=True,
    )
    if output is not None:
        claim_output(output, {"terminology": terminology_record(terms)}, [report for _, report in reports])
    with row_writer(output) as write:
        for id_, report in reports[done:]:
            write({"id": id_, "matches": [dataclasses.asdict(found) for found in find_terms(report, terms)]})


def terminology_record(terms: Terminology) -> str:
    """What decides which terms are found, by content."""
    return data_record([term.id, term.kind, *term.forms("zh"), "/", *term.forms("en")] for term in terms.terms)


def summary(terms: Terminology, reports: Sequence[str], min_reports: int) -> dict[str, Any]:
    """How much of the reports a terminology covers, and frequent phrases that it lacks, as candidates for review."""
    used: Counter[str] = Counter()
    lacking: Counter[str] = Counter()
    covered = letters = with_terms = 0
    for report in reports:
        language = language_of(report)
        found = find_terms(report, terms, language)
        used.update({match.term for match in found})
        with_terms += bool(found)
        rest = uncovered(report, found)
        missing = sum(map(str.isalpha, rest))
        letters += sum(map(str.isalpha, report))
        covered += sum(map(str.isalpha, report)) - missing
        lacking.update(set(phrases(rest, language)))
    frequent = [(phrase, count) for phrase, count in lacking.most_common() if count >= min_reports]
    return {
        "reports": len(reports),
        "reports_with_terms": with_terms,
        "letters_read": covered / letters if letters else 0.0,
        "terms_found": len(used),
        "terms": dict(used.most_common()),
        "candidates": [
            {"phrase": phrase, "reports": count} for phrase, count in itertools.islice(_longest(frequent), CANDIDATES)
        ],
    }


def phrases(rest: str, language: Language) -> Iterator[str]:
    """Runs of characters (zh) or words (en) of what is uncovered, up to LONGEST_PHRASE of them."""
    longest = LONGEST_PHRASE[language]
    for run in re.split(r"[^一-鿿]+" if language == "zh" else r"[^a-z' ]+", rest):
        parts = [*run] if language == "zh" else run.split()
        joint = "" if language == "zh" else " "
        for start in range(len(parts)):
            for end in range(start + (2 if language == "zh" else 1), min(start + longest, len(parts)) + 1):
                phrase = joint.join(parts[start:end])
                if len(phrase) > 1 + (language == "en"):
                    yield phrase


def _longest(frequent: Sequence[tuple[str, int]]) -> Iterator[tuple[str, int]]:
    """Without phrases that hardly occur outside a longer one."""
    by_phrase = dict(frequent)
    within: dict[str, int] = {}
    for phrase, count in frequent:
        for start in range(len(phrase)):
            for end in range(start + 1, len(phrase) + 1):
                part = phrase[start:end]
                if part != phrase and part in by_phrase:
                    within[part] = max(within.get(part, 0), count)
    yield from ((phrase, count) for phrase, count in frequent if within.get(phrase, 0) < 0.8 * count)
