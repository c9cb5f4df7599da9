"""A loss and metrics of a user's own, by import path, in a run of RetSTA."""

import json

import numpy as np
import pytest

from retsta_jax.standardize import load_trained, standardize
from tests import custom
from tests.common.test_report_page import Reader
from tests.runs import TWO_STEPS, VOCABULARY, make_material, retsta


@pytest.fixture(scope="module")
def material(tmp_path_factory):
    return make_material(tmp_path_factory.mktemp("custom"))


def rows_of(run_dir):
    return [json.loads(line) for line in (run_dir / "metrics.jsonl").read_text("utf-8").splitlines()]


def test_metrics_see_what_the_run_would_write(material, tmp_path):
    custom.WRITTEN.clear()
    choice = {"best_by": "val/equal", "best_is": "highest"}
    options = {**TWO_STEPS, "metrics": "tests.custom:words", "metrics_every": 2, "metrics_reports": 3, **choice}
    assert retsta(material.train(tmp_path / "run", **options)) == 0
    first, second = rows_of(tmp_path / "run")
    assert "val/words" not in first
    (written,) = custom.WRITTEN
    assert second["val/words"] == sum(len(text.split()) for text in written)
    trained = load_trained(tmp_path / "run")
    sources = [json.loads(line)["source"] for line in (material.data / "validation.jsonl").read_text().splitlines()]
    assert [found.text for found in standardize(trained, trained.variables, sources[:3])] == written
    page = (tmp_path / "run" / "live.html").read_text(encoding="utf-8")
    assert "Finished" in page
    assert "after step 2" in page
    words = Reader(page).words()
    assert all(" ".join(source.split()) in words for source in sources[:3])
    for file in (tmp_path / "run").rglob("*"):  # of all files of a training, the page alone has report text
        if file.is_file() and file.name not in ("live.html", "drafts.safetensors"):
            assert not any(source.encode() in file.read_bytes() for source in sources[:3]), file


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"metrics": "tests.custom:nothing"}, "metrics: tests.custom:nothing cannot be imported"),
        ({"loss": "tests.custom"}, "loss: 'tests.custom' is not an import path; expected module:function"),
        ({"metrics": "tests.custom:no_numbers"}, "metrics tests.custom:no_numbers: returned dict"),
        ({"metrics_every": 2}, "--metrics module:function"),
        ({"best_by": "val/F1"}, "best_by: val/F1 is not measured while training; expected val/loss"),
    ],
)
def test_pieces_that_do_not_fit_are_one_line(material, tmp_path, capsys, options, said):
    assert retsta(material.train(tmp_path / "run", **TWO_STEPS, **options)) == 2
    assert said in capsys.readouterr().err.splitlines()[-1]


def test_another_loss_is_learnt_while_validation_keeps_the_papers(material, tmp_path):
    assert retsta(material.train(tmp_path / "paper", **TWO_STEPS)) == 0
    assert retsta(material.train(tmp_path / "own", **TWO_STEPS, loss="tests.custom:smoothed")) == 0
    paper, own = rows_of(tmp_path / "paper"), rows_of(tmp_path / "own")
    assert own[0]["entropy"] == pytest.approx(np.log(VOCABULARY), rel=0.01)  # of a random model
    assert "entropy" not in paper[0]
    assert own[0]["loss"] != paper[0]["loss"]
    assert own[0]["val/loss"] == pytest.approx(paper[0]["val/loss"], rel=0.05)  # one update apart
