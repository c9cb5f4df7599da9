"""Rows of Parquet and of data sets that `datasets` saved, written by pyarrow, pandas and `datasets` themselves."""

import io
import json
import re
from pathlib import Path

import numpy as np
import pytest

from common.data.images import Reading, encode_png
from common.data.readers import read_image_rows
from common.data.records import Quarantine
from common.errors import UserError
from common.io.rows import read_rows
from retsta_jax.pairs import read_pairs
from retsta_jax.reports import read_reports

pa = pytest.importorskip("pyarrow")
import pyarrow.parquet as pq  # noqa: E402 - after the line that skips the file where it is not installed

REPORT = {"id": str | int, "report": str}
TEXTS = ["No effusion.", "胸腔积液", "Mild\nedema."]


def table(**columns):
    return pa.table(columns)


def written(path: Path, **columns) -> Path:
    pq.write_table(table(**columns), path, row_group_size=2)
    return path


def test_parquet_gives_the_rows_of_jsonl(tmp_path):
    rows = [{"id": number, "report": text, "n": [number, 2]} for number, text in enumerate(TEXTS)]
    lines = tmp_path / "rows.jsonl"
    lines.write_text("".join(json.dumps(row) + "\n" for row in rows), "utf-8")
    columns = {name: [row[name] for row in rows] for name in rows[0]}
    assert (
        read_rows(written(tmp_path / "rows.parquet", **columns), REPORT, optional=["n"])
        == rows
        == read_rows(lines, REPORT)
    )


@pytest.mark.parametrize("name", ["rows.parquet", "rows.jsonl"])
def test_columns_have_other_names(tmp_path, name):
    file, rows = tmp_path / name, [{"uid": f"s{number}", "findings": text} for number, text in enumerate(TEXTS)]
    if file.suffix == ".parquet":
        written(file, uid=[row["uid"] for row in rows], findings=TEXTS)
    else:
        file.write_text("".join(json.dumps(row) + "\n" for row in rows), "utf-8")
    found = read_rows(file, REPORT, ["id=uid", "report=findings"])
    assert found == [{"id": f"s{number}", "report": text} for number, text in enumerate(TEXTS)]


def test_pandas_writes_what_is_read(tmp_path):
    pandas = pytest.importorskip("pandas")
    frame = pandas.DataFrame({"id": [3, 4], "report": ["a b", "c"], "seen": pandas.to_datetime(["2020", None])})
    frame.to_parquet(tmp_path / "frame.parquet")
    rows = read_rows(tmp_path / "frame.parquet", REPORT, optional=["seen"])
    assert [(row["id"], row["report"], "seen" in row) for row in rows] == [(3, "a b", True), (4, "c", False)]


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    """A DatasetDict with images, saved to disk, and its parts as the hub stores them."""
    datasets = pytest.importorskip("datasets")
    draw = np.random.default_rng(0)
    images = [encode_png(draw.integers(0, 256, (9, 7), dtype=np.uint8)) for _ in range(4)]
    features = datasets.Features({"image": datasets.Image(), "findings": datasets.Value("string")})
    splits = datasets.DatasetDict(
        {
            name: datasets.Dataset.from_dict(
                {
                    "image": [{"bytes": images[number], "path": None} for number in numbers],
                    "findings": [f"report {number}" for number in numbers],
                },
                features=features,
            )
            for name, numbers in (("train", [0, 1]), ("validation", [2]), ("test", [3]))
        }
    )
    folder = tmp_path_factory.mktemp("saved")
    splits.save_to_disk(folder / "disk")
    (folder / "hub" / "data").mkdir(parents=True)
    for name, one in splits.items():
        one.to_parquet(folder / "hub" / "data" / f"{name}-00000-of-00001.parquet")
    return folder, images


@pytest.mark.parametrize("source", ["disk", "hub", "hub/data"])
def test_images_of_a_hugging_face_data_set_are_studies(saved, source):
    folder, images = saved
    quarantine = Quarantine()
    splits = read_image_rows(folder / source, None, quarantine, columns=["images=image", "report=findings"])
    assert {name: [study.report for study in studies] for name, studies in splits.items()} == {
        "train": ["report 0", "report 1"], "validation": ["report 2"], "test": ["report 3"],
    }  # fmt: skip
    found = [image for studies in splits.values() for study in studies for image in study.images]
    assert [image.read() for image in found] == images
    assert Reading().image(found[0]).shape == (9, 7)
    assert len(quarantine) == 0
    assert len({study.id for studies in splits.values() for study in studies}) == 4


def test_one_split_of_a_saved_data_set_holds_pairs_and_all_of_them_do_not(saved):
    folder, _ = saved
    columns = ["source=findings", "target=findings"]
    with pytest.raises(UserError, match=r"holds the splits test, train, validation; name the folder or file of one"):
        read_pairs(folder / "disk", Quarantine(), columns)
    assert [pair.id for pair in read_pairs(folder / "disk" / "train", Quarantine(), columns)] == ["1", "2"]
    assert [text for _, text in read_reports(str(folder / "disk" / "train"), ["report=findings"])] == [
        "report 0", "report 1",
    ]  # fmt: skip


def test_images_stand_beside_the_table_and_nulls_are_left_out(tmp_path):
    (tmp_path / "a.png").write_bytes(encode_png(np.zeros((8, 8), np.uint8)))
    file = written(
        tmp_path / "rows.parquet",
        id=["a", "b", "c"],
        images=[["a.png"], ["gone.png"], ["a.png", None]],
        report=["one", "two", "three"],
        split=["train"] * 3,
        indication=["cough", None, None],
    )
    quarantine = Quarantine()
    studies = read_image_rows(file, None, quarantine)["train"]
    assert [(study.id, study.indication, len(study.images)) for study in studies] == [("a", "cough", 1), ("c", "", 1)]
    assert quarantine.counts() == {"image file missing": 1}


@pytest.mark.parametrize(
    ("columns", "options", "said"),
    [
        ({"uid": ["a"], "report": ["x"]}, ["id=nope"], "has no column 'nope'; there are uid, report"),
        (
            {"id": ["a"], "text": ["x"]},
            [],
            "has no column 'report'; name one of its columns with --columns (in training --data.columns) report=",
        ),
        ({"id": ["a", "a"], "report": ["x", "y"]}, [], "row 2: id 'a' duplicates row 1"),
        ({"id": ["a"], "report": [3]}, [], "row 1: 'report' must be str, found int"),
        ({"id": ["a", "b"], "report": ["x", None]}, [], "row 2: key 'report' is missing"),
        ({"id": pa.array([], pa.string()), "report": pa.array([], pa.string())}, [], "no rows"),
        ({"id": ["a"], "report": ["x"]}, ["report"], "columns: 'report' is not of the form name=column"),
        ({"id": ["a"], "report": ["x"]}, ["id=id", "id=report"], "columns: a name is given twice"),
    ],
)
def test_what_is_wrong_with_a_table_is_one_line(tmp_path, columns, options, said):
    with pytest.raises(UserError, match=re.escape(said)) as error:
        read_rows(written(tmp_path / "bad.parquet", **columns), REPORT, options)
    assert "\n" not in str(error.value)


def test_a_damaged_table_is_one_line_that_names_the_file(tmp_path):
    whole = io.BytesIO()
    pq.write_table(table(id=["a"] * 50, report=["text"] * 50), whole)
    for cut in (0, 3, 40, len(whole.getvalue()) - 9):
        file = tmp_path / f"{cut}.parquet"
        file.write_bytes(whole.getvalue()[:cut])
        with pytest.raises(UserError, match=rf"{cut}.parquet: cannot be read as a table") as error:
            read_rows(file, REPORT)
        assert "\n" not in str(error.value)
    with pytest.raises(UserError, match=r"absent.parquet: cannot be read"):
        read_rows(tmp_path / "absent.parquet", REPORT)
