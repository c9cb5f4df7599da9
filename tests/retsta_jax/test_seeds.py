"""Several paradigms on lists of codes side by side: means and spreads of seeds, and the gain on the same reports."""

import json
import random
from pathlib import Path

import numpy as np
import pytest

from common.command import run_cli
from common.config import to_json
from common.io.jsonl import write_rows
from common.metrics.codes import evaluate_codes
from retsta_jax.paradigm.paradigm import ParadigmConfig, ParadigmData
from retsta_jax.paradigm.seeds import main, read_run, resampled

CODES = ["normal", "Opacity/lung", "Opacity/lung/base", "Cardiomegaly/mild", "Aorta/tortuous"]
SYSTEMS = {"this run", "nearest training report", "constant report"}


def make_run(folder: Path, seed: int, labelled: int, right: float, reports: int = 60) -> Path:
    """A finished run whose RetSTA has a share of its codes right, and whose RetSTA-Zero writes any code."""
    rng = random.Random(seed)
    truth = [sorted(rng.sample(CODES, rng.randint(1, 3))) for _ in range(reports)]
    for name, share in (("zero", 0.0), ("final", right)):
        model = folder / name
        model.mkdir(parents=True)
        told = [codes if rng.random() < share else [rng.choice(CODES)] for codes in truth]
        rows = zip(told, truth, strict=True)
        write_rows(
            model / "predictions.jsonl",
            ({"id": f"CXR{n}", "codes": one, "reference_codes": other} for n, (one, other) in enumerate(rows)),
        )
        scores = evaluate_codes([*map(frozenset, told)], [*map(frozenset, truth)])
        (model / "metrics.json").write_text(json.dumps({"systems": dict.fromkeys(SYSTEMS, scores)}))
    config = ParadigmConfig(ParadigmData("openi", train_size=labelled), seed=seed)
    (folder / "config.json").write_text(json.dumps(to_json(config)))
    write_rows(folder / "train.jsonl", ({"id": str(n)} for n in range(labelled)))
    return folder


def refused(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> str:
    with pytest.raises(SystemExit) as stop:
        run_cli(main, arguments)
    assert stop.value.code == 2
    return capsys.readouterr().err


def value(folder: Path, model: str, name: str) -> float:
    return json.loads((folder / model / "metrics.json").read_text())["systems"]["this run"][name]["value"]


def test_means_and_spreads_of_seeds_under_each_number_of_labelled_reports(tmp_path, capsys):
    large = make_run(tmp_path / "b", 5, labelled=12, right=0.5)
    small = [make_run(tmp_path / str(seed), seed, labelled=5, right=0.4) for seed in (1, 2, 3)]
    main([str(folder) for folder in (large, *small)])
    rows = [[cell.strip() for cell in line.split("|")[1:-1]] for line in capsys.readouterr().out.splitlines()]
    assert [row[0] for row in rows] == ["labelled", "---", *["5"] * 5, *["12"] * 5]
    found = {(row[0], row[2]): (row[1], *row[3:]) for row in rows[2:]}
    for index, name in enumerate(("codes/F1", "heads/F1"), start=1):
        each = [value(folder, "final", name) for folder in small]
        assert found["5", "RetSTA"][index] == f"{np.mean(each):.3f} ({min(each):.3f} to {max(each):.3f})"
        assert found["12", "RetSTA"][index] == f"{value(large, 'final', name):.3f}"
        gain = np.mean([value(folder, "final", name) - value(folder, "zero", name) for folder in small])
        assert found["5", "RetSTA less RetSTA-Zero"][index].startswith(f"{gain:+.3f} [+")
    assert (found["5", "RetSTA"][0], found["12", "RetSTA"][0]) == ("3", "1")


def test_a_run_that_is_named_twice_counts_once(tmp_path, capsys):
    one, two = (make_run(tmp_path / str(seed), seed, labelled=5, right=0.4) for seed in (1, 2))
    main([str(one), str(two)])
    expected = capsys.readouterr().out
    main([str(one), str(two), f"{one}/", f"{two}/../{one.name}"])
    assert capsys.readouterr().out == expected


def test_the_gain_is_resampled_as_the_reports_are():
    rng = random.Random(0)
    rows = [
        {"codes": rng.sample(CODES, rng.randint(1, 3)), "reference_codes": rng.sample(CODES, rng.randint(1, 3))}
        for _ in range(30)
    ]
    found = resampled(rows)
    generator = np.random.default_rng(0)
    for scores in found[:5]:
        drawn = [rows[index] for index in generator.integers(30, size=30)]
        ours, theirs = ([frozenset(row[key]) for row in drawn] for key in ("codes", "reference_codes"))
        expected = evaluate_codes(ours, theirs, intervals=False)
        assert scores == pytest.approx([expected[name]["value"] for name in ("codes/F1", "heads/F1")])


def test_two_models_that_write_the_same_have_no_gain(tmp_path):
    folder = make_run(tmp_path / "run", 1, labelled=5, right=0.3)
    (folder / "zero" / "predictions.jsonl").write_bytes((folder / "final" / "predictions.jsonl").read_bytes())
    assert not read_run(folder).gain.any()


def test_what_is_not_comparable_is_one_line(tmp_path, capsys):
    run, other = make_run(tmp_path / "a", 1, 5, 0.3), make_run(tmp_path / "b", 2, 5, 0.3, reports=50)
    assert "was evaluated on other test reports than" in refused([str(run), str(other)], capsys)
    assert "the following arguments are required: RUN" in refused([], capsys)
    (other / "final" / "metrics.json").unlink()
    assert "is not finished" in refused([str(other)], capsys)
    (run / "zero" / "metrics.json").write_text('{"systems": {"this run": {"findings/F1": {"value": 1}}}}')
    assert "has no codes/F1" in refused([str(run)], capsys)
    assert "no config.json" in refused([str(tmp_path)], capsys)
