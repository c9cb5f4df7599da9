"""Data sets that TFDS wrote, as array_record or TFRecord: their files, and their records as batches of Arrow.

Neither TensorFlow nor TFDS decodes them: a record is a `tf.train.Example` in which images are still encoded, and of the
features only the JSON is read (`common.io.tfds_features`).
"""

import importlib.util
import itertools
from collections.abc import Collection, Iterator
from pathlib import Path
from typing import Any

from common.errors import MissingPackage, UserError
from common.io.terminal import printable
from common.io.text import read_json_object
from common.io.tf_records import tf_records
from common.io.tfds_features import FEATURES, check_columns, columns_of

INFO = "dataset_info.json"
TEMPLATE = "{DATASET}-{SPLIT}.{FILEFORMAT}-{SHARD_X_OF_Y}"
FORMATS = ("array_record", "tfrecord")
OPTIONS = "readahead_buffer_size:0,max_parallelism:0"  # no reading ahead of what is asked for
RECORDS = 16  # of a batch
INSTALL = "pip install 'medreport-jax[tables]'"


def is_tfds(path: Path) -> bool:
    """Whether a path is a data set of TFDS, or a split of one, FOLDER/train."""
    folder = path if path.is_dir() else path.parent
    return not path.is_file() and (folder / INFO).is_file() and (folder / FEATURES).is_file()


def is_shard(file: Path) -> bool:
    """Whether a file is one of a data set of TFDS."""
    return is_tfds(file.parent)


def shards(path: Path) -> dict[Path, tuple[str, int]]:
    """The files of a data set or split in order, with the split of each, and how many records it has.

    Raises UserError.
    """
    folder = path if path.is_dir() else path.parent
    info, form = _info(folder)
    found = {}
    try:
        for split in info["splits"]:
            lengths = list(map(int, split["shardLengths"]))
            count = f"{len(lengths):05d}"
            words = {"{DATASET}": info["name"], "{SPLIT}": split["name"], "{FILEFORMAT}": form, "{NUM_SHARDS}": count}
            for number, length in enumerate(lengths):
                index = f"{number:0{len(count)}d}"
                name = split.get("filepathTemplate") or TEMPLATE
                shard = {"{SHARD_X_OF_Y}": f"{index}-of-{count}", "{SHARD_INDEX}": index}
                for word, value in (words | shard).items():
                    name = name.replace(word, value)
                if "/" in name:
                    raise ValueError("a file in another folder")
                found[folder / name] = str(split["name"]), length
    except (LookupError, TypeError, ValueError, AttributeError) as error:
        raise UserError(f"{folder / INFO}: does not say which files belong to it; expected what TFDS writes") from error
    if path == folder:
        return found
    if path.name not in (splits := dict(found.values())):
        raise UserError(f"{folder}: has no split {printable(path.name)}; there are {', '.join(map(printable, splits))}")
    return {file: about for file, about in found.items() if about[0] == path.name}


def record_batches(file: Path, wanted: Collection[str], start: int | None) -> Iterator[tuple[list[str], int, Any]]:
    """The columns, the place of the first record and its `pyarrow.RecordBatch`: of all records, or one from `start`.

    A place is a number of a record in array_record, a byte in TFRecord. Raises OSError for what is damaged, pyarrow's
    errors for values of another type, and UserError.
    """
    import pyarrow as pa
    from google.protobuf.message import DecodeError
    from tensorflow_datasets.proto import tf_example_pb2

    columns = columns_of(file.parent)
    check_columns(file.parent, wanted, columns)
    # One column where none is wanted, to count the rows.
    types = {name: kind for name, kind in columns.types.items() if name in wanted} or dict([*columns.types.items()][:1])
    read = _array_record if _info(file.parent)[1] == "array_record" else _tfrecord
    count = 0
    try:
        for place, records in read(file, start):
            features = [tf_example_pb2.Example.FromString(record).features.feature for record in records]
            arrays = {
                name: pa.array([_value(one[name], pa.types.is_list(kind)) for one in features], kind)
                for name, kind in types.items()
            }
            count += len(records)
            yield list(columns.types), place, pa.RecordBatch.from_pydict(arrays)
        if start is None and count != (said := shards(file.parent)[file][1]):
            raise OSError(f"{count} records where {INFO} says {said}")
    except (RuntimeError, IndexError, ValueError, DecodeError) as error:
        raise OSError(str(error) or type(error).__name__) from error


def _info(folder: Path) -> tuple[dict[str, Any], str]:
    """What a data set says of itself, and its format. Raises UserError for one that is not read."""
    info = read_json_object(folder / INFO)
    form = info.get("fileFormat") or "tfrecord"  # what TFDS wrote before it named formats
    if form not in FORMATS:
        raise UserError(
            f"{folder}: is of TFDS in the format {printable(form)}; expected {' or '.join(FORMATS)}, convert it with "
            "tfds convert_format"
        )
    return info, form


def _array_record(file: Path, start: int | None) -> Iterator[tuple[int, list[bytes]]]:
    from array_record.python.array_record_module import ArrayRecordReader

    reader = ArrayRecordReader(str(file), OPTIONS)
    if not reader.ok():
        reader.close()  # raises what is wrong
    count = reader.num_records()
    for first in range(0, count, RECORDS) if start is None else [start]:
        yield first, reader.read(first, min(first + RECORDS, count))
    reader.close()


def _tfrecord(file: Path, start: int | None) -> Iterator[tuple[int, list[bytes]]]:
    if importlib.util.find_spec("google_crc32c") is None:
        raise MissingPackage(f"{file}: needs google-crc32c; install it: {INSTALL}")
    records = tf_records(file, start or 0)
    while batch := list(itertools.islice(records, RECORDS)):
        yield batch[0][0], [content for _, content in batch]
        if start is not None:
            return


def _value(feature: Any, many: bool) -> Any:
    """The values of a `tf.train.Feature`, or its one value."""
    kind = feature.WhichOneof("kind")
    values = list(getattr(feature, kind).value) if kind else []
    return values if many else values[0] if values else None
