"""Finding the terms of a terminology in free text, each with its eye and whether it is present, suspected or absent.

Names are found by an Aho-Corasick automaton, the longest first, over normalised text; what is said about them by cues
(`cues.py`) within a statement. A denial or a doubt reaches over an enumeration (未见出血、渗出及水肿; "no haemorrhage,
exudates or oedema") up to a verb, a contrast, another eye or the end of the sentence, not over what a comma begins anew
(未见出血，可见渗出).
"""

import functools
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Literal, NamedTuple

from common.data.records import Language
from common.metrics.tokenize import language_of
from retsta_jax.terminology.cues import EYE, FILLER, PLACE, TERM, TOKENS
from retsta_jax.terminology.search import Folded, Mention, fold, mentions
from retsta_jax.terminology.terms import QUALIFIERS, Term, Terminology

MatchEye = Literal["right", "left", "both"]
MatchStatus = Literal["present", "suspected", "absent"]

MOST_FILLER = 6  # letters between the items of an enumeration


@dataclass(frozen=True)
class Match:
    """A term where a text mentions it: characters `start` to `end`, the eye where one is said, and its status."""

    term: str
    name: str
    text: str
    start: int
    end: int
    eye: MatchEye | None = None
    status: MatchStatus = "present"


class Statement(NamedTuple):
    """What one mention says about one eye ("" where none is named)."""

    term: str
    eye: str
    status: str


class Token(NamedTuple):
    """A term, or a cue of a kind that `cues.TOKENS` names, at characters `start` to `end`."""

    kind: str
    start: int
    end: int
    match_index: int = -1  # of a term, in the list of matches


class Reading(NamedTuple):
    """What is found in a text, in order: its terms, and these with the cues among them."""

    matches: list[Match]
    tokens: list[Token]


def find_terms(text: str, terminology: Terminology, language: Language | None = None) -> list[Match]:
    """The terms of a text in order. `language` is told by the characters where it is not given."""
    return read_text(text, terminology, language).matches


def read_text(text: str, terminology: Terminology, language: Language | None = None) -> Reading:
    """The terms of a text, and the cues from which their eyes and statuses are read."""
    language = language or language_of(text)
    folded = fold(text)
    found = [mention for mention in mentions(text, folded, terminology, language) if not _is_eye(mention.term)]
    masked = list(folded.text)
    for start, end, term in found:
        masked[start:end] = (TERM if term.states else PLACE) * (end - start)
    tokens = _tokens("".join(masked), found, folded, text, language)
    status = _statuses(tokens, "".join(masked), found, language)
    eyes = _eyes(tokens, "".join(masked), len(found))

    def span(start: int, end: int) -> tuple[int, int]:
        return folded.origin[start], folded.origin[end - 1] + 1

    matches = [
        Match(mention.term.id, mention.term.name(language), text[slice(*bounds)], *bounds, eye, state)
        for mention, eye, state in zip(found, eyes, status, strict=True)
        for bounds in (span(mention.start, mention.end),)
    ]
    return Reading(matches, [Token(token.kind, *span(token.start, token.end), token.match_index) for token in tokens])


def statements_of(matches: Iterable[Match], terminology: Terminology) -> frozenset[Statement]:
    """What matches state, for each eye by itself; places and degrees alone state nothing."""
    return frozenset(
        Statement(match.term, eye, match.status)
        for match in matches
        if terminology.by_id[match.term].states
        for eye in (("right", "left") if match.eye == "both" else (match.eye or "",))
    )


@functools.lru_cache(maxsize=4096)
def _is_eye(term: Term) -> bool:
    """Whether a term of a table is a name of an eye: a label here, no finding."""
    return term.kind in QUALIFIERS and any(EYE.fullmatch(fold(form).text) for form in (term.zh, term.en))


def _tokens(masked: str, found: Sequence[Mention], folded: Folded, text: str, language: Language) -> list[Token]:
    """Terms and cues in the order of the text."""
    tokens = [
        Token("term" if term.states else "place", start, end, index) for index, (start, end, term) in enumerate(found)
    ]
    for match in TOKENS.finditer(masked):
        kind, start = str(match.lastgroup), match.start()
        if kind.startswith("short_"):  # "be" is a word, "BE" both eyes; at the beginning of a statement it is as well
            before = masked[:start].rstrip(" ")[-1:]
            first = text[folded.origin[start]]
            label = not first.islower() and (language == "zh" or any(map(str.islower, text)))
            if not label and before and before not in ".,:;。\n>(/_|":
                continue
        tokens.append(Token(kind, *match.span()))
    return sorted(tokens, key=lambda token: token.start)


# ---- status


@dataclass
class _Segment:
    """What stands between two breaks: `joined` by a comma to what is before it, or `listed` in an enumeration."""

    tokens: list[Token]
    start: int = 0
    end: int | None = None
    joined: bool = False
    listed: bool = False
    fresh: bool = False  # begins a sentence, or speaks of another eye


def _statuses(tokens: Sequence[Token], masked: str, found: Sequence[Mention], language: Language) -> list[MatchStatus]:
    status: list[MatchStatus] = ["present"] * len(found)
    scope: MatchStatus = "present"
    segments = _segments(tokens, found)
    for index, segment in enumerate(segments):
        if segment.fresh or not _carries(segments, index, scope, masked, language):
            scope = "present"
        earlier = segments[index - 1].tokens if segment.joined else []
        scope = _read_segment(segment, earlier, scope, status, masked)
        _read_backwards(segments, index, status, masked)
    return status


def _segments(tokens: Sequence[Token], found: Sequence[Mention]) -> list[_Segment]:
    segments = [_Segment([], fresh=True)]
    for token in tokens:
        if token.kind == "term" and found[token.match_index].term.kind == "normal":  # "no haemorrhage, normal fundus"
            segments[-1].fresh = segments[-1].fresh or not _has(segments[-1], "term", "deny", "doubt")
        if token.kind in ("stop", "comma", "list"):
            segments[-1].end = token.start
            fresh = token.kind == "stop"
            segments.append(_Segment([], token.end, joined=not fresh, listed=token.kind == "list", fresh=fresh))
        elif token.kind in EYE_OF and _has(segments[-1], "term"):
            segments[-1].end = token.start
            segments.append(_Segment([token], token.start, fresh=True))
        else:
            segments[-1].tokens.append(token)
            segments[-1].fresh = segments[-1].fresh or token.kind in EYE_OF
    return segments


def _has(segment: _Segment, *kinds: str) -> bool:
    return any(token.kind in kinds for token in segment.tokens)


def _carries(segments: Sequence[_Segment], index: int, scope: MatchStatus, masked: str, language: Language) -> bool:
    """Whether a denial or doubt before a break reaches the segment behind it."""
    segment = segments[index]
    if segment.listed:
        return True
    if not _bare(segment, masked):
        return False
    for later in segments[index:]:
        if (later.fresh and later is not segment) or not _bare(later, masked):
            break
        if _has(later, "and"):
            return True
    return language == "en" and scope == "absent" and not _has(segment, "present")


def _bare(segment: _Segment, masked: str) -> bool:
    """Whether a segment is nothing but items of an enumeration."""
    if not _has(segment, "term") or _has(segment, "deny", "doubt", "assert", "but", "unchanged", "query", *EYE_OF):
        return False
    if _has(segment, "present") and not _has(segment, "and"):
        return False
    rest, start = "", segment.start
    for token in segment.tokens:
        rest, start = rest + masked[start : token.start] + " ", token.end
    rest += masked[start : segment.end]
    return len(FILLER.sub("", rest)) <= MOST_FILLER


def _read_segment(
    segment: _Segment, earlier: Sequence[Token], scope: MatchStatus, status: list[MatchStatus], masked: str
) -> MatchStatus:
    """Set the status of the terms of a segment; returns the scope at its end. `earlier` are the tokens before it."""
    terms = [token for token in segment.tokens if token.kind == "term"]
    last = [token for token in earlier if token.kind == "term"][-1:]
    in_brackets = False
    for index, token in enumerate(segment.tokens):
        follows = next((other for other in segment.tokens[index + 1 :] if other.kind in ("term", "close")), None)
        before = [other for other in terms if other.end <= token.start] or last
        ahead = follows is not None and follows.kind == "term"
        if token.kind == "open":
            in_brackets = True
        elif token.kind == "close":
            in_brackets = False
        elif token.kind in ("term", "place"):
            status[token.match_index] = scope
        elif token.kind in ("deny", "doubt"):
            said: MatchStatus = "absent" if token.kind == "deny" else "suspected"
            if ahead and masked[token.start] != "(":
                scope = said if not (scope == "absent" and said == "absent") else scope
            elif before and (token.kind == "doubt" or not masked[token.end : segment.end].strip(" )]")):
                status[before[-1].match_index] = said
        elif token.kind == "query":
            touches = token.start > 0 and masked[token.start - 1] in (TERM, PLACE, ")") and before
            if touches or in_brackets or not ahead:
                if before:
                    status[before[-1].match_index] = "suspected"
            else:
                scope = "suspected"
        elif token.kind in ("assert", "but", "unchanged"):
            scope = "present"
    return scope


def _read_backwards(segments: Sequence[_Segment], index: int, status: list[MatchStatus], masked: str) -> None:
    """`absent` behind what it denies: the terms of its segment, and of an enumeration that it closes."""
    segment = segments[index]
    for position, token in enumerate(segment.tokens):
        if token.kind not in ("absent", "present"):
            continue
        before = [other for other in segment.tokens[:position] if other.kind == "term"]
        if masked[token.start] == "(":  # behind each one
            if before:
                status[before[-1].match_index] = "absent" if token.kind == "absent" else "present"
            continue
        if token.kind == "present" or not before or _has(_Segment(segment.tokens[:position]), "deny", "doubt"):
            continue
        chain = [segment]
        if _has(segment, "and"):
            for earlier in reversed(segments[:index]):
                if chain[-1].fresh or not _bare(earlier, masked):
                    break
                chain.append(earlier)
        for other in [*before, *(t for seg in chain[1:] for t in seg.tokens if t.kind == "term")]:
            status[other.match_index] = "absent"


# ---- eye

EYE_OF: dict[str, MatchEye] = {
    **{eye: eye for eye in ("both", "right", "left")},
    **{f"short_{eye}": eye for eye in ("both", "right", "left")},
}
_OF = re.compile(r"(?:in|of|at|on|for)(?: the)? ?$")


def _eyes(tokens: Sequence[Token], masked: str, count: int) -> list[MatchEye | None]:
    """The eye of each term: that of the label before it, or of the one behind it where labels follow."""
    eyes: list[MatchEye | None] = [None] * count
    labels = [token for token in tokens if token.kind in EYE_OF]
    terms = [token for token in tokens if token.kind == "term"]
    follow = bool(labels and terms) and terms[0].start < labels[0].start and not _begins(tokens, labels[0], masked)
    here: MatchEye | None = None
    waiting: list[Token] = []  # terms since the last label or stop
    for index, token in enumerate(tokens):
        if token.kind in ("term", "place"):
            eyes[token.match_index] = here
            waiting.append(token)
        elif token.kind == "stop":
            waiting = []
            here = None if follow else here
        elif token.kind in EYE_OF:
            eye = EYE_OF[token.kind]
            if waiting and _is_behind(tokens, index, masked, follow):
                for other in waiting:
                    eyes[other.match_index] = eye
            elif not _in_brackets(token, masked):
                here = eye
            waiting = []
    if any(token.kind == "same" for token in tokens):  # one eye is described, and the other like it
        return ["both" if eye else None for eye in eyes]
    return eyes


def _is_behind(tokens: Sequence[Token], index: int, masked: str, follow: bool) -> bool:
    """Whether a label belongs to the terms before it."""
    token = tokens[index]
    if _in_brackets(token, masked):
        return masked[token.end : token.end + 1] in (")", "]")
    if follow or _OF.search(masked[: token.start]):
        return True
    if _has_colon(token, masked) and _is_labelled(tokens[:index]):  # "R: DR L: nil"
        return False
    begins = index == 0 or tokens[index - 1].kind in ("stop", "comma", "list")
    ahead = next((other.kind for other in tokens[index + 1 :] if other.kind in ("term", "stop", *EYE_OF)), "stop")
    return not begins and ahead != "term"


def _begins(tokens: Sequence[Token], label: Token, masked: str) -> bool:
    """Whether a label opens a sentence, or a colon follows it."""
    before = [token.kind for token in tokens if token.end <= label.start]
    return not before or before[-1] == "stop" or _has_colon(label, masked)


def _is_labelled(tokens: Sequence[Token]) -> bool:
    """Whether an eye is named in the sentence at whose end these tokens stop."""
    last = next((token.kind for token in reversed(tokens) if token.kind in ("stop", *EYE_OF)), "stop")
    return last != "stop"


def _has_colon(label: Token, masked: str) -> bool:
    return masked[label.end : label.end + 2].lstrip()[:1] == ":"


def _in_brackets(token: Token, masked: str) -> bool:
    return token.start > 0 and masked[token.start - 1] in "(["
