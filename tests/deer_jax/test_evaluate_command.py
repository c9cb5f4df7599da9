"""`deer evaluate` on a small random labeler: every convention, the constant report, scorers, one line on bad input."""

import json
import shlex
import subprocess
import sys

import jax
import numpy as np
import pytest
import torch
from safetensors.numpy import load_file
from sklearn.metrics import f1_score

from common.clinical.external import Scorer
from common.clinical.labeler import Labeler, label_texts, save_vocabulary, train_tokenizer
from common.clinical.score_command import evaluate as evaluate_as_texts
from common.errors import UserError
from common.metrics.baselines import constant_report
from common.metrics.clinical import COMPETITION, FINDINGS
from common.models.bert import BertConfig, ClassifierConfig, init_classifier
from common.models.bert_weights import save_classifier
from deer_jax.evaluate import evaluate_predictions, main
from tests.hosts import on_hosts

WORDS = [
    "small",
    "large",
    "left",
    "pleural",
    "effusion",
    "edema",
    "heart",
    "lung",
    "opacity",
    "catheter",
    "clear",
    "no",
]


def report(generator: np.random.Generator) -> str:
    return " ".join(generator.choice(WORDS, generator.integers(2, 9)))


def make_rows(count: int = 40) -> list[dict]:
    generator = np.random.default_rng(0)
    rows = [
        {"id": f"s{index}", "prediction": report(generator), "reference": report(generator)} for index in range(count)
    ]
    for row in rows[: count // 4]:
        row["prediction"] = row["reference"]
    rows[-1]["prediction"] = ""
    return rows


def make_labeler(labels: tuple[str, ...] = FINDINGS) -> Labeler:
    tokenizer = train_tokenizer([" ".join(WORDS)], 120)
    encoder = BertConfig(tokenizer.get_vocab_size(), 32, 1, 2, 32, max_position_embeddings=48)
    classes = (*(4,) * (len(labels) - 1), 2)
    config = ClassifierConfig(encoder, labels, classes)
    params = init_classifier(config, jax.random.key(0))
    # Ten times the usual spread, so that the classes of random weights depend on the text.
    return Labeler(config, jax.tree.map(lambda leaf: leaf * 10 if leaf.ndim > 1 else leaf, params), tokenizer)


@pytest.fixture(scope="module")
def labeler() -> Labeler:
    return make_labeler()


@pytest.fixture
def files(labeler, tmp_path):
    (tmp_path / "labeler").mkdir()
    save_classifier(tmp_path / "labeler", labeler.config, labeler.params)
    save_vocabulary(tmp_path / "labeler" / "vocab.txt", labeler.tokenizer)
    path = tmp_path / "predictions.jsonl"
    path.write_text("\n".join(map(json.dumps, make_rows())), encoding="utf-8")
    return ["--predictions", str(path), "--labeler", str(tmp_path / "labeler")]


def test_two_hosts_write_the_scores_of_one(files, tmp_path):
    alone, together = ([*files, "--output", str(tmp_path / name)] for name in ("alone.json", "together.json"))
    main(alone)
    codes, said = on_hosts("deer_jax.cli", [["evaluate", *together, "--batch-size", "3"]] * 2)
    assert codes == [0, 0], said
    assert (tmp_path / "together.json").read_bytes() == (tmp_path / "alone.json").read_bytes()
    assert not [line for line in said[1].splitlines() if line.startswith(("data:", "note:"))]


def expected_scores(predicted: np.ndarray, expected: np.ndarray) -> dict[str, float]:
    """One score of each convention, by scikit-learn."""
    sure, known = predicted == 1, expected == 1
    maybe, suspected = np.isin(predicted, (1, 3)), np.isin(expected, (1, 3))
    five = [FINDINGS.index(name) for name in COMPETITION]
    by_name = {
        "promptmrg/F1": (known, sure, "samples"),
        "r2gen/micro-F1": (known, sure, "micro"),
        "r2gen/macro-F1": (known, sure, "macro"),
        "macro/F1": (known, sure, "macro"),
        "f1chexbert-14/weighted-F1": (suspected, maybe, "weighted"),
        "f1chexbert-5/micro-F1": (suspected[:, five], maybe[:, five], "micro"),
    }
    scores = {
        name: f1_score(true, said, average=average, zero_division=0) for name, (true, said, average) in by_name.items()
    }
    each = f1_score(known, sure, average=None, zero_division=0)
    return scores | {f"finding/{name}": score for name, score in zip(FINDINGS, each, strict=True)}


def test_every_convention_is_scored_with_intervals_and_the_constant_report(labeler):
    rows = make_rows()
    result = evaluate_predictions(rows, labeler)
    predictions, references = [row["prediction"] for row in rows], [row["reference"] for row in rows]
    predicted, expected = (label_texts(labeler, texts).classes for texts in (predictions, references))
    assert len(np.unique(expected, axis=0)) > 5
    scores = expected_scores(predicted, expected)
    assert {name: result[name] for name in scores} == pytest.approx(scores, abs=1e-12)
    always = label_texts(labeler, [constant_report(references)] * len(rows)).classes
    baseline = expected_scores(always, expected)
    assert {name: result["constant_report"][name] for name in baseline} == pytest.approx(baseline, abs=1e-12)
    assert {*scores} <= {*result["intervals"]}
    low, high = result["intervals"]["promptmrg/F1"]
    assert 0 < low < result["promptmrg/F1"] < high < 1
    assert (result["count"], result["distinct_outputs"]) == (40, len(set(predictions)) / 40)
    assert result["without_positive_label"]["references"] == (expected != 1).all(1).mean()


def test_text_metrics_are_those_of_the_metrics_command(labeler):
    rows = make_rows()
    result = evaluate_predictions(rows, labeler)
    text = evaluate_as_texts(rows, "en", "all")
    assert {key: result[key] for key in text if "/" in key} == {key: text[key] for key in text if "/" in key}
    assert text["intervals"].items() <= result["intervals"].items()
    assert text["constant_report"].items() <= result["constant_report"].items()


def test_each_report_is_scored_and_given_to_scorers_in_its_language(labeler):
    rows = [
        {"id": "zh", "prediction": "双肺纹理清晰。", "reference": "双肺纹理清晰。"},
        {"id": "en", "prediction": "no edema", "reference": "no edema"},
    ]
    code = SCORER.replace('float(row["prediction"] == row["reference"])', 'float(row["language"] == row["id"])')
    result = evaluate_predictions(rows, labeler, scorers=[Scorer("mine", (sys.executable, "-c", code))])
    assert result["language"] == {"en": 1, "zh": 1}
    assert result["zh/coco/ROUGE-L"] == result["en/coco/ROUGE-L"] == 1
    assert result["constant_report"]["zh/coco/ROUGE-L"] == 1
    assert result["mine/partial"] == 1
    assert result["notes"]["unknown_to_labeler"].startswith("1 different texts have words")
    forced = evaluate_predictions(rows, labeler, "en")
    assert forced["notes"]["language"].startswith("1 of 2 reports are not in en")


def test_absent_scorers_and_cut_texts_are_in_the_notes(labeler):
    rows = make_rows(4)
    rows[0]["prediction"] = rows[1]["prediction"] = "no edema " * 30
    result = evaluate_predictions(rows, labeler)
    assert result["green"] is None
    assert result["radgraph"] is None
    assert {"green", "radgraph"} <= set(result["notes"])
    assert result["notes"]["labeler"].startswith("1 different texts were longer than the labeler's 48 tokens")
    assert "labeler" not in evaluate_predictions(make_rows(4)[2:], labeler)["notes"]


def test_a_labeler_of_other_labels_is_refused():
    with pytest.raises(UserError, match="clinical scores need CheXbert's 14, so give CheXbert"):
        evaluate_predictions(make_rows(2), make_labeler(("Effusion", "Nodule")))


SCORER = """
import json, sys
for row in map(json.loads, sys.stdin):
    print(json.dumps({"id": row["id"], "scores": {"partial": float(row["prediction"] == row["reference"])}}))
"""


def test_the_command_prints_one_object_with_the_scores_of_scorers(files, tmp_path, capsys):
    output = tmp_path / "metrics.json"
    radgraph = "radgraph=" + shlex.join([sys.executable, "-c", SCORER])
    broken = "other=" + shlex.join([sys.executable, "-c", "raise SystemExit(4)"])
    main([*files, "--external", radgraph, "--external", broken, "--output", str(output)])
    printed = capsys.readouterr()
    result = json.loads(printed.out)
    assert json.loads(output.read_text()) == result
    assert list(result)[:1] == ["coco/BLEU-1"]
    assert list(result).index("radgraph/partial") < list(result).index("intervals")
    assert result["radgraph/partial"] == 10 / 40
    low, high = result["intervals"]["radgraph/partial"]
    assert low < 10 / 40 < high
    assert result["other"] is None
    assert "exited with status 4" in result["notes"]["other"]
    assert "radgraph" not in result["notes"]
    assert "note: other: " in printed.err
    assert "note: scorers not given: green, bertscore, ratescore, " in printed.err
    assert result["notes"]["green"].startswith("not given; pip install green_score")


def test_a_labeler_in_one_file_needs_no_option_where_its_vocabulary_is_beside_it(files, tmp_path, capsys):
    state = load_file(tmp_path / "labeler" / "model.safetensors")
    torch.save({name: torch.from_numpy(own) for name, own in state.items()}, tmp_path / "labeler" / "chexbert.pth")
    main(files)
    expected = capsys.readouterr().out
    main([*files[:-1], str(tmp_path / "labeler" / "chexbert.pth")])
    assert capsys.readouterr().out == expected


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (["--external", "green"], "expected NAME=COMMAND"),
        (["--batch-size", "0"], "--batch-size: must be at least 1"),
        (["--labeler", "/nowhere"], "/nowhere: no such labeler"),
        (["--language", "de"], "invalid choice"),
        (["--predictions", "/nowhere.jsonl"], "/nowhere.jsonl: cannot be read"),
        (["--output", "/nowhere/m.json", "--labeler", "not read"], "/nowhere/m.json: its folder does not exist"),
    ],
)
def test_bad_options_are_refused(files, change, message):
    with pytest.raises(UserError, match=message):
        main([*files, *change])


def test_the_command_ends_with_one_line_and_code_2_on_bad_rows(files, tmp_path):
    path = tmp_path / "bad.jsonl"
    path.write_text(json.dumps(make_rows(1)[0]) + '\n{"id": "x", "prediction": "no edema"}')
    command = [sys.executable, "-m", "deer_jax.cli", "evaluate", *files, "--predictions", str(path)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr == (
        f"error: {path}, line 2: key 'reference' is missing; expected 'id', 'prediction', 'reference'\n"
    )
