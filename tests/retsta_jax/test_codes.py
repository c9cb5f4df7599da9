"""Codes as text and as sets, and the terminology of a training split."""

import pytest

from common.data.records import ReportPair
from retsta_jax.codes import head, heads, parse_codes, terminology, terminology_validity


def test_generated_text_parses_to_distinct_codes_whatever_its_white_space():
    text = "\n Opacity/lung/base/left \r\nnormal\n\n  normal\t\nAorta,  Thoracic/tortuous"
    assert parse_codes(text) == {"Opacity/lung/base/left", "normal", "Aorta, Thoracic/tortuous"}
    assert parse_codes(" \n") == frozenset()


def test_the_head_is_what_stands_before_the_first_slash():
    assert head("Opacity/lung/base/left/mild") == "Opacity"
    assert head("Aorta, Thoracic/tortuous") == "Aorta, Thoracic"
    assert head("normal") == "normal"
    assert heads(["Opacity/lung", "Opacity/retrocardiac", "normal"]) == {"Opacity", "normal"}


def test_terminology_is_ordered_by_frequency_then_name():
    targets = ["normal", "b\nc", "c\nnormal\na", "normal\nnormal"]
    pairs = [ReportPair(str(number), "text", target) for number, target in enumerate(targets)]
    assert terminology(pairs) == ["normal", "c", "a", "b"]


def test_validity_counts_every_generated_code_once_a_report():
    predictions = [{"normal"}, {"normal", "invented/code"}, {"Lung"}, set()]
    assert terminology_validity(predictions, ["normal", "Lung"]) == pytest.approx(3 / 4)
    assert terminology_validity([set(), set()], ["normal"]) == 0.0
