"""Searching for the names of terms in a text: an Aho-Corasick automaton over normalised text, the longest name first.

A name is found in either spelling of English, in singular and plural, and with one typing or input method
error; a form that could belong to two terms is not matched.
"""

import bisect
import functools
import re
import unicodedata
from collections.abc import Callable, Iterable, Iterator
from typing import NamedTuple

from ahocorasick_rs import AhoCorasick, MatchKind

from common.data.records import Language
from retsta_jax.terminology.cues import EYE, FILLER_WORDS, STOP, TERM, TOKENS
from retsta_jax.terminology.terms import Term, Terminology
from retsta_jax.terminology.typos import misspellings

# Abbreviations that are words of English or titles as well: only in capitals, and in a text without small letters only
# where no unknown word is near.
ENGLISH_WORDS = "am an as at be by do dr go he if in is it ma me mo no of on or pa pm so st to up us we"
WORDS = frozenset(ENGLISH_WORDS.split())
SPELLINGS = (
    ("oedema", "edema"),
    ("haem", "hem"),
    ("aemi", "emi"),
    ("naev", "nev"),
    ("tumour", "tumor"),
    ("fibre", "fiber"),
    ("centre", "center"),
    ("colour", "color"),
    ("isation", "ization"),
    ("ised", "ized"),
)  # British and American
ITEM = re.compile(r"(?<![^\n])\s*\d{1,2}[.)]")  # the number of an item of a list
PART_END = re.compile(rf"(?!(?<=\bdr)\.)(?:{STOP})|[,、]")  # not the stop of "Dr. Smith"
SHORTEST_PLURAL = 5  # letters of a name that may stand in the plural


class Mention(NamedTuple):
    """A name of a term in normalised text."""

    start: int
    end: int
    term: Term


class Folded(NamedTuple):
    """A text as names are compared, and where each of its characters stands in the original."""

    text: str
    origin: list[int]


class _Automaton(NamedTuple):
    search: AhoCorasick
    terms: list[Term]  # of each form
    capitals: list[bool]  # whether the form is to be in capitals


def fold(text: str) -> Folded:
    """Letters of one case and width, spaces regular, hyphens within words as spaces."""
    folded: list[str] = []
    origin: list[int] = []
    for index, character in enumerate(text):
        for part in _fold_character(character):
            if part == " " and folded and folded[-1] in " \n":
                continue
            folded.append(part)
            origin.append(index)
    for index in range(1, len(folded) - 1):
        if folded[index] == "-" and folded[index - 1].isalnum() and folded[index + 1].isalnum():
            folded[index] = " "
    return Folded("".join(folded), origin)


@functools.lru_cache(maxsize=1 << 16)
def _fold_character(character: str) -> str:
    def fold_part(part: str) -> str:
        if part.isspace() and part != "\n":
            return " "
        if unicodedata.category(part) == "Pd" or part == "−":
            return "-"
        return "'" if part == "’" else part

    return "".join(map(fold_part, unicodedata.normalize("NFKC", character).lower()))


def mentions(text: str, folded: Folded, terminology: Terminology, language: Language) -> Iterator[Mention]:
    """The names in a text in order, none within or across another: the longest first, of equals the leftmost.

    A place or a degree gives way to a finding that begins within it: 后极部 | 视网膜下积液, not 后极部视网膜 | 下积液.
    """
    automaton = _automaton(terminology, language)
    whole = [
        (start, end, automaton.terms[index], automaton.capitals[index])
        for index, start, end in automaton.search.find_matches_as_indexes(folded.text, overlapping=True)
        if _is_whole(folded.text, start, end)
    ]
    if language == "en" and not any(map(str.islower, text)):
        is_abbreviation = _among_known_words(folded.text, whole)
    else:

        def is_abbreviation(start: int, end: int) -> bool:
            return text[folded.origin[start] : folded.origin[end - 1] + 1].isupper()

    found: list[tuple[int, int, int, Term | None]] = [
        (start - end, start, end, term)
        for start, end, term, needs_capitals in whole
        if not needs_capitals or is_abbreviation(start, end)
    ]
    findings = [(start, end) for _, start, end, term in found if term is not None and term.states]
    for match in EYE.finditer(folded.text):  # 右眼底 is an eye, not 右 and the fundus
        found.append((match.start() - match.end(), *match.span(), None))
    taken = bytearray(len(folded.text))
    chosen = []
    for _, start, end, term in sorted(found, key=lambda one: one[:3]):
        gives_way = term is not None and not term.states and any(start < a < end < b for a, b in findings)
        if not any(taken[start:end]) and not gives_way:
            taken[start:end] = b"\1" * (end - start)
            if term is not None:
                chosen.append(Mention(start, end, term))
    yield from sorted(chosen, key=lambda one: one.start)


def _among_known_words(text: str, whole: Iterable[tuple[int, int, Term, bool]]) -> Callable[[int, int], bool]:
    """Whether what stands around an abbreviation in a text of capitals has no word but names of terms and cues.

    There "OD: HE, NO ME" has two findings, and "HE TOLD ME" none.
    """
    masked = list(text)
    for start, end, term, needs_capitals in whole:
        if term.states or not needs_capitals:
            masked[start:end] = TERM * (end - start)
    known = "".join(masked)
    for pattern in (TOKENS, FILLER_WORDS, ITEM):
        known = pattern.sub(lambda match: " " * len(match[0]), known)
    breaks = [0, *(match.end() for match in PART_END.finditer(text)), len(text)]

    def is_abbreviation(start: int, end: int) -> bool:
        index = bisect.bisect_right(breaks, start)
        part = known[breaks[index - 1] : breaks[index]]
        return TERM in known[start:end] and not any(map(str.isalnum, part))

    return is_abbreviation


def _is_whole(text: str, start: int, end: int) -> bool:
    """Whether no letter of the same word stands before or behind."""
    left = start > 0 and _is_latin(text[start - 1]) and _is_latin(text[start])
    right = end < len(text) and _is_latin(text[end]) and _is_latin(text[end - 1])
    return not left and not right


def _is_latin(character: str) -> bool:
    return character.isascii() and character.isalnum()


@functools.lru_cache(maxsize=8)
def _automaton(terminology: Terminology, language: Language) -> _Automaton:
    """Of all forms in a language; a Chinese report uses English names and abbreviations, too."""
    other: Language = "en" if language == "zh" else "zh"
    owners: dict[str, Term] = {}
    for spoken, variants in (
        (language, _as_written),
        (language, _otherwise_spelt),
        (other, _as_written),
        (other, _otherwise_spelt),
        (language, functools.partial(_with_a_slip, language)),
    ):
        found = _forms(terminology, spoken, variants)
        owners |= {form: term for form, term in found.items() if form not in owners}
    search = AhoCorasick(list(owners), matchkind=MatchKind.Standard)
    return _Automaton(search, list(owners.values()), [form in WORDS for form in owners])


def _forms(terminology: Terminology, language: Language, variants: Callable[[str], Iterable[str]]) -> dict[str, Term]:
    """The term of each variant that belongs to one term alone."""
    owners: dict[str, Term] = {}
    shared: set[str] = set()
    for term in terminology.terms:
        for form in term.forms(language):
            for variant in variants(form):
                if owners.setdefault(variant, term) is not term:
                    shared.add(variant)
    return {form: term for form, term in owners.items() if form not in shared}


def _as_written(form: str) -> list[str]:
    return [fold(form).text.strip()]


def _otherwise_spelt(form: str) -> set[str]:
    """American for British spelling and the reverse, and the other number of an English noun."""
    [folded] = _as_written(form)
    if not folded.isascii():
        return set()
    spelt = {folded}
    for british, american in SPELLINGS:
        for one, other in ((british, american), (american, british)):
            spelt |= {word.replace(one, other) for word in spelt}
    for word in [*spelt]:
        if len(word) < SHORTEST_PLURAL or not word[-1].isalpha():
            continue
        if word.endswith("s") and not word.endswith(("ss", "us", "is")):
            spelt.add(word[:-1])
        elif word.endswith("y"):
            spelt.add(word[:-1] + "ies")
        elif not word.endswith("s"):
            spelt.add(word + "s")
    return spelt - {folded}


def _with_a_slip(language: Language, form: str) -> set[str]:
    return {slip for spelt in {*_as_written(form), *_otherwise_spelt(form)} for slip in misspellings(spelt, language)}
