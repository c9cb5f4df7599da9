"""Fingerprints of weights and of all else that determines what a model writes: SHA-256 of contents, never of paths.

Checkpoints name their base by `fingerprint_directory`, which reads large tensors in part. Outputs name what made their
rows by `model_record`, which reads every byte of a model of up to WHOLE_BYTES.
"""

import hashlib
import inspect
import json
import math
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

import jax
import numpy as np

from common.errors import UserError
from common.io.inputs import read_bytes
from common.io.safetensors import WIDTHS, Index, StoredTensor, open_tensors, to_host
from common.io.text import parse_json
from common.io.torch_archive import open_model
from common.types import PyTree

SAMPLED_BYTES = 1 << 20
WHOLE_BYTES = 4 << 30  # of a model's tensors; a few seconds
DIGITS = 16  # of a digest in a record
# Beside the weights of a model, what decides its tokens, how it computes, what it sees and when it stops.
DECIDING_FILES = (
    *("config.json", "generation_config.json", "preprocessor_config.json", "processor_config.json"),
    *("tokenizer.json", "tokenizer_config.json"),
    *("special_tokens_map.json", "added_tokens.json", "vocab.json", "merges.txt", "vocab.txt", "tokenizer.model"),
    *("chat_template.jinja", "chat_template.json", "words.json", "vocabulary.json"),
)
ADAPTER_CONFIG = "adapter_config.json"
PROCESSORS = ("preprocessor_config.json", "processor_config.json")
CONFIGS = ("config.json", "generation_config.json", *PROCESSORS)
# Entries of these that decide nothing: where a model came from, and which program wrote the file.
NAMES_ONLY = ("_name_or_path", "transformers_version", "base_model_name_or_path", "revision", "architectures")


def fingerprint(tree: PyTree) -> str:
    """SHA-256 over path, dtype, shape and bytes of every leaf, in the order of their paths; independent of shardings.

    Holds one leaf on the host at a time. Under several processes all must call it.
    """
    leaves = {
        jax.tree_util.keystr(path, simple=True, separator="/"): leaf
        for path, leaf in jax.tree_util.tree_flatten_with_path(tree)[0]
    }
    digest = hashlib.sha256()
    for path in sorted(leaves):
        whole = to_host(leaves[path])
        digest.update(f"{path} {whole.dtype} {whole.shape}\n".encode())
        digest.update(whole.tobytes())
    return digest.hexdigest()


def fingerprint_directory(directory: str | Path, stem: str = "model") -> str:
    """SHA-256 that tells published checkpoints apart in about a second, whatever their size and sharding into files.

    Covers name, dtype and shape of every tensor, all bytes of tensors up to 1 MiB and 16 evenly spaced blocks, 1 MiB
    in all, of larger ones. Training changes every tensor all over, so it changes this; an edit of a few numbers inside
    one large tensor may not.
    """
    return fingerprint_stored(open_model(directory) if stem == "model" else open_tensors(directory, stem))


def fingerprint_stored(stored: Mapping[str, StoredTensor], whole_bytes: int = 0) -> str:
    """`fingerprint_directory` of tensors that are open already; where they have up to `whole_bytes`, of every byte."""
    digest = hashlib.sha256()
    whole = sum(math.prod(tensor.shape) * WIDTHS.get(tensor.dtype, 1) for tensor in stored.values()) <= whole_bytes
    for name in sorted(stored):
        tensor = stored[name]
        digest.update(f"{name} {tensor.dtype} {tensor.shape}\n".encode())
        for index in [()] if whole else _sampled(tensor):
            digest.update(tensor.read(index).tobytes())
    return digest.hexdigest()


def model_record(directory: str | Path) -> dict[str, str]:
    """Digests of all that decides what a published model writes, by what they are of. Raises UserError.

    "weights" covers all tensors, whatever files hold them: every byte, or, of a model of more than WHOLE_BYTES, what
    `fingerprint_directory` does.
    """
    return {"weights": weights_record(open_model(directory)), **tokenizer_record(directory, *PROCESSORS)}


def adapter_record(directory: str | Path) -> dict[str, str]:
    """`model_record` of an adapter in the layout of PEFT."""
    weights = weights_record(open_tensors(directory, "adapter_model"))
    return {"weights": weights, ADAPTER_CONFIG: _file_digest(Path(directory) / ADAPTER_CONFIG)}


def weights_record(stored: Mapping[str, StoredTensor]) -> str:
    """A digest of tensors: of every byte, or of parts where they have more than WHOLE_BYTES."""
    return fingerprint_stored(stored, WHOLE_BYTES)[:DIGITS]


def tokenizer_record(path: str | Path, *more: str) -> dict[str, str]:
    """Digests of the files of a tokenizer, a directory or one file, by their names, and of `more` files beside them.

    The configs of a model count: they name the tokens that end an answer, and the tokenizer's class. Raises UserError.
    """
    path = Path(path)
    if path.name == "tokenizer.json":  # whose directory is read
        path = path.parent
    if not path.is_dir():
        return {"tokenizer": digest_of(read_bytes(path))}
    pieces = (file.name for file in path.glob("*.model"))  # of SentencePiece, under any name
    wanted = {*DECIDING_FILES, *pieces, *more} - (set(PROCESSORS) - set(more))
    return {name: _file_digest(path / name) for name in sorted(wanted) if (path / name).is_file()}


def data_record(rows: Iterable[Any]) -> str:
    """A digest of what a run learns from, such as [id, report] of each study, in order."""
    whole = hashlib.sha256()
    for row in rows:
        whole.update(json.dumps(row).encode() + b"\n")
    return whole.hexdigest()[:DIGITS]


def function_record(function: Callable[..., Any]) -> str:
    """A digest of the source of the module that a function is in, or of its name where there is none."""
    try:
        source = inspect.getsource(inspect.getmodule(function) or function)
    except (OSError, TypeError):
        source = repr(getattr(function, "__qualname__", function))
    return digest_of(source.encode())


def digest_of(*parts: bytes) -> str:
    """A short digest of some bytes, and of where one part ends."""
    whole = hashlib.sha256()
    for part in parts:
        whole.update(len(part).to_bytes(8, "little") + part)
    return whole.hexdigest()[:DIGITS]


def _file_digest(file: Path) -> str:
    """Of a config the entries that may decide something, in any order; of other files every byte."""
    content = read_bytes(file)
    if file.name in (*CONFIGS, ADAPTER_CONFIG):
        values = parse_json(content, file)
        if not isinstance(values, dict):
            raise UserError(f"{file}: expected a JSON object, found {type(values).__name__}")
        content = json.dumps({key: values[key] for key in values if key not in NAMES_ONLY}, sort_keys=True).encode()
    return digest_of(content)


def _sampled(tensor: StoredTensor, blocks: int = 16) -> Iterator[Index]:
    """Slices of whole rows of a tensor: all of it, or `blocks` evenly spaced ones of SAMPLED_BYTES in all."""
    shape = tensor.shape
    if not shape:
        yield ()
        return
    rest = tuple(slice(0, length) for length in shape[1:])
    row_bytes = max(1, int(np.prod(shape[1:]))) * WIDTHS.get(tensor.dtype, 1)
    rows = max(1, SAMPLED_BYTES // (blocks * row_bytes))
    starts = np.linspace(0, shape[0] - rows, blocks).astype(int).tolist() if shape[0] > blocks * rows else [0]
    rows = rows if len(starts) > 1 else shape[0]
    for start in starts:
        yield (slice(start, start + rows), *rest)
