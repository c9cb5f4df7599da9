"""Sections of free-text reports: no heading lets an impression into the findings, or findings into the indication."""

import random

import pytest

from common.data.section_headings import classify, edit_distance, is_capitals
from common.data.sections import RARE, HeadingCounts, report_and_indication, report_sections

REPORT = """                                 FINAL REPORT
 EXAMINATION:  CHEST (PA AND LAT)

 INDICATION:  ___F with new onset ascites  // eval for infection

 TECHNIQUE:  Chest PA and lateral

 COMPARISON:  None.

 FINDINGS:

 There is no focal consolidation, pleural effusion or
 pneumothorax.  A 2.5 cm nodule at the left base: unchanged.
 LUNGS:  Clear.
 Left impression: none.

 IMPRESSION:

 No acute cardiopulmonary process.
"""
COUGH, CLEAR, NORMAL = "Man of ___ years with cough.", "The lungs are clear. No effusion.", "No acute process."


def report(**changes: str) -> str:
    """A report whose headings can be replaced; an empty heading leaves its section out."""
    headings = {"indication": "INDICATION", "comparison": "COMPARISON", "findings": "FINDINGS"} | changes
    texts = {"indication": COUGH, "comparison": "None.", "findings": CLEAR, "impression": NORMAL}
    headings.setdefault("impression", "IMPRESSION")
    body = "".join(f" {headings[name]}:  {text}\n \n" for name, text in texts.items() if headings[name])
    return f" \t\t\tFINAL REPORT\n EXAMINATION:  CHEST (PA AND LAT)\n \n{body}"


def test_findings_end_at_the_next_section_and_keep_labels_of_their_own():
    sections = report_sections(REPORT)
    assert sections["findings"] == (
        "There is no focal consolidation, pleural effusion or pneumothorax. A 2.5 cm nodule at the left base: "
        "unchanged. LUNGS: Clear. Left impression: none."
    )
    assert sections["indication"] == "___F with new onset ascites // eval for infection"
    assert sections["impression"] == "No acute cardiopulmonary process."
    assert list(sections) == ["examination", "indication", "technique", "comparison", "findings", "impression"]


@pytest.mark.parametrize(
    ("text", "findings"),
    [
        ("", None),
        ("The heart is normal. FINDINGS: in the middle of a line", None),
        ("FINDINGS: Clear.", "Clear."),
        ("\ufeffFINDINGS: Clear.", "Clear."),
        ("Findings : Clear.", "Clear."),
        ("**FINDINGS:** Clear.\n**Impression:** Normal.", "Clear."),
        ("FINDINGS：Clear.\nIMPRESSION：Normal.", "Clear."),
        ("\tFINDINGS:Clear.\nNo effusion.", "Clear. No effusion."),
        ("FINDINGS: Compared with the\nfindings: of before", "Compared with the findings: of before"),
        ("FINDINGS:\n\nIMPRESSION: Clear.", None),
        ("FINDINGS\nClear.\n\nIMPRESSION\nNormal.", "Clear."),
        ("FINDINGS: Clear.\nIMPRESSION - Normal.", "Clear."),
        ("FINDINGS: Clear.\r\nIMPRESSION: Normal.", "Clear."),
        ("FINDINGS: Clear.\nNOTIFICATION: called", "Clear."),
        ("FINDINGS: Clear.\nREASON FOR EXAMINATION: cough", "Clear."),
        ("WET READ: FINDINGS pending\n FINDINGS: Early.\n  FINAL REPORT\n FINDINGS: Late.", "Late."),
        ("WET READ: LUNGS: Early.\n FINAL REPORT\n IMPRESSION: Late.", None),
        ("FINDINGS: Clear.\n  FINAL REPORT\n ADDENDUM: none\n FINDINGS:\n", "Clear."),
        ("FINDINGS: Clear.\n FINAL REPORT of the day\n", "Clear. FINAL REPORT of the day"),
        ("FINDINGS: No edema.\nFINAL ADDENDUM\n Small effusion.", "No edema."),
        ("FINDINGS: No edema.\nADDENDUM  Small effusion.\nLUNGS: Effusion.", "No edema."),
        ("FINDINGS: No edema at 2:30 PM: none.\n____________\nDr. ___", "No edema at 2:30 PM: none."),
    ],
)
def test_sections_follow_the_stated_rules(text, findings):
    assert report_sections(text).get("findings") == findings


IMPRESSIONS = [
    *("IMPRESSION", "IMPESSION", "IMPRESSON", "MPRESSION", "IMRPESSION", "IMPRESSIN", "IMRESION", "FINAL IMPRESSION"),
    *("SUMMARY", "CONCLUSION", "CONCLUSIONS", "CONCLUSOIN", "OPINION", "ASSESSMENT", "INTERPRETATION", "DIAGNOSIS"),
    *("Impression", "Impresion", "Final impression", "Conclusion", "IMPRESSION AND RECOMMENDATION(S)", "IMPRESSI ON"),
    *(
        "RADIOGRAPHIC IMPRESSION",
        "SUMMARY OF FINDINGS",
        "RECOMMENDATIONS",
        "NOTIFICATION OF CRITICAL FINDINGS",
        "WIBBLE",
    ),
    *("FINAL DIAGNOSIS", "ATTENDING", "DICTATED BY", "WETREAD", "COMMENT", "COMPARSION", "TECHNIQE"),
]


@pytest.mark.parametrize("heading", IMPRESSIONS)
def test_findings_end_at_every_heading_of_another_section(heading):
    sections = report_sections(report(impression=heading))
    assert (sections["findings"], sections["indication"]) == (CLEAR, COUGH)


@pytest.mark.parametrize(
    "heading",
    [
        *("COMPARISION", "COMPARSION", "COMPARRISON", "Comparison", "PRIOR STUDIES", "COMPARISON STUDIES", "WIBBLE"),
        *("TECHNIQUE", "TECNIQUE", "VIEWS", "STUDY", "EXAM DATE", "ACCESSION NUMBER", "CLINICAL CORRELATION", "Reader"),
        "HISTORY OF WIBBLE",
    ],
)
def test_an_indication_ends_at_every_heading(heading):
    sections = report_sections(report(comparison=heading))
    assert (sections["findings"], sections["indication"]) == (CLEAR, COUGH)


VIEWS = [
    *("PA AND LATERAL VIEWS OF THE CHEST", "CHEST, TWO VIEWS", "AP CHEST 5:32 AM", "AP CHEST, 5:32 A.M., ___"),
    *("FRONTAL AND LATERAL CHEST RADIOGRAPHS", "PORTABLE CHEST", "2 VIEWS OF THE CHEST", "CHEST", "CHEST X-RAY"),
    *("LATERAL AND PA", "BONE WINDOWS", "PA and LATERAL CHEST", "FINDNGS", "FINDIGNS", "OTHER FINDINGS", "REPORT"),
    *("Portable AP chest radiograph", "Findings", "FINDING"),
]


@pytest.mark.parametrize("heading", VIEWS)
@pytest.mark.parametrize("comparison", ["COMPARISON", ""])
def test_findings_may_stand_under_the_views(heading, comparison):
    sections = report_sections(report(findings=heading, comparison=comparison))
    assert (sections["findings"], sections["indication"], sections["impression"]) == (CLEAR, COUGH, NORMAL)


ORGANS = [
    *("LUNGS", "HEART", "BONES", "CARDIOMEDIASTINAL SILHOUETTE", "PLEURA", "TUBES AND LINES", "LUNGS/PLEURA", "OTHER"),
    *("UPPER ABDOMEN", "OSSEOUS STRUCTURES", "CHEST WALL", "PNEUMOTHORAX", "SUPPORT DEVICES", "RIBS", "ATELECTASIS"),
    *("Lungs and pleura", "Heart size", "PA CATHETER", "COMPRESSION", "CONTUSION"),
]


@pytest.mark.parametrize("heading", ORGANS)
def test_organs_are_text_of_the_findings_and_begin_them_after_an_indication(heading):
    text = f"INDICATION: {COUGH}\n\n{heading}: Unremarkable.\n IMPRESSION: {NORMAL}\n{heading}: Stable."
    sections = report_sections(text)
    assert sections["findings"] == f"{heading}: Unremarkable."
    assert (sections["indication"], sections["impression"]) == (COUGH, f"{NORMAL} {heading}: Stable.")
    text = text.replace(f"{heading}: Un", f"FINDINGS: Clear.\n {heading}: Un")
    assert report_sections(text)["findings"] == f"Clear. {heading}: Unremarkable."


def test_views_within_findings_are_text_and_findings_resume_after_an_unknown_heading():
    text = (
        "FINDINGS:\n CHEST, TWO VIEWS: A.\n ABDOMEN, ONE VIEW: B.\n WIBBLE: C.\n HEART: D.\n IMPRESSION: E\n BONES: F"
    )
    assert report_sections(text) == {"findings": "A. ABDOMEN, ONE VIEW: B. HEART: D.", "impression": "E BONES: F"}


def test_a_report_in_one_line_has_its_sections_and_a_heading_within_a_sentence_is_text():
    text = (
        "FINAL REPORT EXAMINATION: CHEST (PA AND LAT) INDICATION: Woman with cough COMPARISON: None. FINDINGS: The "
        "lungs are clear. See IMPRESSION: below. Heart: normal. Final impression seen. FINAL IMPRESSION: No process."
    )
    sections = report_sections(text)
    assert sections["indication"] == "Woman with cough"
    assert sections["comparison"] == "None."
    assert sections["findings"] == ("The lungs are clear. See IMPRESSION: below. Heart: normal. Final impression seen.")
    assert sections["impression"] == "No process."
    mixed = report_sections("Indication: cough. Findings: Clear lungs. Impression: Normal.")
    assert mixed == {"indication": "cough.", "findings": "Clear lungs.", "impression": "Normal."}


def test_paragraphs_after_an_indication_are_not_shown_to_a_model():
    sections = report_sections(f"INDICATION:\n\n {COUGH}\n\n {CLEAR}\n\n IMPRESSION: {NORMAL}")
    assert report_and_indication(sections, "impression") == (NORMAL, COUGH)
    assert "findings" not in sections


def test_a_report_in_capitals_keeps_its_sentences():
    text = "FINDINGS: THERE IS A NODULE IN THE\nLEFT BASE: UNCHANGED.\nNO CHANGE SINCE THE PRIOR\nSTUDY\n"
    assert report_sections(f"{text}\nIMPRESSION\nNORMAL") == {
        "findings": "THERE IS A NODULE IN THE LEFT BASE: UNCHANGED. NO CHANGE SINCE THE PRIOR STUDY",
        "impression": "NORMAL",
    }


def test_what_is_shown_to_a_model_is_the_indication_else_the_history():
    sections = {"history": "old", "impression": "A", "findings": "B"}
    assert report_and_indication(sections, "findings+impression") == ("B A", "old")
    assert report_and_indication(sections | {"indication": "new"}, "findings") == ("B", "new")
    assert "history" not in report_sections("PFI: small effusion")


def test_headings_beyond_the_list_are_counted_and_rare_ones_that_could_be_names_are_not_shown():
    headings = HeadingCounts()
    for number in range(RARE):
        text = report(findings="AP CHEST 5:32 AM", impression="FINAL IMPRESION") + " WIBBLE: secret\n"
        report_sections(text + (" JANE DOE: secret\n" if number else ""), headings=headings)
    assert headings.named() == [
        ("AP CHEST AM", "findings", RARE),
        ("FINAL IMPRESION", "impression", RARE),
        ("WIBBLE", "other", RARE),
    ]
    assert headings.summary() == (
        "headings beyond the listed spellings: AP CHEST AM read as findings in 5 reports; FINAL IMPRESION read as "
        "impression in 5 reports; WIBBLE left out in 5 reports; 1 unknown heading in 4 reports, not named because "
        "fewer than 5 reports have it"
    )
    assert HeadingCounts().summary() == ""


def test_a_column_of_sections_begins_in_its_section():
    assert report_sections(f"{CLEAR}\nIMPESSION: {NORMAL}", "findings")["findings"] == CLEAR
    assert report_sections(f"Cough.\nCHEST, TWO VIEWS: {CLEAR}", "history")["history"] == "Cough."


def test_misspellings_are_found_and_other_words_are_left_alone():
    for wrong, right in (("findngs", "findings"), ("idication", "indication"), ("imperssion", "impression")):
        assert edit_distance(wrong, right) == 1
        assert classify(wrong.upper()).section == right or classify(wrong.upper()).kind == "findings"
    assert edit_distance("", "abc") == 3
    assert edit_distance("abc", "cab") == 2
    for word in ("COMPRESSION", "DEPRESSION", "OCCLUSION", "CONTUSION", "MEDICATION", "COMPANION", "HISTOLOGY"):
        assert classify(word).kind in ("organ", "unknown")


def test_no_text_makes_it_fail_and_nothing_is_invented():
    generator = random.Random(0)
    pieces = [
        *("FINDINGS", "IMPRESSION", ":", " ", "\n", "\n\n", "LUNGS", "5:32 AM", "___", "chest", "Views", ".", "Clear"),
        *("：", "\x00", "\u2028", "INDICATION", "WIBBLE", "-", "**", "\ufeff", "未见", "Final Report"),
    ]
    for _ in range(500):
        text = "".join(generator.choices(pieces, k=25))
        letters = sorted(filter(str.isalpha, text))
        kept = sorted(filter(str.isalpha, "".join(report_sections(text, headings=HeadingCounts()).values())))
        assert all(kept.count(letter) <= letters.count(letter) for letter in set(kept))


def test_small_words_do_not_take_a_heading_its_capitals():
    assert is_capitals("PA and LATERAL, 5:32 a.m.")
    assert not is_capitals("PA and lateral")


@pytest.mark.parametrize(
    "text",
    [
        "indication: cough.\n\nfindings: clear lungs.\n\nimpression: normal.\n",
        "history: cough.\ncomparison: none\nfindings: clear lungs.\nimpresion: normal.",
        "reason for exam: cough. comparison: none. findings: clear lungs. impression: normal.",
        "INDICATION: cough.\n\nFINDINGS: clear lungs.\n\nimpression: normal.\n",
        "## Indication\ncough.\n\n## Findings\nclear lungs.\n\n## Impression\nnormal.\n",
        "INDICATION: cough.\nFINDINGS: clear lungs.\nIMPRESSION.\nnormal.\n",
        "INDICATION: cough.\nFINDINGS: clear lungs.\nIMPRESSION:: normal.\n",
        "MEDICAL CONDITION: cough.\nFINDINGS: clear lungs.\nBOTTOM LINE: normal.\n",
    ],
)
def test_headings_in_lower_case_alone_on_a_line_or_oddly_punctuated_end_sections(text):
    sections = report_sections(text)
    assert report_and_indication(sections, "findings") == ("clear lungs.", "cough.")
    assert sections["impression"] == "normal."


@pytest.mark.parametrize(
    "text",
    ["No change from the prior\nstudy: clear.", "As in the\nfindings: of before.", "LLL: clear.", "note: turned."],
)
def test_lower_case_words_of_a_sentence_and_lobes_are_text(text):
    assert report_sections(f"FINDINGS: Heart normal.\n{text}\n\nIMPRESSION: {NORMAL}") == {
        "findings": " ".join(f"Heart normal. {text}".split()),
        "impression": NORMAL,
    }


@pytest.mark.parametrize(
    ("text", "begin", "expected"),
    [
        ("Scar of 2.5 cm. IMPESSION: bad", "findings", {"findings": "Scar of 2.5 cm.", "impression": "bad"}),
        ("FINDINGS:\nScar; IMPRESSION: bad", "other", {"findings": "Scar;", "impression": "bad"}),
        ("Cough. TWO VIEWS OF THE CHEST: clear", "indication", {"indication": "Cough.", "findings": "clear"}),
        ("Cough COMPARISON: none", "indication", {"indication": "Cough", "comparison": "none"}),
        ("1. INDICATION: cough\n2. FINDINGS: clear", "other", {"indication": "cough", "findings": "clear"}),
    ],
)
def test_a_heading_behind_the_first_sentence_of_a_line_ends_its_section(text, begin, expected):
    assert report_sections(text, begin) == expected
