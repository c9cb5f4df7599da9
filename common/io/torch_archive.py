"""Tensors from PyTorch's files (`.pt`, `.pth`, `.bin`) without PyTorch and without running what the files contain.

Read are the zip archives of `torch.save` and of `torch.jit.save` (TorchScript, as OpenAI publishes CLIP; its code is
never looked at), and the files that `torch.save` wrote before PyTorch 1.6. `common.io.torch_pickle` reads what they
say of their tensors, in a process of its own with bounded time and memory.
"""

import functools
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax.numpy as jnp
import numpy as np

from common.errors import UserError
from common.io import torch_pickle
from common.io.bounded import run_bounded
from common.io.safetensors import StoredTensor, open_tensors
from common.io.terminal import printable
from common.io.text import read_json_object
from common.io.torch_pickle import Storage, View

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
# PyTorch does not compress; of an archive packed again by others, what unpacks to far more than it is.
MOST_RATIO, ALWAYS_UNPACKED = 20, 64 << 20

Reader = Callable[[Storage], np.ndarray]


def read_archive(path: str | Path) -> dict[str, StoredTensor]:
    """The tensors of a file under the names of its state dict, or of its TorchScript modules (`visual.conv1.weight`).

    Each is read when asked for. Of a training checkpoint: the tensors under `state_dict` or `model_state_dict`. Without
    the "module." that DataParallel puts before all names. Values that are no tensors are left out. Raises UserError for
    a damaged or foreign file, for one without tensors, for one that names anything but tensors and containers, and for
    one that takes too long or too much memory.
    """
    path = Path(path)
    found = run_bounded(Path(torch_pickle.__file__), str(path), str(path))
    if "refused" in found:
        raise UserError(f"{path}: {printable(found['refused'], 500)}")
    if "damaged" in found:
        raise UserError(f"{path}: not a complete PyTorch file ({printable(found['damaged'])}); download it again")
    views = {
        name: View(Storage(kind, key, length), offset, tuple(shape), tuple(strides))
        for name, (kind, key, length, offset, shape, strides) in found["views"].items()
    }
    if not views:
        raise UserError(f"{path}: contains no tensors; expected a state dict or a TorchScript archive")
    if all(name.startswith("module.") for name in views):
        views = {name.removeprefix("module."): view for name, view in views.items()}
    read = _zip_reader(path, found["root"]) if "root" in found else _legacy_reader(path, found["starts"])
    return {name: _stored(name, path, view, read) for name, view in views.items()}


def open_model(directory: str | Path) -> dict[str, StoredTensor]:
    """The tensors of a published model: of its safetensors or, where it has none, of `pytorch_model.bin` or its shards.

    Raises UserError as `open_tensors` and `read_archive` do.
    """
    directory = Path(directory)
    single, index = directory / "pytorch_model.bin", directory / "pytorch_model.bin.index.json"
    if any(directory.glob("model.safetensors*")) or not (single.is_file() or index.is_file()):
        return open_tensors(directory)
    if single.is_file():
        return read_archive(single)
    listed = read_json_object(index).get("weight_map")
    if not isinstance(listed, dict) or not all(isinstance(file, str) for file in listed.values()):
        raise UserError(f"{index}: no 'weight_map' from tensor names to files; download the index again")
    stored: dict[str, StoredTensor] = {}
    for file in sorted(set(listed.values())):
        if Path(file).name != file or not (directory / file).is_file():
            raise UserError(f"{index}: names the shard {printable(file)!r}, which is not there; download it again")
        stored |= read_archive(directory / file)
    return stored


def _zip_reader(path: Path, root: str) -> Reader:
    """Reads `<root>/data/<key>` and checks the archive's checksums."""
    archive = zipfile.ZipFile(path)

    @functools.lru_cache(1)  # a fingerprint reads several parts of each
    def read(storage: Storage) -> np.ndarray:
        member = archive.getinfo(f"{root}data/{storage.key}")
        kind = np.dtype(DTYPES[storage.kind][1])
        if member.file_size != storage.length * kind.itemsize:
            raise ValueError(f"{member.file_size} bytes stored, {storage.length * kind.itemsize} expected")
        if member.file_size > max(MOST_RATIO * member.compress_size, ALWAYS_UNPACKED):
            raise ValueError(f"{member.compress_size} bytes unpack to {member.file_size}")
        return np.frombuffer(archive.read(member), kind)

    return read


def _legacy_reader(path: Path, starts: dict[str, int]) -> Reader:
    def read(storage: Storage) -> np.ndarray:
        return np.fromfile(path, DTYPES[storage.kind][1], storage.length, offset=starts[storage.key])

    return read


def _stored(name: str, path: Path, view: View, read: Reader) -> StoredTensor:
    dtype, kind = DTYPES[view.storage.kind]

    def part(index: tuple[slice, ...]) -> np.ndarray:
        try:
            numbers = read(view.storage)
        except Exception as error:  # zipfile, zlib and OSError by how a part is damaged: missing, cut, wrong checksum
            raise UserError(f"{path}: tensor {name} cannot be read ({error}); download it again") from error
        if numbers.size != view.storage.length:
            raise UserError(f"{path}: tensor {name} is cut off; download it again")
        strides: Any = [stride * np.dtype(kind).itemsize for stride in view.strides]
        return np.lib.stride_tricks.as_strided(numbers[view.offset :], view.shape, strides, writeable=False)[index]

    return StoredTensor(name, path, view.shape, dtype, part)
