"""Scorers of other environments: the protocol, what goes wrong with them, and the commands for the public packages."""

import json
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

from common.clinical.external import KNOWN, SCORERS, Scorer, parse_scorers, run_scorer, run_scorers
from common.errors import UserError

ROWS = [
    {"id": "a", "prediction": "Heart size is normal — 2.5 cm\nnodule.", "reference": "Normal.", "other": 1},
    {"id": 7, "prediction": "", "reference": "No effusion."},
]
# Scores of a row: the characters of its prediction, and whether it equals its reference.
LENGTHS = """
import json, sys
rows = [json.loads(line) for line in SOURCE]
for row in reversed(rows):
    assert sorted(row) == ["id", "prediction", "reference"]
    scores = {"length": len(row["prediction"]), "equal": float(row["prediction"] == row["reference"])}
    print(json.dumps({"id": row["id"], "scores": scores}))
"""


def scorer(code: str, *arguments: str) -> Scorer:
    return Scorer("mine", (sys.executable, "-c", code, *arguments))


@pytest.mark.parametrize("source", ["sys.stdin", "open(sys.argv[1], encoding='utf-8')"])
def test_rows_go_in_and_scores_come_back_in_their_order(source):
    found = run_scorer(scorer(LENGTHS.replace("SOURCE", source), "{rows}"), ROWS)
    assert {name: values.tolist() for name, values in found.items()} == {
        "length": [len(ROWS[0]["prediction"]), 0],
        "equal": [0, 0],
    }


def printing(*lines: str) -> Scorer:
    return scorer(f"print({chr(10).join(lines)!r})")


GOOD = '{"id": "a", "scores": {"x": 1}}'


@pytest.mark.parametrize(
    ("broken", "message"),
    [
        (scorer("import sys; sys.exit(3)"), "exited with status 3"),
        (Scorer("mine", ("/nowhere/scorer",)), "/nowhere/scorer cannot be run"),
        (printing(), "its output: no rows"),
        (printing(GOOD), "1 rows for 2 reports: id 7 is missing"),
        (printing(GOOD, '{"id": "7", "scores": {"x": 1}}'), "id 7 is missing"),
        (printing(GOOD, GOOD), "its output, line 2: id 'a' duplicates line 1"),
        (printing(GOOD, '{"id": 7, "scores": {"x": 1}}', '{"id": 8, "scores": {"x": 1}}'), "id 8 was not asked for"),
        (printing(GOOD, '{"id": 7, "scores": {"x": NaN}}'), "its output, line 2: not JSON .NaN is not a JSON"),
        (printing(GOOD, '{"id": 7, "scores": {"x": -Infinity}}'), "not JSON .-Infinity is not a JSON number"),
        (printing(GOOD, '{"id": 7, "scores": {"x": 1e999}}'), "not JSON .the number 1e999 is too large"),
        (printing(GOOD, '{"id": 7, "scores": {"x": null}}'), "id 7: score 'x' is not a finite number"),
        (printing(GOOD, '{"id": 7, "scores": {"x": true}}'), "is not a finite number"),
        (printing(GOOD, '{"id": 7, "scores": {"x": 1e300}}'), "is not a finite number of at most 3e"),
        (printing(GOOD, '{"id": 7, "scores": {"x": 1' + "0" * 400 + "}}"), "is not a finite number"),
        (printing(GOOD, '{"id": 7, "scores": {"y": 1}}'), "the same scores in every row"),
        (printing(GOOD, '{"id": 7, "scores": {}}'), "the same scores in every row"),
        (printing(GOOD, '{"id": 7, "scores": [1]}'), "its output, line 2: 'scores' must be dict"),
        (printing("loading the model ...", GOOD), "its output, line 1: not JSON"),
    ],
)
def test_what_a_scorer_does_wrong_is_named(broken, message):
    with pytest.raises(UserError, match=message):
        run_scorer(broken, ROWS)


def test_one_scorer_that_fails_takes_no_other_with_it():
    good = Scorer("GREEN-7b", scorer(LENGTHS.replace("SOURCE", "sys.stdin")).command)
    scores, absent = run_scorers([scorer("raise SystemExit(1)"), good], ROWS)
    assert set(scores) == {"GREEN-7b"}
    assert set(absent) == {"mine", "radgraph"}
    assert "exited with status 1" in absent["mine"]
    assert str(KNOWN["radgraph"]) in absent["radgraph"]
    assert set(run_scorers([], ROWS)[1]) == {"green", "radgraph"}


def test_commands_are_split_as_a_shell_would_and_run_without_one():
    (parsed,) = parse_scorers(["radgraph=/envs/rad graph/python 'a b.py' --key=value '$HOME' {rows}"])
    assert parsed == Scorer("radgraph", ("/envs/rad", "graph/python", "a b.py", "--key=value", "$HOME", "{rows}"))


@pytest.mark.parametrize(
    ("texts", "message"),
    [
        (["green"], "expected NAME=COMMAND"),
        (["green="], "expected NAME=COMMAND"),
        (["=python x.py"], "expected NAME=COMMAND"),
        (["a/b=python x.py"], "expected NAME=COMMAND"),
        (["green=python 'x.py"], "quote the command"),
        (["green=a", "green=b"], "green: given 2 times"),
        (["notes=a"], "is a field of the result"),
    ],
)
def test_bad_options_are_refused(texts, message):
    with pytest.raises(UserError, match=message):
        parse_scorers(texts)


# Modules with the interface of the public packages, which print to standard output as those do.
RADGRAPH = """
import os
from pathlib import Path

class F1RadGraph:
    def __init__(self, reward_level, model_type, model_cache_dir, cuda=None):
        assert (reward_level, os.environ["HF_HUB_OFFLINE"], cuda) == ("all", "1", -1)
        self.model = Path(model_cache_dir, model_type)
        assert (self.model / "weights.th").read_text() == "weights"
        print("Using device: cpu")

    def __call__(self, hyps, refs):
        assert all(text.strip() for text in [*hyps, *refs])
        config = (self.model / "config.json").read_text()
        assert config.count("/bert") == 2, config
        equal = [float(hyp == ref) for hyp, ref in zip(hyps, refs)]
        return None, (equal, [value / 2 for value in equal], [value / 4 for value in equal]), [], []
"""
GREEN = """
class Table(list):
    def to_dict(self, orient):
        return list(self) if orient == "records" else None

class GREEN:
    def __init__(self, model_name, output_dir, cpu, compute_summary_stats):
        assert cpu and not compute_summary_stats
        print("loading", model_name)

    def __call__(self, refs, hyps):
        kinds = {"(a) False report": 1, "(b) Missing": 2}
        rows = [
            {"predictions": hyp, "green_analysis": "[Matched Findings]: 1" if hyp.strip() else "?", **kinds}
            | {"Matched Findings": int(hyp == ref)}
            for hyp, ref in zip(hyps, refs)
        ]
        return None, None, [], None, Table(rows)
"""


def run_script(name: str, modules: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    rows = [*ROWS[:1], {"id": 7, "prediction": " ", "reference": "x"}, {"id": 8, "prediction": "y", "reference": "y"}]
    return subprocess.run(
        [sys.executable, str(SCORERS / name), *arguments],
        input="\n".join(map(json.dumps, rows)),
        env={"PYTHONPATH": str(modules)},
        capture_output=True,
        text=True,
        check=False,
    )


def test_the_radgraph_command_names_the_levels(tmp_path):
    (tmp_path / "radgraph.py").write_text(RADGRAPH)
    weights = tmp_path / "weights"
    (weights / "vocabulary").mkdir(parents=True)
    (weights / "weights.th").write_text("weights")
    bert = {"bert": {"model_name": "hub/name"}}
    config = {"dataset_reader": {"token_indexers": bert}, "model": {"embedder": {"token_embedders": bert}}}
    (weights / "config.json").write_text(json.dumps(config))
    options = ("--weights", str(weights), "--bert", str(tmp_path / "bert"), "--cpu")
    done = run_script("radgraph_rows.py", tmp_path, *options)
    assert done.returncode == 0, done.stderr
    scores = {row["id"]: row["scores"] for row in map(json.loads, done.stdout.splitlines())}
    assert scores[8] == {"simple": 1.0, "partial": 0.5, "complete": 0.25}
    assert scores["a"] == scores[7] == {"simple": 0.0, "partial": 0.0, "complete": 0.0}
    assert "radgraph: 2 of 2 reports" in done.stderr


def test_the_green_command_is_matched_over_matched_and_errors(tmp_path):
    (tmp_path / "green_score.py").write_text(GREEN)
    (tmp_path / "model").mkdir()
    (tmp_path / "model" / "config.json").write_text("{}")
    done = run_script("green_rows.py", tmp_path, "--weights", str(tmp_path / "model"), "--cpu")
    assert done.returncode == 0, done.stderr
    scores = {row["id"]: row["scores"] for row in map(json.loads, done.stdout.splitlines())}
    assert scores == {
        "a": {"GREEN": 0.0, "matched": 0, "significant_errors": 3, "unreadable": 0.0},
        7: {"GREEN": 0.0, "matched": 0, "significant_errors": 3, "unreadable": 1.0},
        8: {"GREEN": 0.25, "matched": 1, "significant_errors": 3, "unreadable": 0.0},
    }


@pytest.mark.parametrize("script", ["radgraph_rows.py", "green_rows.py"])
def test_the_commands_need_their_weights(tmp_path, script):
    done = run_script(script, tmp_path, "--weights", str(tmp_path / "nothing"))
    assert done.returncode == 2
    assert "has no config.json" in done.stderr


def test_a_missing_package_leaves_the_scorer_absent(tmp_path):
    (tmp_path / "config.json").write_text("{}")
    command = shlex.join([sys.executable, "-S", str(SCORERS / "green_rows.py"), "--weights", str(tmp_path)])
    _, absent = run_scorers(parse_scorers([f"green={command}"]), ROWS)
    assert "exited with status 1" in absent["green"]
