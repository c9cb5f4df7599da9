"""The sentence on the order of systems is counted, seed by seed, in the paper's order, with ties and absent scores."""

import pytest

from retsta_jax.paradigm.ordering import compare, ordering_sentence

PAPER = {"A": 0.9, "B": 0.8, "C": 0.8}


def test_seeds_are_counted_in_the_order_of_the_paper():
    scores = {"A": [0.5, 0.6, 0.2], "B": [0.4, 0.6, 0.3]}
    found = compare("B", "A", scores, PAPER)
    assert (found.first, found.second) == ("A", "B")
    assert (found.better, found.equal, found.worse, found.unknown) == (1, 1, 1, 0)
    assert found.mean == pytest.approx(0.0)
    assert found.paper == pytest.approx(0.1)
    assert ordering_sentence("BLEU-4", [found]) == (
        "By BLEU-4 the order is the paper's in 1 of 3 comparisons: "
        "A > B in 1 of 3 seeds, equal in 1, by +0.00 on average (paper: +10.00)."
    )


def test_a_seed_without_a_score_is_in_no_comparison():
    found = compare("A", "B", {"A": [0.5, None], "B": [0.4, 0.1]}, PAPER)
    assert ordering_sentence("F1", [found]).endswith(
        "1 of 1 comparisons: A > B in 1 of 1 seed, unknown in 1, by +10.00 on average (paper: +10.00)."
    )
    nothing = compare("A", "B", {"A": [None], "B": [0.4]}, PAPER)
    assert nothing.mean is None
    assert ordering_sentence("F1", [nothing]) == (
        "By F1 nothing can be compared with the paper's order: A and B have no scores to compare (paper: +10.00)."
    )
    assert ordering_sentence("F1", []) == "By F1 nothing can be compared with the paper's order."


def test_scores_that_are_equal_in_the_paper_agree_where_they_are_equal_here():
    same = compare("B", "C", {"B": [0.1, 0.2, 0.4], "C": [0.1, 0.2 + 1e-9, 0.1]}, PAPER)
    assert (same.better, same.equal) == (1, 2)
    assert "in 2 of 3 comparisons" in ordering_sentence("BLEU-4", [same])


def test_what_the_paper_does_not_have_is_told_but_not_judged():
    ours = compare("A", "nearest", {"A": [0.1], "nearest": [0.3]}, PAPER)
    known = compare("A", "B", {"A": [0.9], "B": [0.1]}, PAPER)
    assert ordering_sentence("BLEU-4", [known, ours]) == (
        "By BLEU-4 the order is the paper's in 1 of 1 comparisons: A > B in 1 of 1 seed, by +80.00 on average "
        "(paper: +10.00); A > nearest in 0 of 1 seed, by -20.00 on average (not in the paper)."
    )
