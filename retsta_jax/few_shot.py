"""Few-shot prompts for models that were not trained here: instruction, standard terms, examples, report (RetSTA, 3.1).

The paper's peers got five examples and its terminology as a reference; its prompt is not published. Here the examples
are the same for all reports of a language, drawn from the training split. What all prompts share comes first.

A prompt that is too long for the model is shortened, by as little as makes it fit, in this order: lines of terms that
the report does not need, from the end of the table; then the other names of the terms that it needs; then examples, the
one least like the report (cosine of TF-IDF) first; then what it needs. It needs the terms that the matcher finds in it,
all that are broader than these, and those related to these, and loses them in the opposite order. Instruction and
report always stay.
"""

import functools
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np

from common.data.records import Language, Quarantine, ReportPair
from common.errors import UserError
from common.metrics.baselines import similarities
from retsta_jax.codes import head, terminology
from retsta_jax.consistency import NAMES
from retsta_jax.data import Splits, apart_from
from retsta_jax.matching import find_terms
from retsta_jax.terminology import Term, Terminology

LONGER_THAN = "longer than the model's context, alone with its instruction"


@dataclass(frozen=True)
class Wording:
    """The words of a prompt in one language; `names` shows the other names of a term behind its standard name."""

    instruction: str
    terms: str
    examples: str
    report: str
    standard: str
    names: str
    separator: str


ENGLISH = Wording(
    instruction="Rewrite the last report below as a standard report: every finding that it states as present, "
    "suspected or absent, under its standard name, with side, place and degree where the report gives them. Add no "
    "finding and leave none out. Answer in English only, and write nothing but the standard report.",
    terms="Standard terms, one a line, each with its other names in brackets:",
    examples="Examples:",
    report="Report:",
    standard="Standard report:",
    names=" ({})",
    separator="; ",
)
CHINESE = Wording(
    instruction="请将下面最后一份报告改写为标准报告：用标准术语写出报告中存在、可疑或否定的每一项所见，"
    "并保留报告给出的侧别、部位和程度。不得增加或遗漏所见。只用中文回答，除标准报告外不写任何内容。",
    terms="标准术语，每行一个，括号内为其他名称：",
    examples="示例：",
    report="报告：",
    standard="标准报告：",
    names="（{}）",
    separator="；",
)
CODES = replace(
    ENGLISH,
    instruction="Index the last report below: write the code of every finding that it states, one a line, as finding/"
    "place/qualifiers. Add no finding and leave none out. Write nothing but the codes.",
    terms="Codes, one a line:",
    standard="Codes:",
)
WORDINGS: Mapping[Language, Wording] = {"en": ENGLISH, "zh": CHINESE}


@dataclass(frozen=True)
class Reference:
    """What the prompts of a language share. `needed` gives ids of terms that a report needs, most of all the first."""

    wording: Wording
    language: Language
    terms: tuple[Term, ...]
    shots: tuple[ReportPair, ...]
    needed: Callable[[str], tuple[str, ...]]


@dataclass(frozen=True)
class Prompt:
    """A report's prompt: `left_out` steps of shortening are taken, with examples in the order of `farthest`."""

    pair: ReportPair
    needed: tuple[str, ...] = ()
    farthest: tuple[int, ...] = ()
    left_out: int = 0


@dataclass(frozen=True)
class Kept:
    """The parts of a prompt: lines of terms, the ids of those that lack their other names, examples."""

    terms: tuple[Term, ...]
    bare: frozenset[str]
    shots: tuple[ReportPair, ...]


def make_references(
    languages: Iterable[Language],
    splits: Splits,
    form: str,
    terms: Terminology | None,
    shots: int,
    seed: int,
) -> dict[Language, Reference]:
    """The reference of each language: with the names of `terms`, or with the codes of the training split where the
    targets are codes (`form` openi, as `scored_as` gives it). None: no terms.

    Raises UserError where the training split has too few examples, or the terminology no names in the
    language.
    """
    references = {}
    for language in sorted(set(languages)):
        own: tuple[Term, ...] = ()
        needed: Callable[[str], tuple[str, ...]] = _none
        if terms is not None and form == "openi":
            own, needed = code_terms(splits.train)
        elif terms is not None:
            own = tuple(term for term in terms.terms if language in terms.languages and own_name(term, language))
            if not own:
                raise UserError(
                    f"the terminology has no names in {NAMES[language]}, in which there are reports; give "
                    f"--terminology FILE with a column {language}, or leave --terminology out"
                )
            needed = functools.partial(needed_terms, terms=terms, language=language)
        chosen = choose_shots(splits, language, shots, seed)
        wording = CODES if form == "openi" else WORDINGS[language]
        references[language] = Reference(wording, language, own, chosen, needed)
    return references


def choose_shots(splits: Splits, language: Language, count: int, seed: int) -> tuple[ReportPair, ...]:
    """Examples from the training split, drawn by the seed for each language.

    None of them has a source or a target that stands in validation or test. Raises UserError where there are too few.
    """
    kept_apart = apart_from([*splits.validation, *splits.test])
    usable = [pair for pair in splits.train if pair.language == language and kept_apart(pair)]
    if len(usable) < count:
        raise UserError(
            f"--shots {count}: the training split has {len(usable)} reports in {NAMES[language]} whose texts are not "
            "in validation or test; ask for so many at most"
        )
    order = np.random.default_rng([seed, *language.encode()]).permutation(len(usable))
    return tuple(usable[index] for index in order[:count])


def needed_terms(report: str, terms: Terminology, language: Language) -> tuple[str, ...]:
    """Ids of the terms that a report mentions, of all broader ones, and of those related to what it mentions."""
    found = [match.term for match in find_terms(report, terms, language)]
    broader = []
    for id_ in dict.fromkeys(found):
        while (id_ := terms.by_id[id_].broader) in terms.by_id and id_ not in broader:
            broader.append(id_)
    related = [other for id_ in found for other in terms.by_id[id_].related if other in terms.by_id]
    return tuple(dict.fromkeys([*found, *broader, *related]))


def code_terms(train: Sequence[ReportPair]) -> tuple[tuple[Term, ...], Callable[[str], tuple[str, ...]]]:
    """The codes of training targets, the most frequent first, and which of them a report needs: those of its words."""
    codes = terminology(train)
    heads = Terminology(tuple(Term(id=name, en=name) for name in dict.fromkeys(map(head, codes)) if name), ("en",))

    def needed(report: str) -> tuple[str, ...]:
        found = {match.term for match in find_terms(report, heads, "en")}
        return tuple(code for code in codes if head(code) in found)

    return tuple(Term(id=code, en=code) for code in codes), needed


def own_name(term: Term, language: Language) -> str:
    """The standard name in the language, "" where there is none."""
    return term.zh if language == "zh" else term.en


def prompt_text(reference: Reference, prompt: Prompt) -> str:
    """The whole prompt, as one message of the user or as the beginning of a text."""
    wording, kept = reference.wording, kept_parts(reference, prompt)
    parts = [wording.instruction]
    if kept.terms:
        lines = (term_line(term, reference, bare=term.id in kept.bare) for term in kept.terms)
        parts.append("\n".join([wording.terms, *lines]))
    if kept.shots:
        parts.append(wording.examples)
    parts += [_example(wording, shot) for shot in kept.shots]
    parts.append(f"{wording.report}\n{prompt.pair.source}\n{wording.standard}\n")
    return "\n\n".join(parts)


def _example(wording: Wording, shot: ReportPair) -> str:
    return f"{wording.report}\n{shot.source}\n{wording.standard}\n{shot.target}"


def term_line(term: Term, reference: Reference, *, bare: bool) -> str:
    """The standard name, and behind it the other names unless it is to be `bare`."""
    others = () if bare else term.synonyms(reference.language)
    shown = reference.wording.names.format(reference.wording.separator.join(others)) if others else ""
    return own_name(term, reference.language) + shown


def kept_parts(reference: Reference, prompt: Prompt) -> Kept:
    """What is left of terms and examples after the steps of shortening that a prompt takes."""
    left_out = prompt.left_out
    spare, named = _spare(reference, prompt.needed), _named(reference, prompt.needed)

    def last(items: Sequence[str]) -> list[str]:
        nonlocal left_out
        taken = list(items[max(len(items) - left_out, 0) :])
        left_out -= len(taken)
        return taken

    gone = set(last(spare))
    bare = frozenset(last(named))
    dropped = set(prompt.farthest[:left_out])
    left_out -= len(dropped)
    gone |= set(last(prompt.needed))
    terms = tuple(term for term in reference.terms if term.id not in gone)
    shots = tuple(shot for place, shot in enumerate(reference.shots) if place not in dropped)
    return Kept(terms, bare - gone, shots)


def fit_prompts(
    pairs: Sequence[ReportPair],
    references: Mapping[Language, Reference],
    count: Callable[[str], int],
    limit: int | None,
    train: Sequence[ReportPair],
) -> tuple[list[Prompt], Quarantine]:
    """A prompt of at most `limit` tokens, as `count` counts those of a text, for each pair; None: of any length.

    A report that does not fit after all steps is quarantined. The training split says how frequent words are.
    """
    prompts = [Prompt(pair) for pair in pairs]
    quarantine = Quarantine()
    if limit is None:
        return prompts, quarantine
    sizes = [count(prompt_text(references[prompt.pair.language], prompt)) for prompt in prompts]
    pieces = functools.cache(lambda text: count(text) - count(""))
    long = [place for place, size in enumerate(sizes) if size > limit]
    fitted: dict[int, Prompt | None] = {}
    for language, reference in references.items():
        places = [place for place in long if pairs[place].language == language]
        orders = farthest_shots(reference, [pairs[place].source for place in places], train)
        for place, order in zip(places, orders, strict=True):
            there = {term.id for term in reference.terms}
            needed = tuple(id_ for id_ in reference.needed(pairs[place].source) if id_ in there)
            prompt = Prompt(pairs[place], needed, order)
            fitted[place] = _shortened(reference, prompt, count, pieces, sizes[place], limit)
    kept = []
    for place, prompt in enumerate(prompts):
        fitting = fitted.get(place, prompt)
        if fitting is None:
            quarantine.add(prompt.pair.id, LONGER_THAN)
        else:
            kept.append(fitting)
    return kept, quarantine


def farthest_shots(reference: Reference, sources: Sequence[str], train: Sequence[ReportPair]) -> list[tuple[int, ...]]:
    """For each source the examples by their likeness to it, the least like first, the first of equals before others."""
    if not sources or not reference.shots:
        return [()] * len(sources)
    known = [pair.source for pair in train if pair.language == reference.language]
    shots = [shot.source for shot in reference.shots]
    rows = similarities(known, shots, sources, language=reference.language)
    return [tuple(sorted(range(len(shots)), key=row.__getitem__)) for row in rows]


def _shortened(
    reference: Reference,
    prompt: Prompt,
    count: Callable[[str], int],
    pieces: Callable[[str], int],
    whole: int,
    limit: int,
) -> Prompt | None:
    """The prompt after as few steps as make it fit; None where all do not.

    The number of steps is guessed from the tokens of `pieces` by themselves and of the `whole` prompt, and looked for
    around that: prompts are long, and few of them are to be encoded.
    """
    removed = list(map(pieces, _removable(reference, prompt)))
    left = whole - np.cumsum([0, *removed])

    def fits(left_out: int) -> bool:
        return count(prompt_text(reference, replace(prompt, left_out=left_out))) <= limit

    if not fits(len(removed)):
        return None
    guess = int(np.argmax(left <= limit)) if left[-1] <= limit else len(removed)
    return replace(prompt, left_out=least(fits, len(removed), guess))


def least(fits: Callable[[int], bool], last: int, guess: int) -> int:
    """The least of 0 to `last` that fits, where all that are greater fit as well; found fast where near the `guess`."""
    width, low, high = 1, 0, last
    if fits(guess):
        high = guess
        while high and fits(max(high - width, 0)):
            high, width = max(high - width, 0), 2 * width
        low = max(high - width + 1, 0)
    else:
        low = guess + 1
        while low < last and not fits(min(low + width, last)):
            low, width = min(low + width, last) + 1, 2 * width
        high = min(low + width, last)
    while low < high:
        middle = (low + high) // 2
        low, high = (low, middle) if fits(middle) else (middle + 1, high)
    return high


def _removable(reference: Reference, prompt: Prompt) -> list[str]:
    """What each step of shortening takes out of a prompt, in order."""
    by_id = {term.id: term for term in reference.terms}

    def line(id_: str, *, bare: bool) -> str:
        return term_line(by_id[id_], reference, bare=bare) + "\n"

    named = _named(reference, prompt.needed)
    return [
        *(line(id_, bare=False) for id_ in reversed(_spare(reference, prompt.needed))),
        *(line(id_, bare=False).removeprefix(own_name(by_id[id_], reference.language)) for id_ in reversed(named)),
        *(_example(reference.wording, reference.shots[place]) + "\n\n" for place in prompt.farthest),
        *(line(id_, bare=True) for id_ in reversed(prompt.needed)),
    ]


def _spare(reference: Reference, needed: Sequence[str]) -> list[str]:
    """The terms that a report does not need, in the order of the table."""
    return [term.id for term in reference.terms if term.id not in needed]


def _named(reference: Reference, needed: Sequence[str]) -> list[str]:
    """The needed terms that have other names, in their own order."""
    named = {term.id for term in reference.terms if term.synonyms(reference.language)}
    return [id_ for id_ in needed if id_ in named]


def _none(report: str) -> tuple[str, ...]:
    return ()
