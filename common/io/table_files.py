"""Files of tables, some rows at a time: Parquet, the Arrow files of Hugging Face's `datasets`, and those of TFDS.

Parquet is a file, or a folder of files named by their splits (`train-00000-of-00002.parquet`), as the hub has them. A
saved data set is a folder of Arrow files, with a folder for each split of a `DatasetDict`. A data set of TFDS is the
folder with its `dataset_info.json` (`common.io.array_records`). Nothing but the data is read: no script, no pickle.

Images stay in the files. Where rows are read, an encoded image becomes an `EncodedImage`: where it lies, and a digest
of its bytes, which are read again when the image is decoded. So a table takes the memory of a few images, however large
it is. Files are not mapped into memory: one that another process cuts would end this one.
"""

import hashlib
import re
import threading
from collections.abc import Collection, Iterator
from pathlib import Path
from typing import Any, NamedTuple

from common.errors import ChangedInput, MissingPackage, UserError
from common.io.array_records import SHARD, is_tfds, record_batches, shards
from common.io.inputs import MOST_BYTES, reason
from common.io.terminal import printable

INSTALL = "pip install 'medreport-jax[tables]'"
PARQUET = ".parquet"
SAVED = ("dataset_dict.json", "dataset_info.json")  # of `datasets` and TFDS, in a folder of its own
FEWEST_ROWS, MOST_ROWS = 16, 256  # of Parquet that are decoded at a time, and between them as many as fill
BATCH_BYTES = 32 << 20
READ_BYTES = 1 << 20  # of a column of Parquet at a time


class EncodedImage(NamedTuple):
    """An encoded image in a table: its file, where it lies there, and the SHA-256 of its bytes."""

    file: str
    part: int  # row group of Parquet, byte at which a record batch of Arrow begins, first record of a batch of TFDS
    row: int  # of the part
    column: str
    item: int  # of a list, 0 where there is none
    digest: str

    def __str__(self) -> str:
        return f"{self.file}, column {printable(self.column)}, row {self.row + 1} of part {self.part}"

    def read(self) -> bytes:
        """Its bytes, quickly where images are read in their order. Raises ChangedInput where they are there no more."""
        import pyarrow as pa

        try:
            content = _READ.content(self)
        except (pa.ArrowException, OSError, LookupError, AttributeError) as error:
            raise ChangedInput(f"{self.file}: cannot be read again ({_line(error)}); {LEAVE}") from error
        if hashlib.sha256(content).hexdigest() != self.digest:
            raise ChangedInput(f"{self.file}: has changed since its rows were read; {LEAVE}")
        return content


LEAVE = "leave it as it is while a command reads it, and start the command again"


class Batch(NamedTuple):
    """Rows of a table, of which the first is the row `first` of a part, as in `EncodedImage`."""

    part: int
    first: int
    data: Any  # pyarrow.RecordBatch


def is_table(path: str | Path) -> bool:
    """Whether a path is Parquet, or a folder of Parquet, of a saved data set or of one of TFDS."""
    path = Path(path)
    if path.suffix.lower() == PARQUET or is_tfds(path):
        return True
    return path.is_dir() and (any((path / name).is_file() for name in SAVED) or bool(_parquet_files(path)))


def table_rows(
    path: Path, columns: Collection[str], images: Collection[str]
) -> Iterator[tuple[str, list[str], dict[str, Any]]]:
    """Of each row the split, "" where nothing names it, the columns that there are, and the values of `columns`.

    Of the columns `images`, encoded images are `EncodedImage`. Raises UserError for a file that cannot be read, and for
    more text than memory should hold.
    """
    try:
        import pyarrow as pa
    except ImportError as error:
        raise MissingPackage(f"{path}: needs pyarrow; install it: {INSTALL}") from error
    _READ.forget()
    held = 0
    for split, file in _files(path):
        try:
            for names, batch in _batches(file, columns):
                fields = list(batch.data.schema)
                places = [index for index, one in enumerate(fields) if one.name in images and _has_bytes(one.type)]
                texts = _texts(batch.data.select([index for index in range(len(fields)) if index not in places]))
                held += texts.nbytes
                if held > MOST_BYTES:
                    raise UserError(f"{path}: holds more than {MOST_BYTES:,} bytes of text; split it")
                encoded = {fields[index].name: _images(batch, index, file) for index in places}
                for number, row in enumerate(texts.to_pylist()):
                    yield split, names, row | {name: values[number] for name, values in encoded.items()}
        except (pa.ArrowException, OSError, UnicodeDecodeError) as error:
            raise UserError(f"{file}: cannot be read as a table ({_line(error)}); write it again") from error


class _Read:
    """The batch of which an image was last read again, and what follows it in its part."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self.forget()

    def forget(self) -> None:
        """Keep nothing: files may have changed since."""
        with self._lock:
            self._place: tuple[str, int, str] | None = None
            self._batch: Batch | None = None
            self._following: Iterator[tuple[list[str], Batch]] = iter(())

    def content(self, image: EncodedImage) -> bytes:
        """The bytes of an image. Raises what pyarrow raises, or LookupError where it is not there."""
        import pyarrow as pa

        with self._lock:
            batch = self._find(image)
            value = batch.data.columns[-1][image.row - batch.first]  # of several with one name the last
            found = _content(value.values[image.item] if isinstance(value, pa.ListScalar) else value)
            if found is None or isinstance(found, str):
                raise LookupError("no image where there was one")
            return bytes(found.to_pybytes())

    def _find(self, image: EncodedImage) -> Batch:
        place = image.file, image.part, image.column
        if self._batch is None or place != self._place or image.row < self._batch.first:
            self._place, self._batch = place, None
            self._following = _batches(Path(image.file), [image.column], image.part)
        while self._batch is None or image.row >= self._batch.first + self._batch.data.num_rows:
            if (found := next(self._following, None)) is None:
                self._batch = None
                raise LookupError(f"no row {image.row + 1} where there was one")
            self._batch = found[1]
        return self._batch


_READ = _Read()


def _texts(data: Any) -> Any:
    """A pyarrow.RecordBatch with bytes as the text that they are. Raises pyarrow.ArrowInvalid where they are none."""
    import pyarrow as pa

    def text(column: Any) -> Any:
        if pa.types.is_binary(column.type):
            return column.cast(pa.string())
        is_list = pa.types.is_list(column.type) and pa.types.is_binary(column.type.value_type)
        return column.cast(pa.list_(pa.string())) if is_list else column

    return pa.RecordBatch.from_arrays(list(map(text, data.columns)), data.schema.names) if data.num_columns else data


def _images(batch: Batch, index: int, file: Path) -> list[Any]:
    """The images of a column: `EncodedImage`, or the path where only that is stored; lists of them; None for a null."""

    import pyarrow as pa

    def image(value: Any, row: int, item: int) -> EncodedImage | str | None:
        found = _content(value)
        if found is None or isinstance(found, str):
            return found
        digest = hashlib.sha256(found).hexdigest()
        return EncodedImage(str(file), batch.part, batch.first + row, batch.data.schema.names[index], item, digest)

    def images(value: Any, row: int) -> Any:
        if not value.is_valid:
            return None
        if isinstance(value, pa.ListScalar):
            return [image(one, row, item) for item, one in enumerate(value.values) if one.is_valid]
        return image(value, row, 0)

    return [images(value, row) for row, value in enumerate(batch.data.column(index))]


def _content(value: Any) -> Any:
    """Of an image its bytes as a buffer, the path where only that is stored, or None. `value` is a pyarrow.Scalar."""
    import pyarrow as pa

    if not isinstance(value, pa.StructScalar):
        return value.as_buffer()
    found = value["bytes"].as_buffer() if value["bytes"].is_valid else None
    if found is None or not found.size:
        return value["path"].as_py() or None if "path" in value else None
    return found


def _has_bytes(kind: Any) -> bool:
    """Whether a column holds encoded images: bytes, or {bytes, path} as `datasets` has them, or lists of either."""
    from pyarrow import types

    if types.is_list(kind) or types.is_large_list(kind) or types.is_fixed_size_list(kind):
        kind = kind.value_type
    if types.is_struct(kind):
        fields = {kind.field(number).name: kind.field(number).type for number in range(kind.num_fields)}
        if "bytes" not in fields or not {"bytes", "path"} >= {*fields}:
            return False
        kind = fields["bytes"]
    return any(is_kind(kind) for is_kind in (types.is_binary, types.is_large_binary, types.is_fixed_size_binary))


def _files(path: Path) -> Iterator[tuple[str, Path]]:
    """The files of a table, in order, and the split of each."""
    if is_tfds(path):
        yield from ((split, file) for file, (split, _) in shards(path).items())
    elif not path.is_dir():
        yield "", path
    elif (path / "dataset_dict.json").is_file():
        for folder in sorted(folder for folder in path.iterdir() if folder.is_dir()):
            yield from ((folder.name, file) for file in sorted(folder.glob("data-*.arrow")))
    elif (path / "dataset_info.json").is_file():
        yield from (("", file) for file in sorted(path.glob("data-*.arrow")))
    else:
        for file in _parquet_files(path):
            named = re.match(r"(train|val|valid|validation|validate|test)\b", file.name.replace("_", "-"))
            yield (named[1] if named else file.parent.name if file.parent != path else ""), file


def _parquet_files(folder: Path) -> list[Path]:
    return sorted([*folder.glob(f"*{PARQUET}"), *folder.glob(f"*/*{PARQUET}")])


def _batches(file: Path, columns: Collection[str], part: int | None = None) -> Iterator[tuple[list[str], Batch]]:
    """The columns that a file has, and batches of those in `columns`: of all its parts, or of one."""
    read = _parquet if file.suffix.lower() == PARQUET else _tfds if SHARD.fullmatch(file.name) else _arrow
    for names, batch in read(file, columns, part):
        data = batch.data.select([index for index, name in enumerate(batch.data.schema.names) if name in columns])
        data.validate(full=True)  # of a damaged file, whose offsets would be followed anywhere
        yield names, batch._replace(data=data)


def _parquet(file: Path, columns: Collection[str], part: int | None) -> Iterator[tuple[list[str], Batch]]:
    import pyarrow.parquet as pq

    with pq.ParquetFile(file, buffer_size=READ_BYTES) as stored:
        names = stored.schema_arrow.names
        for number in range(stored.num_row_groups) if part is None else [part]:
            group = stored.metadata.row_group(number)
            # Of all columns: to ask for the size of one ends the process where the metadata is damaged (pyarrow 26).
            rows = BATCH_BYTES * group.num_rows // max(1, group.total_byte_size)
            rows = max(FEWEST_ROWS, min(rows, MOST_ROWS))
            first = 0
            for data in stored.iter_batches(rows, row_groups=[number], columns=list(columns)):
                yield names, Batch(number, first, data)
                first += data.num_rows


def _arrow(file: Path, columns: Collection[str], part: int | None) -> Iterator[tuple[list[str], Batch]]:
    import pyarrow as pa

    with pa.OSFile(str(file)) as source, pa.ipc.open_stream(source) as stream:
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


def _tfds(file: Path, columns: Collection[str], part: int | None) -> Iterator[tuple[list[str], Batch]]:
    for names, first, data in record_batches(file, columns, part):
        yield names, Batch(first, 0, data)


def _line(error: Exception) -> str:
    return printable(reason(error)).splitlines()[0][:200]
