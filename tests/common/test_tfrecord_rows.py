"""TFRecord as rows: what other readers and writers have, and damage as one line. Nested features, in either format."""

import gzip
import json
import shutil
from pathlib import Path

import grain
import numpy as np
import pytest
import tensorflow_datasets as tfds

from common.data.readers import read_image_rows
from common.data.records import Quarantine
from common.errors import MissingPackage, UserError
from common.io import tfds_tables
from common.io.rows import read_rows
from common.io.tf_records import tf_records
from tests.clinic import REPORT, VALUES, Clinic, plain, png
from tests.tf_records import as_tfrecord

pytest.importorskip("pyarrow")

IMAGE, TEXT = tfds.features.Image(shape=(None, None, 1)), tfds.features.Text()
NESTED = {
    "report": TEXT,
    "split": TEXT,
    "study": {"image": IMAGE, "about": {"age": np.int64, "sides": tfds.features.Sequence(TEXT)}},
    "views": tfds.features.Sequence({"image": IMAGE, "side": TEXT, "about": {"kv": np.float32}}),
    "images": tfds.features.Sequence(IMAGE),
    "translated": tfds.features.Translation(languages=["en", "zh"]),
    "box": tfds.features.BBoxFeature(),
    "matrix": tfds.features.Tensor(shape=(2, 2), dtype=np.float32),
    "points": tfds.features.Sequence(tfds.features.Tensor(shape=(2,), dtype=np.float32)),
}


class Nested(tfds.core.GeneratorBasedBuilder):
    """Features within features."""

    VERSION = tfds.core.Version("1.0.0")

    def _info(self):
        return tfds.core.DatasetInfo(builder=self, features=tfds.features.FeaturesDict(NESTED))

    def _split_generators(self, dl_manager):
        return {"train": self._generate_examples()}

    def _generate_examples(self):
        for number in range(20):
            count = number % 3
            views = [
                {"image": png(100 * number + view), "side": "LR"[view], "about": {"kv": view / 2}}
                for view in range(count)
            ]
            yield (
                number,
                {
                    **{"report": f"report {number}", "split": "train", "images": [png(number), png(number + 1)]},
                    "study": {"image": png(number), "about": {"age": number, "sides": ["l"] * count}},
                    **{"views": views, "translated": {"en": "clear", "zh": "清晰"}},
                    "box": tfds.features.BBox(0.0, 0.0, 1.0, 1.0),
                    **{"matrix": np.ones((2, 2), np.float32), "points": np.ones((1, 2), np.float32)},
                },
            )


def written(kind: type, folder: Path) -> Path:
    builder = kind(data_dir=str(folder), file_format="array_record")
    builder.download_and_prepare()
    return Path(builder.data_dir)


@pytest.fixture(scope="module")
def clinic(tmp_path_factory) -> Path:
    return written(Clinic, tmp_path_factory.mktemp("clinic"))


@pytest.fixture
def folder(clinic, tmp_path) -> Path:
    return as_tfrecord(shutil.copytree(clinic, tmp_path / "clinic"))


@pytest.fixture(scope="module")
def nested(tmp_path_factory) -> Path:
    return written(Nested, tmp_path_factory.mktemp("nested"))


def file_of(folder: Path) -> Path:
    return folder / "clinic-train.tfrecord-00000-of-00001"


def test_rows_are_those_of_the_same_data_set_as_array_record(clinic, folder, monkeypatch):
    for count in (1, 3, 16, 99):
        monkeypatch.setattr(tfds_tables, "RECORDS", count)
        assert read_rows(folder, REPORT, optional=VALUES) == read_rows(clinic, REPORT, optional=VALUES)
    assert read_rows(folder / "validation", REPORT) == read_rows(clinic / "validation", REPORT)
    ours, theirs = (read_image_rows(one, None, Quarantine(), columns=["images=image"]) for one in (folder, clinic))
    for name, studies in theirs.items():
        pairs = zip(reversed(ours[name]), reversed(studies), strict=True)
        assert all(one.images[0].read() == other.images[0].read() for one, other in pairs)


def test_records_are_those_that_others_read(folder):
    """Of a file that is part of Grain, with what its own test expects; of ours, by Grain's reader."""
    shipped = Path(grain.__file__).parent / "_src" / "python" / "testdata" / "morris_sequence_first_5.tfrecord"
    assert [content for _, content in tf_records(shipped)] == [b"1", b"1 1", b"2 1", b"1 2 1 1", b"1 1 1 2 2 1"]
    theirs = list(grain.experimental.TFRecordIterDataset(str(file_of(folder))))
    records = list(tf_records(file_of(folder)))
    assert [content for _, content in records] == theirs
    assert [next(tf_records(file_of(folder), begin)) for begin, _ in records] == records


def test_files_are_named_as_the_data_set_says(folder):
    file_of(folder).rename(folder / "0-1_train_clinic.rec")
    file = folder / "dataset_info.json"
    info = json.loads(file.read_text("utf-8"))
    rows = read_rows(folder / "validation", REPORT)
    info["splits"][0]["filepathTemplate"] = "0-1_{SPLIT}_{DATASET}.rec"
    file.write_text(json.dumps(info), "utf-8")
    assert [row["report"] for row in read_rows(folder, REPORT)][20:] == [row["report"] for row in rows]
    info["splits"][0]["filepathTemplate"] = "../{SPLIT}"
    file.write_text(json.dumps(info), "utf-8")
    with pytest.raises(UserError, match="does not say which files belong to it"):
        read_rows(folder, REPORT)


def flipped(at: int):
    def damage(whole: bytes) -> bytes:
        return whole[:at] + bytes([whole[at] ^ 1]) + whole[at + 1 :]

    return damage


DAMAGE = {
    "length": (flipped(0), "byte 0 is damaged"),
    "checksum of the length": (flipped(9), "byte 0 is damaged"),
    "content": (flipped(40), "byte 0 is damaged"),
    "checksum of the last": (lambda whole: whole[:-1] + bytes([whole[-1] ^ 1]), "is damaged"),
    "cut in the content": (lambda whole: whole[:-20], "is cut off"),
    "cut in a checksum": (lambda whole: whole[:-2], "is cut off"),
    "cut in the head": (lambda whole: whole + b"123", "is cut off"),
    "compressed": (gzip.compress, "compressed"),
    "fewer": (lambda whole: b"", "0 records where dataset_info.json says 20"),
}


@pytest.mark.parametrize("damage", DAMAGE)
def test_damage_is_one_line(folder, damage):
    change, said = DAMAGE[damage]
    whole = file_of(folder).read_bytes()
    file_of(folder).write_bytes(change(whole))
    with pytest.raises(UserError) as error:
        read_rows(folder, REPORT)
    assert str(error.value).startswith(f"{file_of(folder)}: cannot be read as a table (")
    assert said in str(error.value)
    assert "\n" not in str(error.value)


def test_without_its_package_the_extra_is_named(folder, monkeypatch):
    monkeypatch.setattr("importlib.util.find_spec", lambda _: None)
    with pytest.raises(MissingPackage, match=r"needs google-crc32c; install it: pip install 'medreport-jax\[tables\]'"):
        read_rows(folder, REPORT)


@pytest.mark.parametrize("form", ["array_record", "tfrecord"])
def test_features_within_features_are_columns(nested, tmp_path, form):
    source = tfds.builder_from_directory(str(nested)).as_data_source(split="train")
    folder = shutil.copytree(nested, tmp_path / "nested")
    folder = as_tfrecord(folder) if form == "tfrecord" else folder
    names = ["study/about/age", "study/about/sides", "views/side", "views/about/kv", "translated/en", "translated/zh"]
    rows = read_rows(folder, REPORT, optional=names)

    def value(row: object, name: str) -> object:
        for part in name.split("/"):
            row = [one[part] for one in row] if isinstance(row, list) else row[part]
        return plain(row)

    assert [[row[name] for name in names] for row in rows] == [[value(row, name) for name in names] for row in source]
    for name in ("study/image", "views/image", "images"):
        found = read_image_rows(folder, None, Quarantine(), columns=[f"images={name}"])["train"]
        numbers = [int(study.report.split()[1]) for study in found]
        expected = {
            "study/image": lambda number: [png(number)],
            "views/image": lambda number: [png(100 * number + view) for view in range(number % 3)],
            "images": lambda number: [png(number), png(number + 1)],
        }[name]
        assert len(found) == (20 if name != "views/image" else 13)  # those without an image are quarantined
        assert [[image.read() for image in study.images] for study in found] == list(map(expected, numbers))


@pytest.mark.parametrize(
    ("column", "said"),
    [
        ("study", "the feature study is a group; name one of study/about/age, study/about/sides, study/image"),
        ("study/about", "the feature study/about is a group; name one of study/about/age, study/about/sides"),
        ("box", "the feature box holds what TFDS calls boundingBox; expected text, a number, an image, or a list of"),
        ("matrix", "the feature matrix holds tensors of 2 dimensions; expected"),
        ("points", "the feature points holds lists of lists; expected"),
    ],
)
def test_features_that_are_not_read_are_named(nested, column, said):
    with pytest.raises(UserError) as error:
        read_image_rows(nested, None, Quarantine(), columns=[f"images={column}"])
    assert f"features.json: {said}" in str(error.value)
    assert "\n" not in str(error.value)
