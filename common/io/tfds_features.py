"""The features of a data set of TFDS as columns: of which type each is, and which cannot be read.

Features within features are columns with slashes, `study/image`, as a `tf.train.Example` has them. A sequence of such
groups is one list for each of their features, `views/image`. Of `features.json` nothing is imported that it names.
"""

from collections.abc import Collection, Iterator
from pathlib import Path
from typing import Any, NamedTuple

from common.errors import UserError
from common.io.terminal import printable
from common.io.text import read_json_object

FEATURES = "features.json"
OF_LISTS = "lists of lists"
KINDS = ("featuresDict", "sequence", "translation", "tensor", "text", "image", "classLabel")  # that are read


class Columns(NamedTuple):
    """The Arrow type of each column, and what the others hold that are not read."""

    types: dict[str, Any]
    others: dict[str, str]


def columns_of(folder: Path) -> Columns:
    """The columns of a data set: text, numbers, bytes, or lists of one of these. Raises UserError."""
    file = folder / FEATURES
    try:
        features = {"featuresDict": read_json_object(file)["featuresDict"]}
        found = dict(_columns("", features, False))
    except (LookupError, TypeError, AttributeError) as error:
        raise UserError(f"{file}: does not say what its features are; expected what TFDS writes") from error
    return Columns(
        {name: kind for name, kind in found.items() if not isinstance(kind, str)},
        {name: what for name, what in found.items() if isinstance(what, str)},
    )


def check_columns(folder: Path, wanted: Collection[str], columns: Columns) -> None:
    """Raise UserError for a wanted feature that is not read, or that is a group of features."""
    for name in sorted(wanted):
        where = f"{folder / FEATURES}: the feature {printable(name)}"
        if what := columns.others.get(name):
            raise UserError(f"{where} holds {what}; expected text, a number, an image, or a list of these")
        inside = [column for column in columns.types if column.startswith(f"{name}/")]
        if inside and name not in columns.types:
            raise UserError(f"{where} is a group; name one of {', '.join(map(printable, inside))}")


def _columns(name: str, feature: Any, in_list: bool) -> Iterator[tuple[str, Any]]:
    """Names with Arrow types, or with what is there instead."""
    import pyarrow as pa

    kind = next((one for one in KINDS if one in feature), None)
    if kind == "featuresDict":
        for own, one in sorted(feature[kind]["features"].items()):
            yield from _columns(f"{name}/{own}" if name else own, one, in_list)
    elif kind == "translation":
        for language in feature[kind]["languages"]:
            yield f"{name}/{language}", pa.list_(pa.string()) if in_list else pa.string()
    elif kind == "sequence":
        yield from [(name, OF_LISTS)] if in_list else _columns(name, feature[kind]["feature"], True)
    elif kind is None:
        kinds = [printable(one) for one in feature if isinstance(feature[one], dict)]
        yield name, f"what TFDS calls {kinds[0]}" if kinds else "something unknown"
    else:
        dimensions = len(feature[kind]["shape"].get("dimensions", [])) if kind == "tensor" else 0
        if dimensions > 1:
            yield name, f"tensors of {dimensions} dimensions"
        elif dimensions and in_list:
            yield name, OF_LISTS
        else:
            yield name, pa.list_(_type(kind, feature)) if dimensions or in_list else _type(kind, feature)


def _type(kind: str, feature: Any) -> Any:
    import pyarrow as pa

    if kind == "tensor":
        dtype = feature[kind]["dtype"]
        if dtype == "string" or feature[kind].get("encoding", "none") != "none":
            return pa.binary()
        return pa.float64() if "float" in dtype else pa.int64()
    return {"text": pa.string(), "image": pa.binary(), "classLabel": pa.int64()}[kind]
