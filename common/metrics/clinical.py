"""Clinical F1: do two reports state the same findings? By each convention that papers report under that name.

Labels are CheXbert's classes (0 blank, 1 positive, 2 negative, 3 uncertain), one row of 14 a report, ordered as
`FINDINGS`. What a labeler found in the generated reports is compared with what it found in the references.

- `promptmrg`: positive is class 1; precision, recall and F1 of each report over the 14, then their means. DEER on
  MIMIC-CXR and IU X-ray.
- `r2gen`: positive is class 1; micro and macro over the 14.
- `f1chexbert`: positive is class 1 or 3; micro, macro and weighted by support, over the 14 and over CheXpert's 5.
- `macro`: positive is class 1; macro over the 14. DEER on CheXpert Plus.
- `finding`: positive is class 1; the F1 of each of the 14 by itself.

0/0 counts as 0, as in PromptMRG's code and optionally in scikit-learn: a report
without findings that is predicted to have none lowers `promptmrg`.
"""

import functools
from collections.abc import Sequence

import numpy as np
from jaxtyping import Bool, Float, Int

from common.errors import UserError
from common.metrics.bootstrap import Measure, summarize

FINDINGS = (
    "Enlarged Cardiomediastinum",
    "Cardiomegaly",
    "Lung Opacity",
    "Lung Lesion",
    "Edema",
    "Consolidation",
    "Pneumonia",
    "Atelectasis",
    "Pneumothorax",
    "Pleural Effusion",
    "Pleural Other",
    "Fracture",
    "Support Devices",
    "No Finding",
)
BLANK, POSITIVE, NEGATIVE, UNCERTAIN = range(4)
COMPETITION = ("Cardiomegaly", "Edema", "Consolidation", "Atelectasis", "Pleural Effusion")  # CheXpert's 5
PARTS = ("precision", "recall", "F1")

Classes = Int[np.ndarray, "N 14"]
Positive = Bool[np.ndarray, "N K"]


def evaluate_labels(
    predicted: np.ndarray, expected: np.ndarray, *, intervals: bool = True, seed: int = 0
) -> dict[str, dict[str, float]]:
    """Scores by every convention, and of each finding: {"promptmrg/F1": {"value": v, "low": l, "high": h}, ...}.

    low and high are the 95% bootstrap interval over reports, left out with `intervals=False`. Raises UserError where
    the two are not classes [N 14] of as many reports.
    """
    for name, classes in (("predicted", predicted), ("reference", expected)):
        if classes.ndim != 2 or classes.shape[1] != len(FINDINGS) or not np.isin(classes, range(4)).all():
            raise UserError(f"{name} labels: expected rows of {len(FINDINGS)} classes from 0 to 3")
    if len(predicted) != len(expected) or not len(expected):
        raise UserError(
            f"{len(predicted)} predicted and {len(expected)} reference label rows: expected the same number of each, "
            "at least one"
        )
    return summarize(clinical_measures(predicted, expected), with_intervals=intervals, seed=seed)


def clinical_measures(predicted: Classes, expected: Classes) -> list[Measure]:
    """All conventions and the F1 of each finding, for values, intervals and paired differences."""
    sure, known = predicted == POSITIVE, expected == POSITIVE
    maybe, suspected = (np.isin(classes, (POSITIVE, UNCERTAIN)) for classes in (predicted, expected))
    five = [FINDINGS.index(name) for name in COMPETITION]
    return [
        _by_report("promptmrg", sure, known),
        _by_finding("r2gen", sure, known, ("micro", "macro")),
        _by_finding("macro", sure, known, ("macro",)),
        _by_finding("f1chexbert-14", maybe, suspected, ("micro", "macro", "weighted")),
        _by_finding("f1chexbert-5", maybe[:, five], suspected[:, five], ("micro", "macro", "weighted")),
        _each_finding(sure, known),
    ]


def _by_report(name: str, predicted: Positive, expected: Positive) -> Measure:
    right, said, true = (predicted & expected).sum(1), predicted.sum(1), expected.sum(1)
    rows = np.stack([*_scores(right, said, true), np.ones(len(right))], axis=-1)
    return Measure(tuple(f"{name}/{part}" for part in PARTS), rows, lambda totals: totals[..., :3] / totals[..., 3:])


def _by_finding(name: str, predicted: Positive, expected: Positive, averages: Sequence[str]) -> Measure:
    names = tuple(
        f"{name}/{part}" if len(averages) == 1 else f"{name}/{average}-{part}" for average in averages for part in PARTS
    )
    return Measure(names, _counts(predicted, expected), functools.partial(_averaged, averages=averages))


def _each_finding(predicted: Positive, expected: Positive) -> Measure:
    names = tuple(f"finding/{name}" for name in FINDINGS)
    return Measure(names, _counts(predicted, expected), lambda totals: _ratios(totals)[2])


def _counts(predicted: Positive, expected: Positive) -> Float[np.ndarray, "N 3*K"]:
    return np.concatenate([predicted & expected, predicted, expected], axis=1).astype(np.float64)


def _averaged(totals: Float[np.ndarray, "... counts"], averages: Sequence[str]) -> Float[np.ndarray, "... M"]:
    counts = np.split(totals, 3, axis=-1)
    each = _ratios(totals)
    support = counts[2] / np.maximum(counts[2].sum(-1, keepdims=True), 1)
    forms = {
        "micro": _scores(*(count.sum(-1) for count in counts)),
        "macro": [part.mean(-1) for part in each],
        "weighted": [(part * support).sum(-1) for part in each],
    }
    return np.stack([part for average in averages for part in forms[average]], axis=-1)


def _ratios(totals: Float[np.ndarray, "... counts"]) -> list[Float[np.ndarray, "... K"]]:
    return _scores(*np.split(totals, 3, axis=-1))


def _scores(right: np.ndarray, said: np.ndarray, true: np.ndarray) -> list[np.ndarray]:
    """Precision, recall and F1 of counts, 0 where nothing is divided by nothing."""
    pairs = (right, said), (right, true), (2 * right, said + true)
    return [numerator / np.maximum(denominator, 1) for numerator, denominator in pairs]
