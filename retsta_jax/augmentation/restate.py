"""Restating a finding in a report: as present, as suspected, as absent.

The cue that governs it is removed, or the finding itself is taken out of an enumeration, and another cue is inserted.
The result is read again: only a text with unchanged other statements, eyes and numbers is accepted.
"""

import itertools
import re
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import NamedTuple

import numpy as np

from common.data.records import Language
from retsta_jax.augmentation.edits import Mention, Report, eyes_and_numbers, mentions_of, read_report, states, unclear
from retsta_jax.terminology.matching import MatchStatus, Token

Wording = Mapping[MatchStatus, Sequence[str]]  # "{}" stands for what is said

SOURCE_WORDING: Mapping[Language, Wording] = {
    "zh": {
        "present": ("{}", "可见{}", "见{}", "有{}"),
        "suspected": ("可疑{}", "疑似{}", "考虑{}", "不除外{}", "可能{}", "{}？", "{}（待排）"),
        "absent": ("未见{}", "无{}", "未发现{}", "没有{}", "未见明显{}", "{}(-)"),
    },
    "en": {
        "present": ("{}", "there is {}", "{} noted", "{} present"),
        "suspected": (
            *("possible {}", "probable {}", "suspected {}", "likely {}", "questionable {}"),
            *("cannot exclude {}", "{}?", "?{}", "{} (suspected)"),
        ),
        "absent": ("no {}", "no evidence of {}", "no definite {}", "without {}", "negative for {}", "{} absent"),
    },
}
TARGET_WORDING: Mapping[Language, Mapping[MatchStatus, str]] = {
    "zh": {"present": "{}", "suspected": "可疑{}", "absent": "未见{}"},
    "en": {"present": "{}", "suspected": "suspected {}", "absent": "no {}"},
}
COMMA: Mapping[Language, str] = {"zh": "，", "en": ", "}
LIST: Mapping[Language, str] = {"zh": "、", "en": ", "}
LAST_ITEM: Mapping[Language, str] = {"zh": "、", "en": " or "}
LONGEST_GAP = {"zh": 6, "en": 3}  # characters, words that may belong to the name behind them
CUES_BEHIND: Mapping[MatchStatus, tuple[str, ...]] = {
    "present": ("present",),
    "suspected": ("doubt", "query"),
    "absent": ("absent",),
}
LEAD = re.compile(
    r"(?:[\s:：)）\]-]|然后|另外?|同时|并且?|且|还|其中)*"
)  # what does not belong to the description behind it
ARTICLE = re.compile(r"(?:a|an|the|any|some)\s+", re.IGNORECASE)
# Words behind which no cue stands, and other words that belong to no name.
BOUND = frozenset(("of", "in", "at", "on", "for", "from", "by", "to", "into"))
VERBS = ("is", "are", "was", "were", "be", "been", "being", "seems", "appears", "remains")
FREE = frozenset((*VERBS, "with", "which", "that", "also", "now", "still"))
AFTER_VERB = ("no", "possible", "probable", "suspected", "likely", "questionable")  # "there is no ..."
BRACKET = re.compile(r"\s?[(（][^()（）]*[)）]")


def restate(
    report: Report, index: int, status: MatchStatus, wording: Wording, rng: np.random.Generator
) -> Report | None:
    """The report with its match number `index` in another status; None where no wording gives just that."""
    match = report.matches[index]
    expected = Counter(mentions_of(report))
    expected[mentions_of(report)[index]] -= 1
    expected[match.term, match.eye, status] += 1
    for base, start in without_cue(report, index):
        plain = read_report(base, report.language, report.terms)
        found = next((number for number, other in enumerate(plain.matches) if other.start == start), None)
        if found is None or plain.matches[found].term != match.term:
            continue
        for text in _stated(plain, found, status, wording, rng):
            if (result := _verified(report, text, +expected)) is not None:
                return result
    return None


def add_statement(
    report: Report, mention: Mention, name: str, wording: Sequence[str], rng: np.random.Generator
) -> Report | None:
    """The report with one more statement behind another one; None where it cannot be made to say just that."""
    expected = Counter(mentions_of(report)) + Counter([mention])
    ends = [token.start for token in report.tokens if token.kind in ("comma", "stop")] + [len(report.text)]
    indices = sorted({min(end for end in ends if end >= match.end) for match in report.matches})
    for index in rng.permutation(indices):
        for template in rng.permutation(list(wording)):
            said = COMMA[report.language] + str(template).format(name)
            result = _verified(report, report.text[:index] + _in_case(said, report) + report.text[index:], expected)
            if result is not None:
                return result
    return None


def _verified(before: Report, text: str, expected: Counter[Mention]) -> Report | None:
    after = read_report(text, before.language, before.terms)
    same = Counter(mentions_of(after)) == expected
    kept = all(
        Counter(old) == Counter(new) for old, new in zip(eyes_and_numbers(before), eyes_and_numbers(after), strict=True)
    )
    clear = unclear(after) <= unclear(before)
    return after if same and kept and clear and text != before.text else None


# ---- taking a cue out


def without_cue(report: Report, index: int) -> Iterator[tuple[str, int]]:
    """Texts that state a match without the cue that doubts or denies it, and where the match stands in them."""
    text, match = report.text, report.matches[index]
    token_index = next(number for number, token in enumerate(report.tokens) if token.match_index == index)
    if (behind := _cue_behind(report, token_index, match.status)) is not None:
        yield text[: behind[0]] + text[behind[1] :], match.start
        return
    if match.status == "present":
        yield text, match.start
        return
    cues = [
        number
        for number, token in enumerate(report.tokens[:token_index])
        if token.kind in ("deny", "doubt", "query", "stop")
    ]
    if not cues or report.tokens[cues[-1]].kind == "stop":
        return
    cue, items = report.tokens[cues[-1]], _items(report, cues[-1], match.status)
    if items == [index]:
        gap = re.match(r"\s*", text[cue.end :])
        end = cue.end + (gap.end() if gap else 0)
        capital = report.language == "en" and text[cue.start].isupper() and not match.text[:1].isupper()
        rest = text[end].upper() + text[end + 1 :] if capital else text[end:]
        yield text[: cue.start] + rest, match.start - (end - cue.start)
    elif index in items:
        yield from _out_of_list(report, cue, items, index)


def _cue_behind(report: Report, index: int, status: MatchStatus) -> tuple[int, int] | None:
    """The span of the cue that directly follows a term and gives it its status, with its brackets."""
    tokens, term = report.tokens, report.tokens[index]
    following = tokens[index + 1 : index + 4]
    if not following or report.text[term.end : following[0].start].strip():
        return None
    kinds = CUES_BEHIND[status]
    first = following[0]
    bracketed = report.text[first.start] in "(（" or report.text[first.start : first.end] in ("阳性", "阴性")
    if first.kind in kinds and (first.kind != "present" or bracketed):
        return term.end, first.end
    inside = [token.kind for token in following]
    return (term.end, following[2].end) if inside in (["open", kind, "close"] for kind in kinds) else None


def _items(report: Report, cue: int, status: MatchStatus) -> list[int]:
    """The matches that a cue governs: what is enumerated behind it."""
    items = []
    for token in report.tokens[cue + 1 :]:
        if token.kind not in ("term", "list", "comma", "and"):
            break
        if token.kind == "term":
            match = report.matches[token.match_index]
            if states(report, match):
                if match.status != status:
                    break
                items.append(token.match_index)
    return items


def _out_of_list(report: Report, cue: Token, items: Sequence[int], index: int) -> Iterator[tuple[str, int]]:
    """A match before and behind the rest of the enumeration that it was part of."""
    text, language = report.text, report.language
    matches = [report.matches[item] for item in items]
    for match, after in itertools.pairwise(matches):
        between = text[match.end : after.start].strip()
        if len(between) > (2 if language == "zh" else 6):
            return
    own = report.matches[index].text
    *rest, last = [report.matches[item].text for item in items if item != index]
    listed = LIST[language].join(rest) + (LAST_ITEM[language] if rest else "") + last
    head, tail = text[: matches[0].start], text[matches[-1].end :]
    yield f"{head}{listed}{COMMA[language]}{own}{tail}", len(f"{head}{listed}{COMMA[language]}")
    yield f"{text[: cue.start]}{own}{COMMA[language]}{text[cue.start : matches[0].start]}{listed}{tail}", cue.start


# ---- putting one in


class _Phrase(NamedTuple):
    """The description of a term, from its degrees and places to a bracket behind it, and what is around it."""

    start: int
    end: int
    open_before: bool  # whether a cue may stand before it
    verb: Token | None  # directly before it, as "there is"
    joined: bool  # directly behind "and" or "with"
    verb_behind: bool  # as "seen"


def _phrase(report: Report, index: int) -> _Phrase:
    text, tokens = report.text, report.tokens
    begins, end = phrase_start(report, index), tokens[index].end
    start = tokens[index].start if begins is None else begins
    if bracket := BRACKET.match(text, end):
        inside = [token for token in tokens if bracket.start() <= token.start < bracket.end()]
        end = bracket.end() if all(token.kind in ("open", "close", "term") for token in inside) else end
    last = next((token for token in reversed(tokens[:index]) if token.end <= start), None)
    before = last if last and not text[last.end : start].strip() else None
    verb = before if before and before.kind == "assert" else None
    behind = any(token.kind == "present" and not text[end : token.start].strip() for token in tokens[index:])
    return _Phrase(start, end, begins is not None, verb, before is not None and before.kind == "and", behind)


def _stated(base: Report, index: int, status: MatchStatus, wording: Wording, rng: np.random.Generator) -> Iterator[str]:
    """The texts that state a match by one of the wordings, in any order; without its own cue it is `present`."""
    text, language, match = base.text, base.language, base.matches[index]
    own = _phrase(base, next(number for number, token in enumerate(base.tokens) if token.match_index == index))
    for template in map(str, rng.permutation(list(wording[status]))):
        before, after = template.split("{}")
        if not _fits(own, before, after, language):
            continue
        phrase, left = text[own.start : own.end], own.start
        if before and language == "zh" and own.verb:
            left = own.verb.start
        elif before and language == "en":
            article = ARTICLE.match(phrase)
            phrase = phrase[article.end() :] if article else phrase
            by_right = own.start == match.start and match.text in base.terms.by_id[match.term].forms(language)
            if re.match(r"[A-Z][a-z]+\b", phrase) and not by_right:
                before, phrase = before[0].upper() + before[1:], phrase[0].lower() + phrase[1:]
        yield text[:left] + _in_case(before, base) + phrase + _in_case(after, base) + text[own.end :]


def _fits(own: _Phrase, before: str, after: str, language: Language) -> bool:
    """Whether words can stand around a description as it stands in its text."""
    if (before and not own.open_before) or (after and own.verb_behind):
        return False
    if language == "zh":
        return True
    if before and (own.verb or own.joined) and before.split()[0] not in AFTER_VERB:
        return False
    return not (own.verb and after[1:2].isalpha())  # "there is a hole absent"


def phrase_start(report: Report, index: int) -> int | None:
    """Where the description of a term (token `index`) begins, with its degrees and places; None: no cue fits there."""
    text, term = report.text, report.tokens[index]
    before = 0
    for token in reversed(report.tokens[:index]):
        if token.kind != "term" or states(report, report.matches[token.match_index]):
            before = token.end
            break
    gap = text[before : term.start]
    rest = LEAD.sub("", gap, count=1)  # at the beginning, where it matches nothing at the least
    before, gap = before + len(gap) - len(rest), rest
    if report.language == "zh":
        return before if len(gap) <= LONGEST_GAP["zh"] else term.start
    words = [(word.group().lower(), before + word.start(), before + word.end()) for word in re.finditer(r"\S+", gap)]
    last = max((number for number, (word, _, _) in enumerate(words) if word in BOUND | FREE), default=-1)
    if len(words) - last - 1 > LONGEST_GAP["en"] or (last >= 0 and words[last][0] in BOUND):
        return None
    return next((start for _, start, _ in words[last + 1 :]), term.start)


def _in_case(words: str, report: Report) -> str:
    letters = [letter for letter in report.text if letter.isalpha()]
    return words.upper() if report.language == "en" and all(map(str.isupper, letters)) else words


# ---- the words of a corpus


def learn_wording(pairs: Iterable[tuple[Report, Report]]) -> dict[Language, dict[MatchStatus, str]]:
    """How targets word what they doubt and deny, by their most frequent cue; the default where no text has any.

    `pairs` are sources and targets. A status that sources have and targets never is not in what is returned.
    """
    cues: dict[tuple[Language, MatchStatus], Counter[str]] = {}
    in_sources: set[tuple[Language, MatchStatus]] = set()
    for source, target in pairs:
        in_sources |= {(source.language, match.status) for match in source.matches if states(source, match)}
        for index, token in enumerate(target.tokens):
            if token.kind == "term" and states(target, match := target.matches[token.match_index]):
                found = _cue_of(target, index) if match.status != "present" else "{}"
                cues.setdefault((target.language, match.status), Counter()).update([found] if found else [])
    learnt: dict[Language, dict[MatchStatus, str]] = {}
    for language, defaults in TARGET_WORDING.items():
        learnt[language] = {"present": "{}"}
        for status, default in defaults.items():
            counts = cues.get((language, status), Counter())
            if counts:
                learnt[language][status] = min(counts, key=lambda cue: (-counts[cue], cue))
            elif (language, status) not in in_sources:
                learnt[language][status] = default
    return learnt


def _cue_of(report: Report, index: int) -> str | None:
    """The cue beside a term, as a template."""
    text, term = report.text, report.tokens[index]
    before = report.tokens[index - 1] if index else None
    if before and before.kind in ("deny", "doubt", "query") and not text[before.end : term.start].strip():
        return text[before.start : term.start].lower() + "{}"
    span = _cue_behind(report, index, report.matches[term.match_index].status)
    return "{}" + text[span[0] : span[1]].lower() if span else None
