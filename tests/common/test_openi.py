"""The Open-i reader on tiny archives: what it reads, what it quarantines and what it refuses."""

import gzip
import io
import json
import random
import tarfile
from pathlib import Path

import pytest

from common.data import openi
from common.data.openi import OpeniImage, count_unknown_ids, openi_pairs, openi_splits, read_openi, read_test_ids
from common.data.records import Quarantine, ReportPair, check_splits
from common.errors import UserError


def report(number: int, findings="Clear lungs.", impression="Normal chest.", codes=("normal",)) -> bytes:
    majors = "".join(f"<major>{code}</major>" for code in codes)
    return f"""<?xml version="1.0" encoding="utf-8"?>
<eCitation>
   <uId id="CXR{number}"/>
   <MedlineCitation><Article><Abstract>
      <AbstractText Label="COMPARISON">None.</AbstractText>
      <AbstractText Label="INDICATION">XXXX-year-old,  cough</AbstractText>
      <AbstractText Label="FINDINGS">{findings}</AbstractText>
      <AbstractText Label="IMPRESSION">{impression}</AbstractText>
   </Abstract></Article></MedlineCitation>
   <MeSH>{majors}<automatic>lung</automatic></MeSH>
   <parentImage id="CXR{number}_IM-0003-1001"><figureId>F1</figureId><caption>PA and lateral. </caption></parentImage>
</eCitation>""".encode()


def tar_bytes(members: dict[str, bytes]) -> bytes:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as archive:
        directory = tarfile.TarInfo("ecgen-radiology")
        directory.type = tarfile.DIRTYPE
        archive.addfile(directory)
        for name, data in members.items():
            member = tarfile.TarInfo(f"ecgen-radiology/{name}")
            member.size = len(data)
            archive.addfile(member, io.BytesIO(data))
    return buffer.getvalue()


def write_archive(path: Path, members: dict[str, bytes]) -> Path:
    path.write_bytes(gzip.compress(tar_bytes(members)))
    return path


def noisy_members(count: int) -> dict[str, bytes]:
    """Reports that do not compress to nothing, so that an archive can be cut or damaged in many places."""
    generator = random.Random(0)
    return {
        f"{number}.xml": report(number, findings="".join(generator.choices("abcdefgh .", k=3000)))
        for number in range(1, count + 1)
    }


def test_a_report_is_read_field_by_field(tmp_path):
    codes = ("Opacity/lung/base/left/mild", " Subcutaneous  Emphysema/right ", "Opacity/lung/base/left/mild", "")
    data = report(7, findings="A 2.5 cm &lt; 3 cm mass,  XXXX\n      left.", codes=codes)
    (study,) = read_openi(write_archive(tmp_path / "r.tgz", {"7.xml": data}))
    assert study.id == "CXR7"
    assert study.comparison == "None."
    assert study.indication == "XXXX-year-old, cough"
    assert study.findings == "A 2.5 cm < 3 cm mass, XXXX\nleft."
    assert study.impression == "Normal chest."
    assert study.codes == ("Opacity/lung/base/left/mild", "Subcutaneous Emphysema/right")
    assert study.images == (OpeniImage("CXR7_IM-0003-1001", "PA and lateral."),)


def test_archive_and_directory_give_the_same_studies_by_number(tmp_path):
    members = {f"{number}.xml": report(number) for number in (10, 9, 100, 2)}
    folder = tmp_path / "xml"
    folder.mkdir()
    for name, data in members.items():
        (folder / name).write_bytes(data)
    studies = read_openi(write_archive(tmp_path / "r.tgz", members))
    assert [study.id for study in studies] == ["CXR2", "CXR9", "CXR10", "CXR100"]
    assert read_openi(folder) == studies


def test_members_that_are_not_reports_are_passed_over(tmp_path):
    archive = write_archive(tmp_path / "r.tgz", {"README": b"\xff not xml", "1.xml": report(1)})
    assert len(read_openi(archive)) == 1


def test_pairs_name_the_sections_and_list_codes_in_order(tmp_path):
    members = {
        "1.xml": report(1, codes=("normal", "Lung/clear", "Aorta/tortuous")),
        "2.xml": report(2, findings=""),
        "3.xml": report(3, findings="  ", impression=""),
        "4.xml": report(4, codes=()),
        "5.xml": report(5, impression=""),
    }
    quarantine = Quarantine()
    pairs = openi_pairs(read_openi(write_archive(tmp_path / "r.tgz", members)), quarantine)
    assert pairs == [
        ReportPair("CXR1", "FINDINGS: Clear lungs.\nIMPRESSION: Normal chest.", "Aorta/tortuous\nLung/clear\nnormal"),
        ReportPair("CXR2", "IMPRESSION: Normal chest.", "normal"),
        ReportPair("CXR5", "FINDINGS: Clear lungs.", "normal"),
    ]
    assert quarantine.entries == [("CXR3", "no FINDINGS and no IMPRESSION"), ("CXR4", "no MeSH/major code")]


def test_no_usable_study_is_an_empty_data_set(tmp_path):
    studies = read_openi(write_archive(tmp_path / "r.tgz", {"1.xml": report(1, findings="", impression="")}))
    with pytest.raises(UserError, match="no study has both"):
        openi_pairs(studies, Quarantine())


@pytest.mark.parametrize(
    ("bad", "message"),
    [
        (b"<eCitation><uId id='CXR2'>", "not well-formed XML .*restore"),
        (b"", "not well-formed XML"),
        (report(2).replace(b"Clear", b"Cl\xe9ar"), "line 7: not UTF-8 at byte 40; save the file as UTF-8"),
        (b"<eCitation/>", "no <uId"),
        (report(1), "id CXR1 is already used by .*ecgen-radiology/1.xml"),
        (b'<!DOCTYPE a [<!ENTITY x "xx">]>' + report(2).split(b"?>")[1].replace(b"Clear", b"&x;"), "document type"),
    ],
    ids=["cut", "empty", "latin1", "foreign", "duplicate", "entities"],
)
def test_a_bad_member_is_refused_by_archive_and_name(tmp_path, bad, message):
    archive = write_archive(tmp_path / "r.tgz", {"1.xml": report(1), "2.xml": bad})
    with pytest.raises(UserError, match=rf"r\.tgz: ecgen-radiology/2\.xml[:,] .*{message}"):
        read_openi(archive)


def test_an_archive_cut_anywhere_is_refused(tmp_path):
    whole = write_archive(tmp_path / "whole.tgz", noisy_members(20)).read_bytes()
    cut = tmp_path / "cut.tgz"
    generator = random.Random(0)
    for length in [0, 1, 10, len(whole) - 8, len(whole) - 1, *generator.sample(range(len(whole)), 40)]:
        cut.write_bytes(whole[:length])
        with pytest.raises(UserError, match=r"cut\.tgz is not a complete gzipped tar archive"):
            read_openi(cut)


def test_a_flipped_byte_is_never_read_as_a_smaller_archive(tmp_path):
    whole = write_archive(tmp_path / "whole.tgz", noisy_members(20)).read_bytes()
    expected = read_openi(tmp_path / "whole.tgz")
    damaged = tmp_path / "damaged.tgz"
    generator = random.Random(1)
    refused = 0
    for position in generator.sample(range(len(whole)), 60):
        content = bytearray(whole)
        content[position] ^= 0xFF
        damaged.write_bytes(content)
        try:
            assert read_openi(damaged) == expected
        except UserError:
            refused += 1
    assert refused >= 59  # only bytes that carry nothing, such as the time in the gzip header, may differ


@pytest.mark.parametrize(
    "content", [b"", b"plain text", gzip.compress(b"no tar" * 300, mtime=0)], ids=["empty", "text", "gzip"]
)
def test_a_file_that_is_no_archive_is_refused(tmp_path, content):
    path = tmp_path / "r.tgz"
    path.write_bytes(content)
    with pytest.raises(UserError, match=r"r\.tgz is not a complete gzipped tar archive"):
        read_openi(path)


def test_missing_and_empty_sources_are_refused(tmp_path):
    with pytest.raises(UserError, match=r"absent\.tgz: does not exist"):
        read_openi(tmp_path / "absent.tgz")
    (tmp_path / "empty").mkdir()
    with pytest.raises(UserError, match=r"empty: no \.xml report there or in its folders; name the folder that has 1"):
        read_openi(tmp_path / "empty")
    with pytest.raises(UserError, match=r"r\.tgz: no \.xml report in it; expected the archive NLMCXR_reports\.tgz"):
        read_openi(write_archive(tmp_path / "r.tgz", {}))


def test_the_unpacked_archive_is_read_from_its_folder_or_the_one_above(tmp_path):
    archive = write_archive(tmp_path / "NLMCXR_reports.tgz", {"1.xml": report(1), "10.xml": report(10)})
    expected = read_openi(archive)
    with pytest.raises(UserError, match=r"no \.xml report.*name the archive (\S+)$") as refusal:
        read_openi(tmp_path)
    assert read_openi(str(refusal.value).rpartition(" ")[2]) == expected
    with tarfile.open(archive) as whole:
        whole.extractall(tmp_path, filter="data")
    assert read_openi(tmp_path / "ecgen-radiology") == expected
    assert read_openi(tmp_path) == expected


def add(archive: tarfile.TarFile, name: str, data: bytes = b"", **fields) -> None:
    member = tarfile.TarInfo(name)
    member.size = len(data)
    for field, value in fields.items():
        setattr(member, field, value)
    archive.addfile(member, io.BytesIO(data))


def archive_of(path: Path, *members: tuple[str, bytes, dict]) -> Path:
    with tarfile.open(path, "w:gz", format=tarfile.GNU_FORMAT) as archive:
        for name, data, fields in members:
            add(archive, name, data, **fields)
    return path


@pytest.mark.parametrize(
    ("members", "message"),
    [
        ([("1.xml", b"", {"type": tarfile.SYMTYPE, "linkname": "/etc/passwd"})], "1.xml: is a link or a device"),
        ([("1.xml", b"", {"type": tarfile.LNKTYPE, "linkname": "2.xml"})], "1.xml: is a link or a device"),
        ([("1.xml", b"", {"type": tarfile.FIFOTYPE})], "1.xml: is a link or a device"),
        ([("1.xml", b" " * (5 << 20), {})], r"1.xml: has 5,242,880 bytes; expected a report of at most 4,194,304"),
        ([("\x1b[31m.xml", b"\xff", {})], r"\\x1b\[31m.xml, line 1: not UTF-8"),
        ([(f"{n}.xml", report(n), {}) for n in range(12)], "has more than 10 members; expected the archive NLMCXR"),
        ([("1.png", b"\0" * (2 << 20), {})], "unpacks to more than 1,048,576 bytes; expected the archive NLMCXR"),
        ([("n" * 1000, b"", {"type": tarfile.GNUTYPE_LONGNAME})] * 1500, "not a complete gzipped tar archive"),
    ],
    ids=["symbolic", "hard", "pipe", "large", "escape", "many", "bomb", "headers"],
)
def test_archives_made_to_harm_are_one_short_line(tmp_path, monkeypatch, members, message):
    monkeypatch.setattr(openi, "MOST_MEMBERS", 10)
    if "unpacks" in message:
        monkeypatch.setattr(openi, "MOST_UNPACKED", 1 << 20)
    with pytest.raises(UserError, match=message) as refusal:
        read_openi(archive_of(tmp_path / "r.tgz", *members))
    assert len(str(refusal.value)) < 400
    assert str(refusal.value).isprintable()


def test_the_remedy_for_links_makes_an_archive_that_is_read(tmp_path):
    folder = tmp_path / "ecgen-radiology"
    folder.mkdir()
    (tmp_path / "content").write_bytes(report(1))
    (folder / "1.xml").symlink_to(tmp_path / "content")
    for dereference in (False, True):
        with tarfile.open(tmp_path / "r.tgz", "w:gz", dereference=dereference) as archive:
            archive.add(folder, "ecgen-radiology")
        if not dereference:
            with pytest.raises(UserError, match="tar --dereference"):
                read_openi(tmp_path / "r.tgz")
    assert [study.id for study in read_openi(tmp_path / "r.tgz")] == ["CXR1"]


@pytest.mark.parametrize(
    "document",
    [
        '<!DOCTYPE a [<!ENTITY b "ha"><!ENTITY c "&b;&b;&b;"><!ENTITY d "&c;&c;&c;">]><a>&d;</a>',
        "<a>" * 200_000,
        "<a>" * 200_000 + "</a>" * 200_000,
        "<a " + " ".join(f'b{index}=""' for index in range(50_000)) + "/>",
    ],
    ids=["entities", "open", "deep", "attributes"],
)
def test_xml_made_to_harm_is_one_short_line(tmp_path, document):
    archive = write_archive(tmp_path / "r.tgz", {"1.xml": document.encode()})
    with pytest.raises(UserError, match=r"1\.xml: (declares a document type|not well-formed|no <uId)") as refusal:
        read_openi(archive)
    assert len(str(refusal.value)) < 400


def test_what_macos_adds_to_an_archive_is_passed_over(tmp_path):
    members = {"1.xml": report(1), "._1.xml": b"\0\5\x16\x07\0\2\0\0Mac OS X"}
    assert len(read_openi(write_archive(tmp_path / "r.tgz", members))) == 1
    folder = tmp_path / "xml"
    folder.mkdir()
    for name, data in members.items():
        (folder / name).write_bytes(data)
    assert len(read_openi(folder)) == 1


def test_a_report_with_a_mark_or_other_line_ends_is_the_same(tmp_path):
    (expected,) = read_openi(write_archive(tmp_path / "r.tgz", {"1.xml": report(1)}))
    content = report(1)
    for saved in (b"\xef\xbb\xbf" + content, content.replace(b"\n", b"\r\n"), content.replace(b"\n", b"\r")):
        assert read_openi(write_archive(tmp_path / "r.tgz", {"1.xml": saved})) == [expected]


def pairs_numbered(numbers) -> list[ReportPair]:
    return [ReportPair(f"CXR{number}", "FINDINGS: clear", "normal") for number in numbers]


def test_splits_part_the_records_and_keep_their_order():
    pairs = pairs_numbered(range(100))
    splits = openi_splits(pairs, {"CXR3", "CXR50", "CXR1000"}, validation=20)
    assert {name: len(records) for name, records in splits.items()} == {"train": 78, "validation": 20, "test": 2}
    assert sorted((pair for records in splits.values() for pair in records), key=pairs.index) == pairs
    for records in splits.values():
        assert records == sorted(records, key=pairs.index)


def test_validation_depends_on_the_seed_but_not_on_the_order_or_the_neighbours():
    pairs = pairs_numbered(range(100))
    shuffled = random.Random(0).sample(pairs, 100)
    chosen = {pair.id for pair in openi_splits(pairs, {"CXR0"}, 20)["validation"]}
    assert {pair.id for pair in openi_splits(shuffled, {"CXR0"}, 20)["validation"]} == chosen
    assert {pair.id for pair in openi_splits(pairs, {"CXR0"}, 20, seed=1)["validation"]} != chosen
    assert len({pair.id for pair in openi_splits(pairs[:99], {"CXR0"}, 20)["validation"]} - chosen) <= 1


def test_impossible_splits_are_refused():
    pairs = pairs_numbered(range(10))
    with pytest.raises(UserError, match="none of the 1 test ids"):
        openi_splits(pairs, {"10"}, 2)
    for validation in (0, 9, 200):
        with pytest.raises(UserError, match=f"cannot take {validation} validation records from the 9"):
            openi_splits(pairs, {"CXR0"}, validation)
    with pytest.raises(UserError, match="id CXR0 occurs 2 times in the test split"):
        openi_splits([*pairs, pairs[0]], {"CXR0"}, 2)


def test_an_id_in_two_splits_and_an_empty_split_are_refused():
    pairs = pairs_numbered(range(4))
    check_splits({"train": pairs[:2], "test": pairs[2:]})
    with pytest.raises(UserError, match="id CXR1 is in the train split and in the test split"):
        check_splits({"train": pairs[:2], "test": pairs[1:]})
    with pytest.raises(UserError, match="the test split is empty"):
        check_splits({"train": pairs, "test": []})


def test_test_ids_are_read_with_either_line_ending(tmp_path):
    path = tmp_path / "ids.txt"
    for end in ("\n", "\r\n", "\r", "  \n", "\t\r\n", "\xa0\n", "\u200b\n", "\n\n"):
        for mark in ("", "\ufeff", "\ufeff\ufeff", "\u200b"):
            path.write_bytes((mark + end.join(["CXR10", "CXR1002", "CXR1007\ufeff"])).encode())
            assert read_test_ids(path) == {"CXR10", "CXR1002", "CXR1007"}


def test_test_ids_that_no_report_has_are_counted_and_unusable_reports_are_not_unknown():
    quarantine = Quarantine([("CXR2", "no MeSH/major code")])
    count_unknown_ids({"CXR1", "CXR2", "CXR999", "cxr1"}, {"CXR1": 1, "CXR2": 2, "CXR3": 3}, quarantine)
    assert quarantine.entries[1:] == [
        ("CXR999", "test id that no report has"),
        ("cxr1", "test id that no report has"),
    ]
    assert "test id that no report has: 2" in quarantine.summary()


@pytest.mark.parametrize(
    ("content", "message"),
    [(None, "cannot be read"), (b"\r\n", "contains no id"), (b"CXR1\n\xff", "line 2: not UTF-8 at byte 1")],
)
def test_bad_test_id_files_are_refused(tmp_path, content, message):
    path = tmp_path / "ids.txt"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(UserError, match=message):
        read_test_ids(path)


def test_quarantine_counts_by_reason_and_writes_ids_and_reasons_only(tmp_path):
    quarantine = Quarantine()
    assert quarantine.summary() == "0 records quarantined"
    for id, reason in [("CXR1", "too long"), ("CXR2", "no text"), ("眼3", "too long")]:
        quarantine.add(id, reason)
    assert len(quarantine) == 3
    assert quarantine.counts() == {"too long": 2, "no text": 1}
    assert quarantine.summary() == "3 records quarantined (too long: 2, no text: 1)"
    path = tmp_path / "quarantine.jsonl"
    quarantine.write(path)
    rows = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
    assert rows == [
        {"id": "CXR1", "reason": "too long"},
        {"id": "CXR2", "reason": "no text"},
        {"id": "眼3", "reason": "too long"},
    ]
    assert list(tmp_path.iterdir()) == [path]


def test_an_unwritable_quarantine_path_is_one_clear_error(tmp_path):
    with pytest.raises(UserError, match=r"quarantine\.jsonl: cannot be written"):
        Quarantine().write(tmp_path / "absent" / "quarantine.jsonl")
