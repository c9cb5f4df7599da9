"""METEOR 1.5 by its Java program, which the COCO captions toolkit runs (Denkowski and Lavie 2014): coco/METEOR.

English only. Words match exactly, by stem, by WordNet synonym or by a table of paraphrases; unlike nltk's METEOR, which
has other weights and no paraphrases, its score of a corpus comes from the sums of the reports' statistics. The program
gives these statistics; the score is computed from their sums here, so that it has an interval, and equals that of the
program.

The program is computed with where the user names its file, `meteor-1.5.jar` with `data/paraphrase-en.gz` beside it as
the package pycocoevalcap has them, in MEDREPORT_METEOR_JAR. It takes 2 GB of memory and several seconds to start, and
stays for the next reports of this process.
"""

import atexit
import contextlib
import functools
import os
import shutil
import subprocess
import threading
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import IO

import numpy as np
from jaxtyping import Float

from common.errors import UserError
from common.metrics.bootstrap import Measure

JAR_VARIABLE = "MEDREPORT_METEOR_JAR"
PARAPHRASES = "data/paraphrase-en.gz"
ANSWER_SECONDS = 300.0  # for one report; the first waits until the paraphrases are loaded
STATISTICS = 23
# Of English in version 1.5: balance of precision and recall, shape and weight of the penalty, weight of content words.
ALPHA, BETA, GAMMA, DELTA = 0.85, 0.2, 0.6, 0.75
MATCHERS = np.array([1.0, 0.6, 0.8, 0.6])  # exact, stem, synonym, paraphrase

_ONE_AT_A_TIME = threading.Lock()  # answers come in the order of the questions


def wanted() -> bool:
    """Whether the user named the program's file."""
    return bool(os.environ.get(JAR_VARIABLE))


def absence() -> str:
    """Why coco/METEOR cannot be computed, and how it can; "" where it can."""
    jar = Path(os.environ.get(JAR_VARIABLE, ""))
    if not wanted():
        return (
            f"coco/METEOR needs Java, and the path of meteor-1.5.jar in {JAR_VARIABLE}; pip download --no-deps "
            "pycocoevalcap has both the jar and its paraphrases"
        )
    if missing := [file for file in (jar, jar.parent / PARAPHRASES) if not file.is_file()]:
        return f"{missing[0]}: no such file; coco/METEOR needs meteor-1.5.jar and {PARAPHRASES} (set in {JAR_VARIABLE})"
    if shutil.which("java") is None:
        return "coco/METEOR needs Java, which is not installed: install a JRE, such as Debian's default-jre-headless"
    return ""


def meteor_java(predictions: Sequence[str], references: Sequence[str]) -> Measure:
    """coco/METEOR of English texts. Raises UserError where the program is absent, fails or does not answer."""
    if reason := absence():
        raise UserError(reason)
    jar = Path(os.environ[JAR_VARIABLE]).absolute()
    pairs = list(zip(predictions, references, strict=True))
    with _ONE_AT_A_TIME:
        try:
            return Measure(("coco/METEOR",), statistics(_program(jar), pairs), score)
        except BaseException:
            _end(_program(jar))  # it may be in the middle of an answer
            _program.cache_clear()
            raise


def score(totals: Float[np.ndarray, "... 23"]) -> Float[np.ndarray, "... 1"]:
    """METEOR from sums of statistics, as the program's EVAL."""
    length, other, functions, other_functions = (totals[..., index] for index in range(4))
    content, other_content, function, other_function = (totals[..., first:20:4] @ MATCHERS for first in range(4, 8))
    chunks, matches, other_matches = (totals[..., index] for index in range(20, 23))
    precision = _ratio(DELTA * content + (1 - DELTA) * function, DELTA * (length - functions) + (1 - DELTA) * functions)
    recall = _ratio(
        DELTA * other_content + (1 - DELTA) * other_function,
        DELTA * (other - other_functions) + (1 - DELTA) * other_functions,
    )
    mean = _ratio(precision * recall, ALPHA * precision + (1 - ALPHA) * recall)
    return (mean * (1 - GAMMA * _ratio(chunks, (matches + other_matches) / 2) ** BETA))[..., None]


def statistics(program: subprocess.Popen[str], pairs: Sequence[tuple[str, str]]) -> Float[np.ndarray, "N 23"]:
    """The program's statistics of each (prediction, reference), as it adds them up for several.

    Lengths, function words, 4 matches of each matcher, chunks and matches, of the prediction first. Raises UserError
    where the program gives other lines.
    """
    assert program.stdin is not None
    assert program.stdout is not None
    rows = []
    for prediction, reference in pairs:
        line = f"SCORE ||| {_cleaned(reference)} ||| {_cleaned(prediction)}\n"
        with _killed_after(program, ANSWER_SECONDS):
            rows.append(_answer(program.stdin, program.stdout, line))
    found = np.array(rows).reshape(len(rows), STATISTICS)
    # The one chunk of a copy brings no penalty, and is not among those of several reports either.
    found[(found[:, 20] == 1) & (found[:, 21:] == found[:, :2]).all(1), 20] = 0
    return found


def _answer(source: IO[str], sink: IO[str], line: str) -> list[float]:
    try:
        source.write(line)
        source.flush()
        found = sink.readline().split()
    except (OSError, ValueError) as error:  # a pipe that broke or was closed
        raise UserError(f"the METEOR program ended ({error}); is there 2 GB of memory for it?") from error
    if len(found) != STATISTICS:
        said = "ended" if not found else f"answered with {len(found)} numbers in place of {STATISTICS}"
        raise UserError(
            f"the METEOR program {said}, or took more than {ANSWER_SECONDS:.0f} s for a report; is "
            f"{os.environ.get(JAR_VARIABLE)} METEOR 1.5, and is there 2 GB of memory for it?"
        )
    return [float(number) for number in found]


@functools.cache
def _program(jar: Path) -> subprocess.Popen[str]:
    """The program that waits for lines. It ends when this process does, because its input then ends."""
    # Its messages on failure quote the line that it read, which is report text.
    program = subprocess.Popen(
        ["java", "-Xmx2G", "-Dfile.encoding=UTF-8", "-jar", str(jar), "-", "-", "-stdio", "-l", "en", "-norm"],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        encoding="utf-8",
        errors="replace",
    )
    atexit.register(_end, program)
    return program


def _end(program: subprocess.Popen[str]) -> None:
    program.kill()
    for stream in (program.stdin, program.stdout):
        assert stream is not None
        with contextlib.suppress(OSError):  # what was not written yet has nobody to read it
            stream.close()
    program.wait()


@contextlib.contextmanager
def _killed_after(program: subprocess.Popen[str], seconds: float) -> Iterator[None]:
    """Kill the program unless the block ends in time, which ends a read or write that waits for it."""
    timer = threading.Timer(seconds, program.kill)
    timer.daemon = True
    timer.start()
    try:
        yield
    finally:
        timer.cancel()


def _cleaned(text: str) -> str:
    """A text as one field of the program's line, as the COCO toolkit has it."""
    return " ".join(text.replace("|||", "").split())


def _ratio(above: np.ndarray, below: np.ndarray) -> np.ndarray:
    return np.where(below > 0, above / np.where(below > 0, below, 1), 0.0)
