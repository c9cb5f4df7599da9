"""All scores of the reports that systems generated for the same studies, with intervals over studies.

Text metrics always; where a labeler says which findings a report states, clinical F1 by each convention against what
the reference states; and where the studies have labels of their own in the labeler's words, as phantoms have what was
drawn, "findings/…": precision, recall and F1 of what a report states or suspects against these.
"""

from collections.abc import Collection, Mapping, Sequence
from typing import NamedTuple

import numpy as np
from jaxtyping import Int

from common.clinical.report_labeler import PhantomRules, ReportLabeler, label_lists
from common.data.readers import ImageStudy
from common.metrics.bootstrap import Measure, paired_difference, summarize, values
from common.metrics.clinical import POSITIVE, UNCERTAIN, clinical_measures
from common.metrics.codes import code_measure
from common.metrics.text import distinct_outputs, measures_by_language, one_line

NO_FINDING = "No Finding"
KNOWN, FOUND = ("findings/F1",), ("promptmrg/F1", "f1chexbert-14/micro-F1")  # see `leading_scores`

Scores = dict[str, Mapping[str, float | None]]


class Measured(NamedTuple):
    """What one system's reports are scored by: measures over studies, the names of scores that are absent here
    (METEOR without WordNet), the share of different reports, and the classes that a labeler found in the references
    and in the reports, [N K] each.
    """

    measures: list[Measure]
    absent: Collection[str]
    distinct: float
    labels: tuple[Int[np.ndarray, "N 14"], Int[np.ndarray, "N 14"]] | None = None


def default_labeler(layout: str) -> ReportLabeler | None:
    """What labels the reports of a data set of that layout where no labeler is named: rules those of phantoms."""
    return PhantomRules() if layout == "phantom" else None


def score_systems(
    outputs: Mapping[str, Sequence[str]], studies: Sequence[ImageStudy], labeler: ReportLabeler | None
) -> dict[str, Scores]:
    """Value, low and high of each score by its name, of each system. Raises UserError as `label_lists` does."""
    return {name: scores_of(system) for name, system in measure_systems(outputs, studies, labeler)[0].items()}


def scores_of(system: Measured) -> Scores:
    """Value, low and high of each score by its name."""
    scores: Scores = {**summarize(system.measures), "distinct_outputs": {"value": system.distinct}}
    return scores | {name: {"value": None} for name in system.absent}


def difference(system: Measured, baseline: Measured) -> dict[str, dict[str, float]]:
    """Each score that both have, of a system less a baseline; for its interval both see the same resampled studies."""
    found: dict[str, dict[str, float]] = {}
    others = {measure.names: measure for measure in baseline.measures}
    for first in system.measures:
        if (second := others.get(first.names)) is None:
            continue
        less = values(second)
        intervals = paired_difference(first, second)
        for name, value in values(first).items():
            found[name] = {"value": value - less[name], "low": intervals[name][0], "high": intervals[name][1]}
    return found


def measure_systems(
    outputs: Mapping[str, Sequence[str]], studies: Sequence[ImageStudy], labeler: ReportLabeler | None
) -> tuple[dict[str, Measured], list[str]]:
    """What each system's reports are scored by, and notes on texts that the labeler did not read whole.

    Text metrics are those of each study's language, of two languages each by itself, as in `evaluate_texts`. Raises
    UserError as `label_lists` does.
    """
    clinical: dict[str, list[Measure]] = {name: [] for name in outputs}
    labels: dict[str, tuple[np.ndarray, np.ndarray]] = {}
    notes: list[str] = []
    references = [study.report for study in studies]
    if labeler is not None:
        (expected, *found), labelled = label_lists(
            labeler, [references, *outputs.values()], [study.id for study in studies]
        )
        notes = [*labelled.notes().values()]
        for name, classes in zip(outputs, found, strict=True):
            labels[name] = expected, classes
            clinical[name] = [*known_measures(classes, studies, labeler), *clinical_measures(classes, expected)]
    systems = {}
    for name, texts in outputs.items():
        lines = [*map(one_line, texts)], [*map(one_line, references)]
        told, absent = measures_by_language(*lines, [study.language for study in studies], "all")
        systems[name] = Measured(clinical[name] + told, absent, distinct_outputs(texts), labels.get(name))
    return systems, notes


def known_measures(
    classes: Int[np.ndarray, "N 14"], studies: Sequence[ImageStudy], labeler: ReportLabeler
) -> list[Measure]:
    """How right the findings are that reports state or suspect, where the studies have labels of their own.

    Without "No Finding", which a report that never finds anything would get right often.
    """
    if not all(study.labels for study in studies) or not labels_of(studies) <= {*labeler.labels}:
        return []
    names = np.array(labeler.labels)
    stated = [frozenset(names[np.isin(row, (POSITIVE, UNCERTAIN))]) - {NO_FINDING} for row in classes]
    return [code_measure("findings", stated, [frozenset(study.labels) - {NO_FINDING} for study in studies])]


def labels_of(studies: Sequence[ImageStudy]) -> set[str]:
    """All labels that studies have."""
    return {label for study in studies for label in study.labels}


def leading_scores(scores: Collection[str]) -> tuple[str, ...]:
    """The clinical scores by which a system is judged first: of known findings, else of those that a labeler finds."""
    return next((names for names in (KNOWN, FOUND) if {*names} <= {*scores}), ())


def in_each_language(wanted: Sequence[str], scores: Collection[str]) -> list[str]:
    """The names among `scores` that are `wanted`, in that order, also with the language that begins them ("zh/...")."""
    return [name for one in wanted for name in scores if name.removeprefix("en/").removeprefix("zh/") == one]
