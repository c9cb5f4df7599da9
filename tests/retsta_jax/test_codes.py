"""Codes as text and as sets, and the terminology of a training part."""

import random

import pytest

from common.data.records import ReportPair
from retsta_jax.codes import format_codes, head, heads, parse_codes, terminology, terminology_validity


def test_generated_text_parses_to_distinct_codes_whatever_its_white_space():
    text = "\n Opacity/lung/base/left \r\nnormal\n\n  normal\t\nAorta,  Thoracic/tortuous"
    assert parse_codes(text) == {"Opacity/lung/base/left", "normal", "Aorta, Thoracic/tortuous"}
    assert parse_codes(" \n") == frozenset()


def test_parsing_undoes_formatting_in_any_order():
    generator = random.Random(0)
    codes = ["normal", "Lung/hypoinflation", "Aorta, Thoracic/tortuous", "Spine/degenerative/mild", "No Indexing"]
    for _ in range(100):
        chosen = generator.choices(codes, k=generator.randint(0, 8))
        text = format_codes(chosen)
        assert parse_codes(text) == set(chosen)
        assert text == format_codes(reversed(chosen))
        assert len(text.split("\n")) == max(len(set(chosen)), 1)


def test_the_order_of_codes_is_fixed_with_capitals_first():
    assert format_codes(["normal", "Spine/degenerative", "Lung", "normal"]) == "Lung\nSpine/degenerative\nnormal"


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
