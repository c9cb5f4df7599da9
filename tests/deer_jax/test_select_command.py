"""`deer select`: one JSON object out, the same choice for any order of the rows, one line on bad input."""

import json
import random
import subprocess
import sys

import numpy as np
import pytest

from common.errors import UserError
from common.io.jsonl import write_rows
from deer_jax.ddsampling import diversity, reward_statistics
from deer_jax.select import main


def rows(count: int = 40, samples: int = 5, rewards: bool = False) -> list[dict]:
    generator = np.random.default_rng(0)
    made = []
    for index in range(count):
        labels = (generator.random((samples, 14)) < generator.random(14)).astype(int).tolist()
        made.append({"id": f"s{index}", "labels": labels})
        if rewards:
            made[-1]["rewards"] = generator.random(samples).round(1).tolist()
    return made


def run(tmp_path, capsys, made, *options: str) -> dict:
    path = tmp_path / "labels.jsonl"
    path.write_text("\n".join(map(json.dumps, made)), encoding="utf-8")
    main([str(path), *options])
    return json.loads(capsys.readouterr().out)


def test_prints_one_object_of_ids_and_statistics(tmp_path, capsys):
    made = rows(rewards=True)
    output = tmp_path / "chosen.json"
    result = run(tmp_path, capsys, made, "--fraction", "0.2", "--seed", "7", "--output", str(output))
    assert list(result) == ["ids", "statistics"]
    assert len(set(result["ids"])) == 8
    assert set(result["ids"]) <= {row["id"] for row in made}
    assert json.loads(output.read_text()) == result
    found = result["statistics"]
    assert (found["studies"], found["selected"], found["fraction"]) == (40, 8, 0.2)
    assert (found["strategy"], found["exponent"], found["seed"]) == ("log-rank", 1.0, 7)
    assert found["samples_per_study"] == {"least": 5, "most": 5}
    by_id = {row["id"]: row for row in made}
    for part, ids in (("all", list(by_id)), ("selected", result["ids"])):
        labels = np.array([by_id[id]["labels"] for id in ids])
        assert found["labels"][part]["mean_diversity"] == pytest.approx(diversity(labels).mean())
        assert found["labels"][part]["mean_std"] == pytest.approx(labels.std(1).mean())
        distinct = [len(set(map(tuple, by_id[id]["labels"]))) for id in ids]
        assert found["labels"][part]["unique_vectors"] == pytest.approx(np.mean(distinct))
        assert found["labels"][part]["zero_variance_share"] == pytest.approx(np.mean(np.array(distinct) == 1))
        assert found["rewards"][part] == pytest.approx(reward_statistics([by_id[id]["rewards"] for id in ids]))


def test_rewards_are_left_out_where_rows_have_none(tmp_path, capsys):
    assert "rewards" not in run(tmp_path, capsys, rows(), "--fraction", "0.5", "--seed", "0")["statistics"]


@pytest.mark.parametrize("strategy", ["log-rank", "top", "random"])
def test_the_choice_depends_on_the_seed_and_not_on_the_order_of_rows(tmp_path, capsys, strategy):
    made = rows()
    for row in made[5:25]:
        row["labels"] = made[4]["labels"]  # equals, which only the seed may order
    options = ("--fraction", "0.3", "--strategy", strategy, "--seed")
    first = run(tmp_path, capsys, made, *options, "1")
    random.Random(0).shuffle(made)
    assert run(tmp_path, capsys, made, *options, "1") == first
    assert run(tmp_path, capsys, made, *options, "2")["ids"] != first["ids"]


def test_the_strict_choice_takes_the_most_diverse_first(tmp_path, capsys):
    made = rows()
    ids = run(tmp_path, capsys, made, "--fraction", "0.25", "--seed", "0", "--strategy", "top")["ids"]
    diversities = diversity(np.array([row["labels"] for row in made]))
    by_id = {row["id"]: value for row, value in zip(made, diversities, strict=True)}
    assert [by_id[id] for id in ids] == sorted(diversities, reverse=True)[:10]


def test_studies_may_have_different_numbers_of_samples(tmp_path, capsys):
    made = rows(6, samples=4)
    made[2]["labels"] = made[2]["labels"][:2]
    result = run(tmp_path, capsys, made, "--fraction", "1", "--seed", "0", "--strategy", "top")
    assert result["statistics"]["samples_per_study"] == {"least": 2, "most": 4}
    expected = [diversity(np.array([row["labels"]]))[0] for row in made]
    assert result["ids"] == [made[index]["id"] for index in np.argsort(-np.array(expected))]


def test_at_least_one_study_is_chosen(tmp_path, capsys):
    assert len(run(tmp_path, capsys, rows(3), "--fraction", "0.01", "--seed", "0")["ids"]) == 1
    assert len(run(tmp_path, capsys, rows(1), "--fraction", "0.2", "--seed", "0")["ids"]) == 1
    integers = [{"id": index, "labels": row["labels"]} for index, row in enumerate(rows(3))]
    assert sorted(run(tmp_path, capsys, integers, "--fraction", "1", "--seed", "0")["ids"]) == [0, 1, 2]


SAMPLE = [0, 1] * 7


def test_labels_may_be_written_as_fractions(tmp_path, capsys):
    whole = [{"id": "s", "labels": [SAMPLE, SAMPLE]}, {"id": "x", "labels": [SAMPLE, [1] * 14]}]
    written = [{**row, "labels": [[*map(float, sample)] for sample in row["labels"]]} for row in whole]
    options = ("--fraction", "0.5", "--seed", "0")
    assert run(tmp_path, capsys, whole, *options) == run(tmp_path, capsys, written, *options)


def test_the_input_is_not_overwritten(tmp_path):
    rows = tmp_path / "rows.jsonl"
    write_rows(rows, [{"id": "s", "labels": [SAMPLE, SAMPLE]}])
    before = rows.read_bytes()
    with pytest.raises(UserError, match="is also an input"):
        main([str(rows), "--fraction", "1", "--seed", "0", "--output", str(rows)])
    assert rows.read_bytes() == before


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ({"id": "x", "labels": []}, "id x: 0 samples"),
        ({"id": "x", "labels": [SAMPLE]}, "id x: 1 samples"),
        ({"id": "x", "labels": [SAMPLE, SAMPLE[:13]]}, "a sample does not have 14 labels"),
        ({"id": "x", "labels": [SAMPLE, 1]}, "a sample does not have 14 labels"),
        ({"id": "x", "labels": SAMPLE}, "a sample does not have 14 labels"),
        ({"id": "x", "labels": [SAMPLE, [2] * 14]}, "neither 0 nor 1"),
        ({"id": "x", "labels": [SAMPLE, [-1] * 14]}, "neither 0 nor 1"),
        ({"id": "x", "labels": [SAMPLE, [0.5] * 14]}, "neither 0 nor 1"),
        ({"id": "x", "labels": [SAMPLE, [300] * 14]}, "neither 0 nor 1"),
        ({"id": "x", "labels": [SAMPLE, [None] * 14]}, "neither 0 nor 1"),
        ({"id": "x", "labels": [SAMPLE, ["1"] * 14]}, "neither 0 nor 1"),
        ({"id": "x", "labels": {"a": 1}}, "line 2: 'labels' must be list"),
        ({"id": "x"}, "line 2: key 'labels' is missing"),
        ({"id": "s", "labels": [SAMPLE, SAMPLE]}, "id 's' duplicates line 1"),
        ({"id": "x", "labels": [SAMPLE, SAMPLE], "rewards": [0, 1]}, "id s has no rewards, but others do"),
    ],
)
def test_bad_rows_are_refused_by_name(tmp_path, capsys, row, message):
    made = [{"id": "s", "labels": [SAMPLE, SAMPLE]}, row]
    with pytest.raises(UserError, match=message):
        run(tmp_path, capsys, made, "--fraction", "0.5", "--seed", "0")


@pytest.mark.parametrize("rewards", [[1], [0, 1, 2], ["1", 0], [True, 0], [10**400, 0], 1])
def test_bad_rewards_are_refused(tmp_path, capsys, rewards):
    made = [{"id": "s", "labels": [SAMPLE, SAMPLE], "rewards": rewards}]
    with pytest.raises(UserError, match="id s: expected rewards as a list of 2 finite numbers"):
        run(tmp_path, capsys, made, "--fraction", "0.5", "--seed", "0")


def test_rewards_may_be_large_whole_numbers(tmp_path, capsys):
    made = [{"id": "s", "labels": [SAMPLE, SAMPLE], "rewards": [10**30, 0]}]
    found = run(tmp_path, capsys, made, "--fraction", "1", "--seed", "0")["statistics"]["rewards"]["all"]
    assert found["mean_std"] == pytest.approx(5e29)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (("--fraction", "0", "--seed", "0"), "expected a number above 0 and at most 1, found 0"),
        (("--fraction", "1.5", "--seed", "0"), "expected a number above 0 and at most 1, found 1.5"),
        (("--fraction", "nan", "--seed", "0"), "expected a number above 0"),
        (("--fraction", "many", "--seed", "0"), "expected a number above 0"),
        (("--fraction", "0.2", "--seed", "-1"), "expected 0 or more, found -1"),
        (("--fraction", "0.2", "--seed", "1.5"), "expected 0 or more, found 1.5"),
        (("--seed", "0"), "required: --fraction"),
        (("--fraction", "0.2", "--seed", "0", "--strategy", "top", "--exponent", "2"), "leave it out with top"),
        (("--fraction", "0.2", "--seed", "0", "--exponent", "-2"), "exponent -2.0: expected 0 to 100"),
        (("--fraction", "0.2", "--seed", "0", "--strategy", "best"), "invalid choice"),
    ],
)
def test_bad_options_are_refused(tmp_path, capsys, options, message):
    with pytest.raises(UserError, match=message):
        run(tmp_path, capsys, rows(5), *options)


def test_the_command_ends_with_one_line_and_code_2_on_bad_input(tmp_path):
    path = tmp_path / "empty.jsonl"
    path.write_text("")
    command = [sys.executable, "-m", "deer_jax.cli", "select", str(path), "--fraction", "0.2", "--seed", "0"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr.startswith(f"error: {path}: no rows")
    assert done.stderr.count("\n") == 1
