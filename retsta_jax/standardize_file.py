"""`retsta standardize`: the rows of a file of reports, by a run on this machine or by an endpoint that serves it."""

import contextlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jax

from common.data.summary import say_data
from common.endpoint import Endpoint
from common.errors import UserError
from common.generation.draft_option import Draft
from common.generation.processes import of_first, writer_of_first
from common.io.locks import locked_file, owning
from common.io.progress import counted
from common.io.resumable import claim_output, rows_done
from common.io.rows import Columns
from retsta_jax.endpoint_standardizer import answer_of, record_of, standardizing
from retsta_jax.readable import check_usable, read_encoder, reports_line
from retsta_jax.reports import read_reports
from retsta_jax.standardize import Standardized, Trained, draft_table, load_trained, standardize


@owning("output", locked_file)
def standardize_file(
    run_dir: Path,
    source: str,
    output: Path | None,
    batch_size: int,
    draft: Draft = "auto",
    columns: Columns = (),
    endpoint: Endpoint | None = None,
) -> None:
    """Standardize the reports of a file, or of standard input ("-"), into rows {"id", "standard", "complete"}.

    Rows are {"id", "report"}, of JSONL or a table (`common.io.rows`); plain text holds one report per line, and its ids
    are the line numbers. Rows that `output` has already are kept and the rest is done. With several processes, each
    standardizes a share of the reports, and the first one reads and writes the files; with an `endpoint`, which is
    asked in place of the run's weights, the first one does it all. Raises UserError.
    """
    reports = [(id_, report) for id_, report in of_first(lambda: read_reports(source, columns))]
    if output is not None and output.exists() and source != "-" and output.samefile(source):
        raise UserError(f"{output}: is the file of the reports; choose another --output")
    keys: dict[str, Any] = {"standard": str, "complete": bool}
    ids, texts = zip(*reports, strict=True)
    done = of_first(lambda: 0 if output is None else rows_done(output, ids, keys))
    rest = reports[done:]
    model = endpoint or load_trained(run_dir)
    encoder = read_encoder(run_dir) if isinstance(model, Endpoint) else model.encoder
    check_usable(encoder, rest, source)
    table = draft_table(model, run_dir, draft) if rest and isinstance(model, Trained) else None
    say_data(reports_line(encoder, source, texts, done), rows_on_stdout=True)
    if output is not None:
        of_first(lambda: claim_output(output, record_of(model, encoder), texts))
    if not rest or (endpoint is not None and jax.process_index() > 0):
        return
    with writer_of_first(output) as write, contextlib.ExitStack() as stack:
        results: Iterator[Standardized]
        if isinstance(model, Endpoint):
            outcomes = stack.enter_context(standardizing(encoder, model, texts[done:]))
            results = map(answer_of, counted(outcomes, len(rest), "reports"), ids[done:])
        else:
            own = texts[done:], batch_size, ids[done:], draft, table
            results = standardize(model, model.variables, *own, together=True)
        for (id_, _), result in zip(rest, results, strict=True):
            write({"id": id_, "standard": result.text, "complete": result.complete})
