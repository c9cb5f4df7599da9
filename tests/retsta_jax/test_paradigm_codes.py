"""The paradigm where standard reports are lists of codes: Open-i, of which some reports keep their codes."""

import dataclasses
import json
from pathlib import Path
from typing import NamedTuple

import pytest

from common.data.records import Quarantine
from common.io.jsonl import read_jsonl, write_rows
from retsta_jax.codes import parse_codes, terminology
from retsta_jax.config import DataConfig, RetstaConfig
from retsta_jax.data import Splits, augmented, load_splits
from retsta_jax.labelling.code_rules import CODE_RULES, judge_by_codes
from retsta_jax.paradigm.paradigm import ParadigmConfig, ParadigmData, Start, begin
from tests.common.test_openi import report, write_archive
from tests.runs import PARADIGM, Material, retsta

TEST = range(1, 7)
SIZES = {"validation-size": 4, "train-size": 8}
SMALL = {**PARADIGM, "zero-epochs": 1}


class Archive(NamedTuple):
    """A made-up Open-i archive of 30 reports, each with a code of its own, and its test ids."""

    archive: Path
    test_ids: Path


@pytest.fixture(scope="module")
def openi(tmp_path_factory: pytest.TempPathFactory) -> Archive:
    folder = tmp_path_factory.mktemp("openi")
    members = {
        f"{n}.xml": report(n, findings=f"Finding number {n} is seen.", codes=("Lung", f"Seen/only{n}q", "Aorta/x"))
        for n in range(1, 31)
    }
    (folder / "ids.txt").write_text("".join(f"CXR{n}\n" for n in TEST))
    return Archive(write_archive(folder / "NLMCXR_reports.tgz", members), folder / "ids.txt")


def config_of(openi: Archive, train_size: int, seed: int = 0) -> ParadigmConfig:
    data = ParadigmData("openi", archive=str(openi.archive), test_ids=str(openi.test_ids), validation_size=4)
    return ParadigmConfig(dataclasses.replace(data, train_size=train_size), seed=seed)


def start_of(openi: Archive, train_size: int, seed: int = 0) -> Start:
    return begin(config_of(openi, train_size, seed), Quarantine())


def command(material: Material, run_dir: Path, openi: Archive, *more: str) -> list[str]:
    data = {f"data.{name}": value for name, value in {**SIZES, **openi._asdict()}.items()}
    chosen = {"preset": "openi", "run-dir": run_dir, "train.model.base": material.base, **data, **SMALL}
    words = (word for name, value in chosen.items() for word in (f"--{name.replace('_', '-')}", str(value)))
    return ["paradigm", *words, *more]


@pytest.fixture(scope="module")
def done(material: Material, openi: Archive, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run whose first model, of two steps, is trusted in everything."""
    run_dir = tmp_path_factory.mktemp("paradigm") / "run"
    assert retsta(command(material, run_dir, openi, "--label.skip-rules", *CODE_RULES)) == 0
    return run_dir


def ids(file: Path) -> set[str]:
    return {row["id"] for row in read_jsonl(file, {"id": str})}


def codes_of(numbers: set[str]) -> list[bytes]:
    return [f"only{id_.removeprefix('CXR')}q".encode() for id_ in numbers]


def test_the_parts_are_those_of_the_corpus_and_a_larger_choice_has_the_smaller_one(openi):
    small, large = start_of(openi, 8), start_of(openi, 12)
    assert {pair.id for pair in small.train} < {pair.id for pair in large.train}
    assert {pair.id for pair in small.train} != {pair.id for pair in start_of(openi, 8, seed=1).train}
    data = DataConfig(corpus="openi", archive=str(openi.archive), test_ids=str(openi.test_ids), validation_size=4)
    splits = load_splits(RetstaConfig(data=data), Quarantine())
    for start in (small, large):
        assert (start.validation, start.test) == (splits.validation, splits.test)
        together = {**{pair.id: pair.source for pair in start.train}, **dict(start.reports)}
        assert together == {pair.id: pair.source for pair in splits.train}
        assert len(start.train) + len(start.reports) == len(together) == 20


def test_codes_that_only_reports_to_label_have_are_unknown(openi):
    start = start_of(openi, 8)
    judge = judge_by_codes(start.train)
    numbers = {id_.removeprefix("CXR") for id_, _ in start.reports}
    assert len(numbers) == 12
    assert not numbers & {str(n) for n in TEST}
    for number in numbers:
        pair = dataclasses.replace(start.train[0], target=f"Lung\nSeen/only{number}q")
        assert judge.judge(pair, True).broken == ["outside the terminology"]
    for pair in start.train:
        assert judge.judge(pair, True).broken == []


def test_all_stages_and_no_code_of_a_report_to_label_gets_into_the_run(done):
    train, unlabelled = ids(done / "train.jsonl"), ids(done / "reports.jsonl")
    labelled, final = ids(done / "labelled" / "pairs.jsonl"), ids(done / "final-train.jsonl")
    held_out = {f"CXR{n}" for n in TEST} | ids(done / "validation.jsonl")
    assert (len(train), len(unlabelled), len(held_out)) == (8, 12, 10)
    assert not (train | unlabelled) & held_out
    assert train < final <= train | labelled
    assert labelled <= unlabelled
    contents = {path: path.read_bytes() for path in done.rglob("*") if path.is_file()}
    for code in codes_of(train):
        assert code in contents[done / "train.jsonl"]
    for code in codes_of(unlabelled):
        assert not [path for path, content in contents.items() if code in content]
    for code in codes_of({f"CXR{n}" for n in TEST}):
        assert code not in contents[done / "final-train.jsonl"]


def test_scores_are_those_of_codes_and_the_nearest_report_is_a_labelled_one(done, capsys, material, openi):
    assert retsta(command(material, done, openi, "--label.skip-rules", *CODE_RULES)) == 0
    said = capsys.readouterr().out
    assert "terminology of 10 codes, 8 pairs, 12 reports" in said
    for system in ("RetSTA", "RetSTA-Zero", "nearest labelled report", "constant report"):
        assert f"{system}  codes/F1 " in said
    found = {name: json.loads((done / name / "metrics.json").read_text()) for name in ("zero", "final")}
    for metrics in found.values():
        assert {"codes/F1", "heads/F1"} <= metrics["systems"]["this run"].keys()
        assert "recognised" not in metrics
    nearest = found["zero"]["systems"]["nearest training report"]["codes/F1"]
    assert nearest["value"] == pytest.approx(2 / 3)  # two codes in common, and one that no other report has
    (row, *_) = read_jsonl(done / "zero" / "predictions.jsonl", {"reference_codes": list})
    assert len(row["reference_codes"]) == 3
    page = (done / "report.html").read_text(encoding="utf-8")
    for word in ("nearest labelled report", "codes of the pairs given", "--preset openi", "codes/F1"):
        assert word in page


def test_lists_of_codes_in_files_are_scored_as_the_corpus_is(material, openi, tmp_path):
    data = DataConfig(corpus="openi", archive=str(openi.archive), test_ids=str(openi.test_ids), validation_size=4)
    splits = load_splits(RetstaConfig(data=data), Quarantine())
    files = {}
    for name, pairs in splits._asdict().items():
        files[f"data__{name}"] = tmp_path / f"{name}.jsonl"
        write_rows(files[f"data__{name}"], ({**dataclasses.asdict(pair)} for pair in pairs))
    small = {"max_steps": 2, "evaluate_every": 2, "epochs": 1}
    corpus = {"data__corpus": "openi", **{f"data__{name}": value for name, value in openi._asdict().items()}}
    assert retsta(material.train(tmp_path / "a", **small, **corpus, data__validation_size=4)) == 0
    assert retsta(material.train(tmp_path / "b", **small, **files, data__targets="codes")) == 0
    for run in "ab":
        assert retsta(["evaluate", "--run-dir", str(tmp_path / run)]) == 0
    assert (tmp_path / "a" / "metrics.json").read_bytes() == (tmp_path / "b" / "metrics.json").read_bytes()
    assert (tmp_path / "a" / "predictions.jsonl").read_bytes() == (tmp_path / "b" / "predictions.jsonl").read_bytes()
    own = load_splits(
        RetstaConfig(data=DataConfig("jsonl", **{name: str(tmp_path / f"{name}.jsonl") for name in Splits._fields})),
        Quarantine(),
    )
    assert own == splits


def test_augmentation_leaves_lists_of_codes_as_they_are(openi):
    start = start_of(openi, 8)
    data = DataConfig(corpus="jsonl", targets="codes", augment_to=40)
    pairs = augmented(RetstaConfig(data=data), Splits(start.train, start.validation, start.test))
    targets = {pair.id: pair.target for pair in start.train}
    assert len(pairs) == 40
    assert all(pair.target == targets[pair.id.partition("+")[0]] for pair in pairs)
    assert len({pair.source for pair in pairs}) > 30


@pytest.mark.parametrize(
    ("more", "expected"),
    [
        (("--data.train-size", "20"), "data.train_size: expected 1 to 19 of the 20 training reports"),
        (("--terminology", "terms.csv"), "--terminology: not read with --data.corpus openi"),
        (("--translate", "offline"), "--translate: not read with --data.corpus openi"),
        (("--data.targets", "codes"), "--data.targets: not read with --data.corpus openi"),
        (("--data.archive", ""), "data.archive: not given; corpus openi needs --data.archive NLMCXR_reports.tgz"),
    ],
)
def test_bad_options_are_one_line(material, openi, tmp_path, capsys, more, expected):
    assert retsta(command(material, tmp_path / "run", openi, *more)) == 2
    assert expected in capsys.readouterr().err
    assert not (tmp_path / "run").exists()


def test_lists_of_codes_of_ones_own_need_no_terminology_and_are_not_translated(material, openi, tmp_path, capsys):
    start = start_of(openi, 8)
    files = {}
    for name in Splits._fields:
        files[name] = tmp_path / f"{name}.jsonl"
        write_rows(files[name], map(dataclasses.asdict, getattr(start, name)))
    files["reports"] = tmp_path / "reports.jsonl"
    write_rows(files["reports"], ({"id": id_, "report": text} for id_, text in start.reports))
    chosen = {f"data.{name}": file for name, file in files.items()} | {"data.corpus": "jsonl", "augment-to": 0, **SMALL}
    base = {"preset": "demo", "run-dir": tmp_path / "run", "train.model.base": material.base}
    words = [word for name, value in {**base, **chosen}.items() for word in (f"--{name}", str(value))]
    given = ["paradigm", *words, "--data.targets", "codes", "--label.skip-rules", *CODE_RULES]
    assert retsta(given) == 2
    assert "translate: offline: lists of codes are not translated" in capsys.readouterr().err
    assert not (tmp_path / "run").exists()
    assert retsta([*given, "--translate", "none"]) == 0
    assert f"terminology of {len(terminology(start.train))} codes" in capsys.readouterr().out
    (row, *_) = read_jsonl(tmp_path / "run" / "train.jsonl", {"target": str})
    assert len(parse_codes(row["target"])) == 3
