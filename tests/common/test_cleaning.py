"""Default cleaning keeps everything that carries meaning; R2Gen's loses exactly what its code loses."""

import random
import re
import unicodedata

import pytest

from common.data.cleaning import (
    CLEANING,
    altered_number,
    chosen_cleaning,
    clean_report,
    r2gen_clean_iu,
    r2gen_clean_mimic,
)

MEANINGFUL = [
    "2.5", "0.35", "12", "1.", "10.", "3x4", "cm", "mm", "ml/h", "cm²", "µm", "%", "left", "right", "LEFT", "bilateral",
    "R/L", "no", "not", "without", "denies", "XXXX", "XXXX-year-old", "T11/12", "<5mm", ">1.5", "+/-", "(?)",
    "consolidation/effusion", "“?”", "未见", "无", "左眼", "右眼", "黄斑区", "０.８", "眼压：21mmHg",
    "é", "e\u0301", "Ⅲ", "½", "①",
]  # fmt: skip
SPACES = [" ", "  ", "\t", "\n", "\r\n", "\n\n\n", "\u3000", "\u00a0", " \n ", "\x0c", "\x00", "\u2028"]
INVISIBLE = "\ufeff\u200b\u2060\u00ad"


def random_report(generator: random.Random) -> tuple[str, list[str]]:
    words = generator.choices(MEANINGFUL, k=generator.randint(0, 20))
    text = generator.choice(["", " ", "\n\n"])
    for word in words:
        if generator.random() < 0.2:
            position = generator.randint(0, 1) * len(word)
            word = word[:position] + generator.choice(INVISIBLE) + word[position:]
        text += word + generator.choice(SPACES)
    return text, words


def test_every_word_number_and_mark_survives_in_its_order():
    generator = random.Random(0)
    for _ in range(2000):
        text, words = random_report(generator)
        assert clean_report(text).split() == [unicodedata.normalize("NFC", word) for word in words]


def test_only_white_space_controls_and_invisible_characters_can_go():
    generator = random.Random(1)
    alphabet = [
        chr(code) for code in [*range(0x250), *range(0x2000, 0x2070), *range(0x3000, 0x3040), 0x0301, 0x4E2D, 0xFF10]
    ]
    for _ in range(2000):
        text = "".join(generator.choices(alphabet, k=generator.randint(0, 40)))
        visible = "".join(
            character
            for character in text
            if not character.isspace() and unicodedata.category(character) != "Cc" and character not in INVISIBLE
        )
        cleaned = clean_report(text)
        # Composition is compared in decomposed form: white space between two characters keeps them from composing.
        assert unicodedata.normalize("NFD", re.sub(r"\s", "", cleaned)) == unicodedata.normalize("NFD", visible)


def test_cleaning_twice_is_cleaning_once():
    generator = random.Random(2)
    alphabet = [
        chr(code) for code in [*range(0x180), *range(0x300, 0x320), *range(0x2000, 0x2070), 0x1100, 0x1161, 0x212B]
    ]
    for _ in range(3000):
        once = clean_report("".join(generator.choices(alphabet, k=generator.randint(0, 30))))
        assert clean_report(once) == once


def test_words_are_one_space_apart_and_lines_one_newline():
    assert (
        clean_report("\r\n  No\t pleural\u00a0 effusion. \r\n\r\n A 2.5  cm mass. \n")
        == "No pleural effusion.\nA 2.5 cm mass."
    )


def test_an_accent_is_composed_and_a_full_width_digit_is_left_alone():
    assert clean_report("Ame\u0301lie ０.８ cm²") == "Am\u00e9lie ０.８ cm²"


def test_a_number_split_by_an_invisible_character_is_whole_again():
    assert clean_report("\ufeff2\u200b.5 cm") == "2.5 cm"


def test_control_characters_never_join_two_words():
    assert clean_report("no\x00effusion\x7fleft") == "no effusion left"


def test_r2gen_cleaning_loses_decimals_and_joins_alternatives():
    assert (
        r2gen_clean_iu("A 2.5 cm nodule. Consolidation/effusion (left) is stable.")
        == "a 25 cm nodule . consolidationeffusion left is stable ."
    )


def test_r2gen_cleaning_drops_list_numbers_to_five_and_keeps_hyphens():
    assert (
        r2gen_clean_iu("1.. No acute disease.... 2. Follow-up CT. 3. Normal. 6. Other.")
        == "no acute disease . follow-up ct . normal . 6 . other ."
    )


def test_r2gen_cleaning_of_mimic_joins_wrapped_lines_and_drops_names_left_blank():
    report = "1. Lungs:  clear,\n   as compared with ___.\n 2. No   effusion/edema....\n\n 3. Dr. ___ at 2:30 p.m."
    assert r2gen_clean_mimic(report) == "lungs clear as compared with  . no effusionedema . dr .  at 230 pm ."


def test_r2gen_cleanings_differ_only_in_white_space_marks_and_long_runs_of_full_stops():
    generator = random.Random(3)
    pieces = [
        "1. ",
        " 2. ",
        ". ",
        "..",
        "Heart",
        "2.5 cm",
        "a/b",
        "(left)",
        "it's",
        "T-spine:",
        "<unk>",
        "[x]",
        "?!",
        " ",
    ]
    for _ in range(2000):
        report = "".join(generator.choices(pieces, k=generator.randint(0, 12)))
        if "  " not in report and "...." not in report:
            assert r2gen_clean_mimic(report) == r2gen_clean_iu(report)


def test_r2gen_cleaning_as_published_only_shortens_very_long_runs():
    assert r2gen_clean_mimic("a" + 64 * " " + "b") == "a b ."
    assert r2gen_clean_mimic("a" + 65 * " " + "b") == "a  b ."
    assert r2gen_clean_mimic("a" + 256 * "." + " b") == "a . b ."


OWN_IDS = {
    "iu-xray": ["CXR10", "CXR2384_IM-0942", "CXR1_1_IM-0001"],
    "mimic-cxr": ["s50414267", "02aa804e-bde0afdd-112c0b34-7bc16630-4e384014"],
}


@pytest.mark.parametrize("name", OWN_IDS)
def test_the_cleaning_of_published_tables_is_for_their_data_set_alone(name):
    lossy = {"iu-xray": "r2gen-iu", "mimic-cxr": "r2gen-mimic"}[name]
    assert chosen_cleaning(name, "phantom") == lossy
    for layout in ("annotation", "prepared", {"iu-xray": "openi", "mimic-cxr": "mimic"}[name]):
        assert chosen_cleaning(name, layout, OWN_IDS[name]) == lossy
        assert chosen_cleaning(name, layout, [*OWN_IDS[name], "patient-7"]) == "lossless"
    for layout in ("rows", "chexpert-plus"):
        assert chosen_cleaning(name, layout, OWN_IDS[name]) == "lossless"
    for explicit in CLEANING:
        assert chosen_cleaning(explicit, "rows", ["patient-7"]) == explicit


@pytest.mark.parametrize(
    ("report", "number"),
    [
        ("A 2.5 cm nodule.", "2.5"),
        ("C/D 0.3 in both eyes.", "0.3"),
        ("Seen at 2:30 PM.", "2:30"),
        ("Grade 3. No edema.", "3"),
        ("T11/12 fracture.", "11/12"),
        ("1. No edema.\n2. A nodule of 5 mm. 3. None.", ""),
        ("Clear.", ""),
    ],
)
def test_a_number_that_cleaning_alters_is_found(report, number):
    assert altered_number(report, r2gen_clean_mimic(report)) == number
    assert altered_number(report, clean_report(report)) == ""
