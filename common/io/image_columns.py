"""Columns of encoded images: which ones are, and where images are in a row group of Parquet, without their bytes."""

from collections.abc import Collection
from typing import Any

from common.io.range_file import RangeFile

THERE = b"\0"  # in the place of an image
ENDLESS = 1 << 62  # bytes of a file that has none to give


def has_bytes(kind: Any) -> bool:
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


def images_apart(schema: Any, later: Collection[str]) -> list[str]:
    """Which columns of a `pyarrow.Schema` are encoded images that can be read later than the rest."""
    return [name for name in later if schema.names.count(name) == 1 and has_bytes(schema.field(name).type)]


def places(stored: Any, number: int, column: str) -> list[Any] | None:
    """Of a row group of a `pyarrow.parquet.ParquetFile`, `THERE`, None or a list of these for each row of a column.

    `column` holds bytes, or {bytes, path} as `datasets` has them, or lists of either. Told by the paths, which have the
    nulls and lists of the bytes beside them, and by the counts of values and of nulls, which say whether all are there.
    None where that does not suffice.
    """
    from pyarrow import types

    names = [stored.schema.column(index).path for index in range(len(stored.schema))]
    own = [index for index, name in enumerate(names) if f"{name}.".startswith(f"{column}.")]
    beside = [names[index] for index in own if names[index].endswith(".path")]
    contents = [index for index in own if names[index] not in beside]
    if len(contents) != 1 or len(beside) > 1:
        return None
    if stored.schema.column(contents[0]).physical_type != "BYTE_ARRAY":
        return None  # the least of fixed-size values can be damaged in a way that ends the process (pyarrow 26)
    _check_chunk(stored, number, names[contents[0]])
    group = stored.metadata.row_group(number)
    chunk = group.column(contents[0])
    if chunk.physical_type != "BYTE_ARRAY":  # which would end the process, too
        raise OSError("a row group has another type than its column")
    counted = chunk.statistics
    if counted is None or not counted.has_null_count or (counted.has_min_max and not counted.min):
        return None  # an empty one may stand for no image
    filled = chunk.num_values - counted.null_count
    if beside:
        paths = stored.read_row_group(number, columns=beside)
        found = [_there(value) for value in (paths[column].to_pylist() if column in paths.schema.names else ())]
    else:
        kind = stored.schema_arrow.field(column).type
        is_single = types.is_struct(kind) or not kind.num_fields
        found = [THERE if is_single else [THERE]] * (group.num_rows if chunk.num_values == group.num_rows else 0)
    images = sum(value is not None for row in found for value in (row if isinstance(row, list) else [row]))
    return found if len(found) == group.num_rows and images == filled else None


def _check_chunk(stored: Any, number: int, leaf: str) -> None:
    """Raise pyarrow's error where what a row group says of a column is damaged.

    To ask pyarrow for it would end the process then (pyarrow 26). To read the column takes the same, and raises: so it
    is read from a file without data, which is asked for some only where all of it is well.
    """
    import pyarrow as pa
    import pyarrow.parquet as pq

    asked = []

    def no_data(start: int, end: int) -> bytes:
        asked.append(start)
        raise OSError("no data")

    with pq.ParquetFile(RangeFile(ENDLESS, no_data), metadata=stored.metadata) as empty:
        try:
            next(empty.iter_batches(1, row_groups=[number], columns=[leaf]), None)
        except (pa.ArrowException, OSError):
            if not asked:
                raise


def _there(value: Any) -> Any:
    if isinstance(value, list):
        return [_there(one) for one in value]
    return None if value is None else THERE
