"""Content of a report besides its findings: numbers of the visit, places and degrees that state nothing."""

import functools

import numpy as np

from common.data.records import Language
from retsta_jax.corpus.findings import FORMS
from retsta_jax.corpus.fundus import choose
from retsta_jax.terminology.check import load_terminology
from retsta_jax.terminology.terms import Term


def mentionable(kind: str) -> tuple[Term, ...]:
    """The terms of a kind of QUALIFIERS that remarks may name; words for the eyes are labels."""
    return _mentionable(kind, load_terminology().terms)


@functools.lru_cache(maxsize=8)
def _mentionable(kind: str, terms: tuple[Term, ...]) -> tuple[Term, ...]:
    return tuple(term for term in terms if term.kind == kind and not names_an_eye(term))


def names_an_eye(term: Term) -> bool:
    """Whether the term is a word for an eye or for both, as some tables have them among the places."""
    eyes = {name.lower() for form in FORMS.values() for name in form.eyes.values()}
    return bool({term.zh, term.en.lower()} & eyes)


def figures(rng: np.random.Generator, language: Language) -> dict[str, str]:
    """Numbers of a visit that state no finding of the fundus, by the names that `Phrases.figures` uses."""

    def number(low: int, high: int) -> str:
        return str(int(rng.integers(low, high + 1)))

    visions = ("0.1", "0.3", "0.5", "0.6", "0.8", "1.0") if language == "zh" else ("20/200", "20/40", "6/9", "6/12")
    return {
        "vision": choose(rng, visions),
        "other_vision": choose(rng, visions),
        "pressure": number(10, 21),
        "other_pressure": number(10, 21),
        "years": number(2, 30),
        "months": choose(rng, ("1", "3", "6", "12")),
        "age": number(18, 90),
        "images": number(1, 6),
        "sugar": f"{number(5, 14)}.{number(0, 9)}",
    }
