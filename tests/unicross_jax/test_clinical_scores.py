"""Clinical F1 of UniCrossAdapter on a user's own data: with a labeler, and what is said without one."""

import json
from pathlib import Path

import pytest
from PIL import Image

from common.clinical.labeler import labeler_digests, load_labeler
from common.metrics.clinical import evaluate_labels
from common.phantoms.phantom import make_phantom
from common.report.findings import mark_labels, tally
from tests.common.test_report_page import Reader
from tests.pages import commands_of
from tests.unicross_jax.runs import arguments, make_clip, unicross


@pytest.fixture(scope="module")
def ablation(tmp_path_factory) -> list[str]:
    """An ablation of one variant on rows of phantom images, with the shipped labeler: the words that started it."""
    folder = tmp_path_factory.mktemp("own")
    rows = []
    for number, split in enumerate(["train"] * 6 + ["val"] * 2 + ["test"] * 4):
        phantom = make_phantom(9, number, 40)
        Image.fromarray(phantom.frontal).save(folder / f"{number}.png")
        rows.append({"id": str(number), "images": [f"{number}.png"], "report": phantom.report, "split": split})
    (folder / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    data = {"data__layout": "rows", "data__source": folder / "rows.jsonl", "data__images": folder, "data__views": 1}
    clip = make_clip(folder / "clip")
    options = arguments(folder / "run", clip, **data, vocabulary__minimum_count=1, max_steps=1, evaluate_every=1)
    rest = [word for word in options if word not in ("train", "--run-dir", str(folder / "run"))]
    words = ["ablation", "--directory", str(folder / "table"), "--variants", "full model", *rest]
    assert unicross([*words, "--labeler", "phantom"]) == 0
    return words


def run_of(words: list[str]) -> Path:
    return Path(words[2]) / "full-model-0"


def metrics_of(words: list[str]) -> dict:
    return json.loads((run_of(words) / "metrics.json").read_text())


def test_reports_are_scored_by_the_labeler_with_intervals_and_beside_the_constant_report(ablation) -> None:
    metrics, labeler = metrics_of(ablation), load_labeler("phantom")
    rows = [json.loads(line) for line in (run_of(ablation) / "predictions.jsonl").read_text().splitlines()]
    predicted, expected = (labeler.label([row[name] for row in rows]).classes for name in ("prediction", "reference"))
    own, constant = metrics["systems"]["this run"], metrics["systems"]["constant report"]
    above = metrics["above"]["constant report"]
    for name, score in evaluate_labels(predicted, expected).items():
        assert own[name] == pytest.approx(score, abs=2e-6)
        assert above[name]["value"] == pytest.approx(score["value"] - constant[name]["value"], abs=2e-6)
        assert above[name]["low"] <= above[name]["value"] <= above[name]["high"]
    assert not any(name.startswith("findings/") for name in own)
    table = json.loads((Path(ablation[2]) / "ablation.json").read_text())
    assert table["full model"][0]["promptmrg/F1"] == own["promptmrg/F1"]


def test_the_page_and_the_metrics_name_the_labeler(ablation) -> None:
    metrics, digests = metrics_of(ablation), labeler_digests(load_labeler("phantom"))
    assert metrics["labeler"] == {"name": "phantom", **digests}
    page = (run_of(ablation) / "report.html").read_text()
    said = f"Findings are read from reports by: phantom (sha256 of its weights {digests['weights'][:12]})."
    assert said in page
    assert said in metrics["notes"]
    assert "Difference to the constant report, with the 95% interval over studies: promptmrg/F1" in page
    _, evaluation = commands_of(page)
    assert evaluation[-2:] == ["--labeler", "phantom"]


def test_the_page_marks_the_findings_that_the_labeler_found(ablation) -> None:
    rows = [json.loads(line) for line in (run_of(ablation) / "predictions.jsonl").read_text().splitlines()]
    labeler = load_labeler("phantom")
    found, expected = (labeler.label([row[name] for row in rows]).classes for name in ("prediction", "reference"))
    counts = tally(mark_labels(expected, found, labeler.labels))
    assert counts.missed + counts.right > 0
    words = Reader((run_of(ablation) / "report.html").read_text()).words()
    shown = f"✓ {counts.right} right − {counts.missed} missed + {counts.invented} invented findings in 4 reports"
    assert shown in words


def test_scores_by_another_labeler_are_made_anew_and_without_one_it_is_said_what_they_need(ablation, capsys) -> None:
    assert unicross([*ablation, "--labeler", "phantom"]) == 0
    again = capsys.readouterr().out
    assert "is evaluated again" not in again
    assert "promptmrg/F1" in again
    assert unicross(ablation) == 0
    without = capsys.readouterr().out
    assert "or by another labeler; the run is evaluated again" in without
    assert "There are no clinical scores: they need a labeler of reports, such as --labeler chexbert.pth." in without
    assert "promptmrg/F1" not in without
    metrics = metrics_of(ablation)
    assert metrics["labeler"] == {}
    assert not any(name.startswith(("promptmrg", "finding")) for name in metrics["systems"]["this run"])
    page = (run_of(ablation) / "report.html").read_text()
    assert "There are no clinical scores" in page
    assert 'class="tally findings' not in page
    assert '<dl class="findings' not in page


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (["--labeler-tokenizer", "words"], "--labeler-tokenizer: not read without --labeler; give --labeler PATH"),
        (["--labeler", "missing.pth"], "missing.pth: no such labeler"),
    ],
)
def test_a_labeler_that_is_not_there_is_refused_before_reports_are_written(ablation, capsys, options, said) -> None:
    before = metrics_of(ablation)
    assert unicross(["evaluate", "--run-dir", str(run_of(ablation)), *options]) == 2
    *_, error = capsys.readouterr().err.splitlines()
    assert said in error
    assert metrics_of(ablation) == before
