"""Scores of sets of codes, worked by hand."""

import pytest

from common.errors import UserError
from common.metrics.codes import evaluate_codes, heads


def scores(predictions: list[set[str]], references: list[set[str]]) -> dict[str, float]:
    return {key: score["value"] for key, score in evaluate_codes(predictions, references, intervals=False).items()}


def test_full_codes_and_heads_worked_by_hand() -> None:
    result = scores(
        [{"Opacity/lung/left", "Cardiomegaly"}, {"normal"}, {"Nodule"}],
        [{"Opacity/lung/right", "Cardiomegaly", "Edema"}, {"normal"}, {"Granuloma"}],
    )
    # Full: 2 right of 4 predicted and 5 expected; report F1 2/5, 1, 0. Heads: 3 right; report F1 4/5, 1, 0.
    assert result == pytest.approx(
        {
            "codes/precision": 2 / 4,
            "codes/recall": 2 / 5,
            "codes/F1": 4 / 9,
            "codes/mean-F1": (2 / 5 + 1 + 0) / 3,
            "codes/exact-match": 1 / 3,
            "heads/precision": 3 / 4,
            "heads/recall": 3 / 5,
            "heads/F1": 6 / 9,
            "heads/mean-F1": (4 / 5 + 1 + 0) / 3,
            "heads/exact-match": 1 / 3,
        }
    )


@pytest.mark.parametrize(
    ("predicted", "expected", "values"),
    [
        (set(), set(), [1, 1, 1, 1, 1]),
        (set(), {"normal"}, [0, 0, 0, 0, 0]),
        ({"normal"}, set(), [0, 0, 0, 0, 0]),
    ],
    ids=["both empty", "nothing predicted", "nothing expected"],
)
def test_empty_sets_agree_with_each_other_only(predicted, expected, values) -> None:
    result = scores([predicted], [expected])
    assert [result[f"codes/{name}"] for name in ("precision", "recall", "F1", "mean-F1", "exact-match")] == values


def test_heads_of_two_codes_may_be_one() -> None:
    assert heads({"Opacity/lung/left", "Opacity/lung/right", "normal"}) == {"Opacity", "normal"}
    assert scores([{"Opacity/lung/left"}], [{"Opacity/a", "Opacity/b"}])["heads/exact-match"] == 1


def test_intervals_hold_the_value_and_are_narrow_where_all_reports_agree() -> None:
    predictions = [{"normal"}] * 30 + [{"Edema"}] * 10
    mixed = evaluate_codes(predictions, [{"normal"}] * 40)
    assert mixed["codes/F1"]["low"] < 0.75 == mixed["codes/F1"]["value"] < mixed["codes/F1"]["high"]
    assert evaluate_codes(predictions, predictions)["codes/F1"] == {"value": 1, "low": 1, "high": 1}


def test_unequal_numbers_of_reports_are_refused() -> None:
    with pytest.raises(UserError, match="2 predicted and 1 reference"):
        evaluate_codes([set(), set()], [set()])
    with pytest.raises(UserError, match="at least one"):
        evaluate_codes([], [])
