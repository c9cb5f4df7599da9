"""Published weights in and out: safetensors directories in the layout of the Hugging Face hub <-> parameter trees.

A `NameMap` maps each of our leaves to a published checkpoint; every model has its own
(`common.models.qwen2_weights`). Reading is strict, and fills the target shards straight from memory-mapped files: on
the host there is never more than one leaf beside the finished tree. Paths of leaves are written `layers/mlp/up_proj`.
"""

import contextlib
import dataclasses
import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax.traverse_util import flatten_dict, unflatten_dict
from jax.experimental import multihost_utils
from jax.sharding import Sharding, SingleDeviceSharding
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save_file

from common.errors import UserError
from common.io.files import atomic_file
from common.io.terminal import printable
from common.io.text import json_text, read_json_object
from common.types import PyTree

Index = tuple[slice, ...]

FLOATS = {"F64": 8, "F32": 4, "F16": 2, "BF16": 2}
INTEGERS = {"I64": 8, "I32": 4, "I16": 2, "I8": 1, "U64": 8, "U32": 4, "U16": 2, "U8": 1}
WIDTHS = FLOATS | INTEGERS  # bytes of one number
READABLE = (*WIDTHS, "BOOL")
SHARD_BYTES = 5_000_000_000


@dataclasses.dataclass(frozen=True)
class StoredTensor:
    """A tensor in a file. `dtype` is named as safetensors names it; `read` returns a part, one slice for each axis."""

    name: str
    file: Path
    shape: tuple[int, ...]
    dtype: str
    read: Callable[[Index], np.ndarray]


@dataclasses.dataclass(frozen=True)
class Published:
    """Where one of our leaves stands in a published checkpoint.

    `names` holds one name or, where `stacked`, one for each entry of the leaf's leading axis; None stands for zeros
    that the checkpoint does not hold. `axes` permutes the axes of a published tensor into ours: (1, 0) for a
    PyTorch linear layer, (2, 3, 1, 0) for a convolution. Where several leaves are in one tensor, `rows` are the first
    row of this one, the one after its last, and how many the tensor has.
    """

    names: tuple[str | None, ...]
    axes: tuple[int, ...] | None = None
    stacked: bool = False
    rows: tuple[int, int, int] | None = None


NameMap = Mapping[str, Published]


def layered(template: str, layers: int, axes: tuple[int, ...] | None = None, rows: Any = None) -> Published:
    """A leaf stacked over layers; `template` has `{}` for the number of the layer."""
    return Published(tuple(template.format(layer) for layer in range(layers)), axes, stacked=True, rows=rows)


def open_tensors(directory: str | Path, stem: str = "model") -> dict[str, StoredTensor]:
    """The tensors of `<stem>.safetensors`, or of the shards that `<stem>.safetensors.index.json` lists; reads headers.

    Raises UserError for a missing, truncated or foreign file, and where index and shards disagree.
    """
    directory = Path(directory)
    single, index = directory / f"{stem}.safetensors", directory / f"{stem}.safetensors.index.json"
    if single.is_file():
        return _open_file(single)
    if not index.is_file():
        found = f"no {single.name} and no {index.name}"
        raise UserError(f"{directory}: {found}; expected a directory with safetensors weights")
    listed = read_json_object(index).get("weight_map")
    if not isinstance(listed, dict) or not all(isinstance(file, str) and file for file in listed.values()):
        raise UserError(f"{index}: no 'weight_map' from tensor names to files; download the index again")
    stored = {}
    for file in sorted(set(listed.values())):
        if Path(file).name != file:
            raise UserError(f"{index}: names the shard {printable(file)!r}; expected a file of the same directory")
        for name, tensor in _open_file(directory / file).items():
            if listed.get(name) != file:
                raise UserError(
                    f"{directory / file}: tensor {printable(name)} is not listed for this file in {index.name}"
                )
            stored[name] = tensor
    for name in listed:
        if name not in stored:
            raise UserError(
                f"{directory / listed[name]}: tensor {printable(name)} is missing, but {index.name} lists it"
            )
    return stored


# convert(path, leaf) -> the leaves that stand in its place, by their paths
Convert = Callable[[str, jax.Array], Mapping[str, jax.Array]]


def _as_it_is(path: str, leaf: jax.Array) -> dict[str, jax.Array]:
    return {path: leaf}


def load_tree(
    stored: Mapping[str, StoredTensor],
    shapes: PyTree,
    names: NameMap,
    *,
    where: str | Path,
    shardings: PyTree | Sharding | None = None,
    ignored: str = r"(?!)",
    convert: Convert | None = None,
) -> PyTree:
    """A tree with the structure, shapes and dtypes of `shapes` (from `jax.eval_shape`), filled from `stored`.

    Each shard is read on its own, cast and checked to be finite. `shardings` is one sharding or a tree of them;
    default: the first local device. Tensors whose whole name matches `ignored` may be left over. Raises UserError
    naming tensor and file for anything missing, surplus, misshapen, not finite, or of another kind of dtype; `where`
    is what the message calls the checkpoint. `convert` makes of each leaf, as soon as it is read, what stands in its
    place.
    """
    check_full(stored, ignored)
    leaves = flatten_dict(shapes, sep="/")
    wanted = {name for path in leaves for name in names[path].names if name is not None}
    if missing := sorted(wanted - set(stored)):
        raise UserError(f"{where}: {_listed(missing)} missing; expected {len(wanted)} tensors, found {len(stored)}")
    if surplus := sorted(name for name in set(stored) - wanted if not re.fullmatch(ignored, name)):
        raise UserError(
            f"{stored[surplus[0]].file}: {_listed(surplus)} surplus: this model has no such parameter; is it "
            "another "
            "model, or another config.json?"
        )
    for path, leaf in leaves.items():
        _check(stored, leaf, names[path])
    if shardings is None or isinstance(shardings, Sharding):
        one = shardings or SingleDeviceSharding(jax.local_devices()[0])
        placements = dict.fromkeys(leaves, one)
    else:
        placements = flatten_dict(shardings, sep="/")
    filled: dict[str, jax.Array] = {}
    for path, leaf in leaves.items():
        filled |= (convert or _as_it_is)(path, _filled(stored, leaf, names[path], placements[path]))
    return unflatten_dict(filled, sep="/")


def published_tensors(tree: PyTree, names: NameMap) -> Iterator[tuple[str, np.ndarray]]:
    """The leaves of `tree` under their published names, on the host, one leaf at a time."""
    for path, leaf in flatten_dict(tree, sep="/").items():
        published, whole = names[path], to_host(leaf)
        for name, part in zip(published.names, whole if published.stacked else [whole], strict=True):
            if name is not None:
                yield name, part if published.axes is None else part.transpose(np.argsort(published.axes))


def write_tensors(
    directory: Path, tensors: Iterable[tuple[str, np.ndarray]], *, stem: str = "model", max_bytes: int = SHARD_BYTES
) -> None:
    """Write `<stem>.safetensors`, or shards of at most `max_bytes` (one tensor may be larger) and their index.

    Holds one shard in host memory. Use it inside `atomic_directory` (`common.io.exports`). Under several processes all
    must call it (gathering is collective); the first writes. Raises UserError for a tensor that is not finite, which
    nobody would read.
    """
    shards: list[list[str]] = []
    total, size, pending = 0, 0, dict[str, np.ndarray]()

    def flush() -> None:
        if jax.process_index() == 0:
            with disk_errors(directory):
                save_file(pending, directory / f"{stem}-{len(shards)}.safetensors", metadata={"format": "pt"})
        shards.append(list(pending))
        pending.clear()

    for name, tensor in tensors:
        if jnp.issubdtype(tensor.dtype, jnp.floating) and not np.isfinite(tensor).all():
            raise UserError(
                f"{directory}: tensor {name} is not finite (NaN or infinity) as {tensor.dtype}; write it in a wider "
                "dtype, or find out what caused it"
            )
        if pending and size + tensor.nbytes > max_bytes:
            flush()
            size = 0
        pending[name] = np.asarray(tensor, order="C")
        size += tensor.nbytes
        total += tensor.nbytes
    flush()
    if jax.process_index() != 0:
        return
    if len(shards) == 1:
        (directory / f"{stem}-0.safetensors").rename(directory / f"{stem}.safetensors")
        return
    weight_map: dict[str, str] = {}
    for number, names in enumerate(shards):
        file = f"{stem}-{number + 1:05d}-of-{len(shards):05d}.safetensors"
        (directory / f"{stem}-{number}.safetensors").rename(directory / file)
        weight_map |= dict.fromkeys(names, file)
    index = {"metadata": {"total_size": total}, "weight_map": dict(sorted(weight_map.items()))}
    write_json(directory / f"{stem}.safetensors.index.json", index)


def widest_dtype(tree: PyTree) -> str:
    """The dtype that holds every number of a tree: float32 for a bfloat16 tree with some leaves of float32."""
    return jnp.result_type(*{leaf.dtype for leaf in jax.tree.leaves(tree)}).name


def write_texts(directory: Path, texts: Mapping[str, str]) -> None:
    """Write texts by file name. Raises UserError."""
    with disk_errors(directory):
        for name, text in texts.items():
            (directory / name).write_text(text, encoding="utf-8")


def to_host(leaf: Any) -> np.ndarray:
    """A leaf as one numpy array; gathered from all processes (all must call) where this one does not hold it all."""
    if isinstance(leaf, jax.Array) and not leaf.is_fully_addressable and not leaf.is_fully_replicated:
        return np.asarray(multihost_utils.process_allgather(leaf, tiled=True))
    return np.asarray(leaf)


def write_json(file: Path, content: Mapping[str, Any]) -> None:
    """Write a JSON object, indented as on the hub, beside `file`, then rename. Raises UserError."""
    with disk_errors(file.parent), atomic_file(file) as aside:
        aside.write_text(json_text(content, file, indent=2) + "\n", encoding="utf-8")


@contextlib.contextmanager
def disk_errors(directory: Path) -> Iterator[None]:
    """Turns a refusal of disk or folder into a UserError about `directory`."""
    try:
        yield
    except (OSError, SafetensorError) as error:
        raise UserError(f"{directory}: cannot be written ({error}); check the disk and its permissions") from error


def _open_file(file: Path) -> dict[str, StoredTensor]:
    try:
        handle = safe_open(file, framework="numpy")
    except FileNotFoundError as error:
        raise UserError(f"{file}: no such file; download the checkpoint again") from error
    except (OSError, ValueError, SafetensorError) as error:
        raise UserError(f"{file}: not a complete safetensors file ({printable(error)}); download it again") from error

    def reader(name: str, dtype: str) -> Callable[[Index], np.ndarray]:
        def read(index: Index) -> np.ndarray:
            if dtype not in READABLE:
                raise UserError(_not_full(file, name, dtype))
            return handle.get_slice(name)[index] if index else handle.get_tensor(name)

        return read

    stored = {}
    names: list[str] = handle.keys()
    for name in names:
        header = handle.get_slice(name)
        shape, dtype = tuple(header.get_shape()), header.get_dtype()
        stored[name] = StoredTensor(name, file, shape, dtype, reader(name, dtype))
    return stored


def _check(stored: Mapping[str, StoredTensor], leaf: jax.ShapeDtypeStruct, published: Published) -> None:
    """Shapes and kinds of dtype, from the headers alone."""
    expected = leaf.shape[1:] if published.stacked else leaf.shape
    if published.axes is not None:
        expected = tuple(expected[axis] for axis in np.argsort(published.axes))
    if published.rows is not None:
        expected = (published.rows[2], *expected[1:])
    for name in published.names:
        if name is None:
            continue
        tensor = stored[name]
        if tensor.shape != expected:
            raise UserError(
                f"{tensor.file}: tensor {name} has shape {list(tensor.shape)}, expected {list(expected)}; is it "
                "another model, or another config.json?"
            )
        allowed = FLOATS if jnp.issubdtype(leaf.dtype, jnp.floating) else INTEGERS
        if tensor.dtype not in allowed:
            raise UserError(_not_full(tensor.file, name, tensor.dtype, allowed))


def check_full(stored: Mapping[str, StoredTensor], ignored: str = r"(?!)") -> None:
    """Raise UserError where the tensors are those of a quantized checkpoint, whatever config.json says."""
    for name, tensor in stored.items():
        packed = len(tensor.shape) > 1 and tensor.dtype not in (*FLOATS, "I64", "BOOL")
        if packed and not re.fullmatch(ignored, name):
            raise UserError(_not_full(tensor.file, name, tensor.dtype))


def _not_full(file: Path, name: str, dtype: str, allowed: Iterable[str] = FLOATS) -> str:
    return (
        f"{file}: tensor {printable(name)} is {dtype}, expected one of {', '.join(allowed)}; a quantized checkpoint "
        "must be exported as full weights first"
    )


def _filled(
    stored: Mapping[str, StoredTensor], leaf: jax.ShapeDtypeStruct, published: Published, sharding: Sharding
) -> jax.Array:
    """One leaf, each shard read by itself."""
    done: dict[tuple[tuple[int, int], ...], np.ndarray] = {}

    def shard(index: Index | None) -> np.ndarray:
        assert index is not None
        bounds = tuple(part.indices(length)[:2] for part, length in zip(index, leaf.shape, strict=True))
        if bounds not in done:  # replicas of a shard share its memory
            done[bounds] = read(bounds)
        return done[bounds]

    def read(bounds: tuple[tuple[int, int], ...]) -> np.ndarray:
        out = np.zeros([stop - start for start, stop in bounds], leaf.dtype)
        inner = [slice(*bound) for bound in (bounds[1:] if published.stacked else bounds)]
        if published.axes is not None:
            inner = [inner[axis] for axis in np.argsort(published.axes)]
        if published.rows is not None:
            inner[0] = slice(*(bound + published.rows[0] for bound in (inner[0].start, inner[0].stop)))
        names = published.names[slice(*bounds[0])] if published.stacked else published.names
        for part, name in zip(out if published.stacked else [out], names, strict=True):
            if name is None:
                continue
            found = stored[name].read(tuple(inner))
            with np.errstate(over="ignore"):  # an overflow is found below, by name
                part[...] = found if published.axes is None else found.transpose(published.axes)
            if jnp.issubdtype(leaf.dtype, jnp.floating) and not np.isfinite(part).all():
                large = np.isfinite(found.astype(np.float64)).all()
                raise UserError(
                    f"{stored[name].file}: tensor {name} holds values that are not finite as {leaf.dtype}; "
                    + ("they are too large for it: read it as bfloat16 or float32" if large else "it is damaged")
                )
        return out

    return jax.make_array_from_callback(leaf.shape, sharding, shard, dtype=leaf.dtype)


def _listed(names: list[str]) -> str:
    first = ", ".join(map(printable, names[:3])) + (f" and {len(names) - 3} more" if len(names) > 3 else "")
    return f"tensor {first} is" if len(names) == 1 else f"tensors {first} are"
