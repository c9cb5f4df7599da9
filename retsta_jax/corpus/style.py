"""A writing style: which of the phrases an author uses, and how often. The styles are in `styles.py`."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

from common.data.records import Language
from retsta_jax.corpus.phrases import PHRASES, Phrases

Split = Literal["train", "validation", "test"]

SPLITS: tuple[Split, ...] = ("train", "validation", "test")


@dataclass(frozen=True)
class Style:
    """One way to write. Numbers without a word are probabilities, several of one field weights.

    split: the split that uses the style in a corpus held out by styles.
    grouping: findings by eye, those of both eyes first, each finding with its own eye.
    names: standard names, synonyms, abbreviations (where a term has them).
    eye_behind: a report whose eyes stand behind their findings; for findings with their own eye alone.
    same_as: "left as right", where both eyes are alike.
    bulleted: a report with each finding on a line of its own under its eye.
    numbered: a report with numbers before its sentences.
    new_sentence: what is denied or suspected begins a sentence, not a clause.
    enumerated: neighbours of one status share their denial or hedge.
    verbs: a finding that is there says so; shuffled: findings in no order; run_on: no punctuation between findings.
    remarks: each of an opening, numbers, places and a closing that state nothing.
    small_letters: the whole report in lower case.
    """

    name: str
    split: Split
    phrases: Phrases
    grouping: tuple[float, float, float] = (0.4, 0.6, 0.0)
    names: tuple[float, float, float] = (0.3, 0.6, 0.1)
    eye_behind: float = 0.0
    same_as: float = 0.15
    bulleted: float = 0.0
    numbered: float = 0.0
    new_sentence: float = 0.0
    enumerated: float = 0.7
    verbs: float = 0.2
    shuffled: float = 0.4
    run_on: float = 0.0
    remarks: float = 0.12
    final_stop: float = 0.9
    small_letters: bool = False


def phrases_of(language: Language, eyes: Sequence[int], **chosen: Any) -> Phrases:
    """The phrases of a language with these labels of the eyes, by their indices, and these of the other phrases."""
    labels = {eye: tuple(names[index] for index in eyes) for eye, names in PHRASES[language].eyes.items()}
    return replace(PHRASES[language], eyes=labels, **chosen)
