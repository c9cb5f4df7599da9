"""Splits of a data set keep the numbers of a user's reports, whatever the preset."""

import dataclasses
import json
from pathlib import Path

import pytest
from PIL import Image

from common.data.builders.command import main as prepare_data
from common.data.records import Quarantine
from common.data.source import StudySource
from common.data.splits import load_splits
from deer_jax.config import RL_PRESETS, SAMPLE_PRESETS, SFT_PRESETS
from unicross_jax.config import PRESETS

REPORT = "A 2.5 cm nodule, < 5 mm from the hilum. C/D 0.3."
LOSSY = "a 25 cm nodule  5 mm from the hilum . cd 03 ."
SYSTEMS = {"unicross": PRESETS, "sft": SFT_PRESETS, "rl": RL_PRESETS, "sample": SAMPLE_PRESETS}
EVERY_PRESET = {
    f"{command}-{name}": config.data
    for command, presets in (
        ("unicross", PRESETS),
        ("sft", SFT_PRESETS),
        ("rl", RL_PRESETS),
        ("sample", SAMPLE_PRESETS),
    )
    for name, config in presets.items()
}
SPLITS = ("train", "val", "test")


def write_images(folder: Path) -> None:
    for split in SPLITS:
        Image.new("L", (24, 24), 90).save(folder / f"{split}.png")


def rows_file(folder: Path, ids: dict[str, str]) -> Path:
    """Rows of one study a split."""
    write_images(folder)
    rows = [{"id": ids[split], "split": split, "images": [f"{split}.png"], "report": REPORT} for split in SPLITS]
    file = folder / "rows.jsonl"
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return file


def annotation_file(folder: Path, ids: dict[str, str]) -> Path:
    """The same as R2Gen's annotation."""
    write_images(folder)
    entries = {split: [{"id": ids[split], "image_path": [f"{split}.png"], "report": REPORT}] for split in SPLITS}
    file = folder / "annotation.json"
    file.write_text(json.dumps(entries))
    return file


def reports(source: StudySource, quarantine: Quarantine | None = None) -> set[str]:
    """The reports of all splits."""
    splits = load_splits(source, 24, lambda image: image, Quarantine() if quarantine is None else quarantine)
    return {study.report for split in splits.values() for study in split.studies}


OWN = dict(zip(SPLITS, ("a", "b", "c"), strict=True))
IU = dict(zip(SPLITS, ("CXR1_IM-0001", "CXR2_IM-0002", "CXR3_IM-0003"), strict=True))
MIMIC = dict(zip(SPLITS, ("s50414267", "s50414268", "s50414269"), strict=True))


@pytest.mark.parametrize("preset", EVERY_PRESET)
@pytest.mark.parametrize("ids", [OWN, IU, MIMIC], ids=["own", "iu", "mimic"])
def test_rows_keep_every_number_under_every_preset(tmp_path, capsys, preset, ids):
    source = str(rows_file(tmp_path, ids))
    data = dataclasses.replace(EVERY_PRESET[preset], layout="rows", source=source, images=str(tmp_path))
    quarantine = Quarantine()
    assert reports(data, quarantine) == {REPORT}
    assert quarantine.cleaning == "lossless"
    assert capsys.readouterr().err == ""


@pytest.mark.parametrize(
    ("preset", "ids", "expected"),
    [
        ("unicross-iu-xray", IU, LOSSY),
        ("unicross-iu-xray", OWN, REPORT),
        ("unicross-mimic-cxr", MIMIC, LOSSY),
        ("sft-mimic-cxr", IU, REPORT),
        ("sft-chexpert-plus", MIMIC, REPORT),
    ],
)
def test_an_annotation_is_cleaned_where_it_is_the_data_set_of_the_table(tmp_path, capsys, preset, ids, expected):
    source = str(annotation_file(tmp_path, ids))
    data = dataclasses.replace(EVERY_PRESET[preset], layout="annotation", source=source, images=str(tmp_path))
    assert reports(data) == {expected}
    assert capsys.readouterr().err == ""


@pytest.mark.parametrize(("layout", "expected"), [("rows", REPORT), ("annotation", LOSSY)])
def test_a_prepared_data_set_is_cleaned_as_the_layout_that_it_came_in(tmp_path, capsys, layout, expected):
    source = (rows_file if layout == "rows" else annotation_file)(tmp_path, MIMIC)
    files = ["--source", str(source), "--images", str(tmp_path), "--output", str(tmp_path / "out")]
    prepare_data(["--layout", layout, *files, "--name", "mimic"])
    folder = str(tmp_path / "out/image_studies/mimic/1.0.0")
    for preset in ("sft-mimic-cxr", "unicross-mimic-cxr"):
        assert reports(dataclasses.replace(EVERY_PRESET[preset], source=folder)) == {expected}


def test_a_lossy_cleaning_that_is_asked_for_names_a_number_that_it_alters(tmp_path, capsys):
    source = str(rows_file(tmp_path, OWN))
    data = StudySource(layout="rows", source=source, images=str(tmp_path), cleaning="r2gen-mimic")
    quarantine = Quarantine()
    assert reports(data, quarantine) == {LOSSY}
    assert quarantine.cleaning == "r2gen-mimic"
    warning = capsys.readouterr().err
    assert "alters numbers in 3 of 3 reports, such as 2.5; data.cleaning lossless keeps them" in warning
    assert "nodule" not in warning


def test_drawn_reports_are_cleaned_as_those_of_the_shipped_models():
    data = dataclasses.replace(PRESETS["demo"].data, train_size=2, validation_size=0, test_size=0)
    assert reports(data) == reports(dataclasses.replace(data, cleaning="r2gen-iu"))
    assert reports(data) != reports(dataclasses.replace(data, cleaning="lossless"))
