"""Outputs that a later run continues (`common.io.resumable`), for commands that may run in several processes."""

import contextlib
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import jax
import numpy as np
from jax.experimental import multihost_utils

from common.errors import UserError
from common.io.resumable import claim_output, continue_rows, row_writer

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
            done = continue_rows(output, inputs, required, options)
        except UserError as error:
            done, problem = -1, error
    if jax.process_count() > 1:
        done = int(multihost_utils.broadcast_one_to_all(np.int64(done)))
    if done < 0:
        raise problem or UserError(f"{output}: cannot be continued; see the message of the first process")
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
