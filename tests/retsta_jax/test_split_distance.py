"""The distance of a test split from training, against plain counting; styles are further apart than states."""

import math

import numpy as np
import pytest
from sklearn.feature_extraction.text import TfidfVectorizer

from common.data.records import ReportPair
from common.report.page import Page, render
from retsta_jax.corpus.pairs import make_splits
from retsta_jax.corpus.split_distance import MEASURES, distance_between, distance_table
from retsta_jax.terminology.check import load_terminology

TERMS = load_terminology()


def pairs(*sources, target="t"):
    return [ReportPair(str(index), source, f"{target}{index}", "en") for index, source in enumerate(sources)]


def test_counts_are_those_of_plain_counting():
    train = pairs("OD: no drusen seen today", "macular hole in the left eye")
    test = pairs("OD: no drusen seen at all", "MH in the left eye today", "macular hole in the left eye")
    found = distance_between(train, test, TERMS)["en"]
    assert set(found) == set(MEASURES)
    for order in (3, 4):
        grams = [
            [tuple(words[index : index + order]) for index in range(len(words) - order + 1)]
            for words in (pair.source.split() for pair in [*train, *test])
        ]
        seen = set(grams[0] + grams[1])
        asked = grams[2] + grams[3] + grams[4]
        assert found[f"unseen_{order}grams"] == pytest.approx(sum(gram not in seen for gram in asked) / len(asked))
    assert (found["seen_sources"], found["seen_targets"]) == (pytest.approx(1 / 3), pytest.approx(2 / 3))
    assert (found["names"], found["unseen_names"]) == (3, 1)  # drusen, macular hole, MH
    vectors = TfidfVectorizer(token_pattern=r"(?u)\b\w+\b").fit([pair.source for pair in train])
    known, asked = (vectors.transform([pair.source for pair in split]).toarray() for split in (train, test))
    assert found["nearest_similarity"] == pytest.approx(np.max(asked @ known.T, axis=1).mean())


def test_a_part_is_at_no_distance_from_itself():
    train = make_splits(60, 0, 0, seed=1, language="both")["train"]
    for distance in distance_between(train, train, TERMS).values():
        assert distance["unseen_3grams"] == distance["unseen_4grams"] == distance["unseen_names"] == 0
        assert distance["seen_sources"] == distance["seen_targets"] == 1
        assert math.isclose(distance["nearest_similarity"], 1)


def test_a_language_that_training_lacks_is_at_the_greatest_distance():
    found = distance_between(pairs("no drusen today, thank you"), [ReportPair("z", "右眼黄斑裂孔", "x", "zh")], TERMS)
    assert found["zh"]["train_reports"] == found["zh"]["nearest_similarity"] == 0
    assert found["zh"]["unseen_4grams"] == found["zh"]["unseen_names"] == 1


def test_without_a_terminology_names_are_left_out():
    found = distance_between(pairs("heart size normal"), pairs("lungs are clear today"))
    assert "names" not in found["en"]
    assert "names" not in " ".join(row[0] for row in distance_table(found).rows)


def test_parts_held_out_by_styles_are_further_from_training_than_those_held_out_by_states():
    by_states, by_styles = (
        distance_between(splits["train"], splits["test"], TERMS)
        for splits in (
            make_splits(400, 0, 200, seed=4, language="both", held_out=held_out) for held_out in ("states", "styles")
        )
    )
    for language in ("zh", "en"):
        assert by_styles[language]["unseen_3grams"] > by_states[language]["unseen_3grams"] + 0.1
        assert by_styles[language]["nearest_similarity"] < by_states[language]["nearest_similarity"] - 0.02
        assert by_styles[language]["seen_targets"] == by_states[language]["seen_targets"] == 0


def test_the_page_shows_the_distance():
    found = distance_between(pairs("no drusen"), pairs("no drusen", "no macular hole"), TERMS)
    page = render(Page("t", "v", "c", tables=[distance_table(found)]))
    assert "Distance of the test split from training" in page
    assert "50.0%" in page
