"""What may be done with a run that is being written, moved, trained further or damaged; by the commands themselves."""

import json
import shutil
from pathlib import Path

import pytest

import retsta_jax.evaluate
from retsta_jax.paradigm.paradigm import evaluated, scores_there
from tests.lock_holder import held_elsewhere
from tests.runs import TWO_STEPS, retsta


@pytest.fixture
def own(retsta_run: Path, tmp_path: Path) -> Path:
    """A copy of the run."""
    return shutil.copytree(retsta_run, tmp_path / "run")


@pytest.fixture
def reports(tmp_path: Path) -> Path:
    """Three reports."""
    file = tmp_path / "reports.jsonl"
    file.write_text("".join(json.dumps({"id": n, "report": f"OD: {n} drusen."}) + "\n" for n in range(3)))
    return file


def tree(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def refused(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> str:
    """The one line of error with which a command ends; lines that name its data and devices may stand before it."""
    capsys.readouterr()
    assert retsta(arguments) == 2
    *before, said = capsys.readouterr().err.splitlines(keepends=True)
    assert said.startswith("error: ")
    assert all(line.startswith(("data: ", "using ")) for line in before), before
    return said


def test_a_run_that_is_being_written_takes_no_second_command(own, reports, material, tmp_path, capsys) -> None:
    with held_elsewhere(own) as pid:
        before = tree(tmp_path)
        for command in (material.train(own, **TWO_STEPS), ["evaluate", "--run-dir", str(own)]):
            assert f"run: is being written by process {pid} on " in refused(command, capsys)
        assert tree(tmp_path) == before
        output = tmp_path / "out.jsonl"
        assert retsta(["standardize", "--run-dir", str(own), str(reports), "--output", str(output)]) == 0
        assert f"run is still being written by process {pid} on " in capsys.readouterr().err
    with held_elsewhere(output) as pid:
        before = tree(tmp_path)
        said = refused(["standardize", "--run-dir", str(own), str(reports), "--output", str(output)], capsys)
        assert f"out.jsonl: is being written by process {pid} on " in said
        assert tree(tmp_path) == before


def test_an_evaluation_that_was_cut_off_before_its_page_is_done_again(own, monkeypatch) -> None:
    """The paradigm takes an evaluation for done where its scores are there."""

    def cut_off(*_):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(retsta_jax.evaluate, "save_run_page", cut_off)
        assert retsta(["evaluate", "--run-dir", str(own), "--limit", "1"]) == 130
    assert scores_there(own) is None
    evaluated(own, 1)
    assert (own / "report.html").is_file()
    assert scores_there(own) is not None


def test_a_demo_is_not_started_afresh_while_it_runs(own, capsys) -> None:
    with held_elsewhere(own):
        before = tree(own)
        assert "is being written by" in refused(["demo", "--run-dir", str(own), "--fresh"], capsys)
        assert tree(own) == before


def standardized(run_dir: Path, reports: Path, output: Path) -> list[str]:
    return ["standardize", "--run-dir", str(run_dir), str(reports), "--output", str(output)]


def test_what_moved_is_continued(own, reports, tmp_path) -> None:
    output = tmp_path / "out.jsonl"
    assert retsta(standardized(own, reports, output)) == 0
    whole = output.read_bytes()
    output.write_bytes(whole[: len(whole) // 2])
    moved = own.rename(tmp_path / "renamed")
    reports = reports.rename(tmp_path / "there.jsonl")
    base = Path(json.loads((moved / "config.json").read_text())["model"]["base"])
    config = (moved / "config.json").read_text().replace(str(base), str(shutil.copytree(base, tmp_path / "base")))
    (moved / "config.json").write_text(config)
    assert retsta(standardized(moved, reports, output)) == 0
    assert output.read_bytes() == whole
    output = output.rename(tmp_path / "other.jsonl")
    (tmp_path / "out.jsonl.config.json").rename(tmp_path / "other.jsonl.config.json")
    assert retsta(standardized(moved, reports, output)) == 0
    assert output.read_bytes() == whole


def test_a_run_that_was_trained_further_does_not_continue_rows(retsta_run, reports, material, tmp_path, capsys) -> None:
    own = shutil.copytree(retsta_run, tmp_path / "run")
    checkpoints = own / "checkpoints"
    shutil.rmtree(checkpoints / "best")
    shutil.rmtree(checkpoints / "latest" / "2")
    output = tmp_path / "out.jsonl"
    assert retsta(standardized(own, reports, output)) == 0
    for kept in (3, 1):  # also a finished output is not taken for one of the present weights
        output.write_text("".join(output.read_text().splitlines(keepends=True)[:kept]))
        if kept == 3:
            assert retsta(material.train(own, **TWO_STEPS)) == 0
        before = output.read_bytes()
        said = refused(standardized(own, reports, output), capsys)
        assert "out.jsonl: holds rows made with other options or files (trained was '" in said
        assert output.read_bytes() == before


@pytest.mark.parametrize("file", ["tokenizer.model", "config.json", "generation_config.json"])
def test_an_edited_file_of_the_base_is_named(own, reports, material, tmp_path, capsys, file) -> None:
    base, output = shutil.copytree(material.base, tmp_path / "base"), tmp_path / "out.jsonl"
    config = (own / "config.json").read_text().replace(str(material.base), str(base))
    (own / "config.json").write_text(config)
    assert retsta(standardized(own, reports, output)) == 0
    if file == "tokenizer.model":
        import sentencepiece.sentencepiece_model_pb2 as described

        model = described.ModelProto.FromString((base / file).read_bytes())
        model.pieces[-1].piece = "another"
        (base / file).write_bytes(model.SerializeToString())
    else:
        values = json.loads((base / file).read_text()) if (base / file).exists() else {}
        (base / file).write_text(json.dumps({**values, "rms_norm_eps": 1e-5, "_name_or_path": "elsewhere"}))
    before = output.read_bytes()
    assert f"(base.{file} was " in refused(standardized(own, reports, output), capsys)
    assert output.read_bytes() == before


def test_training_goes_on_where_data_and_base_moved_and_not_with_others(own, material, tmp_path, capsys) -> None:
    data, base = shutil.copytree(material.data, tmp_path / "data"), shutil.copytree(material.base, tmp_path / "base")
    files = {f"data__{name}": data / f"{name}.jsonl" for name in ("train", "validation", "test")}
    assert retsta(material.train(own, **TWO_STEPS, **files, model__base=base)) == 0
    assert str(base) in (own / "config.json").read_text()
    before = tree(own)
    rows = (data / "train.jsonl").read_text().splitlines(keepends=True)
    (data / "train.jsonl").write_text("".join(rows[:-1]))
    assert "run: is a run with another data" in refused(
        material.train(own, **TWO_STEPS, **files, model__base=base), capsys
    )
    said = refused(material.train(own, **TWO_STEPS, model__base=material.other_base), capsys)
    assert "run: is a run with another base" in said
    assert tree(own) == before


@pytest.mark.parametrize(
    ("line", "said"),
    [
        ('{"step": 1, "loss": "abc"}', "metrics.jsonl:1: loss must be a finite number"),
        ('{"step": 1, "val/loss": [1]}', "metrics.jsonl:1: val/loss must be"),
        ('{"step": 1, "loss": 1e999}', "metrics.jsonl:1: expected a JSON row"),
        ('{"step": 1, "loss": ' + "9" * 400 + "}", "metrics.jsonl:1: loss must be"),
        ('{"step": true, "\\u001b[2J": {}}', r"metrics.jsonl:1: "),
        ("not JSON", "metrics.jsonl:1: expected a JSON row"),
        ("[" * 100_000, "metrics.jsonl:1: expected a JSON row"),
        (None, "predictions.jsonl: is a directory"),
    ],
)
def test_an_evaluation_checks_what_it_needs_before_it_decodes(own, capsys, monkeypatch, line, said) -> None:
    def decode(*_: object) -> None:
        raise AssertionError("decoded first")

    monkeypatch.setattr("retsta_jax.evaluate.standardize", decode)
    if line is None:
        (own / "predictions.jsonl").mkdir()
    else:
        rows = (own / "metrics.jsonl").read_text().splitlines(keepends=True)
        (own / "metrics.jsonl").write_text("".join([line + "\n", *rows[1:]]))
    message = refused(["evaluate", "--run-dir", str(own)], capsys)
    assert said in message
    assert "\x1b" not in message


def test_a_foreign_output_is_left_as_it_is(own, reports, tmp_path, capsys) -> None:
    output = tmp_path / "notes.txt"
    for content in ("my notes\n", '{"id": 0, "text": "mine"}\n', "\x00\xff"):
        output.write_text(content)
        said = refused(standardized(own, reports, output), capsys)
        assert "notes.txt: contains something other than rows of this command" in said
        assert output.read_text() == content
    assert sorted(path.name for path in tmp_path.iterdir()) == ["notes.txt", "reports.jsonl", "run"]
