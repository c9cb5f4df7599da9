"""Tables of studies with images, in files of each kind that is read."""

from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import tensorflow_datasets as tfds

from common.data.images import encode_png
from common.io import table_files
from tests.tf_records import as_tfrecord

STRUCT = pa.struct({"bytes": pa.binary(), "path": pa.string()})


def png(number: int, side: int = 8) -> bytes:
    return encode_png(np.random.default_rng(number).integers(0, 256, (side, side), dtype=np.uint8))


def content(image: Path | table_files.EncodedImage) -> bytes:
    return image.read() if isinstance(image, table_files.EncodedImage) else image.read_bytes()


def write(folder: Path, kind: str, table: pa.Table, rows: int = 4) -> Path:
    """The table in files of each kind, with so many rows in a part."""
    folder.mkdir(exist_ok=True)
    if kind == "hub":
        for number in range(2):
            half = table.slice(number * len(table) // 2, len(table) // 2)
            pq.write_table(half, folder / f"part-{number}.parquet", row_group_size=rows)
    elif kind == "one group":
        pq.write_table(table, folder / "all.parquet", write_batch_size=rows, data_page_size=1)
    elif kind in ("tfds", "tfrecord"):
        return write_tfds(folder, table) if kind == "tfds" else as_tfrecord(write_tfds(folder, table))
    else:
        (folder / "dataset_info.json").write_text("{}")
        if kind == "dictionaries":  # whose values stand before the first batch
            table = table.set_column(table.schema.names.index("split"), "split", table["split"].dictionary_encode())
        with pa.OSFile(str(folder / "data-0.arrow"), "wb") as file, pa.ipc.new_stream(file, table.schema) as stream:
            stream.write_table(table, rows)
    return folder


class Tfds(tfds.core.GeneratorBasedBuilder):
    """Rows of a table, by TFDS itself."""

    VERSION = tfds.core.Version("1.0.0")
    table: pa.Table
    features: dict[str, Any]

    def _info(self):
        return tfds.core.DatasetInfo(builder=self, features=tfds.features.FeaturesDict(self.features))

    def _split_generators(self, dl_manager):
        return {name: self._generate_examples(name) for name in ("train", "test")}

    def _generate_examples(self, split):
        for number, row in enumerate(self.table.to_pylist()):
            if row.pop("split") == split:
                yield number, {**row, "views": [view["bytes"] for view in row["views"]]}


def write_tfds(folder: Path, table: pa.Table, **features: Any) -> Path:
    text, image = tfds.features.Text(), tfds.features.Image(shape=(None, None, 1), encoding_format="png")
    Tfds.table, Tfds.features = table, {"views": tfds.features.Sequence(image), "report": text, **features}
    builder = Tfds(data_dir=str(folder), file_format="array_record")
    builder.download_and_prepare()
    return Path(builder.data_dir)


def studies(count: int, side: int = 8) -> tuple[pa.Table, list[list[bytes]]]:
    """Rows of one to three images each, and the images."""
    images = [[png(10 * row + view, side) for view in range(1 + row % 3)] for row in range(count)]
    views = [[{"bytes": image, "path": None} for image in row] for row in images]
    columns = {
        "views": pa.array(views, pa.list_(STRUCT)),
        "report": [f"report {row}" for row in range(count)],
        "split": ["test" if row == 1 else "train" for row in range(count)],
    }
    return pa.table(columns), images
