"""Findings of a report beside those of its reference: right, missed or invented.

A finding is a statement with its certainty and its place. "No edema" is one, and "left eye: drusen" another than
"right eye: drusen": what differs in either is missed on one side and invented on the other. Words do not count.
"""

from collections.abc import Callable, Iterable, Sequence
from typing import NamedTuple

import numpy as np
from jaxtyping import Int

from common.clinical.report_labeler import ReportLabeler
from common.metrics.clinical import NEGATIVE, POSITIVE, UNCERTAIN

WORDS = {POSITIVE: "", UNCERTAIN: "possible ", NEGATIVE: "no "}  # before a label; a blank one states nothing


class Marks(NamedTuple):
    """The findings of an output and of its reference, as texts: those of both, and those of one alone."""

    right: Sequence[str] = ()
    missed: Sequence[str] = ()
    invented: Sequence[str] = ()


class Tally(NamedTuple):
    """How many findings of so many reports are right, missed and invented."""

    reports: int
    right: int
    missed: int
    invented: int


# find(numbers of references, outputs) -> the marks of each output
Find = Callable[[Sequence[int], Sequence[str]], Sequence[Marks]]


def mark_findings(reference: Iterable[str], output: Iterable[str]) -> Marks:
    """The findings of an output, each marked by whether its reference states the same one."""
    expected, found = dict.fromkeys(reference), dict.fromkeys(output)
    return Marks(
        [one for one in expected if one in found],
        [one for one in expected if one not in found],
        [one for one in found if one not in expected],
    )


def mark_labels(expected: Int[np.ndarray, "N K"], found: Int[np.ndarray, "N K"], labels: Sequence[str]) -> list[Marks]:
    """The marks of N reports whose findings are the classes that a labeler gave to K labels."""

    def stated(classes: np.ndarray) -> list[str]:
        return [WORDS[one] + label for one, label in zip(classes.tolist(), labels, strict=True) if one in WORDS]

    return [mark_findings(stated(one), stated(other)) for one, other in zip(expected, found, strict=True)]


def label_finder(labeler: ReportLabeler | None, references: Sequence[str]) -> Find | None:
    """What marks outputs by the labels of a labeler; None without one."""
    if labeler is None:
        return None

    def find(numbers: Sequence[int], outputs: Sequence[str]) -> list[Marks]:
        classes = labeler.label([*(references[number] for number in numbers), *outputs]).classes
        return mark_labels(classes[: len(numbers)], classes[len(numbers) :], labeler.labels)

    return find


def tally(marks: Sequence[Marks]) -> Tally:
    """The counts of all marks."""
    return Tally(len(marks), *(sum(map(len, kind)) for kind in zip(*marks, strict=True)) if marks else (0, 0, 0))
