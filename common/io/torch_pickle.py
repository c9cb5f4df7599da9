"""The tensors listed in a PyTorch file: their names and where their data is stored. Run by `common.io.bounded`.

A PyTorch file is a pickle, a program that may call anything, beside the raw bytes of its tensors. Here every global
that the pickle names is looked up in a short list and becomes an inert stand-in; any other is refused before it is
imported. Needs the standard library alone, and answers in JSON: even a pickle that calls nothing can be made to unfold
without end, so it is read in a process of its own.
"""

import io
import json
import math
import pickle
import sys
import zipfile
from collections import OrderedDict
from collections.abc import Iterator
from typing import Any, BinaryIO, NamedTuple

# Storage class -> bytes of one number.
WIDTHS = {
    "DoubleStorage": 8,
    "FloatStorage": 4,
    "HalfStorage": 2,
    "BFloat16Storage": 2,
    "LongStorage": 8,
    "IntStorage": 4,
    "ShortStorage": 2,
    "CharStorage": 1,
    "ByteStorage": 1,
    "BoolStorage": 1,
}
WRAPPERS = ("state_dict", "model_state_dict")  # where training scripts keep the weights beside other things
LEGACY_MAGIC = 0x1950A86A20F9469CFC6C
MOST_BYTES = 256 << 20  # of the pickle, which is without the numbers
MOST_ENTRIES = 1_000_000  # of all containers, one counted as often as it is reached
LONGEST_NAME = 1000
MOST_AXES = 64
MOST_REPEATED = 1 << 24  # numbers of a tensor whose storage is smaller, as `expand` makes them
LARGEST = 2**63 - 1


class Refused(Exception):
    """What is wrong with the file, as a user should read it."""


class Storage(NamedTuple):
    """A run of numbers in a file: `key` names it, `kind` is one of WIDTHS, `length` counts numbers."""

    kind: str
    key: str
    length: int


class View(NamedTuple):
    """A tensor: where it starts in its storage, its shape, and how far apart neighbours on each axis are."""

    storage: Storage
    offset: int
    shape: tuple[int, ...]
    strides: tuple[int, ...]


class Module:
    """A module of a TorchScript program: its attributes, and nothing else."""


class _Number:
    """What stands for a NumPy number, such as the best score so far, beside the weights. Holds nothing."""

    def __init__(self, *_: Any):
        pass

    def __setstate__(self, _: Any):
        pass


class _InertUnpickler(pickle.Unpickler):
    """Builds containers, `View`s and empty objects, and nothing else."""

    def __init__(self, file: BinaryIO):
        super().__init__(file, encoding="utf-8")
        self._allowed: dict[tuple[str, str], Any] = {
            ("collections", "OrderedDict"): OrderedDict,
            ("torch._utils", "_rebuild_tensor"): _view,
            ("torch._utils", "_rebuild_tensor_v2"): _view,
            ("torch._utils", "_rebuild_parameter"): _parameter,
            ("torch", "Size"): _size,
            ("torch.jit._pickle", "build_boollist"): _values,
            ("torch.jit._pickle", "build_doublelist"): _values,
            ("torch.jit._pickle", "build_intlist"): _values,
            ("torch.jit._pickle", "build_tensorlist"): _values,
            ("torch.jit._pickle", "restore_type_tag"): _values,
            ("numpy.core.multiarray", "scalar"): _Number,
            ("numpy._core.multiarray", "scalar"): _Number,
            ("numpy", "dtype"): _Number,
            ("_codecs", "encode"): _Number,  # by which old protocols write the bytes of such a number
        }

    def find_class(self, module: str, name: str) -> Any:
        if module.split(".")[0] == "__torch__":  # a class of the TorchScript program
            return Module
        if module == "torch" and name in WIDTHS:
            return name
        if (module, name) not in self._allowed:
            raise Refused(
                f"refused: it asks to load {module}.{name}, and only tensors in plain containers are read; save a "
                "state dict instead"
            )
        return self._allowed[module, name]

    def persistent_load(self, pid: Any) -> Storage:
        _, kind, key, _, length = pid[:5]
        if not isinstance(kind, str) or kind not in WIDTHS or not isinstance(key, str) or not _is_size(length):
            raise ValueError("a storage of unknown kind, key or length")
        return Storage(kind, key, length)


def _view(storage: Storage, offset: int, shape: tuple, strides: tuple, *_: Any) -> View:
    if not isinstance(storage, Storage) or len(shape) != len(strides) or len(shape) > MOST_AXES:
        raise ValueError("a tensor without storage or strides")
    numbers = (offset, *shape, *strides)
    if not all(map(_is_size, numbers)):
        raise ValueError("offset, shape and strides that are not sizes")
    last = offset + sum((size - 1) * stride for size, stride in zip(shape, strides, strict=True))
    if math.prod(shape) and last >= storage.length:
        raise ValueError(f"a tensor beyond its storage of {storage.length}")
    if math.prod(shape) > max(storage.length, MOST_REPEATED):
        raise ValueError(f"a tensor that repeats its storage of {storage.length} too often")
    return View(storage, offset, tuple(shape), tuple(strides))


def _is_size(number: Any) -> bool:
    return isinstance(number, int) and 0 <= number <= LARGEST


def _parameter(view: View, *_: Any) -> View:
    return view


def _values(values: Any, *_: Any) -> Any:
    return values


def _size(sizes: tuple) -> tuple:
    return tuple(sizes)


def read_zip(path: str) -> tuple[Any, str]:
    """The object in `<root>/data.pkl`, and that root."""
    with zipfile.ZipFile(path) as archive:
        names = set(archive.namelist())
        roots = [name.removesuffix("data.pkl") for name in names if name.count("/") == 1 and name.endswith("/data.pkl")]
        if len(roots) != 1:
            raise Refused("not a PyTorch file (no data.pkl in this zip archive)")
        root = roots[0]
        order = f"{root}byteorder"
        if order in names and _member(archive, order) != sys.byteorder.encode():
            raise Refused("written on a machine with another byte order; save it again on a little-endian one")
        return _InertUnpickler(io.BytesIO(_member(archive, f"{root}data.pkl"))).load(), root


def _member(archive: zipfile.ZipFile, name: str) -> bytes:
    if archive.getinfo(name).file_size > MOST_BYTES:
        raise Refused(f"{name} unpacks to more than {MOST_BYTES >> 20} MB")
    return archive.read(name)


def read_legacy(path: str) -> tuple[Any, dict[str, int]]:
    """The object of a file from before PyTorch 1.6, and where each storage starts.

    Magic number, version, platform, object and storage keys are pickles; then come the storages, each its length as a
    64-bit number, then its numbers.
    """
    found: dict[str, Storage] = {}

    class Unpickler(_InertUnpickler):
        def persistent_load(self, pid: Any) -> Storage:
            if len(pid) > 5 and pid[5] is not None:
                raise Refused("a storage is part of another, which is not implemented; save it again")
            storage = super().persistent_load(pid)
            return found.setdefault(storage.key, storage)

    with open(path, "rb") as file:
        try:
            magic = Unpickler(file).load()
        except Exception as error:  # bytes that are no pickle can raise anything
            raise Refused("not a PyTorch file; expected .pt, .pth or .bin") from error
        if magic != LEGACY_MAGIC:
            raise Refused("not a PyTorch file; expected .pt, .pth or .bin")
        _, platform, tree, keys = (Unpickler(file).load() for _ in range(4))
        if platform.get("little_endian") is not (sys.byteorder == "little"):
            raise Refused("written on a machine with another byte order; save it again on a little-endian one")
        starts = {}
        for key in keys:
            storage = found[key]
            if int.from_bytes(file.read(8), sys.byteorder) != storage.length:
                raise ValueError("a storage is not where it should be")
            starts[key] = file.tell()
            file.seek(storage.length * WIDTHS[storage.kind], io.SEEK_CUR)
    return tree, starts


def flattened(tree: Any) -> Iterator[tuple[str, View]]:
    """The tensors in nested dicts and modules, in order, under their keys and attributes joined by dots."""
    count = 0
    waiting = [("", tree)]
    while waiting:
        prefix, value = waiting.pop()
        if isinstance(value, View):
            yield prefix.removesuffix("."), value
        elif isinstance(value, dict | Module):
            entries = vars(value) if isinstance(value, Module) else value
            count += len(entries)
            if count > MOST_ENTRIES or len(prefix) > LONGEST_NAME:
                raise Refused(
                    f"more than {MOST_ENTRIES:,} entries, or names longer than {LONGEST_NAME:,} characters: its "
                    "containers contain one another; save a flat state dict"
                )
            waiting += reversed([(f"{prefix}{name}.", held) for name, held in entries.items()])


def read(path: str) -> dict[str, Any]:
    """{"views": {name: [kind, key, length, offset, shape, strides]}} with "root" or "starts"; else why it is none."""
    try:
        with open(path, "rb") as file:
            magic = file.read(4)
        tree, storage = read_zip(path) if magic == b"PK\x03\x04" else read_legacy(path)
        for wrapper in WRAPPERS:
            if isinstance(tree, dict) and isinstance(tree.get(wrapper), dict):
                tree = tree[wrapper]
        views = {name: [*view.storage, *view[1:]] for name, view in flattened(tree)}
    except Refused as error:
        return {"refused": str(error)}
    except OSError as error:
        return {"refused": f"cannot be read ({error.strerror or error})"}
    except Exception as error:  # a damaged pickle can raise anything
        return {"damaged": f"{type(error).__name__}: {error}"}
    return {"views": views, "root" if isinstance(storage, str) else "starts": storage}


if __name__ == "__main__":
    json.dump(read(json.load(sys.stdin)), sys.stdout)
