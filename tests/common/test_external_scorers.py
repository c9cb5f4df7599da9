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
    assert set(absent) == {"mine", *KNOWN} - {"green"}
    assert "exited with status 1" in absent["mine"]
    assert absent["radgraph"].startswith('not given; pip install radgraph==0.1.18 "transformers<5", then /')
    assert set(run_scorers([], ROWS)[1]) == set(KNOWN)


def test_each_known_scorer_says_in_its_help_what_to_install():
    for known in KNOWN.values():
        done = subprocess.run(
            [sys.executable, str(SCORERS / known.script), "--help"], capture_output=True, text=True, check=True
        )
        assert f"pip install {known.packages}" in done.stdout


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


BERTSCORE = """
class Tokenizer:
    model_max_length = 10**30

class Column(list):
    def tolist(self):
        return list(self)

class BERTScorer:
    def __init__(self, model_type, num_layers, batch_size, idf, idf_sents, device, lang, rescale_with_baseline,
                 baseline_path):
        assert (num_layers, idf, device, rescale_with_baseline) == (5, True, "cpu", True)
        assert baseline_path.endswith("rescale_baseline/en/distilroberta-base.tsv")
        assert len(idf_sents) == 3
        self._tokenizer = Tokenizer()
        print("loading", model_type)

    def score(self, cands, refs, batch_size):
        assert self._tokenizer.model_max_length == 512
        assert all(text.strip() for text in [*cands, *refs])
        equal = [float(cand == ref) for cand, ref in zip(cands, refs)]
        return Column(equal), Column(equal), Column(value / 2 for value in equal)
"""


def test_the_bertscore_command_knows_the_layer_and_the_baseline_of_a_name(tmp_path):
    package = tmp_path / "bert_score"
    (package / "rescale_baseline" / "en").mkdir(parents=True)
    (package / "rescale_baseline" / "en" / "distilroberta-base.tsv").write_text("")
    (package / "__init__.py").write_text(BERTSCORE)
    (package / "utils.py").write_text("model2layers = {'distilroberta-base': 5}")
    (tmp_path / "config.json").write_text("{}")
    options = ("--model", str(tmp_path), "--rescale", "--idf", "--cpu")
    done = run_script("bertscore_rows.py", tmp_path, *options)
    assert done.returncode == 0, done.stderr
    scores = {row["id"]: row["scores"] for row in map(json.loads, done.stdout.splitlines())}
    assert scores[8] == {"precision": 1.0, "recall": 1.0, "F1": 0.5}
    assert scores["a"] == scores[7] == {"precision": 0.0, "recall": 0.0, "F1": 0.0}
    done = run_script("bertscore_rows.py", tmp_path, *options, "--name", "mine")
    assert (done.returncode, done.stdout) == (2, "")
    assert "knows no layer for it; give it with --layer" in done.stderr


RATESCORE = """
import os

class RaTEScore:
    def __init__(self, bert_model, eval_model, batch_size, use_gpu, affinity_matrix):
        assert (use_gpu, affinity_matrix, os.environ["LOGURU_LEVEL"]) == (False, "long", "ERROR")
        print("loading", bert_model, eval_model)

    def compute_score(self, candidates, references):
        assert all(text.strip() for text in [*candidates, *references])
        return [int(candidate == reference) for candidate, reference in zip(candidates, references)]
"""


def test_the_ratescore_command_keeps_reports_without_a_sentence_apart(tmp_path):
    package = tmp_path / "RaTEScore"
    package.mkdir()
    (package / "__init__.py").write_text(RATESCORE)
    (package / "utils.py").write_text("def sentence_split(texts): return [t for t in texts if t.strip()], []")
    (tmp_path / "config.json").write_text("{}")
    done = run_script("ratescore_rows.py", tmp_path, "--entities", str(tmp_path), "--synonyms", str(tmp_path), "--cpu")
    assert done.returncode == 0, done.stderr
    scores = {row["id"]: row["scores"]["RaTEScore"] for row in map(json.loads, done.stdout.splitlines())}
    assert scores == {"a": 0.0, 7: 0.5, 8: 1.0}


RADEVAL = """
import os
from pathlib import Path

class RadEval:
    def __init__(self, metrics, per_sample, show_progress):
        import nltk
        assert (metrics, per_sample, nltk.download("punkt_tab")) == (["bleu", "bertscore"], True, False)
        hub = Path(os.environ["HF_HOME"], "hub", "models--distilbert-base-uncased")
        revision = (hub / "refs" / "main").read_text()
        assert (hub / "snapshots" / revision / "config.json").read_text() == "{}"
        assert os.environ["HF_HUB_OFFLINE"] == "1"
        print("Computing")

    def __call__(self, refs, hyps):
        return {"bleu": [0.5] * len(refs), "bertscore": [1] * (len(refs) - SHORT)}
"""


@pytest.mark.parametrize("short", [0, 1])
def test_the_radeval_command_shows_models_by_their_names(tmp_path, short):
    (tmp_path / "radeval").mkdir()
    (tmp_path / "radeval" / "__init__.py").write_text(RADEVAL.replace("SHORT", str(short)))
    (tmp_path / "nltk.py").write_text("download = None")
    (tmp_path / "torch.py").write_text("class cuda:\n    is_available = lambda: False")
    (tmp_path / "config.json").write_text("{}")
    metrics = ("--metrics", "bleu", "bertscore")
    done = run_script("radeval_rows.py", tmp_path, *metrics, "--model", f"distilbert-base-uncased={tmp_path}")
    if short:
        assert (done.returncode, done.stdout) == (2, "")
        assert "bertscore: the package gave 2 values for 3 reports" in done.stderr
    else:
        assert done.returncode == 0, done.stderr
        scores = [row["scores"] for row in map(json.loads, done.stdout.splitlines())]
        assert scores == [{"bleu": 0.5, "bertscore": 1}] * 3
    done = run_script("radeval_rows.py", tmp_path, *metrics)
    assert done.returncode == 2
    assert "bertscore needs config.json of distilbert-base-uncased: hf download" in done.stderr
    done = run_script("radeval_rows.py", tmp_path, "--metrics", "radcliq", "--model", f"bert-base-uncased={tmp_path}")
    assert "radcliq needs chexbert.pth of StanfordAIMI/RRG_scorers" in done.stderr


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
