"""The terminology is unambiguous in both languages, and the generator's references into it hold."""

from collections import Counter, defaultdict

import pytest

from retsta_jax.corpus.findings import SITE_GROUPS
from retsta_jax.corpus.fundus import INCIDENTAL, INFANTILE, OFTEN_DENIED
from retsta_jax.terminology.check import load_terminology
from retsta_jax.terminology.terms import LANGUAGES

TERMS = load_terminology().terms


def test_terms_are_many_and_their_ids_unique():
    assert len(TERMS) >= 362  # as many as the paper's
    assert [id for id, count in Counter(term.id for term in TERMS).items() if count > 1] == []


@pytest.mark.parametrize("language", LANGUAGES)
def test_no_name_belongs_to_two_terms(language):
    owners = defaultdict(list)
    for term in TERMS:
        for name in (term.name(language), *term.synonyms(language)):
            owners[name.lower()].append(term.id)
    assert {name: ids for name, ids in owners.items() if len(ids) > 1} == {}


@pytest.mark.parametrize("language", LANGUAGES)
def test_frequent_terms_have_synonyms_and_no_name_has_stray_characters(language):
    for term in TERMS:
        assert len(term.synonyms(language)) >= (2 if term.frequency >= 5 else 0), term.id
        for name in (term.name(language), *term.synonyms(language)):
            assert name, term.id
            assert name == " ".join(name.split()), name
            assert not set(name) & set(";；:：。()（）,，"), name


def test_chinese_names_are_chinese_and_english_names_are_not():
    for term in TERMS:
        assert any("\u4e00" <= character <= "\u9fff" for character in term.zh), term.id
        assert all(name.isascii() for name in (term.en, *term.synonyms_en)), term.id


def test_related_terms_exist_and_may_stand_together():
    for term in TERMS:
        for id in term.related:
            assert not load_terminology().by_id[id].keys & term.keys, (term.id, id)


def test_a_code_stands_at_one_term():
    codes = Counter(code for term in TERMS for code in term.codes)
    assert [code for code, count in codes.items() if count > 1] == []
    assert all(term.sources for term in TERMS if term.codes)


def test_modifiers_and_lists_name_what_exists():
    known = {"severity", "ratio", *SITE_GROUPS}
    assert {modifier for term in TERMS for modifier in term.modifiers} <= known
    assert {*INCIDENTAL, *OFTEN_DENIED, *INFANTILE} <= load_terminology().by_id.keys()


def test_grades_of_one_disease_exclude_each_other():
    grades = [
        load_terminology().by_id[id]
        for id in ("diabetic_retinopathy", "mild_npdr", "moderate_npdr", "severe_npdr", "pdr")
    ]
    assert all(one.keys & other.keys for one in grades for other in grades)
