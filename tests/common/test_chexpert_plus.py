"""CheXpert Plus on a tiny copy of its layout, with the published split and with a split file as MambaXray-VL's."""

import csv
import json
from pathlib import Path

import pytest
from PIL import Image

from common.data.builders import open_split
from common.data.builders.command import main as prepare_data
from common.data.chexpert_plus import TABLE, read_chexpert_plus, without_shared_patients
from common.data.images import read_image
from common.data.readers import ImageStudy
from common.data.records import Quarantine
from common.data.sections import HeadingCounts
from common.errors import UserError

# The published header.
HEADER = [
    *("path_to_image", "path_to_dcm", "frontal_lateral", "ap_pa", "deid_patient_id", "patient_report_date_order"),
    *("report", "section_narrative", "section_clinical_history", "section_history", "section_comparison"),
    *("section_technique", "section_procedure_comments", "section_findings", "section_impression"),
    *("section_end_of_impression", "section_summary", "section_accession_number", "age", "sex", "race", "ethnicity"),
    *("interpreter_needed", "insurance_type", "recent_bmi", "deceased", "split"),
]
FINDINGS = '\n  The heart is "normal", 2.5 cm:\nno effusion.\n\n'


def image(path: str, **texts: str) -> dict[str, str]:
    """A row of the table; the path names split, patient and view."""
    split, patient, _, view = path.split("/")
    lateral = view.endswith("lateral.jpg")
    return {
        "path_to_image": path,
        "path_to_dcm": path.replace(".jpg", ".dcm"),
        "frontal_lateral": "Lateral" if lateral else "Frontal",
        "ap_pa": "" if lateral else "AP",
        "deid_patient_id": patient,
        "split": split,
        "report": "NARRATIVE:\nwhole, with commas",
        "section_findings": FINDINGS,
        "section_impression": "1. Normal.\n2. Stable.",
        "section_clinical_history": "Cough,\nfever.",
    } | {f"section_{name}": text for name, text in texts.items()}


ROWS = [
    image("train/patient00001/study1/view2_lateral.jpg"),
    image("train/patient00001/study1/view1_frontal.jpg"),
    image("train/patient00001/study2/view1_frontal.jpg", findings=" \n", clinical_history="", history="Old."),
    image("train/patient00002/study1/view1_frontal.jpg", impression=""),
    image("valid/patient64541/study1/view1_frontal.jpg"),
]


def write_layout(root: Path, rows=ROWS, folder: str = "PNG") -> Path:
    root.mkdir(exist_ok=True)
    with (root / TABLE).open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, HEADER, restval="")
        writer.writeheader()
        writer.writerows(rows)
    for row in rows:
        png = root / folder / row["path_to_image"].replace(".jpg", ".png")
        png.parent.mkdir(parents=True, exist_ok=True)
        png.touch()
    return root


def ids(splits) -> dict[str, list[str]]:
    return {part: [study.id for study in studies] for part, studies in splits.items()}


@pytest.mark.parametrize("folder", ["PNG", "PNG/PNG", "PNGs"])
def test_studies_have_their_findings_and_all_their_images(tmp_path, folder):
    root = write_layout(tmp_path, folder=folder)
    quarantine = Quarantine()
    splits = read_chexpert_plus(root, quarantine)
    assert ids(splits) == {
        "train": ["patient00001_study1", "patient00002_study1"],
        "validation": ["patient64541_study1"],
    }
    study = root / folder / "train/patient00001/study1"
    assert splits["train"][0] == ImageStudy(
        "patient00001_study1",
        (study / "view1_frontal.png", study / "view2_lateral.png"),
        'The heart is "normal", 2.5 cm: no effusion.',
        "Cough, fever.",
    )
    assert quarantine.entries == [("patient00001_study2", "no findings")]


def test_the_report_may_be_the_impression_or_both(tmp_path):
    root = write_layout(tmp_path)
    quarantine = Quarantine()
    impressions = {
        study.id: study.report for study in read_chexpert_plus(root, quarantine, report="impression")["train"]
    }
    assert impressions == {
        "patient00001_study1": "1. Normal. 2. Stable.",
        "patient00001_study2": "1. Normal. 2. Stable.",
    }
    assert quarantine.entries == [("patient00002_study1", "no impression")]
    both = read_chexpert_plus(root, Quarantine(), report="findings+impression")["train"]
    assert [(study.report, study.indication) for study in both] == [
        ('The heart is "normal", 2.5 cm: no effusion. 1. Normal. 2. Stable.', "Cough, fever."),
        ("1. Normal. 2. Stable.", "Old."),
        ('The heart is "normal", 2.5 cm: no effusion.', "Cough, fever."),
    ]


def test_columns_end_at_a_heading_of_another_section(tmp_path):
    texts = {
        "findings": "FINDINGS: Clear.\nLUNGS: Clear.\nFINAL IMPRESSION: Normal.",
        "clinical_history": "Cough.\nXY: Z",
    }
    rows = [image(f"train/patient00001/study1/view{view}_frontal.jpg", **texts) for view in (1, 2)]
    headings = HeadingCounts()
    splits = read_chexpert_plus(write_layout(tmp_path, [*rows, ROWS[-1]]), Quarantine(), headings=headings)
    assert (splits["train"][0].report, splits["train"][0].indication) == ("Clear. LUNGS: Clear.", "Cough.")
    assert headings.reports == {("FINAL IMPRESSION", "impression"): 1, ("XY", "other"): 1}


def test_missing_images_are_quarantined_and_jpeg_files_are_found(tmp_path):
    root = write_layout(tmp_path)
    (root / "PNG/train/patient00001/study1/view2_lateral.png").unlink()
    frontal = root / "PNG/train/patient00002/study1/view1_frontal.png"
    frontal.rename(frontal.with_suffix(".jpg"))
    quarantine = Quarantine()
    splits = read_chexpert_plus(root, quarantine)
    assert ids(splits)["train"] == ["patient00002_study1"]
    assert splits["train"][0].images == (frontal.with_suffix(".jpg"),)
    assert quarantine.counts() == {"image file missing": 1, "no findings": 1}


def test_images_may_lie_apart_from_the_table(tmp_path):
    root = write_layout(tmp_path / "a")
    (root / "PNG").rename(tmp_path / "images")
    assert len(read_chexpert_plus(root, Quarantine(), images=tmp_path / "images")["train"]) == 2
    with pytest.raises(
        UserError, match="no folder PNG/PNG or PNG or PNGs or DICOM/Uncompressed or DICOM with train in it"
    ):
        read_chexpert_plus(root, Quarantine())


def entry(id: str, *paths: str) -> dict:
    return {"id": id, "image_path": list(paths), "report": "lower case report of the split file"}


SPLIT = {
    "train": [entry("a", "train/patient00001/study1/view1_frontal.png"), entry("e", "train/patient9/study1/view1.png")],
    "val": [entry("b", "/data/PNG/train/patient00002/study1/view1_frontal.jpg"), entry("f")],
    "test": [
        entry("c", "valid/patient64541/study1/view1_frontal.png"),
        entry("d", "train/patient00001/study2/view1_frontal.png"),
        entry("g", "PNG/train/patient00001/study1/view2_lateral.png"),
    ],
}


def write_split(folder: Path, content) -> Path:
    path = folder / "annotation.json"
    path.write_text(json.dumps(content))
    return path


def test_a_split_file_decides_parts_ids_and_images(tmp_path):
    root = write_layout(tmp_path)
    quarantine = Quarantine()
    splits = read_chexpert_plus(root, quarantine, split=write_split(tmp_path, SPLIT))
    assert ids(splits) == {"train": ["a"], "validation": ["b"], "test": ["c", "g"]}
    assert splits["train"][0].images == (root / "PNG/train/patient00001/study1/view1_frontal.png",)
    assert {study.report for studies in splits.values() for study in studies} == {
        'The heart is "normal", 2.5 cm: no effusion.'
    }
    assert sorted(quarantine.entries) == [("d", "no findings"), ("e", f"image not in {TABLE}"), ("f", "no image")]


def test_patients_can_be_kept_out_of_all_parts_but_the_last(tmp_path):
    rows = [*ROWS, image("train/patient00003/study1/view1_frontal.jpg")]
    split = {**SPLIT, "train": [*SPLIT["train"], entry("h", "train/patient00003/study1/view1_frontal.png")]}
    splits = read_chexpert_plus(write_layout(tmp_path, rows), Quarantine(), split=write_split(tmp_path, split))
    quarantine = Quarantine()
    apart = without_shared_patients(splits, quarantine)
    assert ids(apart) == {"train": ["h"], "validation": ["b"], "test": ["c", "g"]}
    assert quarantine.entries == [("a", "patient of the train split is in a later split too")]
    with pytest.raises(UserError, match="no usable study in the train split"):
        without_shared_patients({**splits, "train": splits["train"][:1]}, Quarantine())


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"test": [entry("a", "valid/patient64541/study1/view1_frontal.png")]}, "id a is in the train split and in"),
        ({"train": SPLIT["train"] * 2}, "id a occurs 2 times in the train split"),
        ({"val": [entry("x", "train/patient9/study9/view1_frontal.png")]}, "no usable study in the validation split"),
        ({"val": [{"id": "x"}]}, "entry 1 of val: key 'image_path' is missing"),
        ({"val": {}}, "'val' must be list"),
    ],
)
def test_impossible_split_files_are_refused(tmp_path, change, message):
    root = write_layout(tmp_path)
    with pytest.raises(UserError, match=message):
        read_chexpert_plus(root, Quarantine(), split=write_split(tmp_path, SPLIT | change))


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        ([*ROWS, image("valid/patient00001/study3/view1_frontal.jpg")], "patient00001 is also in another split"),
        ([image("dev/patient00001/study3/view1_frontal.jpg")], "expected the split train or valid"),
        ([image("train/patient00001/study3/view1_frontal.jpg", findings="")], "no usable study in the train split"),
    ],
)
def test_impossible_tables_are_refused(tmp_path, rows, message):
    with pytest.raises(UserError, match=message):
        read_chexpert_plus(write_layout(tmp_path, rows), Quarantine(), images=tmp_path / "PNG")


def test_missing_foreign_and_damaged_tables_are_refused(tmp_path):
    root = write_layout(tmp_path)
    table = root / TABLE
    content = table.read_text()
    table.write_text(content.replace("section_findings", "findings"))
    with pytest.raises(UserError, match=rf"{TABLE}: no column section_findings"):
        read_chexpert_plus(root, Quarantine())
    table.write_text(content + "train/patient1/study1/view1_frontal.jpg,x\n")
    with pytest.raises(UserError, match="too few columns"):
        read_chexpert_plus(root, Quarantine())
    table.write_bytes(content.encode() + b"\xff")
    with pytest.raises(UserError, match=r": not UTF-8, after line"):
        read_chexpert_plus(root, Quarantine())
    table.unlink()
    for wrong in (root, root.parent, table):
        with pytest.raises(UserError, match=rf"no {TABLE} there; expected the root of CheXpert Plus, the folder that"):
            read_chexpert_plus(wrong, Quarantine())


@pytest.mark.parametrize("listed", [False, True])
def test_an_image_that_the_table_has_twice_is_refused_by_line(tmp_path, listed):
    again = image("train/patient00001/study1/view1_frontal.png", findings="Other.")
    root = write_layout(tmp_path, [*ROWS, again])
    split = write_split(tmp_path, {part: [] for part in ("train", "val", "test")}) if listed else None
    with pytest.raises(UserError, match=rf"{TABLE}, line \d+: image train/\S+ duplicates line \d+; restore"):
        read_chexpert_plus(root, Quarantine(), split=split)


def test_a_table_with_a_mark_or_other_line_ends_has_the_same_studies(tmp_path):
    expected = read_chexpert_plus(write_layout(tmp_path), Quarantine())
    table = tmp_path / TABLE
    content = table.read_bytes().replace(b"\r\n", b"\n")
    for saved in (b"\xef\xbb\xbf" + content, content.replace(b"\n", b"\r"), content.replace(b"\n", b"\r\n")):
        table.write_bytes(saved)
        assert read_chexpert_plus(tmp_path, Quarantine()) == expected


def test_a_section_of_any_length_is_read(tmp_path):
    long = "The heart is normal. " * 10_000
    root = write_layout(tmp_path, [*ROWS, image("train/patient00009/study1/view1_frontal.jpg", findings=long)])
    study = read_chexpert_plus(root, Quarantine())["train"][-1]
    assert study.report == long.strip()


def test_the_command_prepares_it(tmp_path, capsys):
    root = write_layout(tmp_path / "plus")
    for png in root.rglob("*.png"):
        Image.new("L", (20, 30), 90).save(png)
    prepare_data(["--layout", "chexpert-plus", "--source", str(root), "--output", str(tmp_path / "out")])
    folder = capsys.readouterr().out.splitlines()[1].split(":")[0]
    (study,) = [study for study in open_split(folder, "train") if study.id == "patient00002_study1"]
    assert study.report.split() == FINDINGS.split()
    assert read_image(study.images[0]).shape == (30, 20)


def test_the_command_tells_of_shared_patients_and_can_leave_them_out(tmp_path, capsys):
    root = write_layout(tmp_path / "plus", [*ROWS, image("train/patient00003/study1/view1_frontal.jpg")])
    for png in root.rglob("*.png"):
        Image.new("L", (20, 30), 90).save(png)
    split = {**SPLIT, "train": [*SPLIT["train"], entry("h", "train/patient00003/study1/view1_frontal.png")]}
    words = ["--layout", "chexpert-plus", "--source", str(root), "--split", str(write_split(tmp_path, split))]
    prepare_data([*words, "--output", str(tmp_path / "whole")])
    told = capsys.readouterr()
    assert "warning: 1 of 5 studies have a patient who is in a later split too" in told.err
    assert "train 2, validation 1, test 2" in told.out
    prepare_data([*words, "--output", str(tmp_path / "apart"), "--patients-apart"])
    told = capsys.readouterr()
    assert "warning" not in told.err
    assert "train 1, validation 1, test 2" in told.out
