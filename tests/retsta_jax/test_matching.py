"""What free text says is read as a clinician reads it; on generated reports the truth is known."""

import random

import numpy as np
import pytest

from retsta_jax.corpus.findings import standard_report
from retsta_jax.corpus.fundus import sample_study
from retsta_jax.corpus.wording import original_report
from retsta_jax.terminology.check import load_terminology
from retsta_jax.terminology.matching import Statement, find_terms, statements_of
from retsta_jax.terminology.search import fold
from retsta_jax.terminology.terms import Term, Terminology
from retsta_jax.terminology.typos import misspellings

TERMS = load_terminology()

SHORT = {
    "HB": "retinal_haemorrhage",
    "HE": "hard_exudates",
    "ME": "macular_oedema",
    "DR": "drusen",
    "RD": "retinal_detachment",
    "MH": "macular_hole",
    "CN": "choroidal_neovascularisation",
    "EM": "epiretinal_membrane",
    "MY": "myelinated_nerve_fibres",
    "NO": "no_abnormality",
    "DO": "optic_disc_oedema",
}
SIGNS = {"+": "present", "?": "suspected", "-": "absent"}
EYES = {"R": "right", "L": "left", "B": "both", "": None}


def read(text):
    back = {term: short for short, term in SHORT.items()}
    signs, eyes = ({value: key for key, value in names.items()} for names in (SIGNS, EYES))
    found = find_terms(text, TERMS)
    return " ".join(
        f"{signs[match.status]}{back[match.term]}{eyes[match.eye]}" for match in found if match.term in back
    )


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        # Enumerated denials, and what ends them.
        ("未见视网膜出血、硬性渗出及黄斑水肿。", "-HB -HE -ME"),
        ("未见视网膜出血，可见硬性渗出。", "-HB +HE"),
        ("未见视网膜出血，硬性渗出及黄斑水肿", "-HB -HE -ME"),
        ("未见视网膜出血。硬性渗出。", "-HB +HE"),
        ("未见视网膜出血，但有硬性渗出", "-HB +HE"),
        ("无视网膜出血，无硬性渗出，黄斑裂孔", "-HB -HE +MH"),
        ("黄斑水肿，未见视网膜脱离", "+ME -RD"),
        ("有髓神经纤维，无黄斑裂孔", "+MY -MH"),
        ("视网膜出血(-)，硬性渗出(+)，黄斑水肿(±)", "-HB +HE ?ME"),
        ("视网膜出血：无。黄斑裂孔：未见", "-HB -MH"),
        ("No retinal haemorrhage, hard exudates or macular oedema.", "-HB -HE -ME"),
        ("No retinal haemorrhage. Hard exudates.", "-HB +HE"),
        ("No retinal haemorrhage, but hard exudates", "-HB +HE"),
        ("No retinal haemorrhage, drusen seen", "-HB +DR"),
        ("No evidence of retinal detachment; drusen present", "-RD +DR"),
        ("Retinal haemorrhage, hard exudates and macular oedema absent", "-HB -HE -ME"),
        ("Retinal detachment ruled out", "-RD"),
        ("Drusen without choroidal neovascularisation", "+DR -CN"),
        ("No change in drusen", "+DR"),
        ("Not only drusen but also macular oedema", "+DR +ME"),
        ("Normal fundus, no drusen", "+NO -DR"),
        ("no drusen, normal fundus", "-DR +NO"),
        ("Negative for retinal haemorrhage and macular oedema, epiretinal membrane noted", "-HB -ME +EM"),
        # Doubt.
        ("不除外黄斑裂孔", "?MH"),
        ("不能排除视网膜脱离", "?RD"),
        ("黄斑水肿？视网膜出血", "?ME +HB"),
        ("黄斑裂孔可能性大", "?MH"),
        ("考虑黄斑水肿、视网膜出血", "?ME ?HB"),
        ("黄斑裂孔（待排），玻璃膜疣", "?MH +DR"),
        ("? macular hole, drusen", "?MH +DR"),
        ("drusen ?macular hole", "+DR ?MH"),
        ("Cannot exclude retinal detachment", "?RD"),
        ("Left eye: suspicious for mod. epiretinal membrane.", "?EML"),
        ("Possible macular oedema and epiretinal membrane", "?ME ?EM"),
        ("macular hole (suspected), drusen", "?MH +DR"),
        ("Macular oedema cannot be excluded", "?ME"),
        ("棉绒斑？无视网膜出血，黄斑裂孔(?) 玻璃膜疣", "-HB ?MH +DR"),
        ("考虑黄斑水肿 视网膜出血(-)", "?ME -HB"),
        ("No macular oedema, drusen C/D=0.6 noted", "-ME +DR"),
        ("没看到玻璃膜疣", "-DR"),
        # Eyes.
        ("右眼黄斑水肿。左眼同上", "+MEB"),
        ("OD: drusen. OS: same", "+DRB"),
        ("Examination of the right eye shows drusen, examination of the left eye shows macular hole", "+DRR +MHL"),
        ("L：黄斑水肿_x000D_R：玻璃膜疣||L 黄斑裂孔", "+MEL +DRR +MHL"),
        ("右眼：黄斑水肿，硬性渗出。左眼：未见明显异常。", "+MER +HER +NOL"),
        ("双眼玻璃膜疣，右眼黄斑裂孔", "+DRB +MHR"),
        ("黄斑裂孔（右眼），玻璃膜疣（左眼）", "+MHR +DRL"),
        ("右眼黄斑水肿。左眼同右眼", "+MEB"),
        ("OD drusen OS macular hole", "+DRR +MHL"),
        ("drusen OD, macular hole OS", "+DRR +MHL"),
        ("Drusen in the right eye and macular hole in the left eye", "+DRR +MHL"),
        ("OU: drusen. OS: macular hole", "+DRB +MHL"),
        ("Bilateral disc swelling", "+DOB"),
        ("Drusen. OD: macular hole. Epiretinal membrane. OS: normal fundus", "+DR +MHR +EMR +NOL"),
        ("macular hole, ?retinal detachment RE", "+MHR ?RDR"),
        ("there may be drusen", "?DR"),
        ("R: drusen L: nil", "+DRR"),
        ("右:玻璃膜疣 左:无", "+DRR"),
        ("OD: macular hole. Drusen OS: small.", "+MHR +DRL"),
        # Names: either spelling, a slip, another width, the longest.
        ("ＯＤ：Macular Edema", "+MER"),
        ("retinal hemorhage", "+HB"),
        ("the patient told me", ""),
        # Capitals alone: an abbreviation that is a word of English counts where no unknown word is near.
        ("OD: HE, ME?\nOS: NO ME.", "+HER ?MER -MEL"),
        ("ME", "+ME"),
        ("ＲＥ：ＭＥ（－）", "-MER"),
        ("THERE IS HE, VA 20/40", "+HE"),
        ("HE TOLD ME ABOUT DRUSEN. NO ME.", "+DR -ME"),
        ("Reported by Dr XXXX", ""),
    ],
)
def test_reading(text, expected):
    assert read(text) == expected


def test_places_and_degrees_of_a_table_do_not_come_between_a_finding_and_what_is_said_of_it():
    places = (
        Term("mild", "severity", zh="轻度", en="mild"),
        Term("macula", "anatomy", zh="黄斑", en="macula", synonyms_zh=("黄斑区",), synonyms_en=("macular",)),
        Term("bundle", "anatomy", zh="无血管区", en="avascular zone"),
        Term("right_eye", "location", zh="右眼", en="right eye", abbreviations_en=("OD",)),
    )
    table = Terminology(tuple(term for term in TERMS.terms if term.id not in {place.id for place in places}) + places)
    for text, expected in (
        (
            "右眼硬性渗出（黄斑区）？，黄斑水肿（轻度）(-)",
            {("hard_exudates", "suspected"), ("macular_oedema", "absent")},
        ),
        (
            "拍摄范围包括黄斑、无血管区。右眼未见硬性渗出、轻度黄斑水肿",
            {("hard_exudates", "absent"), ("macular_oedema", "absent")},
        ),
        (
            "Field includes the macula. OD: drusen (mild)?, no macular drusenoid deposits",
            {("drusen", "suspected"), ("drusen", "absent")},
        ),
        ("Imaged: macula, avascular zone. right eye no mild vitreous opacity", {("vitreous_opacity", "absent")}),
    ):
        found = statements_of(find_terms(text, table), table)
        assert found == {Statement(term, "right", status) for term, status in expected}, text
    [macula, mild, drusen] = find_terms("OD: no macular mild drusen", table)
    assert [match.term for match in (macula, mild, drusen)] == ["macula", "mild", "drusen"]
    assert {match.status for match in (macula, mild, drusen)} == {"absent"}


def test_places_are_those_of_the_original_text():
    text = "ＯＤ  :  黄斑水肿，Ｃ／Ｄ 0.8; hard-exudates…"
    for match in find_terms(text, TERMS):
        assert text[match.start : match.end] == match.text
    assert [match.text for match in find_terms(text, TERMS)] == ["黄斑水肿", "hard-exudates"]
    folded = fold(text)
    assert len(folded.text) == len(folded.origin)
    assert folded.origin == sorted(folded.origin)


@pytest.mark.parametrize("language", ["zh", "en"])
def test_standard_reports_state_their_study(language):
    for study in (sample_study(np.random.default_rng([5, index])) for index in range(500)):
        found = statements_of(find_terms(standard_report(study, language), TERMS, language), TERMS)
        assert found == {Statement(finding.term, finding.eye, finding.status) for finding in study.findings}


@pytest.mark.parametrize("language", ["zh", "en"])
@pytest.mark.parametrize(("noise", "most"), [(0.0, 0.002), (0.6, 0.01)])
def test_generated_originals_state_their_study(language, noise, most):
    """Statements missed or invented, of those there are. What is left at noise has run-on lines of two readings."""
    wrong = total = 0
    for index in range(600):
        rng = np.random.default_rng([6, index])
        study = sample_study(rng)
        found = statements_of(find_terms(original_report(study, language, rng, noise), TERMS, language), TERMS)
        wanted = {Statement(finding.term, finding.eye, finding.status) for finding in study.findings}
        wrong += len(found ^ wanted)
        total += len(wanted)
    assert wrong <= most * total


def test_names_of_any_table_are_found_as_a_plain_search_finds_them():
    """Against brute force over random names: the longest first, of equals the leftmost, none across another."""
    generator = random.Random(0)
    for _ in range(200):
        names = {"".join(generator.choices("甲乙丙", k=generator.randint(1, 4))) for _ in range(8)}
        table = Terminology(tuple(Term(name, zh=name) for name in sorted(names)), ("zh",))
        text = rest = "".join(generator.choices("甲乙丙丁", k=30))
        expected = []
        for name in sorted(names, key=len, reverse=True):
            longest = [other for other in names if len(other) == len(name)]
            while (start := min((rest.find(one) for one in longest if one in rest), default=-1)) >= 0:
                expected.append((text[start : start + len(name)], start))
                rest = rest[:start] + "-" * len(name) + rest[start + len(name) :]
        found = [(match.term, match.start) for match in find_terms(text, table, "zh")]
        assert found == sorted(expected, key=lambda one: one[1])


def test_every_name_and_every_slip_of_it_is_found():
    for language in TERMS.languages:
        for term in TERMS.terms[::9]:
            for form in term.forms(language):
                assert [match.term for match in find_terms(form.upper() + " X", TERMS, language)][:1] == [term.id], form
                for slip in sorted(misspellings(form, language))[::7]:
                    owners = {match.term for match in find_terms(slip, TERMS, language)}
                    assert owners in ({term.id}, set()) or len(owners) == 1, (form, slip, owners)


def test_damaged_text_never_raises():
    rng = np.random.default_rng(0)
    alphabet = [*"未见无右左双眼，。、；：?？()（） ,.;:-+/\n黄斑水肿出血no or and OD"]
    for _ in range(500):
        text = "".join(rng.choice(alphabet, size=40))
        for match in find_terms(text, TERMS):
            assert text[match.start : match.end] == match.text
