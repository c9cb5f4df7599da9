"""Data sets on tiny copies of their published layouts: chest radiographs as DICOM, PadChest, FFA-IR and ODIR."""

import csv
import gzip
import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from common.command import run_cli
from common.data.builders import open_split
from common.data.builders.command import main as prepare_data
from common.data.chexpert_plus import read_chexpert_plus
from common.data.ffa_ir import read_ffa_ir
from common.data.images import read_image
from common.data.mimic import read_mimic_cxr
from common.data.odir import read_odir
from common.data.openi import OpeniImage, OpeniStudy
from common.data.padchest import read_padchest
from common.data.readers import ImageStudy, _openi_files, split_by_patient
from common.data.records import Quarantine
from common.errors import UserError
from tests.common import test_chexpert_plus, test_mimic
from tests.dicom_files import IDENTIFIERS, dicom_bytes

# The published header; the first column is an index without a name.
PADCHEST = [
    *("", "ImageID", "ImageDir", "StudyDate_DICOM", "StudyID", "PatientID", "PatientBirth", "PatientSex_DICOM"),
    *("ViewPosition_DICOM", "Projection", "MethodProjection", "Pediatric", "Modality_DICOM", "Manufacturer_DICOM"),
    *("PhotometricInterpretation_DICOM", "PixelRepresentation_DICOM", "PixelAspectRatio_DICOM"),
    *("SpatialResolution_DICOM", "BitsStored_DICOM", "WindowCenter_DICOM", "WindowWidth_DICOM", "Rows_DICOM"),
    *("Columns_DICOM", "XRayTubeCurrent_DICOM", "Exposure_DICOM", "ExposureInuAs_DICOM", "ExposureTime"),
    *("RelativeXRayExposure_DICOM", "ReportID", "Report", "MethodLabel", "Labels", "Localizations"),
    *("LabelsLocalizationsBySentence", "labelCUIS", "LocalizationsCUIS"),
]
ODIR = [
    *("ID", "Patient Age", "Patient Sex", "Left-Fundus", "Right-Fundus", "Left-Diagnostic Keywords"),
    *("Right-Diagnostic Keywords", *"NDGCAHMO"),
]


def radiograph(height: int = 40, width: int = 36) -> np.ndarray:
    return np.random.default_rng(height).integers(100, 3000, (height, width)).astype(np.uint16)


def write_dicom(file: Path, **elements: object) -> None:
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_bytes(dicom_bytes(radiograph(), **elements))


def write_csv(file: Path, header: list[str], rows: list[dict[str, object]]) -> Path:
    with file.open("w", newline="", encoding="utf-8") as opened:
        writer = csv.DictWriter(opened, header, restval="")
        writer.writeheader()
        writer.writerows(rows)
    return file


def ids(splits) -> dict[str, list[str]]:
    return {name: [study.id for study in studies] for name, studies in splits.items()}


def prepared(capsys, *words: object) -> Path:
    """The folder that `medreport prepare` makes."""
    capsys.readouterr()
    prepare_data([str(word) for word in words])
    captured = capsys.readouterr()
    assert not any(value in captured.out + captured.err for value in IDENTIFIERS.values())
    return Path(captured.out.splitlines()[1].split(": ")[0])


# MIMIC-CXR, CheXpert Plus and Open-i as DICOM


def dicom_mimic(tmp_path: Path) -> tuple[Path, Path]:
    """The tables of MIMIC-CXR-JPG, and MIMIC-CXR with its reports."""
    tables = test_mimic.write_layout(tmp_path / "jpg")
    dicom = tmp_path / "mimic-cxr"
    (tables / "files").rename(dicom.parent / "files")
    dicom.mkdir()
    (dicom.parent / "files").rename(dicom / "files")
    for image in list(dicom.rglob("*.jpg")):
        image.unlink()
        write_dicom(image.with_suffix(".dcm"), WindowCenter="700", WindowWidth="90")
    return tables, dicom


def test_mimic_cxr_is_read_as_dicom_with_the_tables_of_mimic_cxr_jpg(tmp_path, capsys):
    tables, dicom = dicom_mimic(tmp_path)
    splits = read_mimic_cxr(tables, Quarantine(), images=dicom)
    first = splits["train"][0]
    assert first.images[0] == dicom / "files/p10/p10000032/s50414267/c-frontal.dcm"
    assert len(first.images) == 4
    folder = prepared(capsys, "--layout", "mimic", "--source", tables, "--images", dicom, "--output", tmp_path / "out")
    stored = open_split(folder, "train")[0]
    expected = read_image(first.images[0], dicom_contrast="mimic-cxr-jpg")
    np.testing.assert_array_equal(read_image(stored.images[0]), expected)
    folder = prepared(
        capsys, "--layout", "mimic", "--source", tables, "--images", dicom, "--output", tmp_path / "window",
        "--dicom-contrast", "window",
    )  # fmt: skip
    np.testing.assert_array_equal(read_image(open_split(folder, "train")[0].images[0]), read_image(first.images[0]))
    assert (read_image(first.images[0]) != expected).any()


def test_a_jpeg_beside_a_dicom_is_preferred_and_a_root_without_tables_is_refused(tmp_path):
    tables, dicom = dicom_mimic(tmp_path)
    file = dicom / "files/p19/p19999733/s57132437/g.jpg"
    Image.new("L", (9, 9)).save(file)
    assert read_mimic_cxr(tables, Quarantine(), images=dicom)["test"][0].images == (file,)
    with pytest.raises(UserError, match=r"no mimic-cxr-2\.0\.0-split\.csv .*DICOM files are named with --images"):
        read_mimic_cxr(dicom, Quarantine())


@pytest.mark.parametrize("folder", ["DICOM/Uncompressed", "DICOM"])
def test_chexpert_plus_is_read_as_dicom(tmp_path, folder):
    root = test_chexpert_plus.write_layout(tmp_path / "root", folder=folder)
    for png in list(root.rglob("*.png")):
        png.unlink()
        write_dicom(png.with_suffix(".dcm"))
    study = read_chexpert_plus(root, Quarantine())["train"][0]
    assert [image.relative_to(root / folder).as_posix() for image in study.images] == [
        "train/patient00001/study1/view1_frontal.dcm",
        "train/patient00001/study1/view2_lateral.dcm",
    ]


@pytest.mark.parametrize(
    ("report", "image", "file"),
    [
        (1, "CXR1_1_IM-0001-3001", "1/1_IM-0001-3001.dcm"),  # the one report whose image ids repeat its number
        (1, "CXR1_1_IM-0001-3001", "1_IM-0001-3001.dcm.png"),
        (1, "CXR1_1_IM-0001-3001", "CXR1_1_IM-0001-3001.png"),
        (1000, "CXR1000_IM-0003-1001", "1000/1000_IM-0003-1001.dcm"),
        (1000, "CXR1000_IM-0003-1001", "1000_IM-0003-1001.dcm"),
        (1000, "CXR1000_IM-0003-1001", "1000_IM-0003-1001.dcm.png"),
        (1000, "CXR1000_IM-0003-1001", "CXR1000_IM-0003-1001.png"),
    ],
)
def test_openi_is_read_in_each_form_of_its_files(tmp_path, report, image, file):
    (tmp_path / file).parent.mkdir(exist_ok=True)
    (tmp_path / file).touch()
    study = OpeniStudy(f"CXR{report}", "", "", "Clear.", "", (), (OpeniImage(image, ""),))
    assert _openi_files(tmp_path, study) == (tmp_path / file,)


# PadChest


def padchest(root: Path, compress: bool = False, flat: bool = False) -> Path:
    rows = []
    for number in range(60):
        for projection in ("L", "AP_horizontal" if number % 2 else "PA"):
            name = f"{number}_{projection}_02-094.png"
            file = root / ("" if flat else str(number % 3)) / name
            file.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(radiograph()).save(file)
            rows.append(
                {
                    "ImageID": name,
                    "ImageDir": number % 3,
                    "StudyID": f"2168401113669640{number}",
                    "PatientID": f"8381{number // 2}",
                    "Projection": projection,
                    "Report": "sin signific alteracion . ate laminar\nen bas izquierd ." if number else "",
                    "Labels": "['normal', ' laminar atelectasis']" if number % 2 else "[]",
                }
            )
    table = write_csv(root / "PADCHEST_chest_x_ray_images_labels_160K_01.02.19.csv", PADCHEST, rows)
    if compress:
        table.with_name(f"{table.name}.gz").write_bytes(gzip.compress(table.read_bytes()))
        table.unlink()
    return root


@pytest.mark.parametrize(("compress", "flat"), [(False, False), (True, True)])
def test_padchest_has_spanish_reports_labels_and_frontal_images_first(tmp_path, compress, flat):
    root = padchest(tmp_path / "padchest", compress, flat)
    quarantine = Quarantine()
    splits = read_padchest(root, quarantine)
    studies = {study.id[16:]: study for split in splits.values() for study in split}
    assert quarantine.counts() == {"empty report": 1}
    assert len(studies) == 59
    assert studies["3"].report == "sin signific alteracion . ate laminar\nen bas izquierd ."
    assert studies["3"].labels == ("normal", "laminar atelectasis")
    assert studies["4"].labels == ()
    assert [image.name for image in studies["3"].images] == ["3_AP_horizontal_02-094.png", "3_L_02-094.png"]
    patients = [{int(study.id[16:]) // 2 for study in split} for split in splits.values()]
    assert sum(map(len, patients)) == len(set.union(*patients))
    assert ids(splits) == ids(read_padchest(root, Quarantine()))


def test_padchest_is_prepared_with_the_whole_range_of_its_16_bits(tmp_path, capsys):
    root = padchest(tmp_path / "padchest")
    folder = prepared(capsys, "--layout", "padchest", "--source", root, "--output", tmp_path / "out")
    image = read_image(open_split(folder, "train")[0].images[0])
    assert (image.min(), image.max()) == (0, 255)


def test_a_tenth_of_the_patients_each_is_for_validation_and_test():
    studies = [(str(number // 2), ImageStudy(str(number), (), "a")) for number in range(8000)]
    splits = split_by_patient(studies)
    assert 360 < len(splits["test"]) / 2 < 440
    assert 360 < len(splits["validation"]) / 2 < 440
    more = split_by_patient([*studies, ("new", ImageStudy("new", (), "a"))])
    assert {name: [one for one in split if one.id != "new"] for name, split in more.items()} == splits


# FFA-IR


def ffa_ir(root: Path, images: int = 7, **changed: object) -> Path:
    cases = {}
    for number, split in enumerate(("train", "train", "val", "test")):
        paths = [f"case_{number}/{image}.jpg" for image in range(images)]
        for path in paths:
            (root / path).parent.mkdir(parents=True, exist_ok=True)
            Image.new("L", (12, 12), 30).save(root / path)
        entry = {"Image_path": paths, "En_Report": "Right eye: leakage.", "Ch_Report": "右眼：荧光渗漏。"} | changed
        cases.setdefault(split, {})[f"case_{number}"] = {
            key: value for key, value in entry.items() if value is not None
        }
    (root / "ffair_annotation.json").write_text(json.dumps(cases, ensure_ascii=False))
    return root / "ffair_annotation.json"


def test_ffa_ir_has_many_images_and_reports_in_two_languages(tmp_path, capsys):
    annotation = ffa_ir(tmp_path)
    quarantine = Quarantine()
    splits = read_ffa_ir(annotation, tmp_path, quarantine, language="zh", maximum_images=3)
    assert ids(splits) == {"train": ["case_0", "case_1"], "validation": ["case_2"], "test": ["case_3"]}
    study = splits["train"][0]
    assert (study.report, study.language) == ("右眼：荧光渗漏。", "zh")
    assert [image.name for image in study.images] == ["0.jpg", "3.jpg", "6.jpg"]
    assert quarantine.notes == {"views left out": 16}
    assert len(read_ffa_ir(annotation, tmp_path, Quarantine())["test"][0].images) == 7
    folder = prepared(
        capsys, "--layout", "ffa-ir", "--source", annotation, "--images", tmp_path, "--maximum-images", 2,
        "--output", tmp_path / "out",
    )  # fmt: skip
    stored = open_split(folder, "test")[0]
    assert (stored.report, len(stored.images)) == ("Right eye: leakage.", 2)


# ODIR


def odir(root: Path, each_eye: bool = False) -> Path:
    rows = []
    for number in range(60):
        for side, colour in (("left", (200, 90, 20)), ("right", (150, 60, 40))):
            root.mkdir(exist_ok=True)
            Image.new("RGB", (14, 12), colour).save(root / f"{number}_{side}.png")
        row = {
            "ID": number,
            "Patient Age": 60,
            "Patient Sex": "Female",
            "Left-Fundus": f"{number}_left.png",
            "Right-Fundus": f"{number}_right.png",
            "Left-Diagnostic Keywords": "cataract，drusen" if number else "",
            "Right-Diagnostic Keywords": "normal fundus",
            **dict.fromkeys("NDGCAHMO", 0),
            "C": 1,
            "O": 1,
        }
        rows += [row] * (2 if each_eye else 1)
    return write_csv(root / "odir.csv", ODIR, rows)


@pytest.mark.parametrize("each_eye", [False, True])
def test_odir_has_both_eyes_their_keywords_and_labels(tmp_path, each_eye):
    table = odir(tmp_path / "odir", each_eye)
    quarantine = Quarantine()
    splits = read_odir(table, table.parent, quarantine)
    studies = {study.id: study for split in splits.values() for study in split}
    assert len(studies) == 59
    assert quarantine.entries == [("0", "empty report")]
    assert studies["7"].report == "Left eye: cataract, drusen. Right eye: normal fundus."
    assert studies["7"].labels == ("cataract", "other")
    assert [image.name for image in studies["7"].images] == ["7_left.png", "7_right.png"]


def test_eyes_are_prepared_in_colour(tmp_path, capsys):
    table = odir(tmp_path / "odir")
    words = "--layout", "odir", "--source", table, "--images", table.parent, "--shorter-side", 8
    folder = prepared(capsys, *words, "--output", tmp_path / "out", "--colour")
    left, right = (read_image(image, colour=True) for image in open_split(folder, "train")[0].images)
    assert left.shape == (8, 9, 3)
    assert (left == (200, 90, 20)).all()
    assert (right == (150, 60, 40)).all()
    folder = prepared(capsys, *words, "--output", tmp_path / "grey")
    grey = read_image(open_split(folder, "train")[0].images[0], colour=True)
    assert (grey == grey[..., :1]).all()


# What is wrong with them


def refusal(words: list[object], capsys) -> str:
    """The one line of the command, which must end with exit code 2."""
    capsys.readouterr()
    with pytest.raises(SystemExit) as stop:
        run_cli(prepare_data, [str(word) for word in words])
    *_, error = capsys.readouterr().err.splitlines()  # TFDS may say before that it begins
    assert stop.value.code == 2
    assert error.startswith("error: ")
    return error


def edited(file: Path, before: str, after: str) -> Path:
    file.write_text(file.read_text().replace(before, after, 1))
    return file


def test_damaged_tables_are_refused_in_one_line(tmp_path, capsys):
    root = padchest(tmp_path / "padchest")
    (table,) = root.glob("*.csv")
    whole = table.read_text()
    words = ["--layout", "padchest", "--source", root, "--output", tmp_path / "out"]
    for before, after, message in (
        (",Report,", ",Text,", "no column Report"),
        ("0_PA_02-094.png", "0_L_02-094.png", "duplicates line 2"),
        (",83811,", ",99999,", "its study has another patient before"),
    ):
        table.write_text(whole.replace(before, after, 1))
        assert message in refusal(words, capsys)
    table.write_bytes(whole.encode() + b"\xff")
    assert "not UTF-8" in refusal(words, capsys)
    table.unlink()
    assert "expected the root of PadChest" in refusal(words, capsys)

    table = odir(tmp_path / "odir")
    whole = table.read_text()
    words = ["--layout", "odir", "--source", table, "--images", table.parent, "--output", tmp_path / "out"]
    table.write_text(whole + whole.splitlines()[5].replace("normal", "odd") + "\n")
    assert "line 62: patient 4 differs from line 6" in refusal(words, capsys)
    table.write_text(whole.replace("Left-Fundus", "Left"))
    assert "no column Left-Fundus" in refusal(words, capsys)
    assert "is a workbook; save its sheet as CSV" in refusal([*words[:3], tmp_path / "data.xlsx", *words[4:]], capsys)
    assert "--layout odir also needs --images" in refusal(words[:4] + words[6:], capsys)


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"Image_path": "case_0/0.jpg"}, "case case_0: 'Image_path' must be list"),
        ({"Image_path": None}, "key 'Image_path' is missing"),
        ({"En_Report": None}, "key 'En_Report' is missing"),
        ({"En_Report": 5}, "'En_Report' must be str"),
        ({"En_Report": " "}, "no usable study in the train split"),
        ({"Image_path": []}, "no usable study in the train split"),
    ],
)
def test_damaged_annotations_are_refused_in_one_line(tmp_path, capsys, changed, message):
    annotation = ffa_ir(tmp_path, **changed)
    words = ["--layout", "ffa-ir", "--source", annotation, "--images", tmp_path, "--output", tmp_path / "out"]
    assert message in refusal(words, capsys)


def test_annotations_of_another_form_are_refused_in_one_line(tmp_path, capsys):
    annotation = ffa_ir(tmp_path)
    words = ["--layout", "ffa-ir", "--source", annotation, "--images", tmp_path, "--output", tmp_path / "out"]
    whole = json.loads(annotation.read_text())
    for content, message in (
        ([], "expected a JSON object"),
        (whole | {"val": []}, "'val' must be dict"),
        (whole | {"test": {"case_0": whole["train"]["case_0"]}}, "id case_0 is in the train split and in the test"),
        (whole | {"test": {"case_3": 4}}, "case case_3: expected a JSON object"),
    ):
        annotation.write_text(json.dumps(content))
        assert message in refusal(words, capsys)
    annotation = ffa_ir(tmp_path, Ch_Report=None)
    assert "0 names that end in _Report beside En_Report" in refusal([*words, "--language", "zh"], capsys)
    assert "--language" in refusal(["--layout", "rows", *words[2:], "--language", "zh"], capsys)


def test_dicom_files_that_cannot_be_read_are_counted_and_a_missing_package_is_said(tmp_path, capsys, monkeypatch):
    tables, dicom = dicom_mimic(tmp_path)
    write_dicom(dicom / "files/p10/p10000032/s53189527/e.dcm", BurnedInAnnotation="YES")
    words = ["--layout", "mimic", "--source", tables, "--images", dicom, "--output"]
    folder = prepared(capsys, *words, tmp_path / "out")
    assert '{"id": "s53189527", "reason": "image cannot be read"}' in (folder / "quarantine.jsonl").read_text()

    def absent():
        raise ImportError(name="pydicom")

    monkeypatch.setattr("common.data.dicom._import_pydicom", absent)
    error = refusal([*words, tmp_path / "other"], capsys)
    assert "is a DICOM file, and pydicom is not installed: pip install 'medreport-jax[dicom]'" in error
