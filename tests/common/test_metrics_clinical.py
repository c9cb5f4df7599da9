"""Clinical F1 by convention: against scikit-learn, and worked by hand where something is empty."""

import numpy as np
import pytest
from sklearn.metrics import precision_recall_fscore_support

from common.errors import UserError
from common.metrics.clinical import COMPETITION, FINDINGS, evaluate_labels

PARTS = ("precision", "recall", "F1")


def labels(*reports: dict[str, int]) -> np.ndarray:
    return np.array([[report.get(name, 0) for name in FINDINGS] for report in reports])


def scores(predicted, expected):
    return {name: score["value"] for name, score in evaluate_labels(predicted, expected, intervals=False).items()}


@pytest.mark.parametrize("reports", [1, 7, 300])
def test_every_average_is_scikit_learns(reports):
    random = np.random.default_rng(reports)
    predicted, expected = random.choice(4, (2, reports, 14), p=[0.6, 0.2, 0.1, 0.1])
    found = scores(predicted, expected)
    five = [FINDINGS.index(name) for name in COMPETITION]
    sure, known = predicted == 1, expected == 1
    maybe, suspected = np.isin(predicted, (1, 3)), np.isin(expected, (1, 3))
    averages = ("micro", "macro", "weighted")
    peers = {
        "promptmrg/": (known, sure, "samples"),
        "r2gen/micro-": (known, sure, "micro"),
        "r2gen/macro-": (known, sure, "macro"),
        "macro/": (known, sure, "macro"),
        **{f"f1chexbert-14/{kind}-": (suspected, maybe, kind) for kind in averages},
        **{f"f1chexbert-5/{kind}-": (suspected[:, five], maybe[:, five], kind) for kind in averages},
    }
    assert len(found) == 3 * len(peers) + len(FINDINGS)
    for prefix, (true, said, average) in peers.items():
        theirs = precision_recall_fscore_support(true, said, average=average, zero_division=0)[:3]
        np.testing.assert_allclose([found[prefix + part] for part in PARTS], theirs, rtol=1e-12)
    theirs = precision_recall_fscore_support(known, sure, average=None, zero_division=0)[2]
    np.testing.assert_allclose([found[f"finding/{name}"] for name in FINDINGS], theirs, rtol=1e-12)


def test_what_is_uncertain_counts_for_f1chexbert_alone():
    found = scores(labels({"Edema": 3}), labels({"Edema": 1}))
    assert found["f1chexbert-14/micro-F1"] == found["f1chexbert-5/micro-F1"] == 1
    assert found["promptmrg/F1"] == found["r2gen/micro-F1"] == found["macro/F1"] == 0


def test_reports_without_findings_on_both_sides_count_as_wrong():
    both = labels({"Edema": 1}, {"Edema": 2})
    found = scores(both, both)
    assert found["promptmrg/F1"] == 0.5
    assert found["r2gen/micro-F1"] == 1
    assert found["macro/F1"] == pytest.approx(1 / 14)
    assert found["f1chexbert-14/weighted-F1"] == 1
    nothing = labels({}, {"Fracture": 2})
    assert set(scores(nothing, nothing).values()) == {0}


def test_a_macro_average_does_not_depend_on_how_often_a_finding_is_there():
    expected = labels(*[{"Edema": 1}] * 9, {"Fracture": 1})
    found = scores(labels(*[{"Edema": 1}] * 10), expected)
    assert found["r2gen/micro-F1"] == pytest.approx(0.9)
    assert found["r2gen/macro-F1"] == pytest.approx(2 * 9 / 19 / 14)
    assert found["f1chexbert-14/weighted-F1"] == pytest.approx(0.9 * 18 / 19)


def test_intervals_hold_the_value():
    random = np.random.default_rng(0)
    predicted, expected = random.choice(4, (2, 60, 14), p=[0.5, 0.3, 0.1, 0.1])
    for score in evaluate_labels(predicted, expected).values():
        assert score["low"] <= score["value"] <= score["high"]
        assert score["low"] < score["high"]


@pytest.mark.parametrize(
    ("predicted", "expected", "words"),
    [
        (labels({}), labels({}, {}), "1 predicted and 2 reference"),
        (labels({}, {}) + 4, labels({}, {}), "predicted labels: expected rows of 14 classes from 0 to 3"),
        (labels({}), labels({})[:, :13], "reference labels"),
        (np.zeros((0, 14), int), np.zeros((0, 14), int), "at least one"),
    ],
)
def test_what_is_no_set_of_labels_is_refused(predicted, expected, words):
    with pytest.raises(UserError, match=words):
        evaluate_labels(predicted, expected)
