"""Identifiers of people in reports: found on made-up ones, and not in what only looks like one."""

import pytest

from common.data import identifiers
from common.data.identifiers import count_identifiers, identifiers_of, warn_of_identifiers
from common.phantoms.study import sample_study
from common.phantoms.text import render_report
from tests.corpus import make_pairs

pytest.importorskip("presidio_analyzer", reason="needs the extra deid")

# Made up; numbers have valid check digits (11010519491231002X is the example of GB 11643, 943 476 5919 NHS England's).
FOUND = {
    "Compared with 3/12/2019 and 2019-03-12, 12 Mar 2020, March 12, 2020 and April 2021.": {"date": 5},
    "Discussed with Dr. Roe at 617-555-0182.": {"name": 1, "phone number": 1},
    "DISCUSSED WITH DR. ROE.": {"name": 1},
    "SSN 457-55-5462. MRN: 00483920. Accession number: 8839201": {"national number": 1, "record number": 2},
    "Dictated by: Jane Roe": {"name": 1},
    "John Roe, MD. jane.roe@hospital.org": {"name": 1, "email address": 1},
    "NHS 943 476 5919": {"national number": 1},
    "A 92-year-old woman.": {"age over 89": 1},
    "姓名：王小明，手机13812345678，2019年3月12日复查。": {"name": 1, "phone number": 1, "date": 1},
    "身份证号11010519491231002X。住院号：0034567": {"national number": 1, "record number": 1},
    "于2019-03-12复查。报告医师：李明": {"date": 1, "name": 1},
    "患者94岁。": {"age over 89": 1},
}
NONE = (
    "T4-T5 disc, 3/4 ribs, grade 2/6 murmur, 2.5 x 3.1 cm, cup-to-disc 0.3, L4-5. PICC at 12.5 cm.",
    "Severe DR. Macular edema. Kerley B lines. Swan-Ganz catheter. MR Brain. An 89-year-old man.",
    "Name: ___. Dr. ___ on [**2101-3-4**]. XXXX-year-old. Discussed with Dr. XXXX at XXXX.",
    "姓名：***。杯盘比0.3，视力0.8，眼压15mmHg。医师：某某",
    "ID 110105194912310021",  # whose check digit is wrong
)


@pytest.mark.parametrize("text", FOUND)
def test_made_up_identifiers_are_found(text):
    assert dict(identifiers_of(text)) == FOUND[text]


@pytest.mark.parametrize("text", NONE)
def test_measurements_eponyms_and_marks_are_none(text):
    assert not identifiers_of(text)


def test_generated_reports_have_none():
    phantoms = [render_report(sample_study(3, index))[0] for index in range(100)]
    pairs = [text for pair in make_pairs(50, seed=3, language="both") for text in (pair.source, pair.target)]
    assert count_identifiers([*phantoms, *pairs]).found == 0


def test_the_warning_has_counts_and_no_text(capsys):
    found = warn_of_identifiers(["Seen by Dr. Roe.", "No effusion."], "reports to be written")
    assert (found.reports, found.found, found.kinds["name"]) == (2, 1, 1)
    error = capsys.readouterr().err
    assert error == "warning: 1 of 2 reports to be written seem to hold identifiers (name: 1)\n"


def test_without_the_extra_a_line_says_what_to_install(capsys, monkeypatch):
    monkeypatch.setattr(identifiers, "PACKAGES", ("no_such_package",))
    assert warn_of_identifiers(["Seen by Dr. Roe."], "reports to be written") is None
    assert "not checked" in (error := capsys.readouterr().err)
    assert "medreport-jax[deid]" in error
    assert error.count("\n") == 1
