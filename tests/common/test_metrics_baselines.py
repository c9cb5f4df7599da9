"""The constant report and the nearest training report, against brute force."""

import math
import random
from collections import Counter

import pytest
from sklearn.feature_extraction.text import TfidfVectorizer
from sklearn.metrics.pairwise import cosine_similarity

from common.errors import UserError
from common.metrics.baselines import constant_report, nearest_reports

WORDS = ["heart", "size", "normal", "no", "effusion", "opacity", "left", "right", "base", "lung", "mild", "small"]


def random_reports(count: int, seed: int) -> list[str]:
    generator = random.Random(seed)
    return [" ".join(generator.choices(WORDS, k=generator.randrange(1, 10))) for _ in range(count)]


def cosine(first: list[str], second: list[str], order: int) -> float:
    one, other = (
        Counter(tuple(words[i : i + order]) for i in range(len(words) - order + 1)) for words in (first, second)
    )
    norms = math.sqrt(sum(v * v for v in one.values())) * math.sqrt(sum(v * v for v in other.values()))
    return sum(one[key] * other[key] for key in one) / norms if norms else 0.0


def test_constant_report_is_the_medoid_by_brute_force() -> None:
    reports = random_reports(40, seed=0)
    reports += reports[:5]

    def similarity(report: str) -> float:
        return sum(cosine(report.split(), other.split(), order) for other in reports for order in range(1, 5))

    assert similarity(constant_report(reports)) == pytest.approx(max(map(similarity, reports)))


def test_constant_report_of_codes_is_the_frequent_one() -> None:
    assert constant_report(["Edema", "normal", "Opacity/lung", "normal"]) == "normal"
    assert constant_report(["出血", "未见异常", "渗出", "未见异常"], language="zh") == "未见异常"


def test_constant_report_needs_reports() -> None:
    with pytest.raises(UserError, match="at least one report"):
        constant_report([])
    assert constant_report(["", ""]) == ""


def test_nearest_reports_are_those_of_a_dense_search() -> None:
    train, sources = random_reports(700, seed=1), random_reports(600, seed=2)
    targets = [f"target {index}" for index in range(700)]
    vectorizer = TfidfVectorizer().fit(train)
    similarity = cosine_similarity(vectorizer.transform(sources), vectorizer.transform(train))
    best = similarity.round(12).argmax(axis=1)
    assert nearest_reports(train, targets, sources) == [targets[index] for index in best]


def test_nearest_reports_of_chinese_compares_characters() -> None:
    train = ["黄斑区出血", "视盘边界清晰", "晶状体混浊"]
    assert nearest_reports(train, ["A", "B", "C"], ["视盘边界不清", "黄斑出血"], language="zh") == ["B", "A"]


def test_a_source_without_a_known_word_gets_the_constant_report() -> None:
    assert nearest_reports(["edema", "clear lungs", "lungs"], ["E", "normal", "normal"], ["qqq", ""]) == ["normal"] * 2


def test_unusable_training_reports_are_refused() -> None:
    with pytest.raises(UserError, match="2 training sources and 1 targets"):
        nearest_reports(["a", "b"], ["A"], ["a"])
    with pytest.raises(UserError, match="contain no word"):
        nearest_reports(["...", ""], ["A", "B"], ["a"])
