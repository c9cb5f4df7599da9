"""Rules for lists of codes: the terminology is that of the known pairs, and each kind of fault has its name."""

import json
from pathlib import Path

import pytest

from common.data.records import ReportPair
from common.io.jsonl import read_jsonl
from retsta_jax.labelling.code_rules import CODE_RULES, judge_by_codes
from retsta_jax.labelling.duplicates import DuplicateConfig
from retsta_jax.labelling.filters import shares_broken
from retsta_jax.labelling.label import apply_rules, remove_duplicates
from tests.runs import Material, retsta

KNOWN = [
    ReportPair("1", "FINDINGS: Clear.", "normal"),
    ReportPair("2", "FINDINGS: Opacity.", "Cardiomegaly/mild\nOpacity/lung/base/left"),
    ReportPair("3", "FINDINGS: XXXX", "No Indexing"),
]
JUDGE = judge_by_codes(KNOWN)


def judged(target: str, complete: bool = True):
    return JUDGE.judge(ReportPair("x", "FINDINGS: any.", target), complete)


@pytest.mark.parametrize(
    ("target", "expected"),
    [
        ("normal", []),
        ("Opacity/lung/base/left\nCardiomegaly/mild", []),
        ("Opacity/lung/base/left\nnormal", ["contradiction"]),
        ("Cardiomegaly/mild\nNo Indexing", ["contradiction"]),
        ("Opacity/lung/base/right", ["outside the terminology"]),
        ("Nodule/lung", ["head outside the terminology", "outside the terminology"]),
        ("", ["states nothing"]),
        (" \n\n", ["states nothing"]),
    ],
)
def test_each_kind_of_fault_has_its_name(target, expected):
    assert judged(target).broken == expected
    assert judged(target, complete=False).broken == ["cut off", *expected]


def test_a_pair_states_its_codes_in_any_order():
    one = judged("Opacity/lung/base/left\nCardiomegaly/mild")
    assert one.states == judged("Cardiomegaly/mild\n Opacity/lung/base/left \n").states
    assert one.states != judged("Cardiomegaly/mild").states


def test_no_rule_rejects_the_known_pairs():
    assert shares_broken(KNOWN, JUDGE) == dict.fromkeys(CODE_RULES, 0.0)


def test_reports_of_one_text_with_other_codes_both_stay(tmp_path):
    reports = [("a", "FINDINGS: Heart enlarged."), ("b", "FINDINGS: Heart enlarged"), ("c", "FINDINGS: heart enlarged")]
    rows = [
        {"id": id_, "standard": standard, "complete": True}
        for id_, standard in (("a", "Cardiomegaly/mild"), ("b", "normal"), ("c", "Cardiomegaly/mild"))
    ]
    kept, rejected = apply_rules(reports, rows, JUDGE)
    funnel = remove_duplicates(3, kept, rejected, tmp_path, DuplicateConfig())
    assert [row["id"] for row in read_jsonl(tmp_path / "pairs.jsonl", {"id": str})] == ["a", "b"]
    assert (funnel.kept, funnel.duplicates) == (2, {"exact": 1})


def test_the_command_judges_by_the_codes_of_the_pairs_that_it_is_given(material: Material, tmp_path: Path, capsys):
    run_dir, output, known = tmp_path / "run", tmp_path / "out", tmp_path / "known.jsonl"
    small = {"max_steps": 1, "checkpoint_every": 1, "evaluate_every": 1, "max_new_tokens": 3, "epochs": 1}
    assert retsta(material.train(run_dir, **small)) == 0
    known.write_text(json.dumps({"id": "1", "source": "FINDINGS: Clear.", "target": "normal"}) + "\n")
    command = ["label", str(material.data / "reports.txt"), "--run-dir", str(run_dir), "--output", str(output)]
    assert retsta([*command, "--codes", str(known), "--skip-rules", "wrong eye"]) == 2
    assert "wrong eye: unknown; rules are cut off, states nothing, contradiction," in capsys.readouterr().err
    assert retsta([*command, "--codes", str(known), "--terminology", str(known)]) == 2
    assert "--codes and --terminology" in capsys.readouterr().err
    assert not output.exists()
    assert retsta([*command, "--codes", str(known)]) == 0
    (row,) = read_jsonl(output / "rejected.jsonl", {"reasons": list})
    assert row["reasons"]
    assert set(row["reasons"]) <= set(CODE_RULES)
    assert f"--codes {known}" in (output / "report.html").read_text(encoding="utf-8")
