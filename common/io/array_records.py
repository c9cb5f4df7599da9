"""Data sets that TFDS wrote as array_record: their files, and their records as batches of Arrow.

Neither TensorFlow nor TFDS decodes them: a record is a `tf.train.Example` in which images are still encoded, and of the
features only the JSON is read, not the classes that it names. Features within features are left out.
"""

import re
from collections.abc import Collection, Iterator
from pathlib import Path
from typing import Any

from common.errors import UserError
from common.io.terminal import printable
from common.io.text import read_json_object

INFO, FEATURES = "dataset_info.json", "features.json"
SHARD = re.compile(r".+\.array_record-(\d+)-of-(\d+)", re.DOTALL)
OPTIONS = "readahead_buffer_size:0,max_parallelism:0"  # no reading ahead of what is asked for
RECORDS = 16  # of a batch


def is_tfds(path: Path) -> bool:
    """Whether a path is a data set of TFDS, or a split of one, FOLDER/train."""
    folder = path if path.is_dir() else path.parent
    return not path.is_file() and (folder / INFO).is_file() and (folder / FEATURES).is_file()


def shards(path: Path) -> dict[Path, tuple[str, int]]:
    """The files of a data set or split in order, with the split of each, and how many records it has.

    Raises UserError.
    """
    folder = path if path.is_dir() else path.parent
    info = read_json_object(folder / INFO)
    if (form := info.get("fileFormat")) != "array_record":
        raise UserError(
            f"{folder}: is of TFDS in the format {form}; expected array_record, convert it with tfds convert_format"
        )
    found = {}
    try:
        for split in info["splits"]:
            lengths = list(map(int, split["shardLengths"]))
            for number, length in enumerate(lengths):
                name = f"{info['name']}-{split['name']}.array_record-{number:05d}-of-{len(lengths):05d}"
                found[folder / name] = str(split["name"]), length
    except (LookupError, TypeError, ValueError) as error:
        raise UserError(f"{folder / INFO}: does not say which files belong to it; expected what TFDS writes") from error
    if path == folder:
        return found
    if path.name not in (splits := dict(found.values())):
        raise UserError(f"{folder}: has no split {printable(path.name)}; there are {', '.join(map(printable, splits))}")
    return {file: about for file, about in found.items() if about[0] == path.name}


def record_batches(file: Path, columns: Collection[str], start: int | None) -> Iterator[tuple[list[str], int, Any]]:
    """The columns, the number of the first record and its `pyarrow.RecordBatch`: of all records, or one from `start`.

    Raises OSError for what is damaged, and pyarrow's errors for values of another type.
    """
    import pyarrow as pa
    from array_record.python.array_record_module import ArrayRecordReader
    from google.protobuf.message import DecodeError
    from tensorflow_datasets.proto import tf_example_pb2

    types = _types(file.parent)
    # One column where none is wanted, to count the rows.
    wanted = {name: kind for name, kind in types.items() if name in columns} or dict([*types.items()][:1])
    reader = ArrayRecordReader(str(file), OPTIONS)
    try:
        if not reader.ok():
            reader.close()  # raises what is wrong
        count = reader.num_records()
        if start is None and count != (said := shards(file.parent)[file][1]):
            raise OSError(f"{count} records where {INFO} says {said}")
        for first in range(0, count, RECORDS) if start is None else [start]:
            records = map(tf_example_pb2.Example.FromString, reader.read(first, min(first + RECORDS, count)))
            features = [record.features.feature for record in records]
            arrays = {
                name: pa.array([_value(one[name], pa.types.is_list(kind)) for one in features], kind)
                for name, kind in wanted.items()
            }
            yield list(types), first, pa.RecordBatch.from_pydict(arrays)
        reader.close()
    except (RuntimeError, IndexError, ValueError, DecodeError) as error:
        raise OSError(str(error) or type(error).__name__) from error


def _value(feature: Any, many: bool) -> Any:
    """The values of a `tf.train.Feature`, or its one value."""
    kind = feature.WhichOneof("kind")
    values = list(getattr(feature, kind).value) if kind else []
    return values if many else values[0] if values else None


def _types(folder: Path) -> dict[str, Any]:
    """The Arrow type of each column: text, a number, bytes, or a list of one of these. Raises UserError."""
    file = folder / FEATURES
    try:
        features = read_json_object(file)["featuresDict"]["features"]
        return {name: kind for name, one in sorted(features.items()) if (kind := _type(one)) is not None}
    except (LookupError, TypeError, AttributeError) as error:
        raise UserError(f"{file}: does not say what its features are; expected what TFDS writes") from error


def _type(feature: Any) -> Any:
    import pyarrow as pa

    if "sequence" in feature:
        kind = _type(feature["sequence"]["feature"])
        return None if kind is None or pa.types.is_list(kind) else pa.list_(kind)
    if "tensor" in feature:
        tensor = feature["tensor"]
        name = tensor["dtype"]
        numbers = pa.float64() if "float" in name else pa.int64()
        kind = pa.binary() if name == "string" or tensor.get("encoding", "none") != "none" else numbers
        dimensions = tensor["shape"].get("dimensions", [])
        return [kind, pa.list_(kind), None][min(len(dimensions), 2)]
    kinds = {"text": pa.string(), "image": pa.binary(), "classLabel": pa.int64()}
    return next((kind for key, kind in kinds.items() if key in feature), None)
