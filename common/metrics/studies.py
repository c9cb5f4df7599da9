"""All scores of the reports that one system wrote for the studies of a data set, with intervals over studies."""

from collections.abc import Mapping, Sequence

import numpy as np

from common.data.phantom_labels import label_report, positive_labels
from common.data.studies import ImageStudy
from common.metrics.bootstrap import summarize
from common.metrics.clinical import evaluate_labels
from common.metrics.codes import code_measure
from common.metrics.text import evaluate_texts, one_line

NO_FINDING = "No Finding"

Scores = dict[str, Mapping[str, float | None]]


def score_reports(texts: Sequence[str], studies: Sequence[ImageStudy], phantoms: bool) -> Scores:
    """Value, low and high of each score by its name: text metrics, and for phantoms how right the findings are.

    "findings/…" are precision, recall and F1 of what a report states or suspects against what was drawn; the clinical
    scores by convention compare with what the reference says. Both read reports by the rules of the phantoms' grammar.
    """
    scores: Scores = {}
    if phantoms:
        # Without "No Finding", which a report that never finds anything would get right often.
        classes = [label_report(text) for text in texts]
        stated = [frozenset(positive_labels(labels)) - {NO_FINDING} for labels in classes]
        known = [frozenset(study.labels) - {NO_FINDING} for study in studies]
        scores |= summarize([code_measure("findings", stated, known)])
        references = [label_report(study.report) for study in studies]
        scores |= evaluate_labels(np.stack(classes), np.stack(references))
    measured = evaluate_texts([one_line(text) for text in texts], [one_line(study.report) for study in studies])
    del measured["notes"]  # METEOR without WordNet is None; `warn_of_absent` says why
    measured["distinct_outputs"] = {"value": measured["distinct_outputs"]}
    return scores | {name: {"value": None} if value is None else value for name, value in measured.items()}
