"""Columns of encoded images: which ones are, and where images are in a row group of Parquet, without their bytes."""

from collections.abc import Collection
from typing import Any

THERE = b"\0"  # in the place of an image


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

    group = stored.metadata.row_group(number)
    chunks = [group.column(index) for index in range(group.num_columns)]
    own = [chunk for chunk in chunks if f"{chunk.path_in_schema}.".startswith(f"{column}.")]
    beside = [chunk.path_in_schema for chunk in own if chunk.path_in_schema.endswith(".path")]
    contents = [chunk for chunk in own if chunk.path_in_schema not in beside]
    if len(contents) != 1 or len(beside) > 1:
        return None
    counted = contents[0].statistics
    if counted is None or not counted.has_null_count or (counted.has_min_max and not counted.min):
        return None  # an empty one may stand for no image
    filled = contents[0].num_values - counted.null_count
    if beside:
        found = [_there(value) for value in stored.read_row_group(number, columns=beside)[column].to_pylist()]
    else:
        kind = stored.schema_arrow.field(column).type
        is_single = types.is_struct(kind) or not kind.num_fields
        found = [THERE if is_single else [THERE]] * (group.num_rows if contents[0].num_values == group.num_rows else 0)
    images = sum(value is not None for row in found for value in (row if isinstance(row, list) else [row]))
    return found if len(found) == group.num_rows and images == filled else None


def _there(value: Any) -> Any:
    if isinstance(value, list):
        return [_there(one) for one in value]
    return None if value is None else THERE
