"""Images in tables stay there until they are decoded, whatever the table is made of."""

import dataclasses
import io
import random
import tracemalloc
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from common.data.builders import _from_line, _to_json, open_split, prepare
from common.data.readers import read_image_rows
from common.data.records import Quarantine
from common.data.source import StudySource
from common.data.splits import in_memory, load_splits
from common.errors import ChangedInput, UserError
from common.io import table_batches, table_files, tfds_tables
from common.io.jsonl import row_text
from common.io.rows import read_rows
from retsta_jax.reports import read_reports

pa = pytest.importorskip("pyarrow")
import pyarrow.parquet as pq  # noqa: E402 - after the line that skips the file where it is not installed

from tests.tables import STRUCT, content, png, studies, write  # noqa: E402

KINDS = ("hub", "one group", "arrow", "dictionaries", "tfds", "tfrecord")


@pytest.fixture(autouse=True)
def small_batches(monkeypatch):
    monkeypatch.setattr(table_batches, "FEWEST_ROWS", 3)
    monkeypatch.setattr(table_batches, "BATCH_BYTES", 1)
    monkeypatch.setattr(tfds_tables, "RECORDS", 3)


@pytest.mark.parametrize("kind", KINDS)
def test_images_are_those_of_the_table_in_any_order(tmp_path, kind):
    table, images = studies(16)
    splits = read_image_rows(write(tmp_path / "rows", kind, table), None, Quarantine(), columns=["images=views"])
    found = {study.report: study.images for split in splits.values() for study in split}
    assert [[content(image) for image in found[f"report {row}"]] for row in range(16)] == images
    pairs = [
        (image, images[row][view])
        for row in random.Random(0).sample(range(16), 16)
        for view, image in enumerate(found[f"report {row}"])
    ]
    with ThreadPoolExecutor(8) as pool:
        assert list(pool.map(lambda pair: pair[0].read() == pair[1], pairs)) == [True] * len(pairs)


@pytest.mark.parametrize("kind", ["large", "fixed", "single", "views"])
def test_bytes_of_every_type_are_images(tmp_path, kind):
    image, other = png(0), png(1)
    column = {
        "large": pa.array([[image], [other, None]], pa.large_list(pa.large_binary())),
        "fixed": pa.array([[image[:60]], [other[:60]]], pa.list_(pa.binary(60), 1)),
        "single": pa.array([image, other], pa.binary()),
        "views": pa.array([[{"bytes": image}], [{"bytes": other}]], pa.list_(pa.struct({"bytes": pa.large_binary()}))),
    }[kind]
    pq.write_table(pa.table({"images": column, "report": ["a", "b"], "split": ["train"] * 2}), tmp_path / "a.parquet")
    found = read_image_rows(tmp_path / "a.parquet", None, Quarantine())["train"]
    assert [[content(image) for image in study.images] for study in found] == (
        [[image[:60]], [other[:60]]] if kind == "fixed" else [[image], [other]]
    )


def test_paths_and_images_in_one_column(tmp_path):
    (tmp_path / "b.png").write_bytes(png(1))
    views = [[{"bytes": png(0), "path": "a.png"}, {"bytes": None, "path": "b.png"}], [{"bytes": b"", "path": "b.png"}]]
    table = pa.table({"images": pa.array(views, pa.list_(STRUCT)), "report": ["a", "b"], "split": ["train"] * 2})
    pq.write_table(table, tmp_path / "a.parquet")
    found = read_image_rows(tmp_path / "a.parquet", None, Quarantine())["train"]
    assert [[content(image) for image in study.images] for study in found] == [[png(0), png(1)], [png(1)]]


def test_an_image_twice_in_a_study_is_quarantined(tmp_path):
    table = pa.table({"images": [[png(0), png(1)], [png(1), png(1)]], "report": ["a", "b"], "split": ["train"] * 2})
    pq.write_table(table, tmp_path / "a.parquet")
    quarantine = Quarantine()
    assert [study.id for study in read_image_rows(tmp_path / "a.parquet", None, quarantine)["train"]] == ["1"]
    assert quarantine.counts() == {"an image named twice": 1}


@pytest.mark.parametrize("kind", KINDS)
def test_a_table_is_not_held(tmp_path, kind):
    """Of 12 MB, what Python and Arrow hold at once: some of the 24 row groups, record batches or pages of 0.5 MB."""
    table, _ = studies(96, side=256)
    folder = write(tmp_path / "rows", kind, table)
    size = table.nbytes
    del table
    pool, own = pa.default_memory_pool(), pa.proxy_memory_pool(pa.default_memory_pool())
    pa.set_memory_pool(own)
    tracemalloc.start()
    try:
        splits = read_image_rows(folder, None, Quarantine(), columns=["images=views"])
        total = sum(len(image.read()) for split in splits.values() for study in split for image in study.images)
        peak = tracemalloc.get_traced_memory()[1] + own.max_memory()
    finally:
        tracemalloc.stop()
        pa.set_memory_pool(pool)
        table_files._READ.forget()
    assert total > 0.9 * size
    assert size > 12e6
    assert peak < size / 3


@pytest.mark.parametrize("kind", KINDS)
def test_images_that_are_decoded_in_order_are_read_once(tmp_path, kind, monkeypatch):
    table, images = studies(48)
    folder = write(tmp_path / "rows", kind, table)
    splits = read_image_rows(folder, None, Quarantine(), columns=["images=views"])
    rows, batches = [], table_files.batches

    def counted(*arguments, **options):
        for names, batch in batches(*arguments, **options):
            rows.append(batch.data.num_rows)
            yield names, batch

    monkeypatch.setattr(table_files, "batches", counted)
    config = StudySource("rows", str(folder), views=3)
    split = in_memory(config, lambda image: image, "train", splits["train"], Quarantine())
    assert split.images == [tuple(images[int(study.report.split()[1])]) for study in split.studies]
    assert sum(rows) == (47 if kind.startswith("tf") else 48)  # a file for each split, or rows of both


def test_other_columns_of_parquet_are_not_read(tmp_path):
    image = png(0, 64)
    pq.write_table(pa.table({"id": ["a"], "image": [image], "report": ["clear"]}), file := tmp_path / "a.parquet")
    assert read_reports(str(file)) == [("a", "clear")]
    whole = file.read_bytes()
    place = pq.ParquetFile(io.BytesIO(whole)).metadata.row_group(0).column(1)
    begin = place.dictionary_page_offset or place.data_page_offset
    file.write_bytes(
        whole[:begin] + b"\xff" * place.total_compressed_size + whole[begin + place.total_compressed_size :]
    )
    assert read_reports(str(file)) == [("a", "clear")]
    with pytest.raises(UserError, match=r"a\.parquet: cannot be read as a table"):
        read_image_rows(file, None, Quarantine(), columns=["images=image", "split=id"])


def test_more_text_than_memory_should_hold_is_refused_and_as_many_images_are_not(tmp_path, monkeypatch):
    table, _ = studies(16, side=64)
    folder = write(tmp_path / "rows", "hub", table)
    monkeypatch.setattr(table_files, "MOST_BYTES", 2000)
    assert read_image_rows(folder, None, Quarantine(), columns=["images=views"])
    monkeypatch.setattr(table_files, "MOST_BYTES", 200)
    with pytest.raises(UserError, match=r"rows: holds more than 200 bytes of text; split it"):
        read_rows(folder, {"report": str})


def altered(file: Path) -> None:
    """Other images in the same places."""
    whole = file.read_bytes()
    assert (number := whole.count(b"IDAT"))
    file.write_bytes(whole.replace(b"IDAT", b"IDAX"))
    assert number


CHANGES = {
    "altered": altered,
    "cut": lambda file: file.write_bytes(file.read_bytes()[:90]),
    "empty": lambda file: file.write_bytes(b""),
    "removed": lambda file: file.unlink(),
    "shorter": lambda file: write(file.parent, "one group" if file.suffix == ".parquet" else "arrow", studies(2)[0]),
}


@pytest.mark.parametrize("kind", ["one group", "arrow"])
@pytest.mark.parametrize("change", CHANGES)
def test_a_file_that_changes_after_its_rows_were_read_is_one_line(tmp_path, kind, change):
    folder = write(tmp_path / "rows", kind, studies(16)[0])
    study = read_image_rows(folder, None, Quarantine(), columns=["images=views"])["train"][-1]
    [file] = {image.file for image in study.images}
    CHANGES[change](Path(file))
    with pytest.raises(ChangedInput, match=f"{file}: (has changed since|cannot be read again)") as error:
        study.images[-1].read()
    assert "\n" not in str(error.value)


def test_a_file_that_changes_ends_a_command_and_quarantines_no_study(tmp_path, monkeypatch):
    folder = write(tmp_path / "rows", "one group", studies(16)[0])
    splits = read_image_rows(folder, None, Quarantine(), columns=["images=views"])
    altered(folder / "all.parquet")
    with pytest.raises(ChangedInput, match=r"all\.parquet: has changed since its rows were read; leave it"):
        prepare(splits, tmp_path / "data", "tiny", Quarantine())
    assert list((tmp_path / "data").iterdir()) == []
    write(folder, "one group", studies(16)[0])
    read = table_files.EncodedImage.read

    def read_late(image: table_files.EncodedImage) -> bytes:
        (folder / "all.parquet").unlink(missing_ok=True)
        return read(image)

    monkeypatch.setattr(table_files.EncodedImage, "read", read_late)
    config = StudySource("rows", str(folder), columns=("images=views",))
    with pytest.raises(ChangedInput, match=r"all\.parquet: cannot be read again"):
        load_splits(config, 8, lambda image: image, Quarantine())


def test_a_table_is_prepared_as_files_are(tmp_path):
    table, images = studies(16)
    splits = read_image_rows(write(tmp_path / "rows", "arrow", table), None, Quarantine(), columns=["images=views"])
    files = {}
    for name, split in splits.items():
        for study in split:
            for view, image in enumerate(study.images):
                (tmp_path / f"{study.id}-{view}.png").write_bytes(image.read())
        files[name] = [
            dataclasses.replace(
                study, images=tuple(tmp_path / f"{study.id}-{view}.png" for view in range(len(study.images)))
            )
            for study in split
        ]
    prepared = [prepare(one, tmp_path / "data", name, Quarantine()) for name, one in (("a", splits), ("b", files))]
    for name in splits:
        table, from_files = (list(open_split(folder, name)) for folder in prepared)
        assert table == from_files
        assert all(list(study.images) == images[int(study.id) - 1] for study in table)


def test_a_study_travels_to_workers_as_a_line(tmp_path):
    folder = write(tmp_path / "rows", "arrow", studies(4)[0])
    for study in read_image_rows(folder, None, Quarantine(), columns=["images=views"])["train"]:
        row = {**vars(study), "images": list(map(_to_json, study.images))}
        assert _from_line(row_text(row, "studies")) == study
