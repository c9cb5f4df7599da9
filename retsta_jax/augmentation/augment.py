"""More report pairs from few (RetSTA, section 2.2): 10,000 from 2,000.

Syntactic noise and other names of terms leave what a source says, and its target, as they are (`edits.py`). A semantic
perturbation denies, doubts or affirms a finding, and the target changes with it, which the paper does not say
(`perturb.py`). Every edited text is read again by the matcher, and an edit with a wrong reading is drawn again.

A new pair is a function of the seed, the id of its original and the number of its copy. It does not depend on the other
pairs, except for the words for denial and doubt in targets of unknown form, which are learned from all pairs.
"""

import dataclasses
import hashlib
import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import NamedTuple

import numpy as np

from common.bounds import check_numbers
from common.data.records import ReportPair
from common.errors import UserError
from common.io.terminal import printable
from retsta_jax.augmentation.edits import EDITS, Report, read_report, says_the_same
from retsta_jax.augmentation.perturb import CHANGES, TargetWording, known_findings, perturb, read_pair
from retsta_jax.augmentation.restate import learn_wording
from retsta_jax.config import AugmentConfig
from retsta_jax.terminology.check import load_terminology
from retsta_jax.terminology.terms import Terminology

KINDS = (*CHANGES, *EDITS)
INSTEAD = ("synonym", "typo", "punctuation", "merge", "split")  # for a pair of which no kind that was drawn is possible
TRIES = 8  # of an edit at random

Accepts = Callable[[ReportPair], bool]


class Augmented(NamedTuple):
    """A pair, the id of its original, the kinds of change made to it, and those drawn for it that were not possible."""

    pair: ReportPair
    origin: str
    kinds: tuple[str, ...] = ()
    impossible: tuple[str, ...] = ()


class Corpus(NamedTuple):
    """Pairs to augment, their terminology, and how their targets word a status where their form is unknown."""

    pairs: Sequence[ReportPair]
    terms: Terminology
    wording: TargetWording


def augment_pairs(
    pairs: Sequence[ReportPair],
    total: int,
    config: AugmentConfig | None = None,
    terminology: Terminology | None = None,
    seed: int = 0,
    accepts: Accepts = lambda pair: True,
) -> list[ReportPair]:
    """The pairs themselves, then new ones up to `total`: a first copy of each in order, a second, and so on.

    `accepts` says whether a pair may have the target that a perturbation gave it. Raises UserError as `open_corpus`.
    """
    config = config or AugmentConfig()
    corpus = open_corpus(pairs, total, config, terminology)
    return [augmented.pair for augmented in augment(corpus, range(total), config, seed, accepts)]


def open_corpus(
    pairs: Sequence[ReportPair], total: int, config: AugmentConfig, terminology: Terminology | None = None
) -> Corpus:
    """Pairs ready to be augmented.

    Raises UserError where there are none, or more than `total`, where ids would collide, the rates do not suffice, or
    the terminology lacks a language of the pairs.
    """
    terms = load_terminology()  # the very object, which `known_findings` asks for
    if terminology is not None and terminology != terms:
        terms = terminology
    check_numbers(config, "augment.")
    if not pairs:
        raise UserError("augmentation: no pairs; expected at least one")
    if total < len(pairs):
        raise UserError(f"augmentation to {total:,} pairs: there are {len(pairs):,} already; give at least that number")
    if total > len(pairs) and math.fsum(rates_of(config).values()) < 1 - 1e-9:
        raise UserError(
            "augmentation: the rates of all kinds must add up to at least 1, so that every new pair has a change; they "
            f"add up to {math.fsum(rates_of(config).values()):g}"
        )
    for pair in pairs:
        if pair.language not in terms.languages:
            raise UserError(
                f"augmentation: the terminology has no names in {pair.language}, the language of pair "
                f"{printable(pair.id)}; add a column {pair.language}, or leave such pairs out"
            )
    known = {pair.id for pair in pairs}
    if len(known) < len(pairs):
        raise UserError(
            f"augmentation: {len(pairs) - len(known):,} pairs have an id that occurs twice; ids must be unique"
        )
    if clash := next((id_ for id_ in copy_ids(pairs, total) if id_ in known), ""):
        raise UserError(f"augmentation: {printable(clash)} is the id of a pair and would also be the id of a new pair")
    unknown = (pair for pair in pairs if known_findings(pair.target, pair.language, terms) is None)
    reports = (
        (read_report(pair.source, pair.language, terms), read_report(pair.target, pair.language, terms))
        for pair in unknown
    )
    return Corpus(pairs, terms, learn_wording(reports))


def augment(
    corpus: Corpus, indices: Iterable[int], config: AugmentConfig, seed: int, accepts: Accepts = lambda pair: True
) -> Iterator[Augmented]:
    """Pairs by their index in the whole: first the originals, unchanged, then copy by copy."""
    for index in indices:
        copy, row = divmod(index, len(corpus.pairs))
        pair = corpus.pairs[row]
        yield _augmented(pair, copy, corpus, config, seed, accepts) if copy else Augmented(pair, pair.id)


def _augmented(
    pair: ReportPair, copy: int, corpus: Corpus, config: AugmentConfig, seed: int, accepts: Accepts
) -> Augmented:
    rng = np.random.default_rng([seed, int.from_bytes(hashlib.sha256(pair.id.encode()).digest()[:8]), copy])
    drawn = draw_kinds(config, rng)
    made: list[str] = []
    texts = read_pair(pair.source, pair.target, pair.language, corpus.terms)
    changed: list[str] = []  # terms

    def is_accepted(source: str, target: str) -> bool:
        return accepts(dataclasses.replace(pair, source=source, target=target))

    for kind in CHANGES:
        if kind in drawn and (new := perturb(texts, kind, corpus.wording, rng, but=changed, accepts=is_accepted)):
            texts = new[0]
            changed.append(new[1])
            made.append(kind)
    source = texts.source
    for kind in EDITS:
        if kind in drawn and (edited := _edited(source, kind, int(rng.integers(config.most_edits)) + 1, rng)):
            source = edited
            made.append(kind)
    if source.text == pair.source:  # a slip may undo another name
        made = [kind for kind in made if kind in CHANGES]
    for kind in INSTEAD:
        if not made and (edited := _edited(source, kind, 1, rng)):
            source = edited
            made.append(kind)
    new_pair = dataclasses.replace(pair, id=_copy_id(pair, copy), source=source.text, target=texts.target.text)
    return Augmented(new_pair, pair.id, tuple(made), tuple(kind for kind in drawn if kind not in made))


def _edited(report: Report, kind: str, count: int, rng: np.random.Generator) -> Report | None:
    """The report after up to `count` edits of a kind that leave what it says; None where there is none."""
    edited = report
    for _ in range(count):
        for _ in range(TRIES):
            text = EDITS[kind](edited, rng)
            if text is None:
                break
            if text != edited.text and says_the_same(report, after := read_report(text, report.language, report.terms)):
                edited = after
                break
    return None if edited.text == report.text else edited


def copy_ids(pairs: Sequence[ReportPair], total: int) -> Iterator[str]:
    """The ids of the new pairs in order."""
    return (_copy_id(pairs[index % len(pairs)], index // len(pairs)) for index in range(len(pairs), total))


def _copy_id(pair: ReportPair, copy: int) -> str:
    return f"{pair.id}+{copy}"


# ---- which kinds of change a pair gets


def draw_kinds(config: AugmentConfig, rng: np.random.Generator) -> list[str]:
    """At least one kind of change, each with the probability that is its rate, and no more dependent than that."""
    rates = rates_of(config)
    total = math.fsum(rates.values())
    if total <= 1 + 1e-9:
        return [str(rng.choice(list(rates), p=[rate / total for rate in rates.values()]))]
    share = _share_with_any([*rates.values()])
    while True:
        if drawn := [kind for kind, rate in rates.items() if rng.random() < rate * share]:
            return drawn


def rates_of(config: AugmentConfig) -> dict[str, float]:
    """The rate of each kind."""
    return {kind: getattr(config, kind) for kind in KINDS}


def _share_with_any(rates: Sequence[float]) -> float:
    """The c > 0 with 1 - prod(1 - c r) = c: of independent draws at rates c r, those with any have rates r."""
    low, high = 0.0, 1.0
    for _ in range(60):
        middle = (low + high) / 2
        more = 1 - math.prod(1 - middle * rate for rate in rates) > middle
        low, high = (middle, high) if more else (low, middle)
    return high
