"""Intervals against theory, against resampling the texts themselves, and in pairs."""

import numpy as np
import pytest

from common.metrics.bootstrap import Measure, intervals, mean_measure, paired_difference, resampled_scores, values
from common.metrics.codes import code_measure
from common.metrics.overlap import coco_bleu, ngram_statistics, nltk_bleu


def test_interval_of_a_mean_is_near_the_normal_one() -> None:
    sample = np.random.default_rng(0).normal(5, 2, 4000)
    low, high = intervals(mean_measure("mean", sample), resamples=2000)["mean"]
    margin = 1.96 * sample.std() / np.sqrt(len(sample))
    assert (low, high) == pytest.approx((sample.mean() - margin, sample.mean() + margin), abs=0.01)


@pytest.mark.parametrize("bleu", [coco_bleu, nltk_bleu])
def test_a_resample_scores_as_the_resampled_texts_do(bleu) -> None:
    words = np.random.default_rng(1)
    predictions = [words.choice(list("abcd"), size=words.integers(0, 12)).tolist() for _ in range(25)]
    references = [words.choice(list("abcd"), size=words.integers(1, 12)).tolist() for _ in range(25)]
    scores = resampled_scores(bleu(ngram_statistics(predictions, references)), resamples=20, seed=7)
    draws = np.random.default_rng(7)
    for score in scores:
        drawn = draws.integers(25, size=25)
        expected = values(bleu(ngram_statistics([predictions[i] for i in drawn], [references[i] for i in drawn])))
        assert score == pytest.approx(list(expected.values()), rel=1e-12)


def test_one_report_has_an_interval_of_no_width() -> None:
    assert intervals(mean_measure("mean", np.array([0.3]))) == {"mean": (pytest.approx(0.3), pytest.approx(0.3))}


def test_pairs_are_resampled_together() -> None:
    sample = np.random.default_rng(2).normal(0, 10, 300)
    better = paired_difference(mean_measure("mean", sample + 0.5), mean_measure("mean", sample))
    assert better["mean"] == pytest.approx((0.5, 0.5))


def test_pairs_of_different_reports_are_refused() -> None:
    first, second = mean_measure("mean", np.zeros(3)), mean_measure("mean", np.zeros(4))
    with pytest.raises(ValueError, match="same reports"):
        paired_difference(first, second)


def test_resampled_code_scores_stay_defined_when_a_draw_holds_only_empty_sets() -> None:
    measure: Measure = code_measure("codes", [set(), {"a"}], [set(), {"b"}])
    assert np.isfinite(resampled_scores(measure, resamples=50)).all()
