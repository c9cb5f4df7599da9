"""Edits of a report's text that keep its meaning: typos, punctuation, sentences, other names of terms.

Each function makes one edit at random, or returns None where none is possible; whether the edited text still
`says_the_same` is for the caller to ask. Words of laterality, degree, place, denial and doubt, and numbers, are spared.
"""

import re
import unicodedata
from collections.abc import Callable, Iterator, Mapping
from typing import NamedTuple

import numpy as np

from common.data.records import Language
from retsta_jax.corpus.fundus import choose
from retsta_jax.terminology.matching import EYE_OF, Match, MatchEye, MatchStatus, Token, read_text
from retsta_jax.terminology.terms import Terminology, normal_form
from retsta_jax.terminology.typos import KEPT, slip_indices, slips_at

NOT_WORDS = ("term", "list", "comma", "stop", "open", "close")  # kinds of tokens
MARKS = re.compile(r"[,，、；:：。]|(?<!&nbsp);|(?<![0-9])\.(?![0-9a-zA-Z])|(?<=[0-9])\.(?=\s|$)")
COMMAS = re.compile(r"(?:[,，；]|(?<!&nbsp);)\s*")
STOPS = re.compile(r"(?:[。；]|(?<!&nbsp);|\.(?=\s))\s*|\n\s*")
DEGREES = (
    r"\b(?:mild(?:ly)?|slight(?:ly)?|minor|minimal|trace|small|moderate(?:ly)?|mod|medium|severe(?:ly)?|marked(?:ly)?|"
    r"advanced|large|extensive|(?:low|high)[- ]grade|early|late|acute|chronic)\b"
)
PLACES = (
    r"\b(?:[a-z-]*(?:nasal|temporal)|upper|lower|inner|outer|superior|inferior|macular?|posterior|[a-z-]*peripher[a-z]*|"
    r"quadrants?|S[TN]|I[TN])\b"
)
NO_SENTENCE = re.compile(r"(?:^|[:：,，-]|(?:^|\n)\s*[0-9]+)$")  # nothing, a label, the number of an item
# What a missing comma could give to the term behind it.
MODIFIERS = re.compile(
    rf"[上下内外颞鼻轻重]|中度|中等|严重|微|黄斑|后极|中周|周边|象限|为主|[0-9]|{DEGREES}|{PLACES}", re.IGNORECASE
)
NUMBER = re.compile(rf"(?<![a-z]{{{KEPT}}})[0-9]+(?:\.[0-9]+)?")  # behind three letters it is a misread letter


class Report(NamedTuple):
    """A text of a report with the terms and cues that are found in it."""

    text: str
    language: Language
    terms: Terminology
    matches: list[Match]
    tokens: list[Token]


Mention = tuple[str, MatchEye | None, MatchStatus]


def read_report(text: str, language: Language, terms: Terminology) -> Report:
    """A text with what is found in it."""
    return Report(text, language, terms, *read_text(text, terms, language))


def states(report: Report, match: Match) -> bool:
    """Whether a match states something; a place or a degree alone does not."""
    return report.terms.by_id[match.term].states


def mentions_of(report: Report) -> list[Mention]:
    """Term, eye and status of each match, in order."""
    return [(match.term, match.eye, match.status) for match in report.matches]


def eyes_and_numbers(report: Report) -> tuple[list[str], list[str]]:
    """The words for eyes, as right, left or both, and the numbers of a text, in order."""
    eyes: list[str] = [EYE_OF[token.kind] for token in report.tokens if token.kind in EYE_OF]
    return eyes, NUMBER.findall(unicodedata.normalize("NFKC", report.text).lower())


def says_the_same(before: Report, after: Report) -> bool:
    """Whether two texts have the same mentions, words for eyes and numbers, in the same order, no less clearly."""
    same = mentions_of(before) == mentions_of(after) and eyes_and_numbers(before) == eyes_and_numbers(after)
    return same and unclear(after) <= unclear(before)


def unclear(report: Report) -> int:
    """How many findings are there without a verb behind a denial or a doubt that a reader could take to reach them.

    As the second of "no haemorrhage, drusen".
    """
    count, reaches = 0, False
    following = [*(token.kind for token in report.tokens[1:]), "stop"]
    for token, after in zip(report.tokens, following, strict=True):
        if token.kind in ("stop", "but", "assert", *EYE_OF):
            reaches = False
        elif token.kind in ("deny", "doubt", "query") and after == "term":
            reaches = True
        elif token.kind == "term" and states(report, match := report.matches[token.match_index]):
            normal = report.terms.by_id[match.term].kind == "normal"
            count += reaches and match.status == "present" and after != "present" and not normal
    return count


def add_typo(report: Report, rng: np.random.Generator) -> str | None:
    """One slip of the keyboard, of an input method or of text recognition."""
    text, language = report.text, report.language
    spared = {index for start, end in _spared(report) for index in range(start, end)}
    indices = [index for index in slip_indices(text, language) if index not in spared and index + 1 not in spared]
    return choose(rng, [*slips_at(text, choose(rng, indices), language)]) if indices else None


def drop_mark(report: Report, rng: np.random.Generator) -> str | None:
    """One comma, colon or stop less."""
    text = report.text
    marks = [mark for mark in MARKS.finditer(text) if not _reaches_across(report, mark.start())]
    if not marks:
        return None
    before, after = (mark := choose(rng, marks)).start(), mark.end()
    joined = before > 0 and _is_latin(text[before - 1]) and after < len(text) and _is_latin(text[after])
    return text[:before] + " " * joined + text[after:]


def split_sentence(report: Report, rng: np.random.Generator) -> str | None:
    """A comma between two statements becomes a stop."""
    commas = [comma for comma in COMMAS.finditer(report.text) if all(_statements_beside(report, *comma.span()))]
    if not commas:
        return None
    start, end = choose(rng, commas).span()
    rest = report.text[end:]
    if report.language == "en" and report.text[:1].isupper() and rest[:1].islower():
        rest = rest[0].upper() + rest[1:]
    return report.text[:start] + ("。" if report.language == "zh" else ". ") + rest


def merge_sentences(report: Report, rng: np.random.Generator) -> str | None:
    """The stop between two sentences becomes a comma."""
    text = report.text
    stops = [
        stop
        for stop in STOPS.finditer(text)
        if text[stop.end() :].strip() and not NO_SENTENCE.search(text[: stop.start()].rstrip())
    ]
    if not stops:
        return None
    start, end = choose(rng, stops).span()
    rest = text[end:]
    if report.language == "en" and re.match(r"[A-Z][a-z]", rest):
        rest = rest[0].lower() + rest[1:]
    return text[:start] + ("，" if report.language == "zh" else ", ") + rest


def use_synonym(report: Report, rng: np.random.Generator) -> str | None:
    """A finding under another of its names or abbreviations."""
    stating = [match for match in report.matches if states(report, match)]
    choices = [(match, others) for match in stating if (others := _other_names(report, match))]
    if not choices:
        return None
    match, others = choose(rng, choices)
    return report.text[: match.start] + _in_case(choose(rng, others), match, report) + report.text[match.end :]


EDITS: Mapping[str, Callable[[Report, np.random.Generator], str | None]] = {
    "synonym": use_synonym,
    "split": split_sentence,
    "merge": merge_sentences,
    "punctuation": drop_mark,
    "typo": add_typo,
}  # in the order in which they are made


def _in_case(words: str, match: Match, report: Report) -> str:
    """Words in the letter case of a text: all capitals, none, or one in front at the beginning of a sentence."""
    if report.language == "zh":
        return words
    letters = [letter for letter in report.text if letter.isalpha()]
    if all(map(str.isupper, letters)):
        return words.upper()
    if all(map(str.islower, letters)):
        return words.lower()
    begins = re.match(r"[A-Z][a-z]", match.text) and report.text[: match.start].rstrip()[-1:] in ("", ".", ":", "。")
    return words[:1].upper() + words[1:] if begins else words


def _other_names(report: Report, match: Match) -> list[str]:
    term = report.terms.by_id[match.term]
    names = (getattr(term, report.language), *term.synonyms(report.language))
    return [name for name in names if name and normal_form(name) != normal_form(match.text)]


def _spared(report: Report) -> Iterator[tuple[int, int]]:
    """Spans in which a slip could change the meaning."""
    yield from ((token.start, token.end) for token in report.tokens if token.kind not in NOT_WORDS)
    if report.language == "en":
        yield from (match.span() for match in re.finditer(DEGREES, report.text, re.IGNORECASE))
        yield from (match.span() for match in MODIFIERS.finditer(_without_statements(report)))
    for match in report.matches:
        if report.terms.by_id[match.term].kind in ("severity", "location"):
            yield match.start, match.end


def _reaches_across(report: Report, mark: int) -> bool:
    """Whether without a mark a degree, a place or a number before it could belong to the term behind it."""
    if report.text[mark] in ":：" or not report.text[mark + 1 :].strip():
        return False
    start = max((other.end() for other in MARKS.finditer(report.text[:mark])), default=0)
    return bool(MODIFIERS.search(_without_statements(report)[start:mark]))


def _without_statements(report: Report) -> str:
    """The text with blanks in place of the terms that state something."""
    rest = list(report.text)
    for match in report.matches:
        if states(report, match):
            rest[match.start : match.end] = " " * (match.end - match.start)
    return "".join(rest)


def _statements_beside(report: Report, start: int, end: int) -> tuple[bool, bool]:
    """Whether a finding is stated between a comma and the mark before it, and the one behind it."""
    before = max((mark.end() for mark in MARKS.finditer(report.text[:start])), default=0)
    behind = next((mark.start() for mark in MARKS.finditer(report.text, end)), len(report.text))
    stating = [match for match in report.matches if states(report, match)]
    return (
        any(before <= match.start and match.end <= start for match in stating),
        any(end <= match.start and match.end <= behind for match in stating),
    )


def _is_latin(character: str) -> bool:
    return character.isascii() and character.isalnum()
