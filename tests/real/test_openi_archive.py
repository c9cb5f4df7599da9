"""The real Open-i archive: the published counts, found again by reading the XML as plain text beside the reader."""

import html
import re
import tarfile
from pathlib import Path

import pytest

from common.data.cleaning import clean_report
from common.data.openi import OpeniStudy, openi_pairs, openi_splits, read_openi, read_test_ids
from common.data.records import Quarantine, ReportPair
from retsta_jax.codes import heads, parse_codes, terminology, terminology_validity


@pytest.fixture(scope="module")
def archive(real_data: Path) -> Path:
    return real_data / "iu_xray" / "NLMCXR_reports.tgz"


@pytest.fixture(scope="module")
def openi_test_ids(real_data: Path) -> frozenset[str]:
    return read_test_ids(real_data / "openi_labels" / "openi-testset.txt")


@pytest.fixture(scope="module")
def studies(archive) -> list[OpeniStudy]:
    return read_openi(archive)


@pytest.fixture(scope="module")
def plain_texts(archive) -> dict[str, str]:
    """Id -> XML as text, read without this project's reader."""
    with tarfile.open(archive) as members:
        texts = [file.read().decode() for file in map(members.extractfile, members) if file]
    return {re.findall(r'<uId id="(\w+)"', text)[0]: text for text in texts}


@pytest.fixture(scope="module")
def splits(studies, openi_test_ids) -> dict[str, list[ReportPair]]:
    return openi_splits(openi_pairs(studies, Quarantine()), openi_test_ids)


def test_all_reports_are_read_with_their_sections_codes_and_images(studies, plain_texts):
    assert len(studies) == 3955
    assert {study.id for study in studies} == plain_texts.keys()
    for study in studies:
        text = plain_texts[study.id]
        sections = dict(re.findall(r'<AbstractText Label="(\w+)">([^<]*)</AbstractText>', text))
        for name in ("COMPARISON", "INDICATION", "FINDINGS", "IMPRESSION"):
            assert getattr(study, name.lower()).split() == html.unescape(sections.get(name, "")).split()
        codes = re.findall(r"<major>([^<]*)</major>", text)
        assert study.codes == tuple(sorted({" ".join(html.unescape(code).split()) for code in codes}))
        assert [image.id for image in study.images] == re.findall(r'<parentImage id="([^"]+)"', text)
    assert sum(len(study.images) for study in studies) == 7470


def test_published_numbers_of_codes_and_heads_are_those_of_the_raw_strings(studies, plain_texts):
    raw = {code for text in plain_texts.values() for code in re.findall(r"<major>([^<]*)</major>", text)}
    assert len(raw) == 1719
    assert len({code.split("/")[0] for code in raw}) == 122
    codes = {code for study in studies for code in study.codes}
    assert len(codes) == 1719
    # One head exists twice among the raw ones, once with two spaces inside: "Subcutaneous  Emphysema".
    assert len(heads(codes)) == 121


def test_study_1000_reads_as_printed(studies):
    (study,) = [study for study in studies if study.id == "CXR1000"]
    assert study.comparison == "XXXX PA and lateral chest radiographs"
    assert study.indication == "XXXX-year-old male, XXXX."
    assert study.codes == (
        "Opacity/lung/lingula",
        "Opacity/lung/upper lobe/right",
        "Pulmonary Atelectasis/upper lobe/right",
    )
    assert [image.id for image in study.images] == [f"CXR1000_IM-0003-{view}001" for view in (1, 2, 3)]
    assert study.images[0].caption == "PA and lateral chest x-XXXX XXXX."


def test_studies_without_text_are_quarantined_and_every_study_has_codes(studies):
    quarantine = Quarantine()
    assert len(openi_pairs(studies, quarantine)) == 3927
    assert quarantine.counts() == {"no FINDINGS and no IMPRESSION": 28}


def test_splits_have_their_sizes_and_share_no_study(splits, openi_test_ids):
    assert len(openi_test_ids) == 771
    # Four of the test studies have no text.
    assert {name: len(pairs) for name, pairs in splits.items()} == {"train": 2960, "validation": 200, "test": 767}
    ids = [pair.id for pairs in splits.values() for pair in pairs]
    assert len(ids) == len(set(ids)) == 3927
    assert {pair.id for pair in splits["test"]} <= openi_test_ids
    assert not openi_test_ids & {pair.id for pair in (*splits["train"], *splits["validation"])}


def test_targets_are_in_the_order_that_codes_are_formatted_in(splits):
    for pair in splits["train"]:
        assert "\n".join(sorted(parse_codes(pair.target))) == pair.target


def test_test_codes_are_mostly_but_not_all_in_the_training_terminology(splits):
    terms = terminology(splits["train"])
    assert len(terms) == 1430
    assert terms[:2] == ["normal", "Lung/hypoinflation"]
    assert terminology_validity([parse_codes(pair.target) for pair in splits["test"]], terms) == pytest.approx(
        1386 / 1616
    )


def test_cleaning_changes_nothing_but_white_space(plain_texts):
    for text in plain_texts.values():
        for section in re.findall(r'<AbstractText Label="\w+">([^<]*)</AbstractText>', text):
            assert clean_report(section).split() == section.split()
