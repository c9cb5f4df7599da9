"""Where the drafts of a command come from: texts of each row, and a table of training reports kept beside a run."""

import hashlib
import json
from collections.abc import Collection, Sequence
from pathlib import Path
from typing import Any, Protocol

import jax
import numpy as np
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save

from common.errors import UserError
from common.generation.draft_option import Draft
from common.generation.drafts import Table
from common.generation.ngrams import build_table
from common.io.files import atomic_file
from common.io.safetensors import disk_errors
from common.io.terminal import say
from common.io.text import parse_json
from common.process.first import is_first_process

TABLE_FILE = "drafts.safetensors"  # of a run directory; it holds parts of reports
DRAFT_TOKENS = 8  # most drafts of a pass
MOST_REPORTS = 6000  # that a table is made of
PROBE = "No acute disease. 双眼：视网膜出血；未见玻璃膜疣。 Right eye: 0.5 cm"


class CanEncode(Protocol):
    """Any tokenizer."""

    def encode(self, text: str) -> list[int]: ...


class HasEnd(CanEncode, Protocol):
    """A tokenizer with a token that ends a report."""

    @property
    def eos_id(self) -> int: ...


def draft_sources(draft: Draft) -> Collection[str]:
    """Which of "prompt" and "reports" are used on this machine."""
    if draft == "auto":
        draft = "none" if jax.default_backend() == "cpu" else "all"
    return {"none": (), "all": ("prompt", "reports")}.get(draft, (draft,))


def report_table(tokenizer: HasEnd, reports: Sequence[str]) -> Table | None:
    """The table of reports, of the first ones where there are many."""
    return build_table([[*tokenizer.encode(report), tokenizer.eos_id] for report in reports[:MOST_REPORTS]])


def save_table(run_dir: Path, texts: Sequence[Sequence[int]], tokenizer: CanEncode) -> None:
    """Write the table of a run's training reports, token lists that end with what ends a report, beside the run."""
    table = build_table(texts)
    if table is None:
        return
    arrays = {"marks": np.asarray(table.marks), "tokens": np.asarray(table.tokens)}
    marks = {"tokenizer": tokenizer_mark(tokenizer), "content": _content(arrays)}
    with disk_errors(run_dir), atomic_file(run_dir / TABLE_FILE) as aside:
        aside.write_bytes(_in_order(save(arrays, metadata=marks)))


def _in_order(content: bytes) -> bytes:
    """The bytes of a safetensors file with its metadata sorted: the library writes them in a random order."""
    size = int.from_bytes(content[:8], "little")
    header = parse_json(content[8 : 8 + size], TABLE_FILE)
    header["__metadata__"] = dict(sorted(header["__metadata__"].items()))
    text = json.dumps(header, separators=(",", ":"), ensure_ascii=False).encode()
    return content[:8] + text.ljust(size) + content[8 + size :]


def load_table(run_dir: Path, tokenizer: CanEncode, vocabulary: int) -> Table | None:
    """The table beside a run; None, with a word on standard error, where there is none.

    Raises UserError where it is damaged, or made with another tokenizer.
    """
    file = run_dir / TABLE_FILE
    if not file.exists():
        if is_first_process():
            note = "does not exist, so there are no drafts from reports; a training writes it at its end"
            say(f"note: {file} {note}", error=True)
        return None
    try:
        with safe_open(file, "np") as opened:
            marks, arrays = opened.metadata() or {}, {name: opened.get_tensor(name) for name in ("marks", "tokens")}
    except (SafetensorError, OSError) as error:
        raise UserError(f"{file}: is damaged ({error}); delete it, or give --draft none") from error
    if marks.get("tokenizer") != tokenizer_mark(tokenizer):
        raise UserError(
            f"{file}: was made with another tokenizer than the run's; delete it, or give --draft none (what is "
            "written is the same without it)"
        )
    if marks.get("content") != _content(arrays) or not _is_table(arrays["marks"], arrays["tokens"], vocabulary):
        raise UserError(f"{file}: is damaged; delete it, or give --draft none")
    read: Any = (arrays["marks"], arrays["tokens"])  # numpy until placed on devices
    return Table(*read)


def _is_table(marks: np.ndarray, tokens: np.ndarray, vocabulary: int) -> bool:
    """Whether these are the arrays of a `Table` whose drafts a model of this vocabulary can read."""
    alike = marks.dtype == np.uint32 and tokens.dtype == np.int32 and marks.shape == tokens.shape[:1]
    places = marks.size > 0 and marks.size & (marks.size - 1) == 0
    return alike and tokens.ndim == 2 and places and tokens.min() >= 0 and tokens.max() < vocabulary


def tokenizer_mark(tokenizer: CanEncode) -> str:
    """What tells tokenizers apart: how they encode a text of many kinds."""
    return hashlib.sha256(repr([int(token) for token in tokenizer.encode(PROBE)]).encode()).hexdigest()[:16]


def _content(arrays: dict[str, np.ndarray]) -> str:
    digest = hashlib.sha256()
    for name in sorted(arrays):
        digest.update(repr((name, arrays[name].shape, arrays[name].dtype.name)).encode())
        digest.update(np.ascontiguousarray(arrays[name]).tobytes())
    return digest.hexdigest()[:16]
