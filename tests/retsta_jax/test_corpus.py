"""Studies are consistent, standard reports are a bijection, pairs are varied, repeatable and kept apart."""

import os
import re
import subprocess
import sys
from collections.abc import Iterable
from dataclasses import replace

import numpy as np
import pytest
from sklearn.feature_extraction.text import TfidfVectorizer

from common.data.records import check_splits
from common.errors import UserError
from retsta_jax.corpus.findings import (
    EYES,
    Finding,
    FundusStudy,
    order_findings,
    parse_standard_report,
    standard_report,
)
from retsta_jax.corpus.fundus import MAX_FINDINGS, sample_study
from retsta_jax.corpus.pairs import PRETRAINING_SHARES, make_splits, pretraining_text, split_of
from retsta_jax.corpus.phrases import PHRASES
from retsta_jax.corpus.wording import original_report
from retsta_jax.terminology.check import load_terminology
from retsta_jax.terminology.terms import LANGUAGES
from retsta_jax.terminology.typos import CONFUSED_CHARACTERS, NEIGHBOUR_KEYS, misspell
from tests.corpus import make_pairs

BY_LANGUAGE = pytest.mark.parametrize("language", LANGUAGES)
STUDIES = [sample_study(np.random.default_rng([7, index])) for index in range(3000)]
EXAMPLE = FundusStudy(
    order_findings(
        [
            Finding("left", "no_abnormality"),
            Finding("right", "retinal_detachment", "absent"),
            Finding("right", "macular_oedema", "suspected", severity="mild"),
            Finding("right", "enlarged_cup_disc_ratio", ratio=7),
            Finding("right", "hard_exudates", site="macula"),
            Finding("right", "moderate_npdr"),
        ]
    )
)


def test_standard_report_has_the_documented_form():
    assert standard_report(EXAMPLE, "zh") == (
        "右眼：中度非增生型糖尿病视网膜病变；硬性渗出（黄斑区）；杯盘比增大（C/D 0.7）；"
        "可疑轻度黄斑水肿；未见视网膜脱离。左眼：未见明显异常。"
    )
    assert standard_report(EXAMPLE, "en") == (
        "Right eye: moderate non-proliferative diabetic retinopathy; hard exudates (macula); "
        "enlarged cup-to-disc ratio (C/D 0.7); suspected mild macular oedema; no retinal detachment. "
        "Left eye: no obvious abnormality."
    )


@BY_LANGUAGE
def test_parsing_inverts_the_standard_report(language):
    for study in STUDIES[:500]:
        parsed = parse_standard_report(standard_report(study, language), language)
        assert parsed.findings == study.findings
        assert parsed.unparsed == ()


@BY_LANGUAGE
def test_different_studies_have_different_standard_reports(language):
    distinct = {study.findings for study in STUDIES}
    assert len({standard_report(study, language) for study in STUDIES}) == len(distinct)


@BY_LANGUAGE
def test_denying_or_doubting_a_finding_changes_the_standard_report(language):
    findings = [Finding("right", "drusen", status) for status in ("present", "suspected", "absent")]
    assert len({standard_report(FundusStudy((finding,)), language) for finding in findings}) == 3


def test_equal_eyes_share_one_section():
    study = FundusStudy(tuple(Finding(eye, "drusen") for eye in EYES))
    assert standard_report(study, "zh") == "双眼：玻璃膜疣。"
    assert parse_standard_report("BOTH EYES: Drusen.", "en").findings == study.findings


@pytest.mark.parametrize(
    ("text", "language", "findings", "unparsed"),
    [
        ("", "zh", 0, ()),
        ("右眼:玻璃膜疣;左眼:天书", "zh", 1, ("天书",)),
        ("玻璃膜疣。右眼：轻度玻璃膜疣；玻璃膜疣（火星）。", "zh", 0, ("玻璃膜疣", "轻度玻璃膜疣", "玻璃膜疣(火星)")),
        ("Right eye: drusen (C/D 0.6); no; drusen ((", "en", 0, ("drusen (C/D 0.6)", "no", "drusen ((")),
        ("Right eye: drusen; drusen. Left eye:", "en", 1, ()),
    ],
)
def test_what_is_not_in_standard_form_comes_back(text, language, findings, unparsed):
    parsed = parse_standard_report(text, language)
    assert len(parsed.findings) == findings
    assert parsed.unparsed == unparsed


@BY_LANGUAGE
def test_parsing_never_raises_on_damaged_reports(language):
    rng = np.random.default_rng(0)
    for study in STUDIES[:300]:
        report = standard_report(study, language)
        start, stop = sorted(int(index) for index in rng.integers(0, len(report), 2))
        parse_standard_report(report[:start] + report[stop:] + report[start:], language)
        parse_standard_report(original_report(study, language, rng, noise=1.0), language)


def test_studies_are_consistent():
    for study in STUDIES:
        assert study.findings == order_findings(study.findings)
        for eye in study.eyes:
            findings = study.of_eye(eye)
            terms = [load_terminology().by_id[finding.term] for finding in findings]
            assert len(findings) <= MAX_FINDINGS
            for index, term in enumerate(terms):
                assert not any(term.keys & other.keys for other in terms[:index])
            ids = {term.id for term in terms}
            denied = {finding.term for finding in findings if finding.status == "absent"}
            for term in terms:
                assert term.id in denied or not denied & set(term.related)
            if "ungradable" in ids:
                assert len(ids) == 1
            if "no_abnormality" in ids:
                assert ids == denied | {"no_abnormality"}


def test_findings_carry_only_modifiers_that_their_term_allows():
    for finding in (finding for study in STUDIES for finding in study.findings):
        modifiers = load_terminology().by_id[finding.term].modifiers
        assert finding.severity is None or "severity" in modifiers
        assert finding.ratio is None or "ratio" in modifiers
        assert finding.site is None or modifiers & {"quadrant", "region", "temporal"}
        assert finding.status != "absent" or finding == Finding(finding.eye, finding.term, "absent")


@BY_LANGUAGE
def test_standard_reports_contain_no_other_names(language):
    names = sorted((term.name(language) for term in load_terminology().terms), key=len, reverse=True)
    synonyms = {synonym for term in load_terminology().terms for synonym in term.synonyms(language)}
    standard = re.compile("|".join(map(re.escape, names)))
    other = re.compile("|".join(rf"(?<![A-Za-z]){re.escape(synonym)}(?![A-Za-z])" for synonym in synonyms))
    for study in STUDIES[:500]:
        assert not other.search(standard.sub("", standard_report(study, language)))


@BY_LANGUAGE
def test_pairs_are_repeatable_and_any_slice_is_the_same(language):
    pairs = make_pairs(30, seed=5, language=language)
    assert pairs == make_pairs(30, seed=5, language=language)
    assert pairs[20:] == make_pairs(10, seed=5, language=language, start=20)
    assert pairs != make_pairs(30, seed=6, language=language)
    assert {pair.language for pair in pairs} == {language}


def test_pairs_do_not_depend_on_the_order_of_sets_in_a_process():
    program = (
        "from retsta_jax.corpus.pairs import make_splits, pretraining_text\n"
        "print(make_splits(60, 10, 30, seed=0, language='both', held_out='styles'))\n"
        "print([pretraining_text(0, index) for index in range(60)])"
    )
    found = [
        subprocess.run(
            [sys.executable, "-c", program], env={**os.environ, "PYTHONHASHSEED": seed}, capture_output=True, check=True
        ).stdout
        for seed in ("0", "1", "2")
    ]
    assert found[0] == found[1] == found[2]


def test_both_languages_alternate_under_unique_ids():
    pairs = make_pairs(10, seed=0, language="both")
    assert [pair.language for pair in pairs] == ["zh", "en"] * 5
    assert len({pair.id for pair in pairs}) == 10


@BY_LANGUAGE
def test_originals_are_varied_and_mean_one_thing(language):
    pairs = make_pairs(3000, seed=0, language=language)
    targets: dict[str, set[str]] = {}
    for pair in pairs:
        targets.setdefault(pair.source, set()).add(pair.target)
    assert len(targets) > 0.95 * len(pairs)
    assert all(len(meanings) == 1 for meanings in targets.values())
    assert np.mean([pair.source == pair.target for pair in pairs]) < 0.01


@BY_LANGUAGE
def test_reports_are_short(language):
    def length(text: str) -> int:
        return len(text) if language == "zh" else len(text.split())

    pairs = make_pairs(1000, seed=0, language=language)
    targets = np.array([length(pair.target) for pair in pairs])
    sources = np.array([length(pair.source) for pair in pairs])
    assert targets.mean() < (60 if language == "zh" else 45)
    assert sources.mean() < 2 * targets.mean()


@BY_LANGUAGE
def test_clean_originals_name_every_finding_and_deny_every_denial(language):
    """At noise 0 a name of each term, and a word of its status, can be found by plain search."""
    phrases = PHRASES[language]
    marks = {
        "absent": {part for form in (*phrases.absent, *phrases.listed_absent) for part in form.split("{}") if part},
        "suspected": {part for form in (*phrases.suspected, *phrases.listed_suspected) for part in form.split("{}")},
    }
    marks["suspected"].discard("")
    for index, study in enumerate(STUDIES[:500]):
        report = original_report(study, language, np.random.default_rng(index), noise=0.0).lower()
        for finding in study.findings:
            term = load_terminology().by_id[finding.term]
            assert any(name.lower() in report for name in (term.name(language), *term.synonyms(language))), report
            if finding.status != "present":
                assert any(mark in report for mark in marks[finding.status]), report
            if finding.ratio:
                assert f"0.{finding.ratio}" in report


@BY_LANGUAGE
def test_a_present_finding_after_a_denial_has_a_verb(language):
    drusen, detachment = load_terminology().by_id["drusen"], load_terminology().by_id["retinal_detachment"]
    study = FundusStudy((Finding("right", "drusen"), Finding("right", "retinal_detachment", "absent")))
    ambiguous = re.compile(
        f"({_any_of((detachment.name(language), *detachment.synonyms(language)))}) ?(absent|\\(-\\))?"
        f"[,，;；、 ]*({_any_of((drusen.name(language), *drusen.synonyms(language)))})"
        f"(?![a-z])(?! ({_any_of(verb.removeprefix('{} ') for verb in PHRASES[language].verb_present)}))"
    )
    reports = [original_report(study, language, np.random.default_rng(seed), noise=0.0) for seed in range(300)]
    orders = {report.find(detachment.name(language)) > report.find(drusen.name(language)) for report in reports}
    assert orders == {True, False}
    assert [report for report in reports if ambiguous.search(report)] == []


def _any_of(words: Iterable[str]) -> str:
    return "|".join(map(re.escape, sorted(words, key=len, reverse=True)))


def test_typos_spare_what_decides_the_meaning():
    decisive = set("左右双轻中重未无不没否疑似可能待上下颞鼻前后内外大小多少高低深浅早晚急慢全半一二三四五六七八九十")
    assert not decisive & {*CONFUSED_CHARACTERS, *"".join(CONFUSED_CHARACTERS.values())}
    assert not any(character in others for character, others in CONFUSED_CHARACTERS.items())
    assert all(letter != neighbour for letter, neighbour in NEIGHBOUR_KEYS.items())
    rng = np.random.default_rng(0)
    for _ in range(200):
        assert misspell("BRVO and drusen", "en", rng).startswith("BRVO and dru")
        assert misspell("未见异常", "zh", rng) == "未见异常"
        assert sum(a != b for a, b in zip("视网膜脱离", misspell("视网膜脱离", "zh", rng), strict=True)) == 1


@BY_LANGUAGE
def test_noise_adds_faults(language):
    study = EXAMPLE
    clean = [original_report(study, language, np.random.default_rng(seed), noise=0.0) for seed in range(200)]
    noisy = [original_report(study, language, np.random.default_rng(seed), noise=1.0) for seed in range(200)]
    faults = re.compile(r"&nbsp;|<br>| XXXX |_x000D_|\|\||，，|,,|。。|\.\.|[Ａ-Ｚ]", re.IGNORECASE)
    assert not any(faults.search(report) for report in clean)
    assert np.mean([bool(faults.search(report)) for report in noisy]) > 0.2


@pytest.mark.parametrize("language", ["zh", "en", "both"])
def test_splits_share_no_source_and_no_target(language):
    splits = make_splits(400, 60, 60, seed=1, language=language)
    check_splits(splits)
    assert {name: len(pairs) for name, pairs in splits.items()} == {"train": 400, "validation": 60, "test": 60}
    for part in ("source", "target"):
        values = {name: {getattr(pair, part) for pair in pairs} for name, pairs in splits.items()}
        assert not values["train"] & (values["validation"] | values["test"])
        assert not values["validation"] & values["test"]
    sources = [pair.source for pairs in splits.values() for pair in pairs]
    assert len(set(sources)) == len(sources)


def test_evaluation_does_not_depend_on_the_size_of_training():
    small, large = (make_splits(size, 20, 20, seed=1, language="both") for size in (10, 200))
    assert small["test"] == large["test"]
    assert small["validation"] == large["validation"]
    assert small["train"] == large["train"][:10]


@BY_LANGUAGE
def test_neither_copying_nor_recalling_solves_the_task(language):
    train, test = make_pairs(2000, seed=1, language=language), make_pairs(200, seed=2, language=language)
    vectors = TfidfVectorizer(analyzer="char", ngram_range=(1, 3))
    known = vectors.fit_transform(pair.source for pair in train)
    nearest = (vectors.transform(pair.source for pair in test) @ known.T).toarray().argmax(1)
    targets = np.array([pair.target for pair in test])
    recalled = np.array([train[index].target for index in nearest])
    values, counts = np.unique([pair.target for pair in train], return_counts=True)
    assert np.mean(recalled == targets) < 0.15
    assert np.mean(targets == values[counts.argmax()]) < 0.1
    assert np.mean(targets == np.array([pair.source for pair in test])) < 0.02


def test_pretraining_text_is_repeatable_and_of_every_kind():
    assert sum(PRETRAINING_SHARES.values()) == pytest.approx(1.0)
    texts = [pretraining_text(0, index) for index in range(300)]
    assert texts == [pretraining_text(0, index) for index in range(300)]
    assert all(texts)
    for mark in (
        "Repeat: ",
        "复述: ",
        " = ",
        "的规范名称是",
        "The standard term for",
        "译成英文: ",
        "倒序: ",
        "Eyes mentioned: ",
    ):
        assert any(mark in text for text in texts), mark


def test_pretraining_text_pairs_no_report_with_its_standard_form():
    """What follows an arrow is standard only where what precedes it is: the task itself is never shown."""
    for index in range(1500):
        before, arrow, after = pretraining_text(0, index).rpartition(" -> ")
        if not arrow or ": " not in before:
            continue
        given = before.partition(": ")[2]
        for language in LANGUAGES:
            answer = parse_standard_report(after, language)
            if answer.findings and not answer.unparsed:
                assert given == after


def test_pretraining_text_holds_no_evaluation_report():
    for index in range(1500):
        for language in LANGUAGES:
            parsed = parse_standard_report(pretraining_text(0, index), language)
            if parsed.findings and not parsed.unparsed:
                assert split_of(FundusStudy(parsed.findings)) == "train"


def test_split_depends_on_both_eyes():
    large = [study for study in STUDIES if len(study.findings) > 2]
    shares = [np.mean([split_of(study) == split for study in large]) for split in ("validation", "test")]
    assert np.abs(np.array(shares) - 0.1).max() < 0.03
    swapped = [
        FundusStudy(order_findings(replace(f, eye="left" if f.eye == "right" else "right") for f in study.findings))
        for study in large
    ]
    assert any(split_of(one) != split_of(other) for one, other in zip(large, swapped, strict=True))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"train": -1, "seed": 0}, "train -1"),
        ({"train": 1, "seed": -2}, "seed -2"),
        ({"train": 1, "seed": 0, "noise": 1.5}, "noise 1.5"),
        ({"train": 1, "seed": 0, "language": "fr"}, "language 'fr'"),
    ],
)
def test_wrong_requests_are_named(arguments, message):
    with pytest.raises(UserError, match=re.escape(message)):
        make_splits(validation=0, test=0, **arguments)
