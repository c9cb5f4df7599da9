"""Translating fundus reports without a model: terms by their counterparts, all else by a table and a little grammar.

A text becomes pieces (terms, eyes, degrees, sites, cues, remarks, punctuation), each piece its counterpart, in the
order of the original; a cue moves only where the other language has it on the other side of its findings ("X noted",
可见X). Typos, odd punctuation and storage marks are not kept. Made for the embedded corpus: a text with a word that
neither the terminology nor the table has is not translated.
"""

import difflib
import re
from bisect import bisect_left
from collections.abc import Generator, Sequence
from typing import NamedTuple

from common.data.records import Language, ReportPair
from retsta_jax.corpus.findings import FundusStudy, parse_standard_report, standard_report
from retsta_jax.terminology.check import load_terminology
from retsta_jax.terminology.cues import EYES, SHORT_EYES
from retsta_jax.terminology.matching import EYE_OF, read_text
from retsta_jax.terminology.search import Folded, fold
from retsta_jax.terminology.terms import Term, Terminology
from retsta_jax.translation.consistency import STORAGE, Part, Problem, normal, own_name, text_problems
from retsta_jax.translation.phrase_table import Entry, entries_at, entry_of, rows, written_role
from retsta_jax.translation.pieces import PHRASE, Piece, arranged, written

KINDS = ("degree", "site", "cue", "conj", "word", "measure", "remark", "lead")  # of the table; eyes are read as cues
MARK = re.compile(
    r"(?P<bullet>\(\d{1,2}\)|\d{1,2}[.,)、](?!\d)|[-*●•])|(?P<newline>\n)|(?P<stop>[。!.]|x{3,})"
    r"|(?P<semicolon>;)|(?P<comma>,)|(?P<list>、)|(?P<colon>:)|(?P<open>[(\[])|(?P<close>[)\]])|(?P<query>\?)"
    r"|(?P<slash>/)|(?P<dash>-)"
)
# Which of two things of one length is meant: the later. A cue behind its finding goes before the same word before one.
QUALIFIES, EYE, ENTRY, BEHIND, STATES, SAME = range(6)
MENTIONS = (QUALIFIES, STATES)
PREPOSITION = re.compile(r"(?:in|at|of|on)(?: the)?(?![a-z])")
DENIES = re.compile("未|无|没|不伴")
_EYES = re.compile("|".join(f"(?P<{eye}>{EYES[eye]}|{SHORT_EYES[eye]})" for eye in EYES))


class _Span(NamedTuple):
    """Something that a text is made of, in normalised text. `rank`: which of two of one length is meant."""

    end: int
    rank: int
    piece: Piece


def translate_offline(
    pairs: Sequence[ReportPair], to: Language, terms: Terminology
) -> Generator[ReportPair | list[Problem]]:
    """Each pair in the other language, or why it cannot be. A `translate.Translator`."""
    for pair in pairs:
        source = translate_text("source", pair.source, pair.language, to, terms)
        target = translate_text("target", pair.target, pair.language, to, terms)
        if isinstance(source, str) and isinstance(target, str):
            yield ReportPair(pair.id, source, target, to)
        else:
            yield [problem for found in (source, target) if not isinstance(found, str) for problem in found]


def translate_text(part: Part, text: str, language: Language, to: Language, terms: Terminology) -> str | list[Problem]:
    """A text in the other language, or why it cannot be translated.

    A report in standard form becomes that of the same findings. In any other a name that is not the standard one gets
    one of its kind; where that would be read as something else, all names are the standard ones.
    """
    if terms == load_terminology() and (standard := _standard(text, language, to)):
        return standard
    found: str | list[Problem] = []
    for register in (True, False):
        found = _by_pieces(part, text, language, to, terms, register)
        if isinstance(found, list) or not text_problems(part, text, found, language, to, terms):
            break
    return found


def _standard(text: str, language: Language, to: Language) -> str:
    """The standard report of what a standard report says; "" where the text is none."""
    parsed = parse_standard_report(text, language)
    study = FundusStudy(parsed.findings)
    return standard_report(study, to) if not parsed.unparsed and standard_report(study, language) == text else ""


def _by_pieces(
    part: Part, text: str, language: Language, to: Language, terms: Terminology, register: bool
) -> str | list[Problem]:
    found, unread = _pieces(text, language, to, terms, register)
    if unread:
        ranges = ", ".join(f"{start + 1}-{end}" for start, end in unread)
        return [Problem(part, "cannot be translated offline", f"characters {ranges}")]
    return written(arranged(found, to), to, apart=not register)


def _pieces(
    text: str, language: Language, to: Language, terms: Terminology, register: bool
) -> tuple[list[Piece], list[tuple[int, int]]]:
    """The pieces of a text, and the spans of its characters that are not read."""
    folded = fold(text)
    spans = _spans(text, folded, language, to, terms, register)
    mentions = [(start, span.end) for start, here in spans.items() for span in here if span.rank in MENTIONS]
    found: list[Piece] = []
    unread: list[tuple[int, int]] = []
    at = reached = 0  # reached: the end of the last piece
    while at < len(folded.text):
        if folded.text[at] == " ":
            at += 1
            continue
        if storage := STORAGE.match(folded.text, at):
            found.append(Piece("stop"))
            at = storage.end()
            continue
        last = found[-1].kind if found else ""
        touches = reached == at
        choices = [*spans.get(at, [])]
        for entry, end in entries_at(text, folded, at, language, KINDS):
            if any(at < start < end < stop for start, stop in mentions):
                continue
            if chosen := _entry_piece(entry, folded.text[at:end], folded.text[end:], last, to):
                choices.append(_Span(end, BEHIND if chosen.was == "behind" else ENTRY, chosen))
        if choices:
            best = max(choices, key=lambda span: (span.end, span.rank))
            found.append(best.piece)
            at = reached = best.end
            continue
        preposition = PREPOSITION.match(folded.text, at) if language == "en" else None
        if preposition:
            found.append(Piece("prep"))
            at = reached = preposition.end()
            continue
        mark = MARK.match(folded.text, at)
        if not mark:
            end = at + 1
            while end < len(folded.text) and folded.text[end].isalnum() and end not in spans:
                end += 1
            unread.append((folded.origin[at], folded.origin[end - 1] + 1))
            at = end
            continue
        piece, at = _mark(mark, found, touches, folded.text, to)
        found.append(piece)
        reached = at
    return found, unread


def _spans(
    text: str, folded: Folded, language: Language, to: Language, terms: Terminology, register: bool
) -> dict[int, list[_Span]]:
    """The terms and eyes of a text, by where they begin."""
    spans: dict[int, list[_Span]] = {}
    reading = read_text(text, terms, language)

    def add(start: int, end: int, rank: int, piece: Piece) -> None:
        spans.setdefault(bisect_left(folded.origin, start), []).append(
            _Span(bisect_left(folded.origin, end), rank, piece)
        )

    for match in reading.matches:
        term = terms.by_id[match.term]
        name = counterpart(term, match.text, language, to, register)
        add(
            match.start,
            match.end,
            STATES if term.states else QUALIFIES,
            Piece("term" if term.states else "place", name),
        )
    for token in reading.tokens:
        written_so = normal(text[token.start : token.end])
        if token.kind in EYE_OF:
            add(token.start, token.end, EYE, _eye(written_so, token.kind, language, to))
        elif token.kind == "same":
            add(token.start, token.end, SAME, _same(written_so, language, to))
    return spans


def _entry_piece(entry: Entry, matched: str, rest: str, last: str, to: Language) -> Piece | None:
    """The piece of an entry of the table; None where it cannot stand here."""
    row = entry.row
    text = entry.translated(matched, to)
    if row.kind != "cue":
        return Piece(row.kind, text, row.en_before if to == "en" else "")
    follows = matched.startswith(":") and re.match(r" ?[^\s.,;。、)/|_<&]", rest)
    if entry.role == "behind" and (follows or last not in (*PHRASE, "close")):
        return None
    chinese = row.written("zh").replace("{}", "").strip("：(")
    denies = bool(DENIES.match(chinese))
    whole = denies or chinese.startswith("为中心")
    return Piece(
        "cue", text.replace("{}", "").strip(), was=entry.role, role=written_role(row, to), denies=denies, whole=whole
    )


def _mark(mark: re.Match[str], found: Sequence[Piece], touches: bool, folded: str, to: Language) -> tuple[Piece, int]:
    """The piece of a mark of punctuation, and where it ends."""
    kind, end = str(mark.lastgroup), mark.end()
    last = found[-1].kind if found else "newline"
    if kind == "bullet":
        number = re.search(r"\d+", mark[0])
        earlier = [piece.text for piece in found if piece.kind == "bullet" and piece.text[0].isdigit()]
        follows = bool(number and earlier and int(earlier[-1][:-1]) + 1 == int(number[0]))
        if follows or last in ("newline", "stop", "semicolon", "comma", "colon") or (not number and last == "eye"):
            if number is not None:
                return Piece("bullet", f"{number[0]}." if to == "en" else f"{number[0]}、"), end
            return (Piece("colon") if last == "eye" else Piece("bullet", "- ")), end
        if number:  # a bracket that opens
            return (Piece("open"), mark.start() + 1) if mark[0][0] == "(" else (Piece("stop"), end)
        return Piece("comma"), end
    if kind == "query":
        ahead = folded[end:].lstrip(" ")[:1]
        behind = last in (*PHRASE, "close") and (touches or not ahead.isalnum())
        text = ("？" if to == "zh" else "?") if behind else ("疑" if to == "zh" else "?")
        return Piece("cue", text, was="behind" if behind else "before", role="behind" if behind else "before"), end
    if kind == "slash":
        cue = next((piece for piece in reversed(found) if piece.kind in ("cue", "eye", "stop")), None)
        denied = cue is not None and cue.denies and cue.was == "before"
        return (Piece("conj", "或" if to == "zh" else "or") if denied else Piece("comma")), end
    if kind == "dash":
        return Piece("comma"), end
    return Piece(kind), end


def _eye(folded: str, kind: str, language: Language, to: Language) -> Piece:
    entry = entry_of("eye", folded, language)
    if entry:
        return Piece("eye", entry.row.written(to))
    first = {"right": "右眼", "left": "左眼", "both": "双眼"}[EYE_OF[kind]]
    return Piece("eye", next(row for row in rows() if row.kind == "eye" and row.zh[0] == first).written(to))


def _same(folded: str, language: Language, to: Language) -> Piece:
    """One eye like the other, or as before."""
    eyes = [_eye(match[0], str(match.lastgroup), language, to).text for match in _EYES.finditer(folded)]
    if len(eyes) > 1:
        return Piece("same", f"{eyes[0]}同{eyes[1]}" if to == "zh" else f"{eyes[0]} same as {eyes[1]}")
    if re.search("前|ditto", folded):
        return Piece("same", f"{eyes[0]}同前" if to == "zh" else f"{eyes[0]} ditto")
    return Piece("same", f"{eyes[0]}同上" if to == "zh" else f"{eyes[0]}: same")


def counterpart(term: Term, surface: str, language: Language, to: Language, register: bool = True) -> str:
    """What a term is called in the other language: by its standard name, or, with `register`, by a name of the kind
    that the surface is (another name, an abbreviation).
    """
    standard = own_name(term, to)
    if not register:
        return standard
    folded = normal(surface)
    forms = [*map(normal, term.forms(language))]
    if folded not in forms:
        folded = next(iter(difflib.get_close_matches(folded, forms, 1, 0.0)), folded)
    short = [*map(normal, term.abbreviations_zh), *map(normal, term.abbreviations_en)]
    if folded in short:
        own = term.abbreviations_zh if to == "zh" else term.abbreviations_en
        return next((name for name in own if normal(name) == folded), next(iter(own), standard))
    synonyms = term.synonyms_zh if language == "zh" else term.synonyms_en
    others = term.synonyms_en if to == "en" else term.synonyms_zh
    if folded in map(normal, synonyms) and others:
        return others[[*map(normal, synonyms)].index(folded) % len(others)]
    return standard
