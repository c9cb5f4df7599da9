"""Few-shot prompts for models that were not trained here: instruction, standard terms, examples, report (RetSTA, 3.1).

The paper's peers got five examples and its terminology as a reference; its prompt is not published. Here the examples
are the same for all reports of a language, drawn from the training split. What all prompts share comes first.
"""

import functools
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np

from common.data.records import Language, ReportPair
from common.errors import UserError
from retsta_jax.codes import head, terminology
from retsta_jax.data import Splits
from retsta_jax.pairs import apart_from
from retsta_jax.terminology.matching import find_terms
from retsta_jax.terminology.terms import Term, Terminology
from retsta_jax.translation.consistency import NAMES


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
    terms="Standard terms, one per line, each with its other names in brackets:",
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
    instruction="Index the last report below: write the code of every finding that it states, one per line, as finding/"
    "place/qualifiers. Add no finding and leave none out. Write nothing but the codes.",
    terms="Codes, one per line:",
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
                    f"the terminology has no names in {NAMES[language]}, the language of some reports; give "
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
            "in validation or test; give at most that many"
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
    parts += [example_text(wording, shot) for shot in kept.shots]
    parts.append(f"{wording.report}\n{prompt.pair.source}\n{wording.standard}\n")
    return "\n\n".join(parts)


def example_text(wording: Wording, shot: ReportPair) -> str:
    """An example, as a prompt holds it."""
    return f"{wording.report}\n{shot.source}\n{wording.standard}\n{shot.target}"


def term_line(term: Term, reference: Reference, *, bare: bool) -> str:
    """The standard name, and behind it the other names unless it is to be `bare`."""
    others = () if bare else term.synonyms(reference.language)
    shown = reference.wording.names.format(reference.wording.separator.join(others)) if others else ""
    return own_name(term, reference.language) + shown


def kept_parts(reference: Reference, prompt: Prompt) -> Kept:
    """What is left of terms and examples after the steps of shortening that a prompt takes."""
    left_out = prompt.left_out
    spare, named = spare_terms(reference, prompt.needed), named_terms(reference, prompt.needed)

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
    shots = tuple(shot for index, shot in enumerate(reference.shots) if index not in dropped)
    return Kept(terms, bare - gone, shots)


def spare_terms(reference: Reference, needed: Sequence[str]) -> list[str]:
    """The terms that a report does not need, in the order of the table."""
    return [term.id for term in reference.terms if term.id not in needed]


def named_terms(reference: Reference, needed: Sequence[str]) -> list[str]:
    """The needed terms that have other names, in their own order."""
    named = {term.id for term in reference.terms if term.synonyms(reference.language)}
    return [id_ for id_ in needed if id_ in named]


def _none(report: str) -> tuple[str, ...]:
    return ()
