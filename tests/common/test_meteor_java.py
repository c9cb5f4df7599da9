"""METEOR 1.5: its score from the program's statistics, and a program that is absent, fails or does not answer.

tests/parity compares with the program itself, where Java and pycocoevalcap are installed.
"""

import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

from common.errors import UserError
from common.metrics import meteor_java
from common.metrics.meteor_java import JAR_VARIABLE, PARAPHRASES
from common.metrics.text import evaluate_texts, warn_of_absent

PREDICTIONS = ["No pleural effusion or pneumothorax.", "the heart is normal in size .", "no acute bony lesion ."]
REFERENCES = ["no pleural effusions are seen.", "The heart size is normal.", "no acute bony lesion ."]
# What METEOR 1.5 answered for these, and for a report beside them; the last of its numbers are chunks and matches.
ROWS = np.array(
    [
        [6, 6, 3, 3, 1, 1, 2, 2, 1, 1, *[0] * 10, 2, 4, 4],
        [7, 6, 4, 3, 3, 3, 3, 3, *[0] * 12, 4, 6, 6],
        [5, 5, 2, 2, 3, 3, 2, 2, *[0] * 12, 1, 5, 5],
        [7, 9, 3, 4, 2, 2, 1, 1, *[0] * 12, 3, 3, 3],
    ],
    np.float64,
)
SCORES = [0.27067947514598445, 0.4412200030725565, 1.0, 0.15217391304347824]
ALL = 0.3282585165718315

PROGRAM = """#!{python}
import sys, time
rows = {rows}
for number, line in enumerate(sys.stdin):
    kind, reference, prediction = line.split(" ||| ")
    assert kind == "SCORE"
    {answer}
"""
ANSWER = "print(*map(float, rows[number % len(rows)]), flush=True)"


@pytest.fixture
def java(tmp_path, monkeypatch):
    """Put a program of this name first on the path, with the given answer to a line."""
    jar = tmp_path / "meteor-1.5.jar"
    (jar.parent / PARAPHRASES).parent.mkdir()
    for file in (jar, jar.parent / PARAPHRASES):
        file.write_bytes(b"")
    monkeypatch.setenv(JAR_VARIABLE, str(jar))
    monkeypatch.setenv("PATH", str(tmp_path))

    def write(answer: str = ANSWER) -> None:
        program = tmp_path / "java"
        program.write_text(PROGRAM.format(python=sys.executable, rows=ROWS.tolist(), answer=answer))
        program.chmod(0o755)

    return write


def test_the_score_of_a_report_and_of_all_are_the_programs():
    rows = ROWS.copy()
    rows[2, 20] = 0  # the chunk of a copy
    assert meteor_java.score(rows)[:, 0] == pytest.approx(SCORES, abs=1e-12)
    assert meteor_java.score(rows.sum(0))[0] == pytest.approx(ALL, abs=1e-12)
    assert meteor_java.score(np.zeros((2, 23))).tolist() == [[0], [0]]


@pytest.mark.parametrize("convention", ["coco", "all"])
def test_it_is_among_the_coco_scores_where_the_program_is_named(java, convention, monkeypatch):
    java()
    monkeypatch.setenv("MEDREPORT_WORDNET", "nowhere")
    found = evaluate_texts(PREDICTIONS, REFERENCES, convention=convention)
    rows = ROWS[:3].copy()
    rows[2, 20] = 0
    score = found["coco/METEOR"]
    assert score["value"] == pytest.approx(meteor_java.score(rows.sum(0))[0])
    assert score["low"] <= score["value"] <= score["high"]
    assert "coco/METEOR" not in found["notes"]
    assert "coco/METEOR" not in evaluate_texts(["正常"], ["正常"], convention="coco")
    monkeypatch.delenv(JAR_VARIABLE)
    assert "coco/METEOR" not in evaluate_texts(PREDICTIONS, REFERENCES, convention=convention)


def test_texts_are_one_line_each_with_no_separator_of_their_own(java):
    java('assert (reference, prediction) == ("a b c", "d e\\n"), line; print(*[1.0] * 23, flush=True)')
    assert len(meteor_java.meteor_java(["d |||\n e"], ["a\tb\r\n||| c"]).rows) == 1


@pytest.mark.parametrize(
    ("answer", "message"),
    [
        ("sys.exit(1)", "the METEOR program ended, or took more"),
        ("print('Error: specify SCORE or EVAL', flush=True)", "answered with 5 numbers in place of 23"),
        ("time.sleep(60)", "took more than 0 s for a report"),
    ],
)
def test_a_program_that_fails_is_one_line_and_leaves_the_other_scores(java, monkeypatch, answer, message):
    java(answer)
    monkeypatch.setattr(meteor_java, "ANSWER_SECONDS", 0.4 if "sleep" in answer else 60)
    start = time.monotonic()
    found = evaluate_texts(["report text"], ["report text"], convention="coco")
    assert time.monotonic() - start < 30
    assert found["coco/METEOR"] is None
    assert message in found["notes"]["coco/METEOR"]
    assert "report text" not in found["notes"]["coco/METEOR"]
    assert found["coco/BLEU-1"]["value"] == pytest.approx(1)
    assert warn_of_absent({"model": {"coco/METEOR": {"value": None}}}) == ["coco/METEOR is absent: its program failed"]
    java()  # the next reports get a program of their own
    assert evaluate_texts(PREDICTIONS, REFERENCES, convention="coco")["coco/METEOR"]["value"] > 0


def test_what_is_missing_is_named(java, monkeypatch, tmp_path):
    with pytest.raises(UserError, match="needs Java, which is not installed"):
        meteor_java.meteor_java(["a"], ["a"])
    java()
    assert meteor_java.absence() == ""
    (tmp_path / PARAPHRASES).unlink()
    assert str(tmp_path / PARAPHRASES) in meteor_java.absence()
    monkeypatch.setenv(JAR_VARIABLE, "nowhere.jar")
    assert meteor_java.absence().startswith("nowhere.jar: no such file")
    monkeypatch.delenv(JAR_VARIABLE)
    assert JAR_VARIABLE in meteor_java.absence()


def test_the_program_ends_with_the_process_that_started_it(java, tmp_path):
    java(f'open({str(tmp_path / "pid")!r}, "w").write(str(__import__("os").getpid())); ' + ANSWER)
    code = (
        "import os, signal; from common.metrics.meteor_java import meteor_java; meteor_java(['a'], ['b']); "
        "os.kill(os.getpid(), signal.SIGKILL)"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == -9
    pid = int((tmp_path / "pid").read_text())
    for _ in range(100):
        try:
            state = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
        except FileNotFoundError:
            return
        if state == "Z":  # it ended; whoever inherited it has not looked yet
            return
        time.sleep(0.1)
    pytest.fail("the program is still there")
