"""The sections of a free-text radiology report, and a count of unknown headings.

A section ends at the heading of any other section, however it is spelled; `common.data.section_headings` classifies
headings. Headings of organs are text of the findings. Two errors are worse than losing text: an
impression among the findings that a model learns to write, and findings in the indication that it is shown. So where
a heading is unknown, what follows belongs to neither.
"""

import re
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Literal, NamedTuple

from common.data.cleaning import clean_report, without_invisible
from common.data.section_headings import (
    INPUTS,
    SPELLINGS,
    Heading,
    Section,
    classify,
    ends_with_name,
    heading_words,
    is_capitals,
    names_nobody,
    shown_name,
)

Wanted = Literal["findings", "impression", "findings+impression"]  # sections that form the report to be written

RARE = 5  # reports: a heading with a word that is not of radiology is named from here on, as it could be a person's
LONGEST_NAME = 4  # words of such a heading
LISTED = 10  # headings that a summary names
# Sections in which findings may begin without a heading of their own, at an organ or a view.
BEFORE_FINDINGS: frozenset[Section] = frozenset(
    {"indication", "history", "comparison", "examination", "technique", "date", "other"}
)
# Sections of which organs and views are text as they are of findings.
WHOLE: frozenset[Section] = frozenset({"impression", "wet read", "addendum", "recommendations", "notification"})
_MOST_WORDS = 12  # of a heading
_COLON = r"[ \t*]*(?!(?<=\d):[\d_])[:：]+[*_]*"  # not that of a time
_AT_START = re.compile(rf"[\s*#>]*([A-Z\d_](?:[^:：]|(?<=\d):(?=[\d_])){{0,100}}?){_COLON}")
_AT_START_LOWER = re.compile(rf"[\s*#>]*([a-z][a-z /&]{{3,40}}?){_COLON}")
_ALONE = re.compile(r"[\s*#>]*([A-Z][A-Z /&()]{3,40}?)[ \t*]*(?:([-–—;]|\.(?=\s))|\.?$)")
_PART = re.compile(
    r"[\s*_#]*(?=[A-Z])((?:final|preliminary|interim|provisional|pfi) (?:report|addendum))[\s*_:.]*"
    r"|\s*([-_=]{10,})\s*",
    re.IGNORECASE,
)
_UNENDED = re.compile(r"[^\s.!?:;_*]\s*$")  # a line whose sentence the next one continues
_SENTENCE_END = re.compile(r"[.!?;]\s")
_ADDENDUM = re.compile(r"\s*ADDENDUM\b(?![ \t]*[:：])")
# In the middle of a line: after the end of a sentence or wide space; or, listed and in capitals, after any word.
_AFTER_SENTENCE = re.compile(
    rf"(?:(?<=[.!?;)\]])\s+|\s{{2,20}})([A-Z][A-Za-z0-9/&,()' -]{{2,60}}?){_COLON}",
)
_ALONE_MIXED = re.compile(r"[\s*#>]*([A-Z][A-Za-z /&]{3,40}?)[ \t*]*$")
_AFTER_SENTENCE_LOWER = re.compile(rf"(?<=[.!?;)\]])\s+([a-z][a-z /&]{{3,40}}?){_COLON}")
_LISTED = "|".join(re.sub(" ", "[ /]+", spelling.upper()) for spelling in sorted(SPELLINGS, key=len, reverse=True))
_AFTER_WORD = re.compile(rf"\s({_LISTED}){_COLON}")


@dataclass
class HeadingCounts:
    """How many reports have each heading that is not a listed spelling, by what was made of its text.

    Report text never enters it.
    """

    reports: Counter[tuple[str, str]] = field(default_factory=Counter)  # (heading in capitals, section or "other")

    def add(self, found: frozenset[tuple[str, str]]) -> None:
        """Count the headings of one report."""
        self.reports.update(found)

    def named(self) -> list[tuple[str, str, int]]:
        """(heading, section, reports), most frequent first, of headings that could not be anybody's name."""
        return [
            (heading, section, count)
            for (heading, section), count in sorted(self.reports.items(), key=lambda item: (-item[1], item[0]))
            if names_nobody(heading) or (count >= RARE and len(heading.split()) <= LONGEST_NAME)
        ]

    def summary(self) -> str:
        """One line for the end of a command, or nothing where every heading was a listed one."""
        named = self.named()
        told = [f"{heading} {_as(section)} in {_reports(count)}" for heading, section, count in named[:LISTED]]
        if len(named) > LISTED:
            told.append(f"{len(named) - LISTED} more in {_reports(sum(count for *_, count in named[LISTED:]))}")
        if unnamed := len(self.reports) - len(named):
            count = self.reports.total() - sum(count for *_, count in named)
            told.append(
                f"{unnamed} unknown heading{'s' if unnamed > 1 else ''} in {_reports(count)}, not named because fewer "
                f"than {RARE} reports have {'each' if unnamed > 1 else 'it'}"
            )
        return f"headings beyond the listed spellings: {'; '.join(told)}" if told else ""


def report_and_indication(sections: Mapping[str, str], wanted: Wanted) -> tuple[str, str]:
    """The report that a model is to write, of what there is of the wanted sections, and what it may be shown."""
    report = " ".join(sections[name] for name in wanted.split("+") if name in sections)
    return report, sections.get("indication") or sections.get("history", "")


_Place = Literal["line", "sentence", "word"]  # a heading begins a line or a sentence, or follows a word


class _Piece(NamedTuple):
    """A stretch of a report: the heading before it, if any, and the text up to the next possible one."""

    text: str
    heading: str = ""
    written: str = ""  # the heading with its colon
    place: _Place = "line"
    part: str = ""  # a line such as FINAL REPORT, which ends every section


def report_sections(text: str, begin: Section = "other", headings: HeadingCounts | None = None) -> dict[str, str]:
    """The sections of a report by name (`Section`), lines joined; `headings` counts what no list has.

    A section begins where a line begins with its heading, capitalised, and a colon, or where a line is its heading in
    capitals; and within a line after the end of a sentence. It ends at the next heading that stands for another one, or
    at a line such as FINAL REPORT. Text before the first heading belongs to `begin`. Organs and views of the chest
    ("LUNGS: clear") are text of the findings, and begin them where there were none. After an unknown heading in
    capitals, text is left out until the next known one. An indication or history is its first paragraph. Of a section
    that returns with text, the last counts: wet readings and addenda come first.
    """
    reading = _Reading(begin)
    for piece in _pieces(without_invisible(text)):
        reading.take(piece)
    reading.close()
    if headings is not None:
        headings.add(frozenset(reading.unlisted))
    return {name: content for name, content in reading.sections.items() if name != "other"}


class _Reading:
    """Where a reader stands in a report: the section it is in, and what it has of all of them."""

    def __init__(self, begin: Section):
        self.sections: dict[str, str] = {}
        self.unlisted: set[tuple[str, str]] = set()
        self._section = begin
        self._lines: list[str] = []
        self._interrupted: list[str] | None = None  # findings that an unknown heading ended: an organ resumes them
        self._headed = begin != "other"
        self._found = False  # this part of the report has findings, or what follows them
        self._after_blank = True

    def close(self) -> None:
        """Keep the section that was being read, if it has text."""
        content = " ".join(clean_report("\n".join(self._lines)).split())
        if content:
            self.sections[self._section] = content
            self._found |= self._section in ("findings", *WHOLE)

    def take(self, piece: _Piece) -> None:
        """Read on."""
        if piece.part:
            self._begin("other")
            self._found &= piece.part != "final report"
        elif not piece.heading:
            self._add(piece.text)
        else:
            self._take_heading(piece, classify(piece.heading))
        self._after_blank = not piece.heading and not piece.text.strip()

    def _take_heading(self, piece: _Piece, heading: Heading) -> None:
        section = self._following(piece, heading)
        if section is None:
            self._add(piece.written + piece.text)
            return
        self._headed = True
        resumed = self._interrupted if heading.kind == "organ" else None
        if not heading.listed and resumed is None:
            self.unlisted.add((shown_name(piece.heading), section))
        if resumed is not None:
            self._section, self._lines, self._interrupted = "findings", resumed, None
        else:
            lines = self._lines if self._section == "findings" and heading.kind == "unknown" else None
            self._begin(section)
            self._interrupted = lines
        self._add(piece.written + piece.text if heading.kind == "organ" else piece.text)

    def _following(self, piece: _Piece, heading: Heading) -> Section | None:
        """The section that a heading begins; None where it is text of the present one."""
        if not 0 < len(heading_words(piece.heading)) <= _MOST_WORDS or (piece.place != "line" and not self._headed):
            return None
        if piece.place == "word":  # "see IMPRESSION: below"
            after_any_word = heading.listed and self._section not in ("findings", "impression")
            return heading.section if after_any_word else None
        if heading.kind == "section":
            return heading.section
        capitals, shown = is_capitals(piece.heading), self._section in INPUTS
        if piece.place == "sentence" and not capitals:
            return None
        if heading.kind in ("unknown", "sentence"):
            ends = capitals and heading.kind == "unknown" and piece.place == "line"
            return "other" if shown or ends else None
        if self._section == "findings":
            begins = heading.kind != "organ" and not any(map(str.strip, self._lines))
            return "findings" if begins else None
        if self._interrupted is not None and heading.kind == "organ":
            return "findings"
        if self._section not in BEFORE_FINDINGS:
            return None
        if not (capitals or shown or self._after_blank or self._section == "other"):
            return None
        return "other" if self._found else "findings"

    def _begin(self, section: Section) -> None:
        self.close()
        self._section, self._lines, self._interrupted = section, [], None

    def _add(self, text: str) -> None:
        if self._section in INPUTS and not text.strip() and any(map(str.strip, self._lines)):
            self._begin("other")  # a paragraph without a heading could be the findings
        else:
            self._lines.append(text)


def _pieces(text: str) -> Iterator[_Piece]:
    """The report cut at whatever could be a heading."""
    mixed = text != text.upper()
    lower, before = text == text.lower(), ""
    for line in text.splitlines():
        continues, before = not lower and bool(_UNENDED.search(before)), line
        if part := _PART.fullmatch(line):
            yield _Piece("", part=(part[1] or part[2]).lower())
            continue
        if _ADDENDUM.match(line):
            yield _Piece("", part="addendum")
            continue
        start, heading = 0, ""
        in_lower_case = None if continues else _in_lower_case(_AT_START_LOWER.match(line))
        if in_lower_case:
            before = ""  # the headings of this report are in lower case
        if match := _at_start(line) or in_lower_case or _alone(line, mixed):
            start, heading = match.end(), match[1]
        written = line[:start].lstrip()
        place: _Place = "line"
        for match, next_place in _inside(line, start):
            yield _Piece(line[start : match.start()], heading, written, place)
            start, written, heading, place = match.end(), match[0].lstrip(), match[1], next_place
        yield _Piece(line[start:], heading, written, place)


def _inside(line: str, start: int) -> Iterator[tuple[re.Match[str], _Place]]:
    """The possible headings inside a line from `start` on, each with its `_Place`; none overlaps another."""
    words = {match.end(): match for match in _AFTER_WORD.finditer(line, start)}
    found: list[tuple[re.Match[str], _Place]] = [(match, "word") for match in words.values()]
    for match in _AFTER_SENTENCE.finditer(line, start):
        # "Fever COMPARISON:" is a sentence's beginning and a heading, "FINAL IMPRESSION:" a heading as a whole.
        if match.end() not in words or classify(match[1]).kind == "section":
            found.append((match, "sentence"))
    found += [(match, "line") for match in _AFTER_SENTENCE_LOWER.finditer(line, start) if _in_lower_case(match)]
    end = start
    for match, place in sorted(found, key=lambda item: (item[0].start(), item[1])):
        if match.start() >= end:
            yield match, place
            end = match.end()


def _at_start(line: str) -> re.Match[str] | None:
    """The possible heading at the start of a line; none where a sentence is before it: "Clear. IMPRESSION:"."""
    match = _AT_START.match(line)
    if match is None:
        return None
    one_phrase = not _SENTENCE_END.search(match[1])
    if one_phrase and classify(match[1]).kind in ("section", "findings", "views"):
        return match
    for inner, place in _inside(line, 0):
        if inner.end() == match.end() and re.search(r"[^\W\d_]{3}", line[: inner.start()]):
            heads = place == "word" or classify(inner[1]).kind in ("section", "findings", "views")
            return None if heads else match
    return match


def _in_lower_case(match: re.Match[str] | None) -> re.Match[str] | None:
    """A heading in lower case that names its section: "impression:", but not "study:", which ends many a sentence."""
    if match is None:
        return None
    heading = classify(match[1])
    section = "findings" if heading.kind == "findings" else heading.section
    named = heading.kind in ("section", "findings") and ends_with_name(match[1], section)
    return match if named else None


def _alone(line: str, mixed: bool) -> re.Match[str] | None:
    """A heading that is a line by itself, or a listed one before a dash or full stop; in mixed case a listed one.

    In a report all in capitals, where any word may stand alone on a line, only those of the main sections.
    """
    match = _ALONE.match(line)
    if match is None:
        match = _ALONE_MIXED.match(line) if mixed else None
        return match if match and classify(match[1]).listed else None
    heading = classify(match[1])
    if not mixed:
        return match if heading.listed and heading.section in ("findings", "impression", *INPUTS) else None
    return match if heading.listed or (not match[2] and heading.kind == "section") else None


def _as(section: str) -> str:
    return "left out" if section == "other" else f"read as {section}"


def _reports(count: int) -> str:
    return f"{count:,} report{'s' if count != 1 else ''}"
