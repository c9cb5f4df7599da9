"""Rules keep right pairs and reject each kind of wrong one, by its name."""

import numpy as np
import pytest

from common.data.records import ReportPair
from retsta_jax.corpus.findings import FundusStudy, order_findings, standard_report
from retsta_jax.corpus.fundus import sample_study
from retsta_jax.corpus.wording import original_report
from retsta_jax.labelling.filters import RULES, broken_rules, judge_by_terms, read_pair, shares_broken
from retsta_jax.terminology.check import load_terminology
from retsta_jax.terminology.terms import Term, Terminology

TERMS = load_terminology()
STUDIES = [sample_study(np.random.default_rng([9, index])) for index in range(300)]


def broken(source, target, language="en", complete=True):
    return broken_rules(read_pair(ReportPair("1", source, target, language), TERMS, complete), TERMS)


@pytest.mark.parametrize(
    ("source", "target", "expected"),
    [
        ("OD drusen", "Right eye: drusen.", []),
        ("OD drusen, OS normal fundus", "Right eye: drusen. Left eye: no obvious abnormality.", []),
        ("OD drusen", "Left eye: drusen.", ["wrong eye", "finding lost"]),
        ("OU drusen", "Right eye: drusen.", ["finding lost"]),
        ("OD drusen", "Both eyes: drusen.", ["wrong eye"]),
        ("OD drusen", "Drusen.", ["missing eye"]),
        ("OD drusen", "Right eye: no drusen.", ["certainty changed"]),
        ("OD ?macular hole", "Right eye: macular hole.", ["certainty changed"]),
        ("OD drusen", "Right eye: drusen; macular hole.", ["finding added"]),
        ("OD drusen, macular hole", "Right eye: drusen.", ["finding lost"]),
        ("OD drusen, no drusen", "Right eye: drusen; no drusen.", ["contradiction"]),
        ("OD normal fundus, drusen", "Right eye: no obvious abnormality; drusen.", ["contradiction"]),
        ("OD mild NPDR, severe NPDR",
         "Right eye: mild non-proliferative diabetic retinopathy; severe non-proliferative diabetic retinopathy.",
         ["contradiction"]),
        ("OD increased cupping, CDR 0.7", "Right eye: enlarged cup-to-disc ratio (C/D 0.7).", []),
        ("OD increased cupping, CDR 0.7", "Right eye: enlarged cup-to-disc ratio (C/D 0.8).", ["number changed"]),
        ("OD increased cupping, CDR 0.7", "Right eye: enlarged cup-to-disc ratio.", ["number changed"]),
        ("OD drusen", "Right eye: 玻璃膜疣.", ["mixed language"]),
        ("OD drusen", "右眼：玻璃膜疣。", ["mixed language"]),
        ("OD drusen", "", ["states nothing", "finding lost"]),
        ("OD drusen", "Right eye: drusen; a wonderful sparkling constellation.", ["outside the terminology"]),
    ],
)  # fmt: skip
def test_each_kind_of_fault_has_its_name(source, target, expected):
    assert broken(source, target) == expected


def test_what_was_cut_off_is_no_label():
    assert broken("OD drusen", "Right eye: drusen.", complete=False) == ["cut off"]


def flipped(study):
    other = {"right": "left", "left": "right"}
    return FundusStudy(order_findings(replace_eye(finding, other[finding.eye]) for finding in study.findings))


def replace_eye(finding, eye):
    return finding.__class__(eye, finding.term, finding.status, finding.severity, finding.site, finding.ratio)


def without_one(study):
    return FundusStudy(study.findings[1:])


def denied(study):
    first, *rest = study.findings
    status = "absent" if first.status != "absent" else "present"
    return FundusStudy(order_findings([first.__class__(first.eye, first.term, status), *rest]))


@pytest.mark.parametrize("language", ["zh", "en"])
def test_right_pairs_stay_and_wrong_ones_go(language):
    """Rules other than the terminology's reach: the share of right pairs lost, and of wrong ones that slip through."""
    faults = {"flipped": flipped, "without one": without_one, "denied": denied}
    lost, caught, tried = 0, dict.fromkeys(faults, 0), dict.fromkeys(faults, 0)
    for index, study in enumerate(STUDIES):
        source = original_report(study, language, np.random.default_rng(index), noise=0.4)

        def rules(target, source=source):
            return set(broken(source, target, language)) - {"outside the terminology"}

        lost += bool(rules(standard_report(study, language)))
        for name, fault in faults.items():
            changed = standard_report(fault(study), language)
            if changed not in ("", standard_report(study, language)):
                tried[name] += 1
                caught[name] += bool(rules(changed))
    assert lost <= 0.02 * len(STUDIES)
    assert all(count > 150 for count in tried.values()), tried
    assert all(caught[name] >= 0.99 * tried[name] for name in faults), (caught, tried)


def test_the_cost_of_each_rule_is_known():
    pairs = [ReportPair("1", "OD drusen", "Right eye: drusen."), ReportPair("2", "OD drusen", "Left eye: drusen.")]
    shares = shares_broken(pairs, judge_by_terms(TERMS))
    assert shares.keys() == RULES.keys()
    assert shares["wrong eye"] == 0.5
    assert shares["finding added"] == 0


def test_another_specialty_needs_no_eyes_and_one_language():
    terms = Terminology((Term("effusion", en="pleural effusion", synonyms_en=("effusion",)),), ("en",))
    pair = ReportPair("1", "There is no effusion.", "No pleural effusion.", "en")
    assert broken_rules(read_pair(pair, terms), terms) == []
    pair = ReportPair("1", "There is no effusion.", "Pleural effusion.", "en")
    assert broken_rules(read_pair(pair, terms), terms) == ["certainty changed"]
