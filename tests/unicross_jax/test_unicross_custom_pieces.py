"""A loss and metrics of a user's own, by import path, in a run of UniCrossAdapter."""

import json

from common.data.records import Quarantine
from tests import custom
from tests.common.test_report_page import Reader
from tests.unicross_jax.runs import arguments, log, make_clip, unicross
from unicross_jax.data import read_splits
from unicross_jax.report import generate_reports
from unicross_jax.task import encode
from unicross_jax.trained import load_trained


def test_metrics_and_a_loss_of_ones_own(tmp_path):
    clip = make_clip(tmp_path / "clip")
    custom.WRITTEN.clear()
    pieces = {"metrics": "tests.custom:words", "metrics_every": 2, "loss": "tests.custom:smoothed"}
    assert unicross(arguments(tmp_path / "run", clip, max_steps=2, evaluate_every=2, beams=2, **pieces)) == 0
    row = log(tmp_path / "run")[-1]
    timings = [json.loads(line) for line in (tmp_path / "run" / "timings.jsonl").read_text().splitlines()]
    assert all(timing["model_tflops"] > 0 for timing in timings)
    (written,) = custom.WRITTEN
    assert row["val/words"] == sum(len(text.split()) for text in written)
    assert row["entropy"] > 1
    trained = load_trained(tmp_path / "run")
    splits = read_splits(trained.config.data, Quarantine())
    examples, _ = encode(trained.config, trained.task, splits["validation"].studies)
    again = generate_reports(trained, examples, splits["validation"].images)
    assert [report.text for report in again] == written
    words = Reader((tmp_path / "run" / "live.html").read_text(encoding="utf-8")).words()
    assert "Finished · UniCrossAdapter" in words
    assert all(study.id in words for study in splits["validation"].studies[:4])
    assert "− missed" in words
