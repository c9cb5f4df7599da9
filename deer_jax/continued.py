"""Outputs that a later run goes on with: rows of JSONL, and beside them the options that decide what is in the rows.

`out.jsonl.config.json` holds these options, with fingerprints of weights and tokenizers in place of their paths, and a
digest of what each row is made from. It is written before the first row. Rows without such a file are continued where
they have all that is asked for.
"""

import contextlib
import hashlib
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import jax
import numpy as np
from jax.experimental import multihost_utils

from common.errors import UserError
from common.fingerprints import fingerprint_directory, fingerprint_stored
from common.jsonl import claim_output, row_writer, rows_done
from common.torch_archive import read_archive
from deer_jax.labeler import Labeler, labeler_path

TOKENIZER_FILES = (".json", ".txt", ".model", ".jinja")

Options = Callable[[], Mapping[str, Any]]  # called where it is needed: fingerprints take a second


def rows_kept(
    output: Path | None, inputs: Mapping[str | int, Any], required: Mapping[str, Any], options: Options
) -> int:
    """How many rows the first process finds in `output`, which is to hold a row for each id of `inputs`.

    Raises UserError in all processes where they cannot be continued, lack a key that is `required`, or were written
    under other options or from other inputs.
    """
    done, problem = 0, None
    if output is not None and jax.process_index() == 0:
        try:
            done = rows_done(output, list(inputs), required)
            if done:
                claim_output(output, options(), list(inputs.values()))
        except UserError as error:
            done, problem = -1, error
    if jax.process_count() > 1:
        done = int(multihost_utils.broadcast_one_to_all(np.int64(done)))
    if done < 0:
        raise problem or UserError(f"{output}: cannot be continued; the first process says why")
    return done


@contextlib.contextmanager
def continued_writer(
    output: Path | None, inputs: Mapping[str | int, Any], options: Options
) -> Iterator[Callable[[Mapping[str, Any]], None]]:
    """A function that adds a row to `output`, or to standard output, beside which the options are written."""
    if output is not None:
        claim_output(output, options(), list(inputs.values()))
    with row_writer(output) as write:
        yield write


def labeler_fingerprint(path: str | Path, labeler: Labeler) -> str:
    """What tells the labeler that was read from `path` from others: weights, sizes and tokenizer. Raises UserError."""
    path = labeler_path(path)
    weights = fingerprint_directory(path) if path.is_dir() else fingerprint_stored(read_archive(path))
    return _digest(weights.encode(), repr(labeler.config).encode(), labeler.tokenizer.to_str().encode())


def tokenizer_fingerprint(path: Path) -> str:
    """What tells a tokenizer from others, wherever it lies: the small files of its directory. Raises UserError."""
    files = [file for file in sorted(path.iterdir()) if file.suffix in TOKENIZER_FILES] if path.is_dir() else [path]
    try:
        return _digest(*(part for file in files for part in (file.name.encode(), file.read_bytes())))
    except OSError as error:
        raise UserError(f"{error.filename}: cannot be read ({error.strerror})") from error


def _digest(*parts: bytes) -> str:
    whole = hashlib.sha256()
    for part in parts:
        whole.update(len(part).to_bytes(8, "little") + part)
    return whole.hexdigest()
