"""What augmentation makes says in its target what it says in its source, whatever it was made from."""

import dataclasses
import functools
import math
import re
from collections import Counter

import numpy as np
import pytest

from common.data.records import Quarantine, ReportPair
from common.errors import UserError
from retsta_jax.augmentation.augment import KINDS, augment, augment_pairs, draw_kinds, open_corpus, rates_of
from retsta_jax.augmentation.edits import EDITS, read_report, says_the_same, unclear
from retsta_jax.augmentation.perturb import conflicts
from retsta_jax.augmentation.restate import SOURCE_WORDING, restate
from retsta_jax.config import PRESETS, AugmentConfig
from retsta_jax.corpus.findings import FundusStudy, parse_standard_report, standard_report
from retsta_jax.corpus.fundus import MAX_FINDINGS
from retsta_jax.corpus.pairs import split_of
from retsta_jax.data import augmented, load_splits
from retsta_jax.terminology.check import load_terminology
from retsta_jax.terminology.matching import Statement, find_terms, statements_of
from retsta_jax.terminology.terms import Term, Terminology
from tests.corpus import make_pairs

TERMS = load_terminology()
CONFIG = AugmentConfig()
EVERY_KIND = AugmentConfig(**dict.fromkeys(KINDS, 0.6))
SEMANTIC = {"negation", "probability"}
BY_CORPUS = pytest.mark.parametrize(
    ("language", "noise"), [("zh", 0.0), ("zh", 0.5), ("en", 0.0), ("en", 0.5)], ids=lambda value: str(value)
)


@functools.cache
def made(language, noise):
    """150 originals, and 600 made of them."""
    pairs = make_pairs(150, 11, language, noise)
    return list(augment(open_corpus(pairs, 750, EVERY_KIND), range(750), EVERY_KIND, 3))


def stated(text, pair, terms=TERMS):
    return statements_of(find_terms(text, terms, pair.language), terms)


def agrees(pair, terms=TERMS):
    return stated(pair.source, pair, terms) == stated(pair.target, pair, terms)


@BY_CORPUS
def test_the_target_says_what_the_source_says(language, noise):
    """Wherever the matcher reads the original rightly, that is, but for 1 in 100 at noise and fewer without."""
    everything = made(language, noise)
    originals = {one.pair.id: one.pair for one in everything[:150]}
    right = {id_ for id_, pair in originals.items() if agrees(pair)}
    assert len(right) >= (0.99 if noise == 0 else 0.96) * len(originals)
    for one in everything[150:]:
        assert one.origin not in right or agrees(one.pair), one
        parsed = parse_standard_report(one.pair.target, language)
        assert parsed.unparsed == ()
        assert standard_report(FundusStudy(parsed.findings), language) == one.pair.target
        assert one.pair.source != originals[one.origin].source
        assert (one.pair.target != originals[one.origin].target) == bool(SEMANTIC & set(one.kinds))
    assert {kind for one in everything for kind in one.kinds} == set(KINDS)


@BY_CORPUS
def test_perturbed_findings_are_as_consistent_as_those_of_a_study(language, noise):
    """By the rules of the generator, read from the target alone."""
    perturbed = [one.pair for one in made(language, noise) if SEMANTIC & set(one.kinds)]
    assert len(perturbed) > 200
    for pair in perturbed:
        study = FundusStudy(parse_standard_report(pair.target, language).findings)
        for eye in study.eyes:
            terms = {finding.term: TERMS.by_id[finding.term] for finding in study.of_eye(eye)}
            denied = {finding.term for finding in study.of_eye(eye) if finding.status == "absent"}
            assert len(study.of_eye(eye)) == len(terms) <= MAX_FINDINGS
            keys = Counter(key for term in terms.values() for key in term.keys)
            assert max(keys.values()) == 1
            for id_, term in terms.items():
                assert id_ in denied or not denied & set(term.related)
            assert "no_abnormality" not in terms or set(terms) == denied | {"no_abnormality"}
            for finding in study.of_eye(eye):
                assert finding.status != "absent" or not (finding.severity or finding.site or finding.ratio)


EYES = {
    "zh": r"右|左|双(?!侧)|两眼|(?<![A-Za-z])(?:OD|OS|OU|R|L)(?![A-Za-z])",
    "en": r"\b(?:right|left|both|bilaterally|od|os|ou|re|le|be|rt|lt|r|l)\b(?! ?/)",
}
DEGREES = {"zh": r"轻|中度|中等|重度|严重", "en": r"\b(?:mild|slight|minor|moderate|severe|marked|advanced)\b"}


@BY_CORPUS
def test_eyes_degrees_and_numbers_stay(language, noise):
    """By plain searches, where neither slips nor other names alter words."""
    config = dataclasses.replace(EVERY_KIND, typo=0.0, synonym=0.0)
    pairs = {pair.id: pair for pair in make_pairs(60, 12, language, noise)}
    for one in augment(open_corpus([*pairs.values()], 240, config), range(60, 240), config, 0):
        before, after = pairs[one.origin].source.lower(), one.pair.source.lower()
        if not {"synonym", *SEMANTIC} & set(one.kinds):
            for pattern in (EYES[language], DEGREES[language], r"[0-9０-９]+"):
                found = [re.findall(pattern, text, re.IGNORECASE) for text in (before, after)]
                assert found[0] == found[1], one
        assert re.findall(r"[0-9０-９]+", before) == re.findall(r"[0-9０-９]+", after)


@BY_CORPUS
def test_typos_spare_cues_and_degrees(language, noise):
    config = AugmentConfig(1, 0, 0, 0, 0, 0, 0, most_edits=6)
    pairs = {pair.id: pair for pair in make_pairs(60, 13, language, noise)}
    changed = 0
    for one in augment(open_corpus([*pairs.values()], 120, config), range(60, 120), config, 0):
        before, after = (read_report(pair.source, language, TERMS) for pair in (pairs[one.origin], one.pair))
        words = [[r.text[t.start : t.end] for t in r.tokens if t.kind != "term"] for r in (before, after)]
        assert words[0] == words[1]
        assert re.findall(DEGREES[language], before.text) == re.findall(DEGREES[language], after.text)
        changed += one.kinds == ("typo",)
    assert changed >= 55


@pytest.mark.parametrize("config", [CONFIG, EVERY_KIND, AugmentConfig(0.9, 0.1, 0, 0, 0, 0.05, 0.01)])
def test_kinds_are_drawn_at_their_rates(config):
    count = 6000
    drawn = [draw_kinds(config, np.random.default_rng([1, index])) for index in range(count)]
    assert all(drawn)
    found = Counter(kind for kinds in drawn for kind in kinds)
    for kind, rate in rates_of(config).items():
        assert abs(found[kind] - count * rate) <= 4 * math.sqrt(count * rate * (1 - rate)), kind


def test_what_has_a_place_in_every_report_comes_at_its_rate():
    pairs = make_pairs(250, 14, "both", 0.0)
    everything = list(augment(open_corpus(pairs, 1250, CONFIG), range(250, 1250), CONFIG, 0))
    for kind in ("typo", "punctuation", "synonym"):
        got, rate = sum(kind in one.kinds for one in everything), getattr(CONFIG, kind)
        lost = sum(kind in one.impossible for one in everything)
        assert abs(got + lost - 1000 * rate) <= 4 * math.sqrt(1000 * rate * (1 - rate)) + 20
        assert lost < 60


def test_a_pair_depends_on_nothing_beside_it():
    pairs = make_pairs(12, 15, "both", 0.3)
    whole = augment_pairs(pairs, 50, CONFIG, seed=7)
    assert whole[:12] == pairs
    assert whole == augment_pairs(pairs, 50, CONFIG, seed=7)
    assert whole[20:31] == [one.pair for one in augment(open_corpus(pairs, 50, CONFIG), range(20, 31), CONFIG, 7)]
    by_id = {pair.id: pair for pair in whole}
    assert all(by_id[pair.id] == pair for pair in augment_pairs(pairs[5:][::-1], 28, CONFIG, seed=7))
    assert whole[12:] != augment_pairs(pairs, 50, CONFIG, seed=8)[12:]
    assert len({pair.source for pair in whole}) > 45


@pytest.mark.parametrize(
    ("text", "term", "status", "expected"),
    [
        ("右眼：黄斑水肿，硬性渗出。", "macular_oedema", "absent", {"present": 1, "absent": 1}),
        ("双眼未见视网膜出血、硬性渗出及黄斑水肿。", "hard_exudates", "present", {"present": 1, "absent": 2}),
        ("双眼未见视网膜出血、硬性渗出及黄斑水肿。", "macular_oedema", "suspected", {"suspected": 1, "absent": 2}),
        ("左眼考虑黄斑裂孔", "macular_hole", "present", {"present": 1}),
        ("左眼黄斑裂孔（待排），可见玻璃膜疣", "macular_hole", "absent", {"present": 1, "absent": 1}),
        ("右眼黄斑裂孔？", "macular_hole", "present", {"present": 1}),
        ("OD: there is a macular hole, drusen seen", "drusen", "absent", {"present": 1, "absent": 1}),
        ("OD: there is a macular hole, drusen seen", "macular_hole", "suspected", {"present": 1, "suspected": 1}),
        (
            "No retinal haemorrhage, hard exudates or macular oedema OS",
            "hard_exudates",
            "present",
            {"present": 1, "absent": 2},
        ),
        ("OU: possible drusen. Refer.", "drusen", "absent", {"absent": 1}),
        ("LE: RETINAL DETACHMENT ABSENT", "retinal_detachment", "present", {"present": 1}),
    ],
)
def test_a_finding_is_restated_alone(text, term, status, expected):
    language = "zh" if re.search("[一-鿿]", text) else "en"
    report = read_report(text, language, TERMS)
    index = next(index for index, match in enumerate(report.matches) if match.term == term)
    for seed in range(20):
        new = restate(report, index, status, SOURCE_WORDING[language], np.random.default_rng(seed))
        assert new is not None
        assert Counter(match.status for match in new.matches) == expected
        assert {match.eye for match in new.matches} == {match.eye for match in report.matches}
        assert next(match.status for match in new.matches if match.term == term) == status


@pytest.mark.parametrize(
    ("text", "count"),
    [
        ("未见视网膜出血，黄斑裂孔", 1),
        ("未见视网膜出血，可见黄斑裂孔", 0),
        ("未见视网膜出血。黄斑裂孔", 0),
        ("黄斑裂孔，未见视网膜出血", 0),
        ("视网膜出血(-)，黄斑裂孔", 0),
        ("possible drusen, macular hole, epiretinal membrane", 2),
        ("no drusen, macular hole seen", 0),
        ("OD no drusen OS macular hole", 0),
        ("no drusen, normal fundus", 0),
    ],
)
def test_what_a_denial_seems_to_reach_is_unclear(text, count):
    report = read_report(text, "zh" if re.search("[一-鿿]", text) else "en", TERMS)
    assert unclear(report) == count
    for edit in EDITS.values():
        for seed in range(10):
            new = edit(report, np.random.default_rng(seed))
            if new is not None and says_the_same(report, after := read_report(new, report.language, TERMS)):
                assert unclear(after) <= count


def test_what_does_not_go_together_is_known():
    present, absent, suspected = (
        lambda term, status=status: Statement(term, "right", status) for status in ("present", "absent", "suspected")
    )
    together = [
        {present("drusen"), absent("macular_hole")},
        {absent("macular_hole"), absent("drusen")},
        {present("no_abnormality"), absent("drusen")},
        {present("mild_npdr"), Statement("pdr", "left", "present")},
    ]
    apart = [
        {present("mild_npdr"), suspected("pdr")},
        {present("soft_drusen"), absent("drusen")},
        {present("moderate_npdr"), absent("microaneurysms")},
        {present("no_abnormality"), suspected("drusen")},
    ]
    assert [bool(conflicts(statements, TERMS)) for statements in together + apart] == [False] * 4 + [True] * 4


# ---- pairs of another specialty, whose state is not known

CHEST = Terminology(
    (
        Term("effusion", "finding", en="pleural effusion", synonyms_en=("pleural fluid",)),
        Term("pneumothorax", "finding", en="pneumothorax", synonyms_en=("collapsed lung",), abbreviations_en=("PTX",)),
        Term("consolidation", "finding", en="consolidation", synonyms_en=("airspace disease",)),
        Term("pneumonia", "finding", en="pneumonia", related=("consolidation",)),
        Term("cardiomegaly", "finding", en="cardiomegaly", synonyms_en=("enlarged heart",)),
        Term("normal", "normal", en="no acute abnormality", synonyms_en=("normal chest",)),
        Term("lung", "anatomy", en="lung"),
    ),
    ("en",),
)
SOURCES = [
    ("Small pleural effusion. No PTX or airspace disease.", "Pleural effusion. No pneumothorax. No consolidation."),
    ("Lungs are clear. No pleural fluid. Mild cardiomegaly.", "No pleural effusion. Cardiomegaly."),
    ("Enlarged heart with possible effusion. PTX absent.", "Cardiomegaly. No pneumothorax."),
    ("Patchy consolidation in the lung, likely pneumonia.", "Consolidation. Possible pneumonia."),
    ("Normal chest.", "No acute abnormality."),
    ("Effusion seen 2 days ago, 12 mm. Pneumothorax. Later: pneumothorax.", "Pneumothorax."),
]  # fmt: skip


def chest(targets=None):
    return [
        ReportPair(str(index), source, target if targets is None else targets[index], "en")
        for index, (source, target) in enumerate(SOURCES)
    ]


def test_pairs_of_another_specialty_keep_saying_the_same():
    config = dataclasses.replace(EVERY_KIND, negation=0.9, probability=0.9)
    pairs = chest()
    changed = Counter()
    for one in augment(open_corpus(pairs, 600, config, CHEST), range(6, 600), config, 1):
        before = pairs[int(one.origin)]
        moved = stated(one.pair.target, one.pair, CHEST) ^ stated(before.target, before, CHEST)
        assert stated(one.pair.source, one.pair, CHEST) ^ stated(before.source, before, CHEST) == moved
        assert bool(moved) == bool(SEMANTIC & set(one.kinds))
        changed[one.origin] += bool(moved)
        if moved:
            assert "consolidation" in one.pair.target.lower() or one.origin not in "03"
            assert {statement.term for statement in moved} != {"normal"}
    assert set(changed) == set("012345")
    assert changed["0"] > 50
    assert changed["4"] == changed["5"] == 0  # nothing to deny; said twice


def test_the_wording_of_targets_is_that_of_the_corpus():
    wording = open_corpus(chest(), 6, CONFIG, CHEST).wording["en"]
    assert wording == {"present": "{}", "suspected": "possible {}", "absent": "no {}"}
    parts = ["Pleural effusion", "Cardiomegaly", "Cardiomegaly", "Consolidation", "Normal", "Pneumothorax"]
    assert open_corpus(chest(parts), 6, CONFIG, CHEST).wording["en"] == {"present": "{}"}  # they leave denials out
    config = dataclasses.replace(EVERY_KIND, negation=1.0)
    for one in augment(open_corpus(chest(parts), 120, config, CHEST), range(6, 120), config, 0):
        assert "no " not in one.pair.target.lower()


def test_a_text_without_any_place_for_a_change_stays():
    [_, copy] = augment(open_corpus([ReportPair("a", "x", "y")], 2, CONFIG), range(2), CONFIG, 0)
    assert (copy.pair, copy.kinds) == (ReportPair("a+1", "x", "y"), ())


# ---- training, and what cannot be


def test_training_alone_is_augmented_and_no_evaluation_report_arises():
    data = dataclasses.replace(PRESETS["demo"].data, train_size=60, validation_size=10, test_size=10, augment_to=240)
    config = dataclasses.replace(PRESETS["demo"], data=data, augment=AugmentConfig(negation=1.0, probability=1.0))
    splits = load_splits(config, Quarantine())
    pairs = augmented(config, splits)
    assert len(pairs) == 240
    assert pairs[:60] == splits.train
    for pair in pairs[60:]:
        assert split_of(FundusStudy(parse_standard_report(pair.target, pair.language).findings)) == "train"
    assert sum(pair.target not in {other.target for other in splits.train} for pair in pairs) > 90
    with pytest.raises(UserError, match=r"^data.augment_to must be at least 60, the pairs of the training split"):
        augmented(dataclasses.replace(config, data=dataclasses.replace(data, augment_to=59)), splits)


@pytest.mark.parametrize(
    ("pairs", "total", "config", "message"),
    [
        ([], 5, CONFIG, "no pairs"),
        (chest(), 5, CONFIG, "there are 6 already"),
        (chest(), 12, AugmentConfig(0.2, 0.2, 0, 0, 0, 0, 0), "they add up to 0.4"),
        ([ReportPair("a", "x", "y", "zh")], 5, CONFIG, "no names in zh, the language of pair a"),
        ([ReportPair("a", "x", "y"), ReportPair("a+1", "x", "y")], 4, CONFIG, r"a\+1 is the id of a pair"),
        ([ReportPair("a", "x", "y"), ReportPair("a", "x", "y")], 4, CONFIG, "ids must be unique"),
    ],
)
def test_what_cannot_be_augmented_is_said(pairs, total, config, message):
    with pytest.raises(UserError, match=message):
        open_corpus(pairs, total, config, CHEST)
