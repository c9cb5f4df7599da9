"""`retsta augment` writes the originals and new pairs, goes on where it was stopped, and refuses in one line."""

import json

import pytest

from common.errors import UserError
from common.io.jsonl import read_jsonl, write_rows
from retsta_jax.cli import dispatch
from tests.corpus import make_pairs

ROWS = [
    {"id": 7, "source": "右眼：黄斑水肿，  硬性渗出。", "target": "右眼：硬性渗出；黄斑水肿。", "note": "kept"},
    *(
        {"id": pair.id, "source": pair.source, "target": pair.target, "language": pair.language}
        for pair in make_pairs(9, 3, "both", 0.3)
    ),
]


@pytest.fixture
def pairs(tmp_path):
    write_rows(tmp_path / "pairs.jsonl", ROWS)
    return tmp_path / "pairs.jsonl"


def augment(pairs, *options):
    dispatch(["augment", str(pairs), *map(str, options)])


def test_originals_come_first_unchanged(pairs, tmp_path, capsys):
    output = tmp_path / "out.jsonl"
    augment(pairs, "--output", output)
    rows = read_jsonl(output, {"id": str | int, "source": str, "target": str, "language": str, "kinds": list})
    assert len(rows) == 50
    assert rows[:10] == [{**row, "language": row.get("language", "zh"), "kinds": [], "from": row["id"]} for row in ROWS]
    assert [row["from"] for row in rows[10:]] == [row["id"] for row in ROWS] * 4
    assert [row["id"] for row in rows[10:12]] == ["7+1", f"{ROWS[1]['id']}+1"]
    assert all(row["kinds"] for row in rows[10:])
    said = capsys.readouterr().err
    assert "pairs 10; quarantined 0" in said
    assert "made 40 new pairs" in said
    assert "黄斑" not in said


def test_it_goes_on_where_it_was_stopped_and_to_a_larger_total(pairs, tmp_path):
    whole, output = tmp_path / "whole.jsonl", tmp_path / "out.jsonl"
    augment(pairs, "--total", 37, "--output", whole)
    augment(pairs, "--total", 22, "--output", output)
    content = output.read_bytes()
    output.write_bytes(content[:-25])  # torn within its last row
    augment(pairs, "--total", 37, "--output", output)
    assert output.read_bytes() == whole.read_bytes()
    with pytest.raises(UserError, match=r"holds rows made with other options or files \(rates.typo was 0.5"):
        augment(pairs, "--total", 37, "--output", output, "--typo", 0.4)
    with pytest.raises(UserError, match="its ids are not the first ids of the input"):
        augment(pairs, "--total", 22, "--output", output)


def test_without_an_output_rows_go_to_standard_output(pairs, capsys):
    augment(pairs, "--factor", 2)
    assert len([json.loads(line) for line in capsys.readouterr().out.splitlines()]) == 20


def test_no_perturbation_makes_a_target_that_is_held_out(pairs, tmp_path):
    rates = [part for kind in ("typo", "punctuation", "split", "merge", "synonym") for part in (f"--{kind}", 0)]
    rates += ["--negation", 1, "--probability", 0]

    def made(name, *options):
        augment(pairs, "--factor", 20, "--output", tmp_path / name, *rates, *options)
        return {row["target"] for row in read_jsonl(tmp_path / name, {"target": str})} - {row["target"] for row in ROWS}

    free = made("free.jsonl")
    held_out = sorted(free)[::2]
    write_rows(
        tmp_path / "test.jsonl", [{"id": t, "source": "another", "target": t, "language": "zh"} for t in held_out]
    )
    assert len(free) > 10
    assert not made("apart.jsonl", "--held-out", tmp_path / "test.jsonl") & set(held_out)


@pytest.mark.parametrize(
    ("rows", "options", "message"),
    [
        ("", (), "no rows; expected one JSON object per line"),
        (None, ("--factor", "0"), "--factor: must be at least 1"),
        (None, ("--total", "9"), "augmentation to 9 pairs: there are 10 already"),
        (None, ("--typo", "1.5"), "--typo: must be at least 0 and at most 1"),
        ([{"id": 1, "source": "x", "target": "y", "language": "fr"}], (), "row 1: language is 'fr', expected en or zh"),
        ([{"id": 1, "source": "右眼出血", "target": "右眼：视网膜出血。", "language": "en"}], (), "is written in 'zh'"),
        ([{"id": 1, "source": "drusen", "target": "Drusen.", "language": "zh"}], (), "is written in 'en'"),
        ([{"id": 1, "source": " ", "target": "y", "language": "en"}], (), "no pair has text on both sides"),
        (
            [{"id": 1, "source": "x", "target": "y"}, {"id": "1", "source": "x", "target": "y"}],
            (),
            "1 occurs both as a number and as text",
        ),
        (None, ("--terminology", "terms.csv"), "the terminology has no names in zh, the language of pair 7"),
        (None, ("--held-out", "absent.jsonl"), "absent.jsonl"),
    ],
)
def test_bad_input_is_one_line_and_nothing_is_written(rows, options, message, pairs, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "terms.csv").write_text("en\npleural effusion\n")
    if rows is not None:
        pairs.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    with pytest.raises((UserError, SystemExit), match=message):
        augment(pairs, "--output", "out.jsonl", *options)
    assert not (tmp_path / "out.jsonl").exists()


def test_an_output_is_not_an_input(pairs):
    with pytest.raises(UserError, match="is also an input and would be overwritten"):
        augment(pairs, "--output", pairs)
