"""A translation that says something else is named with what it changed; one in other words is not."""

import pytest

from retsta_jax.terminology.check import load_terminology
from retsta_jax.terminology.terms import read_table
from retsta_jax.translation.consistency import no_counterpart, text_problems
from retsta_jax.translation.translate import Terminology

TERMS = load_terminology()
ZH = "右眼：黄斑区可见硬性渗出，重度黄斑前膜，未见视网膜脱离。左眼：可疑视网膜裂孔，杯盘比增大，C/D约0.6。"
EN = (
    "Right eye: hard exudates at the macula, severe epiretinal membrane, no retinal detachment. Left eye: suspected "
    "retinal break, enlarged cup-to-disc ratio, C/D about 0.6."
)
CHANGES = [
    ("hard exudates at the macula, ", "", "term lost"),
    ("no retinal detachment", "no retinal detachment, no drusen", "term added"),
    ("hard exudates", "soft drusen", "term lost"),
    ("no retinal detachment", "retinal detachment", "certainty changed"),
    ("suspected retinal", "no retinal", "certainty changed"),
    ("Left eye", "Right eye", "eye changed"),
    ("severe", "mild", "degrees changed"),
    ("severe ", "", "degrees changed"),
    ("at the macula", "in the posterior pole", "places changed"),
    ("0.6", "0.9", "numbers changed"),
    ("C/D about 0.6", "follow up in 3 months, C/D about 0.6", "numbers changed"),
    ("Left eye", "左眼", "not all in English"),
    ("hard exudates", "硬性渗出", "not all in English"),
]


def kinds(original, translated, language, to, part="source"):
    return [problem.kind for problem in text_problems(part, original, translated, language, to, TERMS)]


def test_the_right_translation_has_no_problem_in_either_direction():
    assert kinds(ZH, EN, "zh", "en") == kinds(EN, ZH, "en", "zh") == []


@pytest.mark.parametrize(("old", "new", "kind"), CHANGES)
def test_each_change_is_found(old, new, kind):
    assert old in EN
    assert kind in kinds(ZH, EN.replace(old, new, 1), "zh", "en")


@pytest.mark.parametrize(
    ("zh", "en"),
    [
        (
            "右眼：黄斑区可见硬性渗出，未见视网膜出血、黄斑水肿。",
            "Right eye: hard exudates are visible at the macula, with no retinal haemorrhage or macular oedema.",
        ),
        ("OU DR，未见RD", "OU: DR, no RD."),
        ("右眼见颞上象限视网膜裂孔。", "A retinal break is seen in the superotemporal quadrant of the right eye."),
        (
            "双眼底可见微动脉瘤，左眼黄斑水肿不能除外。",
            "Both fundi: microaneurysms. Left eye: cannot exclude macular edema.",
        ),
    ],
)
def test_other_words_for_the_same_are_no_problem(zh, en):
    assert kinds(zh, en, "zh", "en") == kinds(en, zh, "en", "zh") == []


def test_two_degrees_or_two_numbers_that_change_places_are_found():
    zh = "右眼：轻度黄斑前膜，重度屈光间质混浊。右眼C/D 0.5，左眼C/D 0.7。"
    en = "Right eye: mild epiretinal membrane, severe media opacity. Right eye C/D 0.5, left eye C/D 0.7."
    assert kinds(zh, en, "zh", "en") == []
    swapped = en.replace("mild", "x").replace("severe", "mild").replace("x epi", "severe epi")
    assert kinds(zh, swapped, "zh", "en") == ["degrees changed"]
    swapped = en.replace("0.5", "x").replace("0.7", "0.5").replace("x,", "0.7,")
    assert kinds(zh, swapped, "zh", "en") == ["numbers changed"]


def test_a_standard_name_of_a_target_stays_one_and_a_source_may_use_others():
    zh, en = "右眼：糖尿病视网膜病变。", "Right eye: DR."
    assert kinds(zh, en, "zh", "en", "source") == []
    assert kinds(zh, en, "zh", "en", "target") == ["not the standard name"]
    assert kinds(zh, "Right eye: diabetic retinopathy.", "zh", "en", "target") == []


@pytest.mark.parametrize("text", [EN, "OD: no drusen.", "Right eye: drusen"])
def test_a_text_that_was_not_translated_is_found(text):
    assert "not all in Chinese" in kinds(text, text, "en", "zh")


def test_a_problem_says_nothing_of_the_report_but_terms():
    problems = text_problems("source", ZH + "张三", "Zhang San", "zh", "en", TERMS)
    assert problems
    assert not any("张三" in str(problem) or "Zhang" in str(problem) for problem in problems)


def test_terms_without_a_name_in_the_other_language_are_named(tmp_path):
    file = tmp_path / "terms.csv"
    file.write_text("id,kind,zh,en\na,sign,肺结节,pulmonary nodule\nb,sign,胸腔积液,\n")
    table = read_table(file)
    terms = Terminology(table.terms, table.languages)
    assert no_counterpart("肺结节，胸腔积液", "zh", "en", terms) == ["胸腔积液"]
