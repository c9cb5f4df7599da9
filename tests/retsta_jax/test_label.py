"""Reports become pairs: labelled in shards that continue, on any number of devices, then filtered with reasons."""

import json
import re
import shlex
import shutil
from collections import Counter
from pathlib import Path

import jax
import pytest
import yaml

from common.config import claim_run_directory
from common.data.records import Quarantine
from common.endpoint import Endpoint
from common.errors import UserError
from common.io.jsonl import read_jsonl
from retsta_jax.config import RetstaConfig
from retsta_jax.labelling.card import Labelled, write_card
from retsta_jax.labelling.duplicates import DuplicateConfig
from retsta_jax.labelling.filters import judge_by_terms
from retsta_jax.labelling.label import LabelConfig, apply_rules, remove_duplicates
from retsta_jax.pairs import read_pairs
from retsta_jax.terminology.check import load_terminology
from tests.corpus import make_pairs
from tests.runs import retsta

TERMS = load_terminology()


@pytest.fixture
def reports(tmp_path: Path) -> Path:
    file = tmp_path / "my reports.jsonl"
    rows = [{"id": pair.id, "report": pair.source} for pair in make_pairs(7, seed=2, language="both")]
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return file


def labelled(retsta_run: Path, reports: Path, output: Path, *more: str) -> list[str]:
    return ["label", str(reports), "--run-dir", str(retsta_run), "--output", str(output), "--shard-size", "3", *more]


def test_shards_continue_and_do_not_depend_on_devices(retsta_run, reports, tmp_path, capsys):
    output, again = tmp_path / "out", tmp_path / "again"
    assert len(jax.local_devices()) > 1
    assert retsta(labelled(retsta_run, reports, output)) == 0
    said = capsys.readouterr().out
    assert "0 of 7 reports are kept as pairs" in said or "of 7 reports are kept as pairs" in said
    files = sorted((output / "shards").glob("*.jsonl"))
    assert [len(read_jsonl(file, {"standard": str})) for file in files] == [3, 3, 1]
    shutil.copytree(output, again)
    files = sorted((again / "shards").glob("*.jsonl"))
    files[2].unlink()
    files[1].write_bytes(files[1].read_bytes()[:-15])
    assert retsta(labelled(retsta_run, reports, again)) == 0
    for file in files:
        assert file.read_bytes() == (output / "shards" / file.name).read_bytes()
    alone = tmp_path / "alone.jsonl"
    assert retsta(["standardize", "--run-dir", str(retsta_run), str(reports), "--output", str(alone)]) == 0
    assert alone.read_bytes() == b"".join(file.read_bytes() for file in files)
    whole = [*read_jsonl(output / "rejected.jsonl", {"reasons": list})]
    kept = (output / "pairs.jsonl").read_text().splitlines()
    assert len(whole) + len(kept) == 7
    assert b"pseudo-labels" in (output / "report.html").read_bytes()
    card = (output / "README.md").read_text("utf-8")
    record = json.loads((output / "shards" / "00000.jsonl.config.json").read_text())
    assert f"run {retsta_run}, on base (digest of what was trained: `{record['made_with']['trained']}`)" in card
    assert f"retsta label {shlex.quote(str(reports))} --run-dir {retsta_run} --output FOLDER --shard-size 3\n" in card
    assert not any(row["report"] in card for row in read_jsonl(reports, {"report": str}))


def test_other_reports_or_options_are_refused(retsta_run, reports, tmp_path, capsys):
    output = tmp_path / "out"
    assert retsta(labelled(retsta_run, reports, output)) == 0
    reports.write_text(reports.read_text().replace("zh-", "other-"))
    assert retsta(labelled(retsta_run, reports, output)) == 2
    assert "its ids are not the first ids of the input" in capsys.readouterr().err
    assert retsta(labelled(retsta_run, reports, tmp_path / "new", "--skip-rules", "nonsense")) == 2
    assert "--skip-rules nonsense: unknown; rules are" in capsys.readouterr().err
    assert retsta(labelled(tmp_path / "absent", reports, tmp_path / "new")) == 2
    assert "absent: no config.json there" in capsys.readouterr().err
    assert not (tmp_path / "new").exists()


@pytest.mark.parametrize("name", ["pairs.jsonl", "rejected.jsonl", "funnel.json", "report.html", "README.md"])
def test_a_directory_with_files_of_others_is_left_alone(retsta_run, reports, tmp_path, capsys, name):
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / name).write_text("mine\n")
    assert retsta(labelled(retsta_run, reports, tmp_path / "out")) == 2
    assert f"{name}: contains something other than" in capsys.readouterr().err
    assert [file.read_text() for file in (tmp_path / "out").iterdir()] == ["mine\n"]


def test_the_directory_of_a_run_takes_no_labels(retsta_run, reports, capsys):
    before = sorted(retsta_run.rglob("*"))
    assert retsta(labelled(retsta_run, reports, retsta_run)) == 2
    assert "is the directory of a run; give another --output" in capsys.readouterr().err
    assert sorted(retsta_run.rglob("*")) == before


def test_every_report_is_kept_or_has_a_reason(tmp_path):
    pairs = make_pairs(300, seed=4, language="both")
    reports = [(pair.id, pair.source) for pair in pairs] + [("copy", pairs[0].source)]
    rows = [{"id": pair.id, "standard": pair.target, "complete": True} for pair in pairs]
    rows.append({"id": "copy", "standard": pairs[0].target, "complete": True})
    rows[1] |= {"complete": False}
    rows[2] |= {"standard": rows[2]["standard"].replace("右", "左").replace("Right", "Left")}
    kept, rejected = apply_rules(reports, rows, judge_by_terms(TERMS), skipped=["outside the terminology"])
    assert [one.id for one in rejected][:1] == [pairs[1].id]
    funnel = remove_duplicates(len(reports), kept, rejected, tmp_path, DuplicateConfig())
    left_out = {row["id"]: row for row in read_jsonl(tmp_path / "rejected.jsonl", {"reasons": list})}
    stay = {row["id"] for row in read_jsonl(tmp_path / "pairs.jsonl", {"source": str, "target": str, "language": str})}
    assert stay.isdisjoint(left_out)
    assert stay | left_out.keys() == {id_ for id_, _ in reports}
    assert left_out[pairs[1].id]["reasons"] == ["cut off"]
    assert left_out["copy"]["stays"] == pairs[0].id
    assert left_out["copy"]["kind"] == "exact"
    assert funnel.kept == len(stay) > 270
    assert funnel.reports == sum(funnel.rejected.values()) + sum(funnel.duplicates.values()) + funnel.kept


def test_the_card_counts_what_the_files_hold(tmp_path):
    pairs = make_pairs(300, seed=4, language="both")
    reports = [(pair.id, pair.source) for pair in pairs] + [("copy", pairs[0].source)]
    rows = [{"id": pair.id, "standard": pair.target, "complete": True} for pair in pairs]
    rows.append({"id": "copy", "standard": pairs[0].target, "complete": True})
    rows[1] |= {"complete": False}
    config = LabelConfig(skip_rules=("outside the terminology",), duplicates=DuplicateConfig(threshold=0.9))
    judge = judge_by_terms(TERMS)
    kept, rejected = apply_rules(reports, rows, judge, config.skip_rules)
    funnel = remove_duplicates(len(reports), kept, rejected, tmp_path, config.duplicates)
    endpoint = Endpoint("http://localhost:1/v1", "engine", tmp_path / "answers.sqlite")
    claim_run_directory(tmp_path / "zero", RetstaConfig(max_new_tokens=77))
    labelled = Labelled(tmp_path / "zero", "in.jsonl", tmp_path, judge, config, endpoint, funnel)
    write_card(labelled, "retsta label in.jsonl")
    card = (tmp_path / "README.md").read_text("utf-8")
    _, front, body = card.split("---\n", 2)
    head = yaml.safe_load(front)
    assert (head["license"], head["language"], head["size_categories"]) == ("other", ["en", "zh"], ["n<1K"])
    table = dict(re.findall(r"^\| ([^|]+?) \| ([\d,]+) \|$", body, re.MULTILINE))
    left_out = read_jsonl(tmp_path / "rejected.jsonl", {"reasons": list})
    expected = Counter(
        f"{row['kind']} duplicate" if row["reasons"] == ["duplicate"] else f"rule broken: {row['reasons'][0]}"
        for row in left_out
    )
    expected["pairs.jsonl"] = len((tmp_path / "pairs.jsonl").read_text("utf-8").splitlines())
    assert {name: int(count) for name, count in table.items()} == expected
    assert sum(expected.values()) == 301
    assert expected["rule broken: cut off"] == expected["exact duplicate"] == 1
    for told in (
        "- source: 301 reports of in.jsonl",
        "by http://localhost:1/v1 (model engine)",
        "- longest answer: 77 tokens",
        "- rules not applied: outside the terminology",
        "Jaccard index of at least 0.9",
        "more than 15% of the letters",
        "no person has read them",
    ):
        assert told in body
    assert not any(text in card for pair in pairs for text in (pair.id, pair.source, pair.target))


@pytest.mark.parametrize(
    ("report", "standard", "language"),
    [
        ("OD: DR", "右眼：糖尿病视网膜病变。", "zh"),
        ("OD: BRVO, ME?", "右眼：视网膜分支静脉阻塞；可疑黄斑水肿。", "zh"),
        ("OD: DR", "Right eye: diabetic retinopathy.", "en"),
        ("OD: drusen", "右眼：玻璃膜疣。", "en"),
        ("NO ME OD", "右眼：未见黄斑水肿。", "en"),
        ("ＯＤ：ＤＲ", "右眼：糖尿病视网膜病变。", "zh"),
        ("ＯＤ：ｄｒｕｓｅｎ", "右眼：玻璃膜疣。", "en"),
    ],
)
def test_the_standard_report_says_the_language_of_abbreviations(tmp_path, report, standard, language):
    rows = [{"id": 1, "standard": standard, "complete": True}]
    kept, rejected = apply_rules([(1, report)], rows, judge_by_terms(TERMS))
    assert [one.pair.language for one in [*kept, *rejected]] == [language]
    assert bool(rejected) == (language == "en" and "眼" in standard)
    (tmp_path / "pairs.jsonl").write_text(json.dumps({"id": 1, "source": report, "target": standard}) + "\n")
    [pair] = read_pairs(tmp_path / "pairs.jsonl", Quarantine())
    assert pair.language == language


def test_a_number_and_its_text_are_one_id(tmp_path):
    rows = [{"id": id_, "source": "OD: drusen", "target": "Right eye: drusen."} for id_ in (1, "1")]
    (tmp_path / "pairs.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    with pytest.raises(UserError, match="id 1 occurs both as a number and as text"):
        read_pairs(tmp_path / "pairs.jsonl", Quarantine())


def test_reports_that_differ_in_eye_or_ratio_stand_for_different_states():
    def states(report, standard):
        from common.data.records import ReportPair

        return judge_by_terms(TERMS).judge(ReportPair("1", report, standard, "en"), True).states

    one = states("OD increased cupping, CDR 0.7", "Right eye: enlarged cup-to-disc ratio (C/D 0.7).")
    assert one == states("OD: increased cupping. CDR 0.7", "Right eye: enlarged cup-to-disc ratio (C/D 0.7).")
    assert one != states("OS increased cupping, CDR 0.7", "Left eye: enlarged cup-to-disc ratio (C/D 0.7).")
    assert one != states("OD increased cupping, CDR 0.8", "Right eye: enlarged cup-to-disc ratio (C/D 0.8).")
