"""Tables of the paper: every row is a run of its own, shared between tables, done once, and refused in one line."""

import json
from pathlib import Path

import pytest

import retsta_jax.paradigm.paradigm
import retsta_jax.paradigm.tables
from common.io.jsonl import read_jsonl, write_rows
from retsta_jax.labelling.filters import RULES
from retsta_jax.paradigm.paper_tables import TABLES
from tests.pages import commands_of
from tests.runs import GENERATED, PARADIGM, Material, retsta

SMALL = {**PARADIGM, **GENERATED, "train.tensorboard": False, "augment-to": 36}


def command(number: object, directory: Path, base: Path, *more: object, seeds: tuple[int, ...] = (0,)) -> list[str]:
    own = (word for name, value in SMALL.items() for word in (f"--{name}", value))
    words = ("--preset", "demo", "--directory", directory, "--train.model.base", base, *own, "--seeds", *seeds, *more)
    return ["table", *map(str, (number, *words)), "--label.skip-rules", *RULES]


@pytest.fixture(scope="module")
def done(material: Material, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Table 3 of two seeds and Table 4 of one; models of two steps, trusted in everything."""
    directory = tmp_path_factory.mktemp("tables") / "runs"
    assert retsta(command(3, directory, material.base, seeds=(0, 1))) == 0
    assert retsta(command(4, directory, material.base)) == 0
    return directory


@pytest.fixture
def untouched(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing may be trained or evaluated."""

    def fail(*_: object, **__: object) -> None:
        raise AssertionError("done twice")

    for module in (retsta_jax.paradigm.tables, retsta_jax.paradigm.paradigm):
        monkeypatch.setattr(module, "train_run", fail)
        monkeypatch.setattr(module, "evaluate_run", fail)


def table(directory: Path, number: int) -> dict:
    return json.loads((directory / f"table-{number}" / "table.json").read_text(encoding="utf-8"))


def config(run_dir: Path) -> dict:
    return json.loads((run_dir / "config.json").read_text(encoding="utf-8"))


def test_augmentation_is_compared_on_the_same_reports(done, material):
    found = table(done, 3)
    rows = found["rows"]
    assert list(rows)[:3] == list(TABLES[3].rows)
    assert all(set(own["seeds"]) == {"0", "1"} for own in rows.values())
    assert [rows[name]["seeds"]["0"]["pairs"] for name in TABLES[3].rows] == [12, 12, 36]
    assert rows["augmented"]["paper"] == {"BLEU-1": 0.9193, "BLEU-4": 0.8789, "METEOR": 0.9274, "ROUGE-L": 0.9277}
    for seed in ("seed-0", "seed-1"):
        runs = [done / seed / name for name in ("few-augmented", "not-augmented", "paradigm/zero")]
        assert len({config(run)["data"]["test"] for run in runs}) == 1
        files = done / seed / "few.jsonl", done / seed / "paradigm" / "train.jsonl"
        few, given = ([row["id"] for row in read_jsonl(file, {})] for file in files)
        assert few == given[:4]
        assert len(given) == 12
    for name in ("BLEU-4", "METEOR", "findings F1"):
        values = [rows["not augmented"]["seeds"][seed]["scores"][name]["value"] for seed in ("0", "1")]
        assert rows["not augmented"][name]["mean"] == pytest.approx(sum(values) / 2, abs=1e-6)
        assert rows["not augmented"][name]["deviation"] == pytest.approx(abs(values[0] - values[1]) / 2**0.5, abs=2e-6)
    metrics = json.loads((done / "seed-1" / "not-augmented" / "metrics.json").read_text())["systems"]["this run"]
    assert rows["not augmented"]["seeds"]["1"]["scores"]["findings F1"] == metrics["zh/findings/F1"]
    assert "12 augmented to 36 > 12 not augmented in" in found["ordering"]
    assert "(paper: +8.38)" in found["ordering"]
    page = (done / "table-3" / "report.html").read_text(encoding="utf-8")
    assert commands_of(page) == [["retsta", *command(3, done, material.base, seeds=(0, 1))]]
    for word in ("4 augmented to 12", "paper: BLEU-4", "87.89"):
        assert word in page


def test_one_language_is_a_part_of_the_pairs_of_both(done):
    rows = table(done, 4)["rows"]
    assert list(rows)[:2] == ["Chinese only", "bilingual"]
    folder = done / "seed-0"
    chinese = read_jsonl(folder / "zh-train.jsonl", {"id": str})
    both = read_jsonl(folder / "paradigm" / "final-train.jsonl", {"id": str})
    assert [row["id"] for row in chinese] == [row["id"] for row in both if row["language"] == "zh"]
    assert 0 < len(chinese) < len(both)
    assert [rows[name]["seeds"]["0"]["pairs"] for name in list(rows)[:2]] == [len(chinese), len(both)]
    assert config(folder / "zh")["epochs"] == config(folder / "paradigm" / "final")["epochs"] == 1
    assert {row["language"] for row in read_jsonl(folder / "zh-validation.jsonl", {})} == {"zh"}
    assert rows["bilingual"]["seeds"]["0"]["reports"] == 3, "of six, half of them Chinese"


def test_what_is_done_is_not_done_again(done, material, untouched, capsys):
    before = table(done, 3), table(done, 4)
    assert retsta(command(3, done, material.base, seeds=(0, 1))) == 0
    assert retsta(command(4, done, material.base)) == 0
    assert (table(done, 3), table(done, 4)) == before
    said = capsys.readouterr().out
    assert "| 12 not augmented | " in said
    assert "By BLEU-4 the order is the paper's in " in said


def peer(folder: Path, run_dir: Path, name: str) -> Path:
    """What `retsta baseline` leaves: here the answers and scores of a run, under another name."""
    folder.mkdir()
    metrics = json.loads((run_dir / "metrics.json").read_text(encoding="utf-8"))
    found = {"split": "test", "prompts": {}, "systems": {name: metrics["systems"]["this run"]}}
    (folder / "metrics.json").write_text(json.dumps(found), encoding="utf-8")
    (folder / "predictions.jsonl").write_bytes((run_dir / "predictions.jsonl").read_bytes())
    return folder


def test_other_models_stand_beside_on_the_same_reports(done, material, untouched, tmp_path, capsys):
    final = done / "seed-0" / "paradigm" / "final"
    same = peer(tmp_path / "same", final, "glm-4-9b-chat")
    assert retsta(command(2, done, material.base, "--baselines", same)) == 0
    rows = table(done, 2)["rows"]
    assert list(rows)[:3] == ["RetSTA", "RetSTA-Zero", "glm-4-9b-chat"]
    assert rows["glm-4-9b-chat"]["paper"]["BLEU-4"] == 0.6023
    assert "RetSTA > glm-4-9b-chat in 0 of 1 seed, equal in 1, by +0.00 on average (paper: +29.60)" in " ".join(
        capsys.readouterr().out.split()
    )
    other = peer(tmp_path / "other", done / "seed-1" / "not-augmented", "glm-4-9b-chat")
    assert retsta(command(1, done, material.base, "--baselines", other)) == 2
    assert "other: has answers to other reports than the test splits of seeds 0; give" in capsys.readouterr().err
    again = peer(tmp_path / "again", final, "glm-4-9b-chat")
    assert retsta(command(1, done, material.base, "--baselines", same, again)) == 2
    assert f"{same} and {again} both have glm-4-9b-chat for seed 0" in capsys.readouterr().err
    rows = read_jsonl(again / "predictions.jsonl", {})
    write_rows(again / "predictions.jsonl", (row for row in rows if row["language"] == "zh"))
    assert retsta(command(1, done, material.base, "--baselines", again)) == 2
    assert "again: none of its test reports is in en" in capsys.readouterr().err
    assert retsta(command(1, done, material.base, "--baselines", final)) == 2
    assert "no result of retsta baseline there" in capsys.readouterr().err
    assert retsta(command(3, done, material.base, "--baselines", same)) == 2
    assert "--baselines: not read by tables 3 to 5" in capsys.readouterr().err


def test_other_options_are_refused_in_a_directory_that_has_runs(done, material, untouched, capsys):
    assert retsta(command(4, done, material.base, "--augment-to", "40")) == 2
    assert "contains a run with a different config (augment_to was 36 and is now 40" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        (("6",), "retsta table: expected one of 1, 2, 3, 4, 5 as the first word"),
        (("3", "--seeds"), "argument --seeds: expected at least one argument"),
        (("3", "--seeds", "1", "2", "1"), "--seeds: 1 is given twice"),
        (("3", "--seeds", "-1"), "must be at least 0"),
        (("3", "--preset", "retsta-7"), "--preset retsta-7: unknown (did you mean retsta-7b?)"),
        (("3", "--seed", "1"), "--seed: not read by retsta table; give --seeds"),
        (("3", "--augment-to", "2000"), "table 3 needs --augment-to above the number of pairs given, 2,000"),
        (("4", "--translate", "none"), "table 4 needs training pairs in en; give --translate offline"),
        (("3", "--preset", "retsta-7b"), "train.model.base: not given"),
        (("1", "--train.model.base", "absent"), "absent"),
        (("3", "--data.corpus", "jsonl"), "data.train: not given; corpus jsonl needs files of rows"),
    ],
)
def test_bad_options_are_one_line(tmp_path, capsys, words, expected):
    preset = () if "--preset" in words else ("--preset", "demo")
    assert retsta(["table", *words, *preset, "--directory", str(tmp_path / "new")]) == 2
    assert expected in capsys.readouterr().err
    assert not (tmp_path / "new").exists()


def test_a_directory_of_something_else_is_left_as_it_is(tmp_path, capsys):
    assert retsta(["table", "3", "--preset", "demo"]) == 2
    assert "arguments are required: --directory" in capsys.readouterr().err
    (tmp_path / "notes.txt").write_text("mine", encoding="utf-8")
    assert retsta(["table", "3", "--preset", "demo", "--directory", str(tmp_path)]) == 2
    assert "contains notes.txt and no runs of retsta table; give another --directory" in capsys.readouterr().err
    assert [file.name for file in tmp_path.iterdir()] == ["notes.txt"]
