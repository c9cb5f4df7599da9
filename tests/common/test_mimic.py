"""MIMIC-CXR on a tiny copy of its layout."""

import gzip
from pathlib import Path

import pytest
from PIL import Image

from common.data.builders import open_split
from common.data.builders.command import main as prepare_data
from common.data.mimic import read_mimic_cxr
from common.data.readers import ImageStudy
from common.data.records import Quarantine
from common.data.sections import report_sections
from common.errors import UserError
from tests.common.test_sections import REPORT


def image_path(subject: int, study: int, dicom: str) -> str:
    return f"files/p{str(subject)[:2]}/p{subject}/s{study}/{dicom}.jpg"


# (dicom, subject, study, split, view)
ROWS = [
    ("b-lateral", 10000032, 50414267, "train", "LATERAL"),
    ("c-frontal", 10000032, 50414267, "train", "PA"),
    ("a-unknown", 10000032, 50414267, "train", ""),
    ("d-frontal", 10000032, 50414267, "train", "AP AXIAL"),
    ("e", 10000032, 53189527, "train", "LL"),
    ("f", 11000011, 51029426, "validate", "AP"),
    ("g", 19999733, 57132437, "test", "PA"),
]


def write_layout(root: Path, rows=ROWS, compress=False, reports: Path | None = None) -> Path:
    root.mkdir(exist_ok=True)
    split = "".join(f"{dicom},{study},{subject},{split}\n" for dicom, subject, study, split, _ in rows)
    metadata = "".join(
        f'{dicom},{subject},{study},"CHEST (PA, LAT)",{view}\n' for dicom, subject, study, _, view in rows
    )
    for name, header, content in (
        ("split", "dicom_id,study_id,subject_id,split\n", split),
        ("metadata", "dicom_id,subject_id,study_id,PerformedProcedureStepDescription,ViewPosition\n", metadata),
    ):
        file = root / f"mimic-cxr-2.0.0-{name}.csv"
        if compress:
            file.with_name(f"{file.name}.gz").write_bytes(gzip.compress((header + content).encode()))
        else:
            file.write_text(header + content)
    for dicom, subject, study, _, _ in rows:
        image = root / image_path(subject, study, dicom)
        image.parent.mkdir(parents=True, exist_ok=True)
        image.touch()
        report = (reports or root) / image.parent.relative_to(root).with_suffix(".txt")
        report.parent.mkdir(parents=True, exist_ok=True)
        report.write_text(REPORT)
    return root


@pytest.mark.parametrize("compress", [False, True])
def test_studies_are_grouped_with_frontal_images_first(tmp_path, compress):
    root = write_layout(tmp_path / "mimic", compress=compress)
    quarantine = Quarantine()
    splits = read_mimic_cxr(root, quarantine)
    assert {name: [study.id for study in studies] for name, studies in splits.items()} == {
        "train": ["s50414267", "s53189527"],
        "validation": ["s51029426"],
        "test": ["s57132437"],
    }
    dicoms = [image.stem for image in splits["train"][0].images]
    assert dicoms == ["c-frontal", "d-frontal", "a-unknown", "b-lateral"]
    assert splits["test"][0] == ImageStudy(
        "s57132437",
        (root / image_path(19999733, 57132437, "g"),),
        report_sections(REPORT)["findings"],
        "___F with new onset ascites // eval for infection",
    )
    assert not quarantine


def test_reports_may_lie_apart_from_the_images(tmp_path):
    root = write_layout(tmp_path / "jpg", reports=tmp_path / "reports")
    splits = read_mimic_cxr(root, Quarantine(), reports=tmp_path / "reports")
    assert len(splits["train"]) == 2
    for wrong in (None, tmp_path / "reports" / "files"):
        with pytest.raises(UserError, match=r"no readable report file: 4.*reports, the one that holds files/p10"):
            read_mimic_cxr(root, Quarantine(), reports=wrong)


def test_reports_in_another_encoding_are_read_once_saved_as_utf_8(tmp_path):
    root = write_layout(tmp_path)
    for encoding in ("utf-16", "utf-8"):
        for file in root.rglob("s*.txt"):
            file.write_text(REPORT, encoding=encoding)
        if encoding == "utf-16":
            with pytest.raises(UserError, match=r"not UTF-8 text: 4\); save the report files as UTF-8"):
                read_mimic_cxr(root, Quarantine())
    assert len(read_mimic_cxr(root, Quarantine())["train"]) == 2


def test_unusable_studies_are_counted_by_reason(tmp_path):
    extra = [(f"x{index}", 10000032, 60000000 + index, "train", "PA") for index in range(6)]
    root = write_layout(tmp_path, [*ROWS, *extra])
    folder = root / "files/p10/p10000032"
    (folder / "s60000000.txt").unlink()
    (folder / "s60000001.txt").write_bytes(b"FINDINGS: \xff")
    (folder / "s60000002.txt").write_text("FINAL REPORT\n IMPRESSION: Clear.")
    (folder / "s60000003" / "x3.jpg").unlink()
    (folder / "s60000004.txt").write_text(REPORT, encoding="utf-16")
    (folder / "s60000005.txt").unlink()
    (folder / "s60000005.txt").mkdir()
    quarantine = Quarantine()
    assert len(read_mimic_cxr(root, quarantine)["train"]) == 2
    assert quarantine.entries == [
        ("s60000000", "no readable report file"),
        ("s60000001", "report file is not UTF-8 text"),
        ("s60000002", "no FINDINGS section"),
        ("s60000003", "image file missing"),
        ("s60000004", "report file is not UTF-8 text"),
        ("s60000005", "no readable report file"),
    ]


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        (
            [*ROWS, ("x", 10000032, 59999999, "test", "PA")],
            "split.csv, line 9: subject 10000032 is also in another split",
        ),
        ([("x", 10000032, 1, "dev", "PA")], "line 2: expected the split train, validate or test"),
        (ROWS[:5], "no usable study in the validation split"),
    ],
)
def test_impossible_splits_are_refused_by_line(tmp_path, rows, message):
    with pytest.raises(UserError, match=message):
        read_mimic_cxr(write_layout(tmp_path, rows), Quarantine())


@pytest.mark.parametrize("name", ["split", "metadata"])
@pytest.mark.parametrize("change", [str, lambda line: line.replace("50414267", "59999999"), lambda line: f" {line}"])
def test_an_image_that_a_table_lists_twice_is_refused_by_line(tmp_path, name, change):
    root = write_layout(tmp_path)
    table = root / f"mimic-cxr-2.0.0-{name}.csv"
    lines = table.read_text().splitlines()
    table.write_text("\n".join([*lines, change(lines[2])]))
    with pytest.raises(UserError, match=rf"{name}\.csv, line 9: image \S+ duplicates line 3; restore the published"):
        read_mimic_cxr(root, Quarantine())


@pytest.mark.parametrize("compress", [False, True])
def test_the_way_in_which_its_files_were_saved_changes_nothing(tmp_path, compress):
    plain, saved = write_layout(tmp_path / "a"), write_layout(tmp_path / "b", compress=compress)
    for file in (*saved.glob("*.csv*"), *saved.rglob("*.txt")):
        content = gzip.decompress(file.read_bytes()) if compress and ".csv" in file.name else file.read_bytes()
        content = b"\xef\xbb\xbf" + content.replace(b"\n", b"\r\n").replace(b",train", b"\xc2\xa0, train ")
        file.write_bytes(gzip.compress(content) if compress and ".csv" in file.name else content)
    found, expected = (read_mimic_cxr(root, Quarantine()) for root in (saved, plain))
    for split, studies in expected.items():
        assert [(study.id, study.report, study.indication) for study in found[split]] == [
            (study.id, study.report, study.indication) for study in studies
        ]
    # A report whose first heading follows the mark keeps its findings.
    (report,) = (file for file in saved.rglob("s57132437.txt"))
    report.write_bytes(b"\xef\xbb\xbfFINDINGS: Clear.\rIMPRESSION: Normal.")
    assert read_mimic_cxr(saved, Quarantine())["test"][0].report == "Clear."


def test_missing_foreign_and_damaged_csv_files_are_refused(tmp_path):
    with pytest.raises(UserError, match=r"no mimic-cxr-2\.0\.0-split\.csv or mimic-cxr-2\.0\.0-split\.csv\.gz"):
        read_mimic_cxr(tmp_path, Quarantine())
    root = write_layout(tmp_path / "a")
    metadata = root / "mimic-cxr-2.0.0-metadata.csv"
    content = metadata.read_text()
    metadata.write_text(content.replace("ViewPosition", "View"))
    with pytest.raises(UserError, match=r"metadata\.csv: no column ViewPosition"):
        read_mimic_cxr(root, Quarantine())
    metadata.write_text("".join(content.splitlines(keepends=True)[:-1]))
    with pytest.raises(UserError, match=r"split\.csv, line 8: g is not in the metadata"):
        read_mimic_cxr(root, Quarantine())
    metadata.write_text(content + "h,1\n")
    with pytest.raises(UserError, match=r"metadata\.csv, line 9: too few columns"):
        read_mimic_cxr(root, Quarantine())
    metadata.write_bytes(content.encode() + b"\xff")
    with pytest.raises(UserError, match=r"metadata\.csv: not UTF-8, after line"):
        read_mimic_cxr(root, Quarantine())
    metadata.write_text("")
    with pytest.raises(UserError, match=r"metadata\.csv: no column dicom_id, ViewPosition"):
        read_mimic_cxr(root, Quarantine())


def test_a_cut_compressed_file_is_refused(tmp_path):
    root = write_layout(tmp_path, compress=True)
    file = root / "mimic-cxr-2.0.0-split.csv.gz"
    whole = file.read_bytes()
    for length in (0, 5, len(whole) // 2, len(whole) - 1):
        file.write_bytes(whole[:length])
        with pytest.raises(UserError, match=r"split\.csv\.gz: (not a complete CSV file|no column)"):
            read_mimic_cxr(root, Quarantine())


def test_the_command_prints_what_it_read_under_unlisted_headings(tmp_path, capsys):
    root = write_layout(tmp_path / "mimic")
    for image in root.rglob("*.jpg"):
        Image.new("L", (20, 30), 90).save(image)
    report = root / "files/p10/p10000032/s50414267.txt"
    report.write_text("\ufeffINDICATION: Cough.\nCHEST, TWO VIEWS: Clear.\nIMPESSION: Normal.\nJANE DOE: secret")
    prepare_data(["--layout", "mimic", "--source", str(root), "--output", str(tmp_path / "out")])
    out = capsys.readouterr().out
    assert "CHEST TWO VIEWS read as findings in 1 report; IMPESSION read as impression in 1 report; 1 unknown" in out
    assert "DOE" not in out
    (study,) = [study for study in open_split(out.splitlines()[1].split(":")[0], "train") if study.id == "s50414267"]
    assert (study.report, study.indication) == ("Clear.", "Cough.")
