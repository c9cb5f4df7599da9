"""All scores of the reports that one system wrote for the studies of a data set, with intervals over studies."""

from collections.abc import Collection, Mapping, Sequence

import numpy as np

from common.data.readers import ImageStudy
from common.metrics.bootstrap import Measure, paired_difference, summarize, values
from common.metrics.clinical import clinical_measures
from common.metrics.codes import code_measure
from common.metrics.text import distinct_outputs, measures_by_language, one_line
from common.phantoms.labels import label_report, positive_labels

NO_FINDING = "No Finding"

Scores = dict[str, Mapping[str, float | None]]


def score_reports(texts: Sequence[str], studies: Sequence[ImageStudy], phantoms: bool) -> Scores:
    """Value, low and high of each score by its name: text metrics, and for phantoms how right the findings are.

    "findings/…" are precision, recall and F1 of what a report states or suspects against what was drawn; the clinical
    scores by convention compare with what the reference says. Both read reports by the rules of the phantoms' grammar.
    """
    measures, absent = report_measures(texts, studies, phantoms)
    scores: Scores = {**summarize(measures), "distinct_outputs": {"value": distinct_outputs(texts)}}
    return scores | {name: {"value": None} for name in absent}


def compare_reports(
    texts: Sequence[str], baseline: Sequence[str], studies: Sequence[ImageStudy], *, phantoms: bool
) -> dict[str, dict[str, float]]:
    """Each score of `texts` less that of a baseline's reports; for its interval both see the same resampled studies."""
    own, other = (report_measures(each, studies, phantoms)[0] for each in (texts, baseline))
    found: dict[str, dict[str, float]] = {}
    for first, second in zip(own, other, strict=True):
        less = values(second)
        intervals = paired_difference(first, second)
        for name, value in values(first).items():
            found[name] = {"value": value - less[name], "low": intervals[name][0], "high": intervals[name][1]}
    return found


def in_each_language(wanted: Sequence[str], scores: Collection[str]) -> list[str]:
    """The names among `scores` that are `wanted`, in that order, also with the language that begins them ("zh/...")."""
    return [name for one in wanted for name in scores if name.removeprefix("en/").removeprefix("zh/") == one]


def report_measures(
    texts: Sequence[str], studies: Sequence[ImageStudy], phantoms: bool
) -> tuple[list[Measure], Collection[str]]:
    """What `score_reports` scores by, and the names of scores that are absent here (METEOR without WordNet).

    Text metrics are those of each study's language, of two languages each by itself, as in `evaluate_texts`.
    """
    measures: list[Measure] = []
    if phantoms:
        # Without "No Finding", which a report that never finds anything would get right often.
        classes = [label_report(text) for text in texts]
        stated = [frozenset(positive_labels(labels)) - {NO_FINDING} for labels in classes]
        known = [frozenset(study.labels) - {NO_FINDING} for study in studies]
        references = [label_report(study.report) for study in studies]
        measures = [
            code_measure("findings", stated, known),
            *clinical_measures(np.stack(classes), np.stack(references)),
        ]
    lines = [one_line(text) for text in texts], [one_line(study.report) for study in studies]
    told, absent = measures_by_language(*lines, [study.language for study in studies], "all")
    return measures + told, absent
