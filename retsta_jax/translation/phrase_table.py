"""Chinese phrases of fundus reports that are not terms, with their English counterparts (`translations.tsv`).

A row has a kind and the forms of both languages, separated by "|": any of them is read, the first is written. The first
row that has a form translates it. "{}" stands for the findings that a cue is about, "{n}" for a number.
"""

import functools
import re
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from pathlib import Path

from common.data.records import Language
from common.io.text import csv_rows
from retsta_jax.terminology.search import WORDS, Folded, fold
from retsta_jax.terminology.typos import CONFUSED_CHARACTERS, misspellings

TABLE = Path(__file__).parent / "translations.tsv"
EXACT = ("eye", "cue", "conj", "word")  # kinds that decide what is said, whose forms have no slips
SLOT = re.compile(r"\{([a-z])\}")
NUMBER = r"\d+(?:[./]\d+)*"


@dataclass(frozen=True)
class Row:
    """A row of the table. `kind` is eye, degree, site, cue, conj, word, measure, remark or lead.

    A measure belongs to a finding, a remark stands by itself, a lead goes before a list of terms.
    """

    kind: str
    zh: tuple[str, ...]
    en: tuple[str, ...]
    en_before: str  # of a site, before a finding: "macular"

    def forms(self, language: Language) -> tuple[str, ...]:
        """The forms of a language."""
        return self.zh if language == "zh" else self.en

    def written(self, language: Language) -> str:
        """The form that is written; "" where the language says nothing for it."""
        return next(iter(self.forms(language)), "")


@dataclass(frozen=True)
class Entry:
    """A form of a row as it is read in normalised text.

    role: where a cue stands, "before" or "behind" findings. capitals: whether the form is a word in small letters.
    """

    row: Row
    role: str
    pattern: re.Pattern[str]
    capitals: bool

    def translated(self, matched: str, to: Language) -> str:
        """What the row writes in the other language, with the numbers of what was matched."""
        found = self.pattern.fullmatch(matched)
        numbers = found.groupdict() if found else {}
        return SLOT.sub(lambda slot: numbers.get(slot[1]) or "", self.row.written(to))


@functools.cache
def rows() -> tuple[Row, ...]:
    """The rows of the table, in its order."""
    lines = csv_rows(TABLE, "\t")
    next(lines)
    return tuple(Row(kind, _forms(zh), _forms(en), before) for _, (kind, zh, en, before) in lines)


def _forms(cell: str) -> tuple[str, ...]:
    return tuple(filter(None, cell.split("|")))


def entries_at(
    text: str, folded: Folded, start: int, language: Language, kinds: Collection[str]
) -> list[tuple[Entry, int]]:
    """The entries of these kinds that match a text from an index of its normalised form on, each with its end
    there, the longest match first.
    """
    entries = _entries(language)
    found: list[tuple[Entry, int]] = []
    for entry in (*entries.get(folded.text[start], ()), *entries[""]):
        match = entry.pattern.match(folded.text, start) if entry.row.kind in kinds else None
        if match:
            written = text[folded.origin[start] : folded.origin[match.end() - 1] + 1]
            if not entry.capitals or (written.isupper() and not text.isupper()):
                found.append((entry, match.end()))
    return sorted(found, key=lambda one: -one[1])


def written_role(row: Row, language: Language) -> str:
    """Where the form that a cue writes stands: "before" or "behind" what it is about."""
    return "behind" if row.written(language).startswith("{}") else "before"


def entry_of(kind: str, form: str, language: Language) -> Entry | None:
    """The entry of a kind that a whole text in normalised form is."""
    found = (entry for entry in _entries(language).get(form[:1], ()) if entry.row.kind == kind)
    return next((entry for entry in found if entry.pattern.fullmatch(form)), None)


@functools.cache
def _entries(language: Language) -> Mapping[str, tuple[Entry, ...]]:
    """The entries by their first character, in the order of the table."""
    found: dict[str, list[Entry]] = {"": []}
    for row in rows():
        for form in row.forms(language):
            role = "" if row.kind != "cue" else "behind" if form.startswith("{}") else "before"
            text = fold(form.replace("{}", "").strip()).text
            exact = row.kind in EXACT
            capitals = row.kind == "site" and text in WORDS
            entry = Entry(row, role, _pattern(text, language, exact), capitals)
            for first in (
                [""] if SLOT.match(text) else [text[0]] if exact else [text[0], *_taken_for(text[0], language)]
            ):
                found.setdefault(first, []).append(entry)
    return {first: tuple(entries) for first, entries in found.items()}


def _pattern(text: str, language: Language, exact: bool) -> re.Pattern[str]:
    """A form, which is in normalised form itself. A number takes the place of a slot; white space may be missing, and
    where the form may have slips, marks within it, too.
    """
    pattern = ""
    for index, part in enumerate(SLOT.split(text)):
        if index % 2:
            pattern += f" ?(?P<{part}>{NUMBER}) ?"
        else:
            pattern += re.escape(part).replace(r"\ ", " ?") if exact else _with_slips(part, language)
    pattern = pattern.removeprefix(" ?").removesuffix(" ?")
    before = r"(?<![a-z0-9])" if re.match("[a-z0-9{]", text) else ""
    behind = r"(?![a-z0-9])" if re.search("[a-z0-9}]$", text) else ""
    return re.compile(before + pattern + behind)


def _with_slips(part: str, language: Language) -> str:
    """A pattern for a part of a form, each of its words with at most one slip."""
    pattern = ""
    for word in re.findall(r"[a-z]+|.", part):
        if word in " :,":
            pattern += f"{word}?"
        elif language == "zh":
            pattern += "".join(f"[{letter}{''.join(_taken_for(letter, language))}]" for letter in word)
        else:
            pattern += f"(?:{'|'.join(map(re.escape, [word, *sorted(misspellings(word, language))]))})"
    return pattern


def _taken_for(character: str, language: Language) -> str:
    """The characters that are written for another one by mistake."""
    return CONFUSED_CHARACTERS.get(character, "") if language == "zh" else ""
