"""The gold labels of Open-i: every one finds its report, and a tiny labeler trained for seconds beats a constant."""

import csv
import json
from pathlib import Path

import pytest

from common.clinical.labelled_reports import openi_corpus
from common.command import run_cli
from common.data.openi import read_openi, read_test_ids
from common.data.records import Quarantine
from deer_jax.cli import dispatch


@pytest.fixture(scope="module")
def files(real_data: Path) -> tuple[Path, Path, Path]:
    labels = real_data / "openi_labels"
    return real_data / "iu_xray" / "NLMCXR_reports.tgz", labels / "openi_gld_std14.csv", labels / "openi-testset.txt"


def test_every_gold_row_is_a_report_of_the_archive_and_of_one_part(files):
    archive, gold, test_ids = files
    corpus = openi_corpus(archive, gold, test_ids, validation=300, seed=0, quarantine=Quarantine())
    splits = [corpus.train, corpus.validation, corpus.tests["test"]]
    assert [len(split) for split in splits] == [2780, 300, 771]
    reports = {report.id: report for split in splits for report in split}
    with gold.open() as file:
        rows = list(csv.DictReader(file))
    assert len(rows) == len(reports) == 3851
    for row in rows:
        assert reports[row["filename"]].labels == tuple(int(row[label]) for label in corpus.labels)
    assert {report.id for report in splits[2]} == read_test_ids(test_ids)
    studies = {study.id: study for study in read_openi(archive)}
    for id, report in reports.items():
        assert report.text.split() == f"{studies[id].findings} {studies[id].impression}".split()
    assert sum(not report.text for report in reports.values()) == 25  # neither FINDINGS nor IMPRESSION


def test_a_tiny_labeler_beats_the_constant_answer(files, tmp_path):
    archive, gold, test_ids = files
    arguments = ["train-labeler", "--preset", "openi", "--output", str(tmp_path / "run"), "--parallel", "jit"]
    arguments += ["--archive", str(archive), "--gold", str(gold), "--test-ids", str(test_ids)]
    arguments += ["--encoder.hidden-size", "64", "--encoder.num-hidden-layers", "1", "--encoder.vocab-size", "1200"]
    arguments += ["--encoder.intermediate-size", "128", "--max-steps", "60", "--buckets", "64", "--shuffle", "False"]
    arguments += ["--encoder.hidden-dropout-prob", "0", "--encoder.attention-probs-dropout-prob", "0"]
    arguments += ["--optim.learning-rate", "4e-3", "--evaluate-every", "1000", "--tensorboard", "False"]
    with pytest.raises(SystemExit) as stopped:
        run_cli(dispatch, arguments)
    assert stopped.value.code == 0
    scores = json.loads((tmp_path / "run" / "metrics.json").read_text())["test"]
    for name in ("F1/normal", "F1/micro"):  # rare findings take more than seconds
        assert scores["labeler"][name]["low"] > scores["constant"][name]["high"]
