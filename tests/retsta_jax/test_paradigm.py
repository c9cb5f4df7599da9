"""From a terminology and pairs to two models, in one command that goes on where it was stopped; of any specialty."""

import html
import json
import re
import shutil
from pathlib import Path

import pytest

from common.data.records import ReportPair
from common.errors import UserError
from common.io.jsonl import read_jsonl
from common.report.compare_command import main as compare
from retsta_jax.labelling.filters import RULES
from retsta_jax.paradigm.paradigm import Translation, with_translations
from retsta_jax.standardize import config_of_trained
from retsta_jax.terminology.check import load_terminology
from retsta_jax.translation.offline_translator import translate_offline
from tests.corpus import make_pairs
from tests.hosts import on_hosts
from tests.runs import GENERATED, PARADIGM, Material, retsta

SMALL = {**PARADIGM, "augment-to": 0, "label.shard-size": 10}
TERMS = """id,kind,zh,en,synonyms_zh,synonyms_en
effusion,sign,胸腔积液,pleural effusion,胸水,effusion
nodule,sign,肺结节,pulmonary nodule,结节,lung nodule|nodule
pneumothorax,diagnosis,气胸,pneumothorax,,collapsed lung
"""


def command(material: Material, run_dir: Path, **options: object) -> list[str]:
    base = {"preset": "demo", "run-dir": run_dir, "train.model.base": material.base}
    chosen = {**base, **SMALL, **{name.replace("__", ".").replace("_", "-"): v for name, v in options.items()}}
    return ["paradigm", *(word for name, value in chosen.items() for word in (f"--{name}", str(value)))]


def generated(material: Material, run_dir: Path, *more: str) -> list[str]:
    return [*command(material, run_dir, **GENERATED), "--label.skip-rules", *RULES, *more]


@pytest.fixture(scope="module")
def done(material: Material, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run whose first model, of two steps, is trusted in everything."""
    run_dir = tmp_path_factory.mktemp("paradigm") / "run"
    assert retsta(generated(material, run_dir)) == 0
    return run_dir


def ids(file: Path) -> list[str]:
    return [row["id"] for row in read_jsonl(file, {"source": str, "target": str, "language": str})]


def test_every_stage_leaves_its_result(done):
    train, final = ids(done / "train.jsonl"), ids(done / "final-train.jsonl")
    labelled, test = ids(done / "labelled" / "pairs.jsonl"), ids(done / "test.jsonl")
    assert len(train) == 12
    assert set(train) | set(labelled) <= set(final)
    assert {f"{id_}-en" for id_ in train} & set(final), "pairs are translated"
    assert not {*final} & {*test}
    assert not {*train} & {*labelled}
    sources = [{row["source"] for row in read_jsonl(done / f"{name}.jsonl", {})} for name in ("final-train", "test")]
    assert not sources[0] & sources[1]
    for model in ("zero", "final"):
        scores = json.loads((done / model / "metrics.json").read_text())["systems"]["this run"]
        assert {"findings/F1", "zh/coco/BLEU-4", "en/coco/BLEU-4"} <= scores.keys()
    card = (done / "labelled" / "README.md").read_text(encoding="utf-8")
    assert f"| pairs.jsonl | {len(labelled)} |" in card
    assert "retsta paradigm --preset" in card
    page = (done / "report.html").read_text(encoding="utf-8")
    for word in ("Funnel", "reports labelled by RetSTA-Zero", "nearest training report", "retsta paradigm"):
        assert word in page


def test_the_page_tells_the_differences_that_the_command_tells(done, material, tmp_path, capsys):
    """The figures on the page are those of `medreport compare` on the predictions of both models."""
    run_dir = shutil.copytree(done, tmp_path / "run")
    rows = read_jsonl(run_dir / "zero" / "predictions.jsonl", {"reference": str})
    for model, stays in (("final", lambda number: number % 4), ("zero", lambda number: number == 2)):
        texts = [row["reference"] if stays(number) else row["reference"][:-9] for number, row in enumerate(rows)]
        written = (json.dumps(row | {"prediction": text}) for row, text in zip(rows, texts, strict=True))
        (run_dir / model / "predictions.jsonl").write_text("".join(f"{line}\n" for line in written))
    assert retsta(generated(material, run_dir)) == 0
    capsys.readouterr()
    names = {"final": "RetSTA", "zero": "RetSTA-Zero"}
    compare([*(str(run_dir / model / "predictions.jsonl") for model in names), "--output", str(tmp_path / "c.json")])
    lines = [line.strip("| ").split(" | ") for line in capsys.readouterr().out.splitlines() if line.startswith("| ")]
    lines = [[line[0], " - ".join(names.get(name, name) for name in line[1].split(" - ")), *line[2:]] for line in lines]
    assert len(lines) > 4
    page = (run_dir / "report.html").read_text(encoding="utf-8")
    section = page.split("<h2><bdi>Which differences hold</bdi></h2>")[1].split("</section>")[0]
    cells = [re.findall(r"<t[hd][^>]*>(.*?)</t[hd]>", row, re.DOTALL) for row in section.split("<tr>")[1:]]
    shown = [[html.unescape(re.sub("<[^>]*>", "", cell)).strip() for cell in row] for row in cells]
    assert shown == lines
    whole = json.loads((tmp_path / "c.json").read_text())
    written = json.loads((run_dir / "differences.json").read_text())
    assert written["systems"] == {names[name]: scores for name, scores in whole["systems"].items()}
    for row in whole["differences"]:
        row |= {"first": names[row["first"]], "second": names[row["second"]]}
    assert written["differences"] == whole["differences"]
    assert "as medreport compare tells of final/predictions.jsonl and of zero/" in section
    assert {row["holds"] for row in written["differences"]} == {True, False}
    assert f"2 systems, {len(rows)} reports" in (run_dir / "differences.html").read_text(encoding="utf-8")


def test_what_is_done_is_not_done_again(done, material, tmp_path, capsys):
    run_dir = shutil.copytree(done, tmp_path / "run")
    shutil.rmtree(run_dir / "final")
    shard = run_dir / "labelled" / "shards" / "00001.jsonl"
    shard.write_bytes(shard.read_bytes()[:-30])
    before = {path: path.stat().st_mtime_ns for path in (run_dir / "zero" / "checkpoints").rglob("*") if path.is_file()}
    assert retsta(generated(material, run_dir)) == 0
    for path, written in before.items():
        assert path.stat().st_mtime_ns == written
    for name in ("final-train.jsonl", "pairs-translated.jsonl", "labelled/pairs.jsonl", "final/metrics.jsonl"):
        assert (run_dir / name).read_bytes() == (done / name).read_bytes(), name


def test_two_hosts_do_what_one_does_with_the_same_models(done, material, tmp_path):
    run_dir = shutil.copytree(done, tmp_path / "run")
    shutil.rmtree(run_dir / "labelled")
    files = ["final-train.jsonl", "final/predictions.jsonl", "final/metrics.json"]  # by label and evaluate
    files += [path.name for path in run_dir.glob("*-translated*")]
    for name in files:
        (run_dir / name).unlink()
    for config in (run_dir / "config.json", *run_dir.glob("*/config.json")):  # jit is for one device
        config.write_text(config.read_text().replace('"parallel": "jit"', '"parallel": "auto"'))
    command = [*generated(material, run_dir), "--train.parallel", "auto"]
    codes, said = on_hosts("retsta_jax.cli", [command] * 2, devices=1)
    assert codes == [0, 0], said
    assert not [line for line in said[1].splitlines() if line.startswith(("warning:", "note:"))]
    for name in (*files, "labelled/pairs.jsonl", "labelled/rejected.jsonl", "labelled/funnel.json"):
        assert (run_dir / name).read_bytes() == (done / name).read_bytes(), name


def test_other_options_are_refused(done, material, capsys):
    assert retsta([*generated(material, done), "--seed", "5"]) == 2
    assert "contains a run with a different config (seed" in capsys.readouterr().err


def test_a_model_whose_labels_all_fail_is_one_line(material, tmp_path, capsys):
    assert retsta(command(material, tmp_path / "run", **GENERATED)) == 2
    assert "no labelled report passed the rules, of 14; rejected.jsonl there says why" in capsys.readouterr().err


def own(folder: Path, languages: tuple[str, ...]) -> dict[str, str]:
    """Files of another specialty, with their options."""
    words = {
        "en": [("effusion", "Pleural effusion"), ("nodule", "Pulmonary nodule"), ("collapsed lung", "Pneumothorax")],
        "zh": [("胸水", "胸腔积液"), ("结节", "肺结节"), ("气胸", "气胸")],
    }
    frames = {"en": ("There is {}.", "{}."), "zh": ("可见{}。", "{}。")}
    sizes = {"train": 12, "validation": 4, "test": 6}
    files, number = {}, 0
    for name, size in sizes.items():
        rows = []
        for _ in range(size):
            language = languages[number % len(languages)]
            loose, standard = words[language][number % 3]
            before, after = frames[language]
            rows.append({"id": f"r{number}", "source": before.format(loose, number), "target": after.format(standard)})
            number += 1
        files[name] = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
    files["reports"] = "".join(
        json.dumps({"id": f"u{n}", "report": frames["en"][0].format(words["en"][n % 3][0], 100 + n)}) + "\n"
        for n in range(9)
    )
    for name, text in files.items():
        (folder / f"{name}.jsonl").write_text(text, encoding="utf-8")
    (folder / "terms.csv").write_text(TERMS, encoding="utf-8")
    paths = {f"data__{name}": str(folder / f"{name}.jsonl") for name in files}
    return {"data__corpus": "jsonl", "terminology": str(folder / "terms.csv"), **paths}


def test_another_specialty_goes_all_the_way(material, tmp_path, capsys):
    options = own(tmp_path, ("en",))
    run_dir = tmp_path / "run"
    assert retsta([*command(material, run_dir, **options), "--label.skip-rules", *RULES]) == 0
    said = capsys.readouterr().out
    assert "terminology of 3 terms, 12 pairs, 9 reports" in said
    assert "RetSTA-Zero" in said
    assert any(row["language"] == "zh" for row in read_jsonl(run_dir / "final-train.jsonl", {}))
    assert json.loads((run_dir / "zero" / "metrics.json").read_text())["recognised"] == 12  # both languages


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ({"data__corpus": "jsonl"}, "data.train: not given; corpus jsonl needs files of rows"),
        ({"data__train": "x.jsonl"}, "--data.train: not read with --data.corpus fundus"),
        ({"train__epochs": 2}, "--train.epochs: not read by retsta paradigm; give --zero-epochs and --final-epochs"),
        ({"translate": "endpoint"}, "--translate endpoint and --endpoint URL go together"),
        ({"terminology": "absent.csv"}, "absent.csv"),
        ({"data__train_size": 0}, "the train split has no pair"),
        ({"data__reports_size": 0}, "there is no report to label"),
    ],
)
def test_bad_options_are_one_line(material, tmp_path, capsys, options, expected):
    assert (
        retsta(
            command(
                material, tmp_path / "run", **{**GENERATED, **options} if "data__corpus" not in options else options
            )
        )
        == 2
    )
    assert expected in capsys.readouterr().err
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("options", "table", "expected"),
    [
        ({"augment_to": 5}, TERMS, "augment_to must be at least 12, the given pairs, or 0, found 5"),
        ({}, "kind,en\nsign,nodule\n", "no names in Chinese, which translation needs; .* or give --translate none"),
    ],
)
def test_what_a_later_stage_would_refuse_claims_no_directory(material, tmp_path, capsys, options, table, expected):
    options = own(tmp_path, ("en",)) | options
    (tmp_path / "terms.csv").write_text(table, encoding="utf-8")
    assert retsta(command(material, tmp_path / "run", **options)) == 2
    assert re.search(expected, capsys.readouterr().err)
    assert not (tmp_path / "run").exists()


def test_the_directory_of_a_paradigm_is_no_run_and_names_those_inside(tmp_path):
    for name in ("zero", "final"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "config.json").write_text("{}")
    (tmp_path / "config.json").write_text('{"augment_to": 5}')
    with pytest.raises(UserError, match=r"unknown field 'augment_to'.*; runs inside it: final, zero"):
        config_of_trained(tmp_path)


def test_a_report_of_abbreviations_does_not_end_translation(tmp_path):
    pairs = make_pairs(30, seed=1, language="zh")
    short = ReportPair("short", "OD: DR", "右眼：糖尿病视网膜病变。", "en")
    translation = Translation(translate_offline, {"translator": "offline"})
    both, counts = with_translations(tmp_path, translation, load_terminology(), "pairs", [*pairs, short])
    assert counts is not None
    assert counts.translated >= 28
    assert short in both
    mixed = make_pairs(10, seed=1, language="both")
    assert with_translations(tmp_path, translation, load_terminology(), "mixed", mixed) == (mixed, None)
