"""Data sets of TFDS as rows: what TFDS reads of them itself, and what is refused."""

import json
import os
import shutil
from pathlib import Path

import numpy as np
import pytest
import tensorflow_datasets as tfds

from common.data.builders import open_split, prepare
from common.data.images import read_image
from common.data.readers import ImageStudy, read_image_rows
from common.data.records import Quarantine
from common.errors import UserError
from common.io import tfds_tables
from common.io.rows import read_rows
from common.io.table_files import EncodedImage
from retsta_jax.pairs import read_pairs
from tests.clinic import REPORT, VALUES, Clinic, plain, png


@pytest.fixture(scope="module")
def written(tmp_path_factory) -> Path:
    builder = Clinic(data_dir=str(tmp_path_factory.mktemp("tfds")), file_format="array_record")
    builder.download_and_prepare()
    return Path(builder.data_dir)


@pytest.fixture
def folder(written, tmp_path) -> Path:
    return shutil.copytree(written, tmp_path / "clinic")


def test_rows_are_those_that_tfds_reads(folder):
    rows = read_rows(folder, REPORT, optional=VALUES)
    builder = tfds.builder_from_directory(str(folder))
    theirs = [(name, row) for name in ("train", "validation") for row in builder.as_data_source(split=name)]
    assert [row["split"] for row in rows] == [name for name, _ in theirs]
    assert [row["id"] for row in rows] == [f"{name}-{number}" for number, (name, _) in enumerate(theirs, start=1)]
    assert [[row[name] for name in VALUES] for row in rows] == [
        [plain(row[name]) for name in VALUES] for _, row in theirs
    ]
    splits = read_image_rows(folder, None, Quarantine(), columns=["images=image"])
    images = [read_image(image) for split in splits.values() for study in split for image in study.images]
    assert all(np.array_equal(image, row["image"][..., 0]) for image, (_, row) in zip(images, theirs, strict=True))


def test_rows_are_numbered_where_nothing_else_is_asked_for(folder):
    assert [row["id"] for row in read_rows(folder, {"id": str | int})][-1] == "validation-23"


def test_what_prepare_wrote_is_a_table_too(tmp_path):
    studies = [
        ImageStudy(f"s{number}", (tmp_path / f"{number}.png",), f"report {number}", "cough", ("Edema",) * number, "zh")
        for number in range(3)
    ]
    for number, study in enumerate(studies):
        study.images[0].write_bytes(png(number))
    folder = prepare({"train": studies}, tmp_path / "data", "tiny", Quarantine())
    found = read_image_rows(folder, None, Quarantine())["train"]
    assert [(*vars(study).values(),)[2:] for study in found] == [
        (*vars(study).values(),)[2:] for study in open_split(folder, "train")
    ]
    assert [[image.read() for image in study.images] for study in found] == [
        list(study.images) for study in open_split(folder, "train")
    ]
    assert all(isinstance(image, EncodedImage) for study in found for image in study.images)


def test_no_class_that_features_name_is_imported(folder, tmp_path, monkeypatch):
    (tmp_path / "surprise.py").write_text("raise SystemExit('imported')")
    monkeypatch.syspath_prepend(tmp_path)
    file = folder / "features.json"
    file.write_text(
        file.read_text("utf-8").replace("tensorflow_datasets.core.features.text_feature", "surprise"), "utf-8"
    )
    assert len(read_rows(folder, REPORT)) == 23


def another_format(folder: Path) -> None:
    file = folder / "dataset_info.json"
    file.write_text(json.dumps(json.loads(file.read_text("utf-8")) | {"fileFormat": "riegeli"}), "utf-8")


def first_file(folder: Path) -> Path:
    return folder / "clinic-train.array_record-00000-of-00001"


def of_another_split(folder: Path) -> None:
    shutil.copy(folder / "clinic-validation.array_record-00000-of-00001", first_file(folder))


DAMAGE = {
    "is of TFDS in the format riegeli; expected array_record or tfrecord, convert it": another_format,
    "cannot be read as a table (open() failed: No such file": lambda folder: first_file(folder).unlink(),
    "cannot be read as a table (ArrayRecord file": lambda folder: first_file(folder).write_bytes(b""),
    "array_record-00000-of-00001: cannot be read as a table (": lambda folder: os.truncate(first_file(folder), 70_000),
    "(3 records where dataset_info.json says 20)": of_another_split,
    "features.json: does not say what its features are": lambda folder: (folder / "features.json").write_text("{}"),
    "does not say which files belong to it": lambda folder: (folder / "dataset_info.json").write_text(
        '{"fileFormat": "array_record"}'
    ),
}


@pytest.mark.parametrize("said", DAMAGE)
def test_what_is_wrong_with_a_data_set_is_one_line(folder, said):
    DAMAGE[said](folder)
    with pytest.raises(UserError) as error:
        read_rows(folder, REPORT)
    assert said in str(error.value)
    assert "\n" not in str(error.value)


def test_pairs_are_read_of_one_split_only(folder):
    with pytest.raises(UserError, match=r"holds the splits train, validation; name the folder or file of one"):
        read_pairs(folder, Quarantine(), ["source=report", "target=patient"])


def test_a_split_is_named_as_if_it_were_a_folder(folder):
    rows = read_rows(folder, REPORT)
    assert read_rows(folder / "validation", REPORT) == [
        row | {"id": f"validation-{number}"} for number, row in enumerate(rows[20:], start=1)
    ]
    pairs = read_pairs(folder / "train", Quarantine(), ["source=report", "target=patient"])
    assert [pair.source for pair in pairs] == [row["report"] for row in rows[:20]]
    with pytest.raises(UserError, match=r"clinic: has no split test; there are train, validation"):
        read_rows(folder / "test", REPORT)


def test_batches_end_where_a_file_does(folder, monkeypatch):
    whole = read_rows(folder, REPORT, optional=VALUES)
    for count in (1, 4, 20, 99):
        monkeypatch.setattr(tfds_tables, "RECORDS", count)
        assert read_rows(folder, REPORT, optional=VALUES) == whole
