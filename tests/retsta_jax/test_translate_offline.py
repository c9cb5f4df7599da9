"""Generated reports are translated without a model; what that cannot translate is said."""

import re

import numpy as np
import pytest

from retsta_jax.corpus.findings import standard_report
from retsta_jax.corpus.fundus import sample_study
from retsta_jax.terminology.check import load_terminology
from retsta_jax.terminology.matching import find_terms
from retsta_jax.translation.consistency import pair_problems
from retsta_jax.translation.offline_translator import _by_pieces, counterpart, translate_offline, translate_text
from retsta_jax.translation.phrase_table import rows
from retsta_jax.translation.translate import Translated, translate_pairs
from tests.corpus import make_pairs

TERMS = load_terminology()
OTHER = {"zh": "en", "en": "zh"}


@pytest.mark.parametrize("language", ["zh", "en"])
@pytest.mark.parametrize(("noise", "least"), [(0.0, 0.99), (0.5, 0.97)])
def test_generated_pairs_are_translated(language, noise, least):
    pairs = make_pairs(500, seed=11, language=language, noise=noise)
    results = [*translate_pairs(pairs, translate_offline, TERMS, OTHER[language])]
    found = [(pair, result) for pair, result in zip(pairs, results, strict=True) if isinstance(result, Translated)]
    assert len(found) >= least * len(pairs)
    for pair, result in found:
        assert pair_problems(pair, result.pair, TERMS) == []
        assert (result.original, result.pair.id) == (pair.id, f"{pair.id}-{OTHER[language]}")


@pytest.mark.parametrize("language", ["zh", "en"])
def test_standard_reports_are_those_of_the_same_findings_and_come_back(language):
    for seed in range(200):
        study = sample_study(np.random.default_rng(seed))
        text = standard_report(study, language)
        translated = translate_text("target", text, language, OTHER[language], TERMS)
        assert translated == standard_report(study, OTHER[language])
        assert translate_text("target", translated, OTHER[language], language, TERMS) == text


@pytest.mark.parametrize("language", ["zh", "en"])
def test_the_grammar_translates_standard_reports_as_their_findings_do(language):
    """Two ways that share the names of terms alone; letter case is not the grammar's."""
    other = OTHER[language]
    for seed in range(200):
        study = sample_study(np.random.default_rng(seed))
        found = _by_pieces("target", standard_report(study, language), language, other, TERMS, register=False)
        assert isinstance(found, str)
        assert found.lower().replace("处", "") == standard_report(study, other).lower()


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("右眼未见视网膜出血、硬性渗出。", "Right eye no retinal haemorrhage or hard exudates."),
        ("OS：DR，硬渗。3个月后复查", "OS: DR, lipid exudates. Advise review in 3 months"),
        ("左眼：黄斑区处玻璃膜疣？；C/D约0.6", "Left eye: macular drusen?; C/D about 0.6"),
        ("右眼玻璃膜疣&nbsp;左眼黄斑前膜(-)", "Right eye drusen. Left eye epiretinal membrane (-)"),
        ("玻璃膜疣（右眼），颞上为主", "Drusen (right eye), mainly superotemporal"),
        ("右眼：\n1、玻璃膜疣\n2、无黄斑水肿", "Right eye:\n1. Drusen\n2. No macular oedema"),
        ("双眼玻璃膜疣，左眼同右眼", "Both eyes drusen, left eye same as right eye"),
    ],
)
def test_chinese_keeps_order_eyes_and_enumeration(text, expected):
    found = translate_text("source", text, "zh", "en", TERMS)
    assert found == expected


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        (
            "Right eye: drusen noted, no retinal break, ERM or macular oedema.",
            "右眼：发现玻璃膜疣，未见视网膜裂孔、ERM或黄斑水肿。",
        ),
        ("drusen at the macula OS; ?macular hole OD", "玻璃膜疣（黄斑区）（OS）；疑黄斑裂孔（OD）"),
        ("drusen in the right eye", "玻璃膜疣（右眼）"),
        ("possible macular hole noted, nil drusen", "可能黄斑裂孔，未见玻璃膜疣"),
        ("RE: drusen LE: macular hole at the posterior pole seen", "右眼：玻璃膜疣。左眼：见黄斑裂孔（后极部）"),
        ("OD mild macular oedema; drusen cannot be excluded", "OD轻度黄斑水肿；不能排除玻璃膜疣"),
    ],
)
def test_english_cues_go_where_chinese_has_them(text, expected):
    found = translate_text("source", text, "en", "zh", TERMS)
    assert found == expected


def test_abbreviations_stay_abbreviations_and_slips_do_not_stay():
    assert translate_text("source", "OD: PDR", "en", "zh", TERMS) == "OD：PDR"
    assert translate_text("source", "右眼视网膜出雪", "zh", "en", TERMS) == "Right eye retinal haemorrhage"


def test_a_word_that_is_not_known_is_a_failure_with_its_place():
    text = "右眼玻璃膜疣，患者自述视物变形"
    [problem] = translate_text("source", text, "zh", "en", TERMS)
    assert problem.kind == "cannot be translated offline"
    start, end = map(int, re.findall(r"\d+", problem.detail)[:2])
    assert text[start - 1 : end] in "患者自述视物变形"
    assert "患者" not in str(problem)


@pytest.mark.parametrize("language", ["zh", "en"])
def test_every_name_of_every_term_has_a_counterpart_that_is_read_as_the_term(language):
    other = OTHER[language]
    lost = []
    for term in TERMS.terms:
        for name in term.forms(language):
            if [match.term for match in find_terms(name, TERMS, language)] != [term.id]:
                continue  # two terms have it
            names = [counterpart(term, name, language, other, register) for register in (True, False)]
            if not any([match.term for match in find_terms(one, TERMS, other)] == [term.id] for one in names):
                lost.append((term.id, name))
    assert not lost


def test_every_phrase_is_translated_there_and_its_translation_back():
    """A form that is read in one language writes one that is read in the other."""
    for row in rows():
        if row.kind in ("remark", "lead", "measure"):
            for language in ("zh", "en"):
                text = re.sub(r"\{.\}", "7", row.written(language))
                there = translate_text("source", text, language, OTHER[language], TERMS)
                assert isinstance(there, str), text
                assert isinstance(translate_text("source", there, OTHER[language], language, TERMS), str), there
