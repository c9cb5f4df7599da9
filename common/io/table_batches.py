"""Files of tables as batches of Arrow: which files a table has, and some rows of some columns of them at a time.

Files are not mapped into memory: one that another process cuts would end this one. Of those that stay in a store
(`common.io.stored_files`) the columns `later` of Parquet, encoded images, do not travel with the rows: what is read of
them is where there is an image, by the paths beside them and the counts of nulls. Where that cannot be told, as of
lists of bare bytes, they are read, as are those of Arrow: a stream of it has no list of what lies where.
"""

import contextlib
import functools
import re
from collections.abc import Collection, Iterator
from pathlib import Path
from typing import Any, NamedTuple

from common.io.image_columns import images_apart, places
from common.io.stored_files import StoredFile, StoredObject, glob_files, stored_object
from common.io.tfds_tables import is_shard, is_tfds, record_batches, shards

PARQUET = ".parquet"
SAVED = ("dataset_dict.json", "dataset_info.json")  # of `datasets` and TFDS, in a folder of its own
FEWEST_ROWS, MOST_ROWS = 16, 256  # of Parquet that are decoded at a time, and between them as many as fill
BATCH_BYTES = 32 << 20
READ_BYTES = 1 << 20  # of a column of Parquet at a time


class Batch(NamedTuple):
    """Rows of a table, of which the first is the row `first` of a part, as in `EncodedImage`."""

    part: int
    first: int
    data: Any  # pyarrow.RecordBatch
    unread: Collection[str] = ()  # columns of encoded images with something else in the place of their bytes


def is_table(path: str | Path) -> bool:
    """Whether a path is Parquet, or a folder of Parquet, of a saved data set or of one of TFDS."""
    path = Path(path)
    if path.suffix.lower() == PARQUET or is_tfds(path):
        return True
    return path.is_dir() and (any((path / name).is_file() for name in SAVED) or bool(_parquet_files(path)))


def table_files(path: Path) -> Iterator[tuple[str, Path]]:
    """The files of a table, in order, and the split of each."""
    if is_tfds(path):
        yield from ((split, file) for file, (split, _) in shards(path).items())
    elif not path.is_dir():
        yield "", path
    elif (path / "dataset_dict.json").is_file():
        for folder in sorted(folder for folder in path.iterdir() if folder.is_dir()):
            yield from ((folder.name, file) for file in glob_files(folder, "data-*.arrow"))
    elif (path / "dataset_info.json").is_file():
        yield from (("", file) for file in glob_files(path, "data-*.arrow"))
    else:
        for file in _parquet_files(path):
            named = re.match(r"(train|val|valid|validation|validate|test)\b", file.name.replace("_", "-"))
            yield (named[1] if named else file.parent.name if file.parent != path else ""), file


def _parquet_files(folder: Path) -> list[Path]:
    return sorted([*glob_files(folder, f"*{PARQUET}"), *glob_files(folder, f"*/*{PARQUET}")])


def batches(
    file: Path, columns: Collection[str], part: int | None = None, later: Collection[str] = ()
) -> Iterator[tuple[list[str], Batch]]:
    """The columns that a file has, and batches of those in `columns`: of all its parts, or of one.

    Raises what pyarrow does, OSError, LookupError for a part that is not there, and ChangedInput.
    """
    stored = stored_object(file)
    read = _parquet if file.suffix.lower() == PARQUET else _tfds if is_shard(file) else _arrow
    for names, batch in read(file, stored, columns, later if stored else (), part):
        data = batch.data.select([index for index, name in enumerate(batch.data.schema.names) if name in columns])
        data.validate(full=True)  # of a damaged file, whose offsets would be followed anywhere
        yield names, batch._replace(data=data)


def _parquet(
    file: Path, remote: StoredObject | None, columns: Collection[str], later: Collection[str], part: int | None
) -> Iterator[tuple[list[str], Batch]]:
    import pyarrow as pa
    import pyarrow.parquet as pq

    about = _parquet_footer(remote) if remote else None
    opened: Any = StoredFile(remote) if remote else contextlib.nullcontext(file)
    with opened as source, pq.ParquetFile(source, buffer_size=READ_BYTES, metadata=about) as stored:
        names = stored.schema_arrow.names
        images = images_apart(stored.schema_arrow, later)
        for number in range(stored.num_row_groups) if part is None else [part]:
            group = stored.metadata.row_group(number)
            # Of all columns: to ask for the size of one ends the process where the metadata is damaged (pyarrow 26).
            rows = BATCH_BYTES * group.num_rows // max(1, group.total_byte_size)
            rows = max(FEWEST_ROWS, min(rows, MOST_ROWS))
            unread = {name: found for name in images if (found := places(stored, number, name)) is not None}
            first = 0
            read = [name for name in columns if name not in unread]
            for data in stored.iter_batches(rows, row_groups=[number], columns=read):
                for name, found in unread.items():
                    kind = pa.list_(pa.binary()) if any(isinstance(one, list) for one in found) else pa.binary()
                    data = data.append_column(name, pa.array(found[first : first + data.num_rows], kind))
                yield names, Batch(number, first, data, {*unread})
                first += data.num_rows


@functools.lru_cache(maxsize=64)
def _parquet_footer(remote: StoredObject) -> Any:
    """What is where in a Parquet file, which is asked for again for each of its row groups."""
    import pyarrow.parquet as pq

    with StoredFile(remote) as file:
        return pq.read_metadata(file)


def _arrow(
    file: Path, remote: StoredObject | None, columns: Collection[str], later: Collection[str], part: int | None
) -> Iterator[tuple[list[str], Batch]]:
    import pyarrow as pa

    with StoredFile(remote) if remote else pa.OSFile(str(file)) as source, pa.ipc.open_stream(source) as stream:
        if part is not None:
            if any(pa.types.is_dictionary(one.type) for one in stream.schema):
                stream.read_next_batch()  # the values of dictionaries stand before the first
            source.seek(part)
        begin = source.tell()
        for data in stream:
            yield data.schema.names, Batch(begin, 0, data)
            if part is not None:
                return
            begin = source.tell()


def _tfds(
    file: Path, remote: StoredObject | None, columns: Collection[str], later: Collection[str], part: int | None
) -> Iterator[tuple[list[str], Batch]]:
    for names, first, data in record_batches(file, columns, part):
        yield names, Batch(first, 0, data)
