"""Outputs that a later run goes on with: rows of JSONL, and beside them the options that decide what is in the rows.

`out.jsonl.config.json` holds these options, with fingerprints of the weights in place of their paths. It is written
before the first row. Rows without such a file are continued where they have all that is asked for.
"""

import contextlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np
from jax.experimental import multihost_utils

from common.errors import UserError
from common.fingerprints import fingerprint_directory, fingerprint_stored
from common.jsonl import claim_output, row_writer, rows_done
from common.torch_archive import read_archive
from deer_jax.labeler import labeler_path

Options = Callable[[], Mapping[str, Any]]  # called where it is needed: fingerprints take a second


def rows_kept(output: Path | None, ids: Sequence[str | int], required: Mapping[str, Any], options: Options) -> int:
    """How many rows the first process finds in `output`, which is to hold rows of `ids` with the keys `required`.

    Raises UserError in all processes where they cannot be continued, or were written under other options.
    """
    done, problem = 0, None
    if output is not None and jax.process_index() == 0:
        try:
            done = rows_done(output, ids, required)
            if done:
                claim_output(output, options())
        except UserError as error:
            done, problem = -1, error
    if jax.process_count() > 1:
        done = int(multihost_utils.broadcast_one_to_all(np.int64(done)))
    if done < 0:
        raise problem or UserError(f"{output}: cannot be continued; the first process says why")
    return done


@contextlib.contextmanager
def continued_writer(output: Path | None, options: Options) -> Iterator[Callable[[Mapping[str, Any]], None]]:
    """A function that adds a row to `output`, or to standard output, beside which the options are written."""
    if output is not None:
        claim_output(output, options())
    with row_writer(output) as write:
        yield write


def labeler_fingerprint(path: str | Path) -> str:
    """What tells the weights of a labeler from those of others. Raises UserError."""
    path = labeler_path(path)
    return fingerprint_directory(path) if path.is_dir() else fingerprint_stored(read_archive(path))
