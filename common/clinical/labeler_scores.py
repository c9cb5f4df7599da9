"""Evaluation of a labeler on labelled reports: F1 of each label with intervals, compared with a constant answer.

F1 is that of class 1, positive. The best constant answer under F1 is that every label is positive in every report; a
label that no report has scores 0 whatever is answered, and stays out of `macro`.
"""

from collections.abc import Sequence

import numpy as np
from jaxtyping import Bool, Float

from common.clinical.labeler import Labeler, label_texts
from common.clinical.labelled_reports import LabeledReport
from common.io.numbers import interval_text, score_text
from common.io.tables import markdown_table
from common.metrics.bootstrap import Measure, mean_measure, summarize
from common.metrics.clinical import POSITIVE

Scores = dict[str, dict[str, float]]


def score_labeler(labeler: Labeler, reports: Sequence[LabeledReport], batch_size: int = 32) -> dict[str, Scores]:
    """Scores of the labeler and of the constant answer on these reports, and `support`, positives of each label.

    {"labeler": {"F1/Edema": {"value", "low", "high"}, ..., "F1/macro", "F1/micro", "classes", "reports"}, ...}, where
    `classes` is the share of labels with the right class and `reports` the share of reports with all of them.
    """
    expected = np.array([report.labels for report in reports])
    ids = [report.id for report in reports]
    found = label_texts(labeler, [report.text for report in reports], batch_size, ids).classes
    constant = np.full_like(expected, POSITIVE)
    labels = labeler.config.labels
    scores = {
        name: _scores(labels, classes, expected) for name, classes in (("labeler", found), ("constant", constant))
    }
    support = (expected == POSITIVE).sum(0).tolist()
    return scores | {"support": {label: {"value": float(count)} for label, count in zip(labels, support, strict=True)}}


def as_markdown(scores: dict[str, Scores]) -> str:
    """A table of them, one label a line."""
    rows: list[tuple[str, ...]] = []
    for name, own in scores["labeler"].items():
        if name.startswith("F1/"):
            label = name.removeprefix("F1/")
            support = scores["support"].get(label, {"value": None})["value"]
            constant = score_text(scores["constant"][name]["value"])
            value = "none to find" if support == 0 else interval_text(own)
            rows.append((label, "" if support is None else f"{support:.0f}", value, constant))
    for name, meaning in (("classes", "right classes"), ("reports", "reports with all classes right")):
        constant = score_text(scores["constant"][name]["value"])
        rows.append((meaning, "", interval_text(scores["labeler"][name]), constant))
    return markdown_table(("label", "positive", "F1 [95% interval]", "constant"), rows)


def _scores(labels: Sequence[str], found: np.ndarray, expected: np.ndarray) -> Scores:
    right = found == expected
    measures = [
        f1_measure(labels, found == POSITIVE, expected == POSITIVE),
        mean_measure("classes", right.mean(1)),
        mean_measure("reports", right.all(1).astype(np.float64)),
    ]
    return summarize(measures)


def f1_measure(labels: Sequence[str], found: Bool[np.ndarray, "N K"], expected: Bool[np.ndarray, "N K"]) -> Measure:
    """`F1/LABEL` of each label, their mean over labels that occur in `expected` (macro), and F1 of all together."""
    occurs = expected.any(0)

    def score(totals: Float[np.ndarray, "... counts"]) -> Float[np.ndarray, "... M"]:
        right, said_and_true = np.split(totals, 2, axis=-1)
        each = 2 * right / np.maximum(said_and_true, 1)
        macro = each[..., occurs].mean(-1, keepdims=True) if occurs.any() else np.zeros_like(each[..., :1])
        micro = 2 * right.sum(-1, keepdims=True) / np.maximum(said_and_true.sum(-1, keepdims=True), 1)
        return np.concatenate([each, macro, micro], axis=-1)

    rows = np.concatenate([found & expected, found.astype(int) + expected], axis=1).astype(np.float64)
    return Measure(tuple(f"F1/{label}" for label in (*labels, "macro", "micro")), rows, score)
