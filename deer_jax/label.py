"""`deer label`: the classes of each report of a JSONL file, on any number of hosts."""

import argparse
import functools
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np

from common.clinical.labeler import (
    Labeler,
    check_labels,
    labeler_digests,
    load_labeler,
    replicate,
    texts_line,
)
from common.clinical.shared_labeler import read_shared
from common.config_options import add_batch_size
from common.data.summary import already, say_data
from common.errors import Parser
from common.io.locks import locked_by_first, locked_file
from common.io.rows import add_columns, read_rows
from deer_jax.resumable import continued_writer, rows_kept

BATCHES_AT_ONCE = 32  # of each process, sorted into length buckets together before their rows are written

DESCRIPTION = """Label the reports of a JSONL or Parquet file as CheXbert does.

Rows {"id", "report"} become rows {"id", "labels"} in input order: the class of each label (0 blank, 1 positive,
2 negative, 3 uncertain) in the order of CheXbert, or of the labeler's own labels. --logits adds
"logits", a list for each label. Rows already in --output are kept, and the rest is added. Of several
processes (jax.distributed.initialize) each reads the whole file and labels its share; the first one writes."""


def main(arguments: list[str]) -> None:
    """Run the command. Raises UserError for whatever is wrong with its input, before anything is written."""
    chosen = parse(arguments)
    with locked_by_first(chosen.output, locked_file):
        label_file(chosen)


def label_file(chosen: argparse.Namespace) -> None:
    """Write, or go on writing, the labels that the parsed command line asks for. Raises UserError."""
    rows = read_rows(chosen.file, {"id": str | int, "report": str}, chosen.columns)
    required = {"labels": list} | ({"logits": list} if chosen.logits else {})
    labeler = load_labeler(chosen.labeler, chosen.tokenizer, option="--tokenizer")
    options = functools.cache(lambda: {"labeler": labeler_digests(labeler), "logits": chosen.logits})
    inputs = {row["id"]: row["report"] for row in rows}
    done = rows_kept(chosen.output, inputs, required, options)
    texts = [row["report"] for row in rows]
    line = texts_line([chosen.file], {"reports": len(rows)}, labeler, texts, notes=already(done))
    say_data(line, rows_on_stdout=True)
    if done == len(rows):
        return
    results = label_rows(labeler, rows, done, chosen.batch_size, chosen.logits)
    if jax.process_index() == 0:
        with continued_writer(chosen.output, inputs, options) as write:
            for result in results:
                write(result)
    else:
        for _ in results:
            pass


def parse(arguments: list[str]) -> argparse.Namespace:
    """The command line. Raises UserError for values out of their bounds."""
    parser = Parser("deer label", description=DESCRIPTION, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("file", type=Path, metavar="FILE", help='rows {"id", "report"}, JSONL or Parquet')
    parser.add_argument(
        "--labeler",
        required=True,
        metavar="PATH",
        help="chexbert.pth, a directory of deer train-labeler, or 'phantom' for the one shipped for phantom reports",
    )
    parser.add_argument(
        "--tokenizer", type=Path, metavar="DIR", help="with vocab.txt; of bert-base-uncased for CheXbert"
    )
    parser.add_argument("--logits", action="store_true", help="add the logits of all classes to each row")
    parser.add_argument("--output", type=Path, metavar="FILE.jsonl", help="file to write or resume; default: stdout")
    add_columns(parser)
    add_batch_size(parser, "reports")
    return parser.parse_args(arguments)


def label_rows(
    labeler: Labeler, rows: Sequence[dict[str, Any]], done: int, batch_size: int, logits: bool
) -> Iterator[dict[str, Any]]:
    """Results of the rows from `done` on; at the end a line on standard error says how many reports were cut.

    Under several processes all must exhaust it.
    """
    labeler, local_batch = replicate(labeler), min(batch_size * jax.local_device_count(), len(rows))
    cut = 0
    for chunk in _chunks(len(rows), done, local_batch * BATCHES_AT_ONCE * jax.process_count()):
        whole = read_shared(labeler, [rows[number]["report"] for number in chunk], local_batch)
        cut += whole.cut
        for index, number in enumerate(chunk):
            # Those before it are written by then; of several processes all stop at the same row.
            check_labels(labeler, whole.finite[index : index + 1], [rows[number]["id"]])
            result = {"id": rows[number]["id"], "labels": whole.classes[index].tolist()}
            yield result | ({"logits": logit_lists(labeler, whole.logits[index])} if logits else {})
    if cut and jax.process_index() == 0:
        shown = (
            f"{cut} of {len(rows) - done} reports were longer than the labeler's {labeler.window} tokens and were cut"
        )
        print(shown, file=sys.stderr)


def logit_lists(labeler: Labeler, logits: np.ndarray) -> list[list[float]]:
    """The logits of one text, for each label as many as it has classes."""
    pairs = zip(logits, labeler.config.classes, strict=True)
    return [values[:classes].tolist() for values, classes in pairs]


def _chunks(rows: int, done: int, size: int) -> Iterator[range]:
    """The rows still to do, some at a time; with a progress bar on a terminal."""
    from rich.console import Console
    from rich.progress import track

    console = Console(stderr=True)
    hidden = not console.is_terminal or jax.process_index() > 0
    for start in track(range(done, rows, size), "label", console=console, disable=hidden):
        yield range(start, min(start + size, rows))
