"""Outputs that a later run continues (`common.io.resumable`), for commands that may run in several processes."""

import contextlib
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

from common.generation.processes import of_first
from common.io.resumable import claim_output, continue_rows, row_writer

Options = Callable[[], Mapping[str, Any]]  # called where it is needed: fingerprints take a second


def rows_kept(
    output: Path | None, inputs: Mapping[str | int, Any], required: Mapping[str, Any], options: Options
) -> int:
    """How many rows the first process finds in `output`, which is to hold a row for each id of `inputs`.

    Raises UserError in all processes where they cannot be continued, lack a key that is `required`, or were written
    under other options or from other inputs.
    """
    return of_first(lambda: 0 if output is None else continue_rows(output, inputs, required, options))


@contextlib.contextmanager
def continued_writer(
    output: Path | None, inputs: Mapping[str | int, Any], options: Options
) -> Iterator[Callable[[Mapping[str, Any]], None]]:
    """A function that adds a row to `output`, or to standard output, beside which the options are written."""
    if output is not None:
        claim_output(output, options(), list(inputs.values()))
    with row_writer(output) as write:
        yield write
