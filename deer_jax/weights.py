"""`deer weights`: the token weights of given rollouts, outside training."""

import argparse
import functools
import sys
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from common.bounds import FINITE, bounded
from common.clinical import labeler as wordpiece
from common.clinical.labeler import Labeler, encode, is_wordpiece, labeler_digests, load_labeler, texts_line
from common.data.summary import already, data_line, say_data
from common.data.tokenizers import load_tokenizer
from common.devices import say_devices
from common.errors import Parser, UserError
from common.io.fingerprints import function_record, tokenizer_record
from common.io.functions import load_function
from common.io.jsonl import SURROGATE, read_jsonl
from common.io.locks import locked_file
from common.options import Needs, check_options
from deer_jax.resumable import continued_writer, rows_kept
from deer_jax.rewarding import score_function
from deer_jax.token_weights import (
    STRENGTH,
    Group,
    Rollout,
    ScoreFunction,
    checked_scores,
    read_rollout,
    weights_of,
)

TOGETHER = 16  # rows whose rollouts go through the labeler at once

DESCRIPTION = """Token weights w = 1 + strength * score of rollouts (DEER Eq. 8 and 12). Rows {"id", "reference",
"rollouts": [text, ...]} become, in order, rows {"id", "rollouts": [{"text", "tokens", "token_ids", "spans", "scores",
"weights"}, ...]}: lists with an entry for each token, spans being [start, end) in characters of "text"."""


NEEDS = (
    Needs("labeler", "method", lambda method: method == "gradient" or ":" in method, "--method gradient"),
    Needs("labeler_tokenizer", "labeler", bool, "--labeler PATH"),
    Needs("uncertain", "method", ("gradient",)),
    Needs("strength", "method", lambda method: method != "uniform", "--method tfidf or gradient"),
)


def main(arguments: list[str]) -> None:
    """Run the command. Raises UserError for whatever is wrong with its input."""
    parser = Parser("deer weights", description=DESCRIPTION)
    parser.add_argument("file", type=Path, metavar="FILE.jsonl")
    parser.add_argument(
        "--method",
        default="gradient",
        help=f"{', '.join(STRENGTH)} (default: %(default)s), or module:function of your own scores",
    )
    parser.add_argument("--labeler", metavar="PATH", help="for gradient: chexbert.pth, a labeler's directory, phantom")
    parser.add_argument("--tokenizer", type=Path, metavar="DIR", required=True, help="of the policy")
    parser.add_argument(
        "--labeler-tokenizer",
        type=Path,
        metavar="DIR",
        help="with the labeler's vocab.txt; default: next to it, or in the --tokenizer directory",
    )
    parser.add_argument(
        "--strength", type=bounded(FINITE, float), help="default: 4 for tfidf, 1 for gradient and for your own"
    )
    parser.add_argument("--uncertain", action="store_true", help="gradient: add the logits of the uncertain class")
    parser.add_argument("--output", type=Path, metavar="FILE.jsonl", help="file to write or resume; default: stdout")
    chosen = parser.parse_args(arguments)
    check_options(chosen, arguments, NEEDS, "deer weights")
    with locked_file(chosen.output):
        weigh_file(chosen)


def weigh_file(chosen: argparse.Namespace) -> None:
    """Write, or go on writing, the weights that the parsed command line asks for. Raises UserError."""
    rows = read_rollout_rows(chosen.file)
    strength = STRENGTH.get(chosen.method, 1.0) if chosen.strength is None else chosen.strength
    labeler = None
    own = ":" in chosen.method
    if chosen.labeler is not None and (own or chosen.method == "gradient"):
        labeler = load_labeler(
            chosen.labeler, chosen.labeler_tokenizer, option="--labeler-tokenizer", policy=chosen.tokenizer
        )
        say_devices()
    read, stop_ids = rollout_reader(chosen.tokenizer)
    if own:
        scores: ScoreFunction = load_function(chosen.method, "--method")
    else:
        scores = score_function(chosen.method, labeler, stop_ids, chosen.uncertain)
    options = functools.cache(functools.partial(row_options, chosen, strength, labeler, scores if own else None))
    inputs = {row["id"]: [row["reference"], row["rollouts"]] for row in rows}
    done = rows_kept(chosen.output, inputs, {"rollouts": list}, options)
    say_data(rollouts_line(chosen.file, rows, labeler, done, rollouts=not own), rows_on_stdout=True)
    if done == len(rows):
        return
    with continued_writer(chosen.output, inputs, options) as write:
        for start in range(done, len(rows), TOGETHER):
            for result in weigh(rows[start : start + TOGETHER], read, labeler, scores, strength, chosen.method):
                write(result)
    if labeler is not None:
        say_cut(labeler, rows[done:], rollouts=not own)


def row_options(
    chosen: argparse.Namespace, strength: float, labeler: Labeler | None, scores: ScoreFunction | None
) -> dict[str, Any]:
    """What decides what is written of a row, by content; `scores` are the user's own."""
    options = {name: getattr(chosen, name) for name in ("method", "uncertain")} | {"strength": strength}
    return options | {
        "source": None if scores is None else function_record(scores),
        "labeler": None if labeler is None else labeler_digests(labeler),
        "tokenizer": tokenizer_record(chosen.tokenizer),
    }


def read_rollout_rows(file: Path) -> list[dict[str, Any]]:
    """The rows {"id", "reference", "rollouts"} of a file, each with a rollout at least. Raises UserError."""
    rows = read_jsonl(file, {"id": str | int, "reference": str, "rollouts": list})
    for row in rows:
        if not row["rollouts"] or not all(isinstance(text, str) for text in row["rollouts"]):
            raise UserError(f"{file}, id {row['id']!r}: 'rollouts' must be a list of texts, at least one")
        if any(map(SURROGATE.search, row["rollouts"])):
            raise UserError(
                f"{file}, id {row['id']!r}: 'rollouts' contains an unpaired surrogate escape; expected text"
            )
    return rows


def rollouts_line(
    file: Path, rows: Sequence[dict[str, Any]], labeler: Labeler | None, done: int = 0, rollouts: bool = True
) -> str:
    """The line that names a file of rollouts; what is cut and unknown is told where a labeler reads them."""
    counts = {"studies": len(rows), "rollouts": sum(len(row["rollouts"]) for row in rows)}
    if labeler is None:
        return data_line([file], "rows", counts, notes=already(done))
    texts = [row["reference"] for row in rows]
    if rollouts:
        texts += [text for row in rows for text in row["rollouts"]]
    return texts_line([file], counts, labeler, texts, notes=already(done))


def say_cut(labeler: Labeler, rows: Sequence[dict[str, Any]], rollouts: bool) -> None:
    """Say on standard error how many texts were longer than the labeler's window; of rollouts where it reads them."""
    texts = {"references": [row["reference"] for row in rows]}
    if rollouts:
        texts["rollouts"] = [text for row in rows for text in row["rollouts"]]
    counts = {name: sum(encode(labeler, own).cut) for name, own in texts.items()}
    if any(counts.values()):
        shown = " and ".join(f"{cut} of {len(texts[name])} {name}" for name, cut in counts.items())
        print(f"{shown} were longer than the labeler's {labeler.window} tokens and were cut", file=sys.stderr)


def weigh(
    rows: Sequence[dict[str, Any]],
    read: Callable[[str], Rollout],
    labeler: Labeler | None,
    scores: ScoreFunction,
    strength: float,
    method: str,
) -> Iterator[dict[str, Any]]:
    """The result of each row."""
    groups = read_groups(rows, read, labeler)
    found = checked_scores(scores(groups), groups, f"--method {method}")
    for row, group, values, weights in zip(rows, groups, found, weights_of(found, strength), strict=True):
        rollouts = zip(group.rollouts, values, weights, strict=True)
        yield {"id": row["id"], "rollouts": [_shown(*rollout) for rollout in rollouts]}


def read_groups(rows: Sequence[dict[str, Any]], read: Callable[[str], Rollout], labeler: Labeler | None) -> list[Group]:
    """The rows' rollouts as groups, with the labels of their references where there is a labeler."""
    expected: Any = [()] * len(rows)
    if labeler is not None:
        ids = [row["id"] for row in rows]
        expected = labeler.label([row["reference"] for row in rows], ids).classes
    return [
        Group(row["reference"], [read(text) for text in row["rollouts"]], classes, row["id"])
        for row, classes in zip(rows, expected, strict=True)
    ]


def _shown(rollout: Rollout, scores: np.ndarray, weights: np.ndarray) -> dict[str, Any]:
    spans = np.asarray(rollout.spans).tolist()
    return {
        "text": rollout.text,
        "tokens": [rollout.text[start:end] for start, end in spans],
        "token_ids": list(rollout.tokens),
        "spans": spans,
        "scores": scores.tolist(),
        "weights": weights.tolist(),
    }


def rollout_reader(directory: Path) -> tuple[Callable[[str], Rollout], tuple[int, ...]]:
    """What tokenises a text as the policy's tokenizer does, and the ids that end a report.

    A WordPiece tokenizer is read as the labeler reads it. Raises UserError.
    """
    if is_wordpiece(directory):
        pieces = wordpiece.load_tokenizer(directory)

        def read_pieces(text: str) -> Rollout:
            encoding = pieces.encode(text, add_special_tokens=False)
            return Rollout(encoding.ids, text, np.array(encoding.offsets, np.int64).reshape(-1, 2))

        return read_pieces, ()
    tokenizer = load_tokenizer(directory)

    def read(text: str) -> Rollout:
        rollout = read_rollout(tokenizer.encode(text), tokenizer)
        if rollout.text == " " + text:  # some tokenizers put a space before every text
            return rollout._replace(text=text, spans=np.maximum(np.asarray(rollout.spans) - 1, 0))
        return rollout

    return read, tokenizer.stop_ids
