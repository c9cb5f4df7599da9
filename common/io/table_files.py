"""Files of tables, some rows at a time: Parquet, the Arrow files of Hugging Face's `datasets`, and those of TFDS.

Parquet is a file, or a folder of files named by their splits (`train-00000-of-00002.parquet`), as the hub has them. A
saved data set is a folder of Arrow files, with a folder for each split of a `DatasetDict`. A data set of TFDS is the
folder with its `dataset_info.json` (`common.io.tfds_tables`). Nothing but the data is read: no script, no pickle.

Images stay in the files. Where rows are read, an encoded image becomes an `EncodedImage`: where it lies, and a digest
of its bytes, which are read again when the image is decoded. So a table takes the memory of a few images, however large
it is.

Parquet and Arrow in a store (`gs://`, `s3://`) are read there: of Parquet the columns that are needed, and images when
they are decoded, row group by row group; Arrow from its beginning to its end, and its batches again for images. What a
file is known by, from its rows to its last image, is then the tag that the store gives its content: no digest of all
bytes is needed, and any writing to it ends the command. A run knows its data by its rows, not by files, so one that
began with a copy on a disk goes on with the bucket, and the other way. For that a study that has an image twice must go
as it does from a disk: where images do not travel with rows, it is noticed when its first image is read.
Files of TFDS are copied: the readers of array_record take no other files than those on a disk, and a record of
TFRecord is read whole for any of its values.
"""

import hashlib
import threading
from collections.abc import Collection, Iterator
from pathlib import Path
from typing import Any, NamedTuple

from common.errors import ChangedInput, MissingPackage, RepeatedImage, UserError
from common.io.image_columns import has_bytes
from common.io.inputs import MOST_BYTES, reason
from common.io.stored_files import stored_object
from common.io.table_batches import Batch, batches, table_files
from common.io.terminal import printable

INSTALL = "pip install 'medreport-jax[tables]'"


class EncodedImage(NamedTuple):
    """An encoded image in a table: its file, where it lies there, and what its content is known by."""

    file: str
    part: int  # row group of Parquet, byte at which a batch of Arrow or TFRecord begins, first record of array_record
    row: int  # of the part
    column: str
    item: int  # of a list, 0 where there is none
    digest: str  # SHA-256 of its bytes, "" where they were not read
    tag: str = ""  # of the object in a store that the file is, "" for a file on a disk

    def __str__(self) -> str:
        return f"{self.file}, column {printable(self.column)}, row {self.row + 1} of part {self.part}"

    def read(self) -> bytes:
        """Its bytes, quickly where images are read in their order.

        Raises ChangedInput where they are there no more, and RepeatedImage where its row has an image twice and the
        images were not read with the row.
        """
        import pyarrow as pa

        try:
            content = _READ.content(self)
        except (pa.ArrowException, OSError, LookupError, AttributeError) as error:
            raise ChangedInput(f"{self.file}: cannot be read again ({_line(error)}); {LEAVE}") from error
        if self.digest and hashlib.sha256(content).hexdigest() != self.digest:
            raise ChangedInput(f"{self.file}: has changed since its rows were read; {LEAVE}")
        return content


LEAVE = "leave it as it is while a command reads it, and start the command again"


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
    for split, file in table_files(path):
        try:
            for names, batch in batches(file, columns, later=images):
                fields = list(batch.data.schema)
                places = [index for index, one in enumerate(fields) if one.name in images and has_bytes(one.type)]
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
            self._place: tuple[str, int, str, str] | None = None
            self._batch: Batch | None = None
            self._following: Iterator[tuple[list[str], Batch]] = iter(())

    def content(self, image: EncodedImage) -> bytes:
        """The bytes of an image. Raises what pyarrow raises, or LookupError where it is not there."""
        import pyarrow as pa

        with self._lock:
            batch = self._find(image)
            value = batch.data.columns[-1][image.row - batch.first]  # of several with one name the last
            if not image.digest and isinstance(value, pa.ListScalar):
                contents = [one for one in map(_content, value.values) if isinstance(one, pa.Buffer)]
                if len({hashlib.sha256(one).digest() for one in contents}) < len(contents):
                    raise RepeatedImage(f"{image}: is there twice in its row; name each image of a study once")
            found = _content(value.values[image.item] if isinstance(value, pa.ListScalar) else value)
            if not image.digest and not isinstance(found, pa.Buffer):
                return b""  # as it is in the table, which its column did not tell
            if found is None or isinstance(found, str):
                raise LookupError("no image where there was one")
            return bytes(found.to_pybytes())

    def _find(self, image: EncodedImage) -> Batch:
        place = image.file, image.part, image.column, image.tag
        if self._batch is None or place != self._place or image.row < self._batch.first:
            self._place, self._batch = place, None
            stored = stored_object(Path(image.file))
            if (stored.tag if stored else "") != image.tag:
                raise LookupError("it has been written again")
            self._following = batches(Path(image.file), [image.column], image.part)
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

    name, stored = batch.data.schema.names[index], stored_object(file)
    tag = stored.tag if stored else ""

    def image(value: Any, row: int, item: int) -> EncodedImage | str | None:
        found = _content(value)
        if found is None or isinstance(found, str):
            return found
        digest = "" if name in batch.unread else hashlib.sha256(found).hexdigest()
        return EncodedImage(str(file), batch.part, batch.first + row, name, item, digest, tag)

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


def _line(error: Exception) -> str:
    return printable(reason(error)).splitlines()[0][:200]
