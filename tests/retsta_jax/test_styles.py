"""Every style leaves one reading; the splits of a corpus held out by styles share neither styles nor states."""

import dataclasses
import itertools

import numpy as np
import pytest

from common.data.records import check_splits
from common.errors import UserError
from retsta_jax.corpus.findings import parse_standard_report
from retsta_jax.corpus.fundus import sample_study
from retsta_jax.corpus.pairs import make_splits, pretraining_text
from retsta_jax.corpus.phrases import PHRASES
from retsta_jax.corpus.style import SPLITS
from retsta_jax.corpus.styles import STYLES, styles_of
from retsta_jax.corpus.wording import original_report
from retsta_jax.terminology.check import load_terminology
from retsta_jax.terminology.matching import Statement, find_terms, statements_of
from retsta_jax.terminology.terms import LANGUAGES

TERMS = load_terminology()
BY_LANGUAGE = pytest.mark.parametrize("language", LANGUAGES)
BY_STYLE = pytest.mark.parametrize(
    ("language", "style"),
    [
        pytest.param(language, style, id=f"{language}-{style.name}")
        for language in LANGUAGES
        for style in STYLES[language]
    ],
)


@BY_LANGUAGE
def test_there_are_six_styles_of_which_two_are_for_the_test_alone(language):
    assert len({style.name for style in STYLES[language]}) == len(STYLES[language]) >= 6
    assert [len(styles_of(language, split)) for split in SPLITS] == [4, 1, 2]


@BY_STYLE
def test_a_style_uses_a_part_of_the_phrases(language, style):
    for field in dataclasses.fields(style.phrases):
        own, pool = getattr(style.phrases, field.name), getattr(PHRASES[language], field.name)
        if field.name == "eyes":
            assert {*zip(*own.values(), strict=True)} <= {*zip(*pool.values(), strict=True)}
        elif isinstance(own, dict):
            assert all(set(own[key]) <= set(pool[key]) and own[key] for key in pool), field.name
        else:
            assert own
            assert set(own) <= set(pool), field.name


@BY_STYLE
def test_a_clean_report_of_any_style_states_its_study(language, style):
    """The matcher, which knows nothing of styles, as an independent reader."""
    wrong = total = 0
    for index in range(250):
        rng = np.random.default_rng([8, index])
        study = sample_study(rng)
        report = original_report(study, language, rng, 0.0, style)
        found = statements_of(find_terms(report, TERMS, language), TERMS)
        wanted = {Statement(finding.term, finding.eye, finding.status) for finding in study.findings}
        wrong += len(found ^ wanted)
        total += len(wanted)
    assert wrong <= 0.005 * total


@BY_LANGUAGE
def test_styles_of_the_test_say_what_those_of_training_never_say(language):
    def forms(split, field):
        return {form for style in styles_of(language, split) for form in getattr(style.phrases, field)}

    for field in ("absent", "suspected", "closings"):
        assert forms("test", field) - forms("train", field) - forms("validation", field), field


def test_parts_held_out_by_styles_share_no_style_and_no_state():
    splits = make_splits(300, 60, 120, seed=2, language="both", held_out="styles")
    check_splits(splits)
    used = {
        split: {tuple(pair.id.split("-")[1:3]) for pair in pairs} for split, pairs in splits.items()
    }  # (language, style)
    assert used == {
        split: {(language, style.name) for language in LANGUAGES for style in styles_of(language, split)}
        for split in SPLITS
    }
    states = {
        split: {parse_standard_report(pair.target, pair.language).findings for pair in pairs}
        for split, pairs in splits.items()
    }
    for one, other in itertools.combinations(SPLITS, 2):
        assert not used[one] & used[other]
        assert not states[one] & states[other]
    smaller = make_splits(10, 60, 120, seed=2, language="both", held_out="styles")
    assert {split: splits[split] for split in ("validation", "test")} == {
        split: smaller[split] for split in ("validation", "test")
    }
    assert smaller["train"] == splits["train"][:10]
    with pytest.raises(UserError, match=r"held_out 'studies' .*: expected states or styles"):
        make_splits(1, 1, 1, seed=0, held_out="studies")  # type: ignore[arg-type]


def test_parts_held_out_by_states_use_all_styles():
    splits = make_splits(150, 0, 150, seed=2, language="both")
    for pairs in (splits["train"], splits["test"]):
        assert len({tuple(pair.id.split("-")[1:3]) for pair in pairs}) == sum(map(len, STYLES.values()))


def test_pretraining_text_is_in_no_style_of_the_test():
    text = "\n".join(pretraining_text(0, index) for index in range(800))
    for form in ("没看到", "可能性大", "there may be ", "not seen"):
        assert form not in text


@BY_LANGUAGE
def test_a_style_keeps_to_its_labels_within_a_report(language):
    style = styles_of(language, "train")[2]
    for index in range(100):
        rng = np.random.default_rng([9, index])
        study = sample_study(rng)
        report = original_report(study, language, rng, 0.0, style)
        used = {
            number
            for number in range(len(style.phrases.eyes["both"]))
            for names in style.phrases.eyes.values()
            if any(
                line.startswith(f"{names[number]}{joint}".rstrip())
                for line in report.split("\n")
                for joint in (":", "：")
            )
        }
        assert len(used) <= 1, report
