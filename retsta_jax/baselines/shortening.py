"""Shortening few-shot prompts to fit a model.

A prompt that is too long for the model is shortened by as little as possible, in this order: lines of terms that the
report does not need, from the end of the table; then the other names of the terms that it needs; then examples, the one
least similar to the report (cosine of TF-IDF) first; then the terms that it needs. It needs the terms that the matcher
finds in it, all that are broader than these, and those related to these, and loses them in the opposite order.
Instruction and report always stay.
"""

import functools
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace

import numpy as np

from common.data.records import Language, Quarantine, ReportPair
from common.metrics.baselines import similarities
from common.report.page import Table
from retsta_jax.baselines.few_shot import (
    Prompt,
    Reference,
    example_text,
    kept_parts,
    named_terms,
    own_name,
    prompt_text,
    spare_terms,
    term_line,
)

LONGER_THAN = "longer than the model's context, alone with its instruction"


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
    long = [index for index, size in enumerate(sizes) if size > limit]
    fitted: dict[int, Prompt | None] = {}
    for language, reference in references.items():
        indices = [index for index in long if pairs[index].language == language]
        orders = farthest_shots(reference, [pairs[index].source for index in indices], train)
        for index, order in zip(indices, orders, strict=True):
            there = {term.id for term in reference.terms}
            needed = tuple(id_ for id_ in reference.needed(pairs[index].source) if id_ in there)
            prompt = Prompt(pairs[index], needed, order)
            fitted[index] = _shortened(reference, prompt, count, pieces, sizes[index], limit)
    kept = []
    for index, prompt in enumerate(prompts):
        fitting = fitted.get(index, prompt)
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

    named = named_terms(reference, prompt.needed)
    return [
        *(line(id_, bare=False) for id_ in reversed(spare_terms(reference, prompt.needed))),
        *(line(id_, bare=False).removeprefix(own_name(by_id[id_], reference.language)) for id_ in reversed(named)),
        *(example_text(reference.wording, reference.shots[index]) + "\n\n" for index in prompt.farthest),
        *(line(id_, bare=True) for id_ in reversed(prompt.needed)),
    ]


def summary_of(
    prompts: Sequence[Prompt], references: Mapping[Language, Reference]
) -> dict[Language, dict[str, float | None]]:
    """For each language how many prompts were shortened, and what these keep on average."""
    found: dict[Language, dict[str, float | None]] = {}
    for language, reference in references.items():
        own = [prompt for prompt in prompts if prompt.pair.language == language]
        shorter = [(prompt, kept_parts(reference, prompt)) for prompt in own if prompt.left_out]
        kept = [parts for _, parts in shorter]
        found[language] = {
            "reports": len(own),
            "shortened": len(kept),
            "terms": len(reference.terms),
            "terms_kept": _mean([len(parts.terms) for parts in kept]),
            "terms_without_other_names": _mean([len(parts.bare) for parts in kept]),
            "needed_left_out": sum(bool(set(p.needed) - {t.id for t in k.terms}) for p, k in shorter),
            "shots": len(reference.shots),
            "shots_kept": _mean([len(parts.shots) for parts in kept]),
        }
    return found


def _mean(values: Sequence[int]) -> float | None:
    return float(np.mean(values)) if values else None


def shortening_table(found: Mapping[Language, Mapping[str, float | None]]) -> Table:
    """What was left out of prompts, as a table of the page."""
    names = {
        "reports": "reports",
        "shortened": "prompts that were too long and were shortened",
        "terms": "terms in a whole prompt",
        "terms_kept": "terms in a shortened one, mean",
        "terms_without_other_names": "of these without their other names, mean",
        "needed_left_out": "prompts that lack a term that the report needs",
        "shots": "examples in a whole prompt",
        "shots_kept": "examples in a shortened one, mean",
    }

    def shown(value: float | None) -> str:
        return "–" if value is None else f"{value:,.1f}".removesuffix(".0")

    rows = [(text, *(shown(own[name]) for own in found.values())) for name, text in names.items()]
    lead = (
        "Left out first: terms that the report does not need; then other names of those that it needs; then the "
        "examples least like it; and only then what it needs."
    )
    return Table("Prompts", lead, ("", *found), rows)
