"""Tables in a bucket: the same rows and images as on a disk, of which no more travels than is needed."""

import asyncio
import dataclasses
import os
import random
import types
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import urlsplit

import pytest

from common.data.readers import StudySplits, read_image_rows
from common.data.records import Quarantine
from common.data.source import StudySource
from common.data.splits import in_memory
from common.errors import ChangedInput, UserError
from common.io import store_objects, stores
from common.io.mirror import VARIABLE
from common.io.stores import staging
from tests.counting_proxy import CountingProxy, counting_proxy
from tests.stores import SCHEMES, Store, _forget_clients, new_bucket, store_servers

pa = pytest.importorskip("pyarrow")
import pyarrow.parquet as pq  # noqa: E402 - after the line that skips the file where it is not installed

from tests.tables import STRUCT, content, png, studies, write  # noqa: E402

IMAGE_BYTES = 30_000
KINDS = ("hub", "one group", "arrow", "dictionaries")
COPIED = ("tfds", "tfrecord")
ONE = pa.struct({"bytes": pa.binary()})


@pytest.fixture(scope="module", autouse=True)
def servers():
    with pytest.MonkeyPatch.context() as patch, store_servers(patch):
        yield


@pytest.fixture(autouse=True)
def here(tmp_path, monkeypatch):
    monkeypatch.setenv(VARIABLE, str(tmp_path / "here"))


@pytest.fixture(params=SCHEMES)
def store(request) -> Store:
    return new_bucket(request.param)


@pytest.fixture
def proxy(monkeypatch) -> Iterator[CountingProxy]:
    """What stands between S3 and its clients."""
    with counting_proxy(urlsplit(os.environ["AWS_ENDPOINT_URL"]).port) as between:
        monkeypatch.setenv("AWS_ENDPOINT_URL", f"http://127.0.0.1:{between.port}")
        _forget_clients()
        yield between
    monkeypatch.undo()
    _forget_clients()


def put(store: Store, folder: Path) -> None:
    for file in folder.rglob("*"):
        if file.is_file():
            store.write(f"{folder.name}/{file.relative_to(folder)}", file.read_bytes())


def reads(path: str | Path, **options: object) -> StudySplits:
    return read_image_rows(path, None, Quarantine(), columns=["images=views"], **options)


def without_places(splits: StudySplits) -> dict[str, list[object]]:
    return {
        name: [(dataclasses.replace(study, images=()), len(study.images)) for study in found]
        for name, found in splits.items()
    }


@pytest.mark.parametrize("kind", [*KINDS, *COPIED])
def test_rows_and_images_are_those_of_a_disk(store, tmp_path, kind):
    table, images = studies(16)
    folder = write(tmp_path / "rows", kind, table)
    put(store, folder)
    with staging([f"{store.address}/{folder.name}"]) as [path]:
        splits = reads(path)
        assert without_places(splits) == without_places(reads(folder))
        found = {study.report: study.images for split in splits.values() for study in split}
        pairs = [
            (image, images[row][view])
            for row in random.Random(0).sample(range(16), 16)
            for view, image in enumerate(found[f"report {row}"])
        ]
        assert all(image.read() == expected for image, expected in pairs)
        assert not [file for file in Path(path).rglob("*") if file.suffix in (".parquet", ".arrow")]
    assert len(store.names()) == sum(file.is_file() for file in folder.rglob("*"))


def test_one_file_by_its_address(store, tmp_path):
    put(store, write(tmp_path / "rows", "one group", studies(4)[0]))
    with staging([f"{store.address}/rows/all.parquet"]) as [path]:
        assert [study.report for study in reads(path)["train"]] == ["report 0", "report 2", "report 3"]


COLUMNS = {
    "names": pa.array(["b.png", "b.png", "c.png"]),
    "bytes": pa.array([png(0), png(1), None], pa.large_binary()),
    "all bytes": pa.array([png(0), png(1), png(2)], pa.binary()),
    "lists of bytes": pa.array([[png(0), png(1)], [png(2)], []], pa.list_(pa.binary())),
    "lists of one": pa.array([[png(0)], [png(1)], [png(2)]], pa.large_list(pa.binary())),
    "fixed": pa.array([[png(0)[:60]], [png(1)[:60]], [png(2)[:60]]], pa.list_(pa.binary(60), 1)),
    "without paths": pa.array([[{"bytes": png(0)}], [{"bytes": png(1)}], None], pa.list_(ONE)),
    "single": pa.array([{"bytes": png(0), "path": "a.png"}, {"bytes": png(1), "path": None}, None], STRUCT),
    "paths": pa.array([[{"bytes": None, "path": "b.png"}, {"bytes": png(1), "path": "c"}], [], None], pa.list_(STRUCT)),
    "empty": pa.array([[{"bytes": b"", "path": "b.png"}], [{"bytes": png(1), "path": None}], []], pa.list_(STRUCT)),
    "nulls in lists": pa.array([[{"bytes": png(0), "path": "c"}, None], [], None], pa.list_(STRUCT)),
    "twice": pa.array([[{"bytes": png(0), "path": "c"}] * 2, [{"bytes": png(1), "path": "c"}], None], pa.list_(STRUCT)),
}  # fmt: skip


@pytest.mark.parametrize("column", COLUMNS)
@pytest.mark.parametrize("kind", ["parquet", "arrow", "compressed"])
def test_images_of_every_kind_of_column_are_those_of_a_disk(tmp_path, kind, column):
    store = new_bucket("s3")
    other = pa.array([{"a": [1], "b": None}, None, {"a": [2, 3], "b": "x"}])
    text = pa.array(["a", "b", "c"])
    columns = {"other": other, "none": pa.nulls(3), "images": COLUMNS[column], "report": text, "split": ["train"] * 3}
    table = pa.table(columns)
    folder = tmp_path / "rows"
    folder.mkdir()
    (folder / "b.png").write_bytes(png(7))
    if kind == "parquet":
        pq.write_table(table, folder / "a.parquet", row_group_size=2)
    else:
        (folder / "dataset_info.json").write_text("{}")
        options = pa.ipc.IpcWriteOptions(compression="zstd" if kind == "compressed" else None)
        with pa.ipc.new_stream(str(folder / "data-0.arrow"), table.schema, options=options) as stream:
            stream.write_table(table, 2)
    put(store, folder)

    def decoded(path: str | Path) -> object:
        quarantine = Quarantine()
        try:
            found = read_image_rows(path, None, quarantine)["train"]
        except UserError as error:
            return str(error).replace(str(path), "")
        split = in_memory(StudySource("rows"), lambda image: image, "train", found, quarantine)
        images = [[one if isinstance(one, bytes) else content(one) for one in views] for views in split.images]
        return [split.studies, images], quarantine.counts()

    with staging([f"{store.address}/rows"]) as [path]:
        assert decoded(path) == decoded(folder)


def content_of(row: int) -> bytes:
    return random.Random(row).randbytes(IMAGE_BYTES)


def many(folder: Path, kind: str) -> int:
    """500 rows with an image each, 25 to a part; the bytes of the file."""
    views = [[{"bytes": content_of(row), "path": f"{row}.png"}] for row in range(500)]
    columns = {"views": pa.array(views, pa.list_(STRUCT)), "report": [f"report {row}" for row in range(500)]}
    table = pa.table(columns | {"id": [str(row) for row in range(500)], "split": ["train"] * 500})
    folder.mkdir()
    if kind == "parquet":
        pq.write_table(table, folder / "a.parquet", row_group_size=25)
    else:
        (folder / "dataset_info.json").write_text("{}")
        with pa.ipc.new_stream(str(folder / "data-0.arrow"), table.schema) as stream:
            stream.write_table(table, 25)
    return sum(file.stat().st_size for file in folder.iterdir())


@pytest.mark.parametrize("kind", ["parquet", "arrow"])
def test_no_more_travels_than_is_needed(tmp_path, kind, proxy):
    """Of 20 parts: ten neighbouring images take one part, ten scattered ones ten; texts of Parquet a bit of each."""
    store, size = new_bucket("s3"), many(tmp_path / "rows", kind)
    put(store, tmp_path / "rows")
    before = proxy.sent
    with staging([f"{store.address}/rows"]) as [path]:
        images = [study.images[0] for study in reads(path)["train"]]
        rows = proxy.sent - before
        assert [image.read() for image in images[100:110]] == [
            random.Random(row).randbytes(IMAGE_BYTES) for row in range(100, 110)
        ]
        near = proxy.sent - before - rows
        assert [image.read() for image in images[::50]] == [
            random.Random(row).randbytes(IMAGE_BYTES) for row in range(0, 500, 50)
        ]
        far = proxy.sent - before - rows - near
    print(f"{kind}: of {size:,} bytes, rows {rows:,}, ten neighbours {near:,}, ten scattered {far:,}")
    # Beside what is read, each read brings 16 KiB more, and each of the 20 parts takes some.
    assert rows < (0.12 if kind == "parquet" else 1.05) * size
    assert near < 0.07 * size
    assert far < 0.55 * size


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("noticed", [True, False])
def test_an_object_that_is_written_again_ends_the_command(store, tmp_path, kind, noticed):
    put(store, write(tmp_path / "rows", kind, studies(16)[0]))
    with staging([f"{store.address}/rows"]) as [path]:
        image = reads(path)["train"][-1].images[-1]
        for name in store.names():
            if name.endswith((".parquet", ".arrow")):
                store.write(name, store.read(name).replace(b"IDAT", b"IDAX"))
        if noticed:  # by another command on this machine
            stores.refetch()
        with pytest.raises(ChangedInput, match=r"has changed since|cannot be read again") as error:
            image.read()
        assert "\n" not in str(error.value)
        assert "IDAT" not in str(error.value)


@pytest.mark.parametrize(("kind", "stalls"), [("parquet", False), ("arrow", True)])
def test_a_read_that_breaks_off_or_stalls_is_one_line(tmp_path, kind, stalls, proxy, monkeypatch):
    async def at_once(seconds: float, *_: object) -> None:
        """No pauses between the attempts."""

    monkeypatch.setattr(store_objects, "ANSWER_SECONDS", 0.3)
    monkeypatch.setattr("s3fs.core.asyncio", types.SimpleNamespace(**vars(asyncio) | {"sleep": at_once}))
    store_objects.file_system.cache_clear()
    store = new_bucket("s3")
    many(tmp_path / "rows", kind)
    put(store, tmp_path / "rows")
    proxy.stalls = stalls
    with staging([f"{store.address}/rows"]) as [path]:
        image = reads(path)["train"][300].images[0]
        proxy.most = proxy.sent + 50_000
        with pytest.raises(ChangedInput) as error:
            image.read()
        assert str(error.value).startswith(f"{store.address}/rows/")
        assert "the store failed" in str(error.value)
        assert "\n" not in str(error.value)
        with pytest.raises(UserError, match="the store failed"):
            reads(path)
        proxy.most = None
        assert image.read() == content_of(300)


def test_an_empty_image_that_nothing_tells_of_goes_to_the_quarantine(tmp_path):
    """Of long values Parquet has no smallest one, so that an empty one is seen when it is read only."""
    store = new_bucket("s3")
    full, empty = {"bytes": content_of(0), "path": "a.png"}, {"bytes": b"", "path": "a.png"}
    views = pa.array([[full], [empty], [full, empty], [{"bytes": content_of(1), "path": None}]], pa.list_(STRUCT))
    table = pa.table({"images": views, "report": ["a", "b", "c", "d"], "split": ["train"] * 4})
    pq.write_table(table, buffer := pa.BufferOutputStream())
    store.write("a.parquet", buffer.getvalue().to_pybytes())
    quarantine = Quarantine()

    def load(image: bytes) -> bytes:
        if not image:
            raise UserError("empty")
        return image

    with staging([f"{store.address}/a.parquet"]) as [path]:
        found = read_image_rows(path, None, quarantine)["train"]
        split = in_memory(StudySource("rows"), load, "train", found, quarantine)
    assert [study.report for study in split.studies] == ["a", "d"]
    assert quarantine.counts() == {"image cannot be read": 2}
