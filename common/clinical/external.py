"""Scorers in separate environments, such as GREEN and RadGraph: JSONL rows in, JSONL scores out.

A scorer is a command supplied by the user. It reads rows `{"id", "prediction", "reference", "language"}` on standard
input (and in the file whose path replaces `{rows}` among its arguments), and writes a row `{"id", "scores": {name:
number}}` for each, in any order, to standard output. Its standard error is shown. `common/clinical/scorers` holds such
commands for the public packages.
"""

import shlex
import shutil
import subprocess
import tempfile
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Float

from common.errors import UserError
from common.io.jsonl import read_jsonl, write_rows
from common.io.terminal import printable

SCORERS = Path(__file__).parent / "scorers"
NOT_GIVEN = "not given; "  # how the reason begins of a known scorer that nobody asked for

GIVEN = ("id", "prediction", "reference", "language")
LARGEST = float(np.finfo(np.float32).max)  # of a score: sums and means of larger ones would not be finite
RESERVED = (
    *("intervals", "constant_report", "distinct_outputs", "count", "language", "notes"),
    *("without_positive_label", "labeler", "unknown_to_labeler"),
)

Scores = dict[str, Float[np.ndarray, " N"]]


class Known(NamedTuple):
    """A public scorer: its file in `scorers`, whose --help says how it is used, and what pip installs for it."""

    script: str
    packages: str

    @property
    def absence(self) -> str:
        """Why it is absent where it was not given, and how to get it."""
        return f"{NOT_GIVEN}pip install {self.packages}, then {SCORERS / self.script} --help"


_RADEVAL = Known("radeval_rows.py", 'RadEval==2.2.1 "scikit-learn<1.9" "numpy<2"')
KNOWN = {
    "green": Known("green_rows.py", "green_score==0.0.12"),
    "radgraph": Known("radgraph_rows.py", 'radgraph==0.1.18 "transformers<5"'),
    "bertscore": Known("bertscore_rows.py", 'bert-score==0.3.13 "transformers<5"'),
    "ratescore": Known("ratescore_rows.py", 'RaTEScore==0.6.0 medspacy "numpy<2" torch transformers pandas tiktoken'),
    "radeval": _RADEVAL,
    "radcliq": _RADEVAL,
    "sembscore": _RADEVAL,
}


@dataclass(frozen=True)
class Scorer:
    """A command, and the name that its scores go by: `name/score`."""

    name: str
    command: tuple[str, ...]


def parse_scorers(texts: Iterable[str]) -> list[Scorer]:
    """Scorers of options NAME=COMMAND, the command quoted as for a shell. Raises UserError for any other form."""
    scorers: list[Scorer] = []
    for text in texts:
        name, separator, command = text.partition("=")
        try:
            arguments = shlex.split(command)
        except ValueError as error:
            raise UserError(f"scorer {text}: {error}; quote the command as for a shell") from error
        if not separator or not name.strip() or "/" in name or not arguments:
            raise UserError(f"scorer {text}: expected NAME=COMMAND, a name without /, such as 'green=python ...'")
        if name.strip() in RESERVED:
            raise UserError(f"scorer {text}: {name.strip()} is a field of the result; choose another name")
        scorers.append(Scorer(name.strip(), tuple(arguments)))
    names = [scorer.name for scorer in scorers]
    if repeated := [name for name in names if names.count(name) > 1]:
        raise UserError(
            f"scorer {repeated[0]}: given {names.count(repeated[0])} times; give each scorer a different name"
        )
    return scorers


def check_programs(scorers: Sequence[Scorer]) -> None:
    """Raise UserError, before anything is scored, where a command names a program that is not there."""
    for scorer in scorers:
        if shutil.which(scorer.command[0]) is None:
            raise UserError(
                f"scorer {scorer.name}: program {printable(scorer.command[0])} not found; install it, or give its path"
            )


def run_scorers(
    scorers: Sequence[Scorer], rows: Sequence[Mapping[str, Any]]
) -> tuple[dict[str, Scores], dict[str, str]]:
    """The scores of every scorer by its name, and why others are absent: those that failed, and the known ones.

    One that fails takes no other result with it.
    """
    scores: dict[str, Scores] = {}
    absent = {
        name: known.absence
        for name, known in KNOWN.items()
        if not any(scorer.name.lower().startswith(name) for scorer in scorers)
    }
    for scorer in scorers:
        try:
            scores[scorer.name] = run_scorer(scorer, rows)
        except UserError as error:
            absent[scorer.name] = str(error)
    return scores, absent


def run_scorer(scorer: Scorer, rows: Sequence[Mapping[str, Any]]) -> Scores:
    """Each score of the scorer for every row, in the order of the rows.

    Raises UserError where the command cannot be run or fails, or its output is not one row of finite numbers for each
    id, the same names in all.
    """
    with tempfile.TemporaryDirectory(prefix="medreport-scorer-") as folder:
        given, answer = Path(folder, "rows.jsonl"), Path(folder, "scores.jsonl")
        write_rows(given, ({key: row[key] for key in GIVEN if key in row} for row in rows))
        command = [part.replace("{rows}", str(given)) for part in scorer.command]
        try:
            with given.open("rb") as source, answer.open("wb") as sink:
                status = subprocess.run(command, stdin=source, stdout=sink, check=False).returncode
        except OSError as error:
            raise UserError(f"{command[0]} cannot be run ({error.strerror}); expected a program") from error
        if status:
            raise UserError(f"{command[0]} exited with status {status}; see its messages above")
        try:
            found = read_jsonl(answer, {"id": str | int, "scores": dict})
        except UserError as error:
            raise UserError(str(error).replace(str(answer), "its output")) from error
    return _checked(found, [row["id"] for row in rows])


def _checked(found: list[dict[str, Any]], ids: list[str | int]) -> Scores:
    scores = {row["id"]: row["scores"] for row in found}
    missing = [id for id in ids if id not in scores]
    if missing or len(scores) > len(ids):
        unknown = list(scores.keys() - set(ids))
        wrong = f"id {missing[0]!r} is missing" if missing else f"id {unknown[0]!r} was not asked for"
        raise UserError(f"its output has {len(scores)} rows for {len(ids)} reports: {wrong}")
    names = list(scores[ids[0]])
    for id in ids:
        if not names or scores[id].keys() != set(names):
            raise UserError(f"its output, id {id!r}: expected the same scores in every row, at least one")
        for name, value in scores[id].items():
            if not isinstance(value, int | float) or isinstance(value, bool) or not abs(value) <= LARGEST:
                raise UserError(
                    f"its output, id {id!r}: score {name!r} is not a finite number of at most {LARGEST:.1g}"
                )
    return {name: np.array([scores[id][name] for id in ids], np.float64) for name in names}
