"""Tensors out of PyTorch's files (`.pt`, `.pth`, `.bin`) without PyTorch and without running what the files contain.

A PyTorch file is a pickle, a program that may call anything, beside the raw bytes of its tensors. Here every global
that the pickle names is looked up in a short list and becomes an inert stand-in; any other is refused before it is
imported. Read are the zip archives of `torch.save` and of `torch.jit.save` (TorchScript, as OpenAI publishes CLIP; its
code is never looked at), and the files that `torch.save` wrote before PyTorch 1.6.
"""

import io
import math
import pickle
import sys
import zipfile
from collections import OrderedDict
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple

import jax.numpy as jnp
import numpy as np

from common.errors import UserError
from common.weights import StoredTensor

# Storage class -> dtype as safetensors names it, and as numpy knows it.
DTYPES = {
    "DoubleStorage": ("F64", np.float64),
    "FloatStorage": ("F32", np.float32),
    "HalfStorage": ("F16", np.float16),
    "BFloat16Storage": ("BF16", jnp.bfloat16),
    "LongStorage": ("I64", np.int64),
    "IntStorage": ("I32", np.int32),
    "ShortStorage": ("I16", np.int16),
    "CharStorage": ("I8", np.int8),
    "ByteStorage": ("U8", np.uint8),
    "BoolStorage": ("BOOL", np.bool_),
}
WRAPPERS = ("state_dict", "model_state_dict")  # where training scripts keep the weights beside other things
LEGACY_MAGIC = 0x1950A86A20F9469CFC6C


class Storage(NamedTuple):
    """A run of numbers in a file: `key` names it, `kind` is one of DTYPES, `length` counts numbers."""

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


def read_archive(path: str | Path) -> dict[str, StoredTensor]:
    """The tensors of a file under the names of its state dict, or of its TorchScript modules (`visual.conv1.weight`).

    Each is read when asked for. Of a training checkpoint: the tensors under `state_dict` or `model_state_dict`. Without
    the "module." that DataParallel puts before all names. Values that are no tensors are left out. Raises UserError for
    a damaged or foreign file, for one without tensors, and for one that names anything but tensors and containers.
    """
    path = Path(path)
    try:
        with path.open("rb") as file:
            magic = file.read(4)
        tree, read = _open_zip(path) if magic == b"PK\x03\x04" else _open_legacy(path)
        for wrapper in WRAPPERS:
            if isinstance(tree, dict) and isinstance(tree.get(wrapper), dict):
                tree = tree[wrapper]
        views = dict(_flattened(tree))
    except UserError:
        raise
    except OSError as error:
        raise UserError(f"{path}: cannot be read ({error})") from error
    except Exception as error:  # a damaged pickle can raise anything
        raise UserError(
            f"{path}: no whole PyTorch file ({type(error).__name__}: {error}); download it again"
        ) from error
    if not views:
        raise UserError(f"{path}: holds no tensors; expected a state dict or a TorchScript archive")
    if all(name.startswith("module.") for name in views):
        views = {name.removeprefix("module."): view for name, view in views.items()}
    return {name: _stored(name, path, view, read) for name, view in views.items()}


class _Number:
    """What stands for a NumPy number, such as the best score so far, beside the weights. Holds nothing."""

    def __init__(self, *_: Any):
        pass

    def __setstate__(self, _: Any):
        pass


class _InertUnpickler(pickle.Unpickler):
    """Builds containers, `View`s and empty objects, and nothing else."""

    def __init__(self, file: BinaryIO, path: Path):
        super().__init__(file, encoding="utf-8")
        self._path = path
        # Made anew for each file: a pickle may set attributes on the classes it is given.
        self._module = type("Module", (Module,), {})
        self._allowed: dict[tuple[str, str], Any] = {
            ("collections", "OrderedDict"): OrderedDict,
            ("torch._utils", "_rebuild_tensor"): self._view,
            ("torch._utils", "_rebuild_tensor_v2"): self._view,
            ("torch._utils", "_rebuild_parameter"): self._parameter,
            ("torch", "Size"): self._size,
            ("torch.jit._pickle", "build_boollist"): self._values,
            ("torch.jit._pickle", "build_doublelist"): self._values,
            ("torch.jit._pickle", "build_intlist"): self._values,
            ("torch.jit._pickle", "build_tensorlist"): self._values,
            ("torch.jit._pickle", "restore_type_tag"): self._values,
            ("numpy.core.multiarray", "scalar"): _Number,
            ("numpy._core.multiarray", "scalar"): _Number,
            ("numpy", "dtype"): _Number,
            ("_codecs", "encode"): _Number,  # by which old protocols write the bytes of such a number
        }

    def find_class(self, module: str, name: str) -> Any:
        if module.split(".")[0] == "__torch__":  # a class of the TorchScript program
            return self._module
        if module == "torch" and name in DTYPES:
            return name
        if (module, name) not in self._allowed:
            raise UserError(
                f"{self._path}: refused: it asks to load {module}.{name}, and only tensors in plain containers are "
                "read; save a state dict instead"
            )
        return self._allowed[module, name]

    def persistent_load(self, pid: Any) -> Storage:
        _, kind, key, _, length = pid[:5]
        if kind not in DTYPES or not isinstance(key, str) or not isinstance(length, int):
            raise ValueError(f"storage {pid!r}")
        return Storage(kind, key, length)

    @staticmethod
    def _view(storage: Storage, offset: int, shape: tuple, strides: tuple, *_: Any) -> View:
        numbers = (offset, *shape, *strides)
        if not isinstance(storage, Storage) or len(shape) != len(strides):
            raise ValueError("a tensor without storage or strides")
        if not all(isinstance(number, int) and number >= 0 for number in numbers):
            raise ValueError(f"offset, shape and strides {numbers}")
        last = offset + sum((size - 1) * stride for size, stride in zip(shape, strides, strict=True))
        if math.prod(shape) and last >= storage.length:
            raise ValueError(f"a tensor beyond its storage of {storage.length}")
        return View(storage, offset, tuple(shape), tuple(strides))

    @staticmethod
    def _parameter(view: View, *_: Any) -> View:
        return view

    @staticmethod
    def _values(values: Any, *_: Any) -> Any:
        return values

    @staticmethod
    def _size(sizes: tuple) -> tuple:
        return tuple(sizes)


Reader = Callable[[Storage], np.ndarray]


def _open_zip(path: Path) -> tuple[Any, Reader]:
    """The object in `<root>/data.pkl`, and a reader of `<root>/data/<key>` that checks the archive's checksums."""
    archive = zipfile.ZipFile(path)
    names = set(archive.namelist())
    roots = [name.removesuffix("data.pkl") for name in names if name.count("/") == 1 and name.endswith("/data.pkl")]
    if len(roots) != 1:
        raise UserError(f"{path}: no PyTorch file (no data.pkl in this zip archive)")
    root = roots[0]
    order = f"{root}byteorder"
    if order in names and archive.read(order) != sys.byteorder.encode():
        raise UserError(f"{path}: written on a machine of another byte order; save it again on a common one")

    def read(storage: Storage) -> np.ndarray:
        return np.frombuffer(archive.read(f"{root}data/{storage.key}"), DTYPES[storage.kind][1])

    return _InertUnpickler(io.BytesIO(archive.read(f"{root}data.pkl")), path).load(), read


def _open_legacy(path: Path) -> tuple[Any, Reader]:
    """Before PyTorch 1.6: magic number, version, platform, object and storage keys as pickles; then the storages.

    Each storage is its length as a 64-bit number, then its numbers.
    """
    found: dict[str, Storage] = {}

    class Unpickler(_InertUnpickler):
        def persistent_load(self, pid: Any) -> Storage:
            if len(pid) > 5 and pid[5] is not None:
                raise UserError(f"{path}: a storage is part of another, which is not implemented; save it again")
            storage = super().persistent_load(pid)
            return found.setdefault(storage.key, storage)

    with path.open("rb") as file:
        try:
            magic = Unpickler(file, path).load()
        except Exception as error:  # bytes that are no pickle can raise anything
            raise UserError(f"{path}: no PyTorch file; expected .pt, .pth or .bin") from error
        if magic != LEGACY_MAGIC:
            raise UserError(f"{path}: no PyTorch file; expected .pt, .pth or .bin")
        _, platform, tree, keys = (Unpickler(file, path).load() for _ in range(4))
        if platform.get("little_endian") is not (sys.byteorder == "little"):
            raise UserError(f"{path}: written on a machine of another byte order; save it again on a common one")
        starts = {}
        for key in keys:
            storage = found[key]
            if int.from_bytes(file.read(8), sys.byteorder) != storage.length:
                raise ValueError(f"storage {key} is not where it should be")
            starts[key] = file.tell()
            file.seek(storage.length * np.dtype(DTYPES[storage.kind][1]).itemsize, io.SEEK_CUR)

    def read(storage: Storage) -> np.ndarray:
        return np.fromfile(path, DTYPES[storage.kind][1], storage.length, offset=starts[storage.key])

    return tree, read


def _flattened(tree: Any, prefix: str = "") -> Iterator[tuple[str, View]]:
    """The tensors in nested dicts and modules, under their keys and attributes joined by dots."""
    if isinstance(tree, View):
        yield prefix.removesuffix("."), tree
    elif isinstance(tree, dict | Module):
        for name, value in (vars(tree) if isinstance(tree, Module) else tree).items():
            yield from _flattened(value, f"{prefix}{name}.")


def _stored(name: str, path: Path, view: View, read: Reader) -> StoredTensor:
    dtype, kind = DTYPES[view.storage.kind]

    def part(index: tuple[slice, ...]) -> np.ndarray:
        try:
            numbers = read(view.storage)
        except Exception as error:  # missing, truncated, or not what its checksum says
            raise UserError(f"{path}: tensor {name} cannot be read ({error}); download it again") from error
        if numbers.size != view.storage.length:
            raise UserError(f"{path}: tensor {name} is cut off; download it again")
        strides = [stride * np.dtype(kind).itemsize for stride in view.strides]
        return np.lib.stride_tricks.as_strided(numbers[view.offset :], view.shape, strides, writeable=False)[index]

    return StoredTensor(name, path, view.shape, dtype, part)
