"""Whatever is wrong with the input: one clear line on standard error, exit code 2, nothing half-written."""

import gzip
import io
import json
import shutil
import tarfile
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from common.config import claim_run_directory
from common.data.records import ReportPair
from common.data.tokenizers import load_tokenizer
from common.errors import UserError
from common.training.parallel import make_device_layout
from retsta_jax.config import PRESETS, RetstaConfig
from retsta_jax.evaluate import usable
from retsta_jax.readable import check_usable
from retsta_jax.reports import read_reports
from retsta_jax.standardize import Trained
from retsta_jax.train import Base
from tests.runs import SIZES, Material, retsta

REPORT = """<eCitation><uId id="CXR{0}"/><MedlineCitation><Article><Abstract>
<AbstractText Label="FINDINGS">Heart {0} is large.</AbstractText>
</Abstract></Article></MedlineCitation><MeSH><major>Cardiomegaly</major></MeSH></eCitation>"""


def archive(reports: list[str]) -> bytes:
    """An Open-i archive of these XML files."""
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w:gz") as tar:
        for number, report in enumerate(reports, start=1):
            member = tarfile.TarInfo(f"ecgen-radiology/{number}.xml")
            member.size = len(report.encode())
            tar.addfile(member, io.BytesIO(report.encode()))
    return buffer.getvalue()


def rows(*values: dict) -> bytes:
    return "".join(json.dumps(value) + "\n" for value in values).encode()


@pytest.fixture
def refused(capsys):
    """Run the command; it must end with exit code 2 and one line, which is returned."""

    def check(arguments: list[str]) -> str:
        capsys.readouterr()
        code = retsta(arguments)
        error = capsys.readouterr().err
        assert code == 2, error
        assert error.startswith("error: "), error
        assert error.count("\n") == 1, error
        assert error.endswith("\n"), error
        return error

    return check


@pytest.mark.parametrize(
    ("changed", "words"),
    [
        ({"optim__learning_rat": 1e-3}, ["learning-rat", "learning-rate"]),
        ({"checkpont_every": 5}, ["checkpont-every", "checkpoint-every"]),
        ({"optim__learning_rate": "fast"}, ["optim.learning-rate", "fast"]),
        ({"data__corpus": "mimic"}, ["data.corpus", "mimic", "openi"]),
        ({"preset": "opni"}, ["--preset opni", "did you mean openi"]),
        ({"batch_size": 5}, ["batch_size: 5 rows", "multiple of 2"]),
        ({"parallel": "mesh", "mesh__data": 3}, ["mesh: data=3", "multiple of 3 devices", "there are 8"]),
        ({"parallel": "pmap", "micro_batch": 1}, ["batch_size: 4 rows", "8 devices"]),
        ({"micro_batch": 0}, ["micro_batch must be at least 1", "found 0"]),
        ({"checkpoint_every": 0}, ["checkpoint_every must be at least 1", "found 0"]),
        ({"max_steps": -1}, ["max_steps must be at least 0", "found -1"]),
        ({"seed": -1}, ["seed"]),
        ({"seed": 2**64}, ["seed must be at least 0 and at most 4,294,967,295", "found 18446744073709551616"]),
        ({"batch_size": 10**30}, ["batch_size must be at least 1 and at most 1,048,576", "found 1000000"]),
        ({"max_length": 10**15}, ["max_length must be at least 1 and at most 1,048,576"]),
        ({"lora__rank": 0}, ["lora.rank must be at least 1 and at most 65,536, found 0"]),
        ({"lora__alpha": "nan"}, ["lora.alpha must be above 0", "found nan"]),
        ({"optim__eps": 0}, ["optim.eps must be above 0", "found 0"]),
        ({"lora__dropout": 1}, ["lora.dropout must be at least 0 and below 1, found 1.0"]),
        ({"lora__targets": "qkv"}, ["lora.targets: 'qkv' matches no", "q_proj"]),
        ({"lora__targets": "("}, ["lora.targets: '('"]),
        ({"optim__warmup_ratio": 2}, ["optim.warmup_ratio must be at least 0 and at most 1, found 2.0"]),
        ({"optim__learning_rate": "nan"}, ["optim.learning_rate must be at least 0, found nan"]),
        ({"buckets": 512}, ["buckets [512]", "from 1 to 256"]),
        ({"max_length": 8, "buckets": 8}, ["24 records quarantined (longer than 8 tokens: 24)", "max"]),
        ({"model__attention": "splash"}, ["model.attention: splash runs on a TPU", "found cpu", "auto"]),
        ({"model__attention": "cudnn"}, ["model.attention: cudnn runs on a GPU", "found cpu"]),
        (
            {"parallel": "mesh", "mesh__data": 1, "mesh__tensor": 8},
            ["mesh.tensor: 8 parts do not split the model's 2 key/value heads", "1, 2"],
        ),
        ({"model__base": "nowhere/at-all"}, ["nowhere/at-all"]),
        ({"model__base": ""}, ["model.base: not given", "--model.base DIR"]),
        ({"data__train": "nowhere.jsonl"}, ["nowhere.jsonl", "No such file"]),
        ({"data__test": ""}, ["data.test: not given"]),
        ({"data__corpus": "openi"}, ["data.archive: not given"]),
    ],
    ids=lambda value: "-".join(value) if isinstance(value, dict) else "",
)
def test_an_option_that_makes_no_sense_is_named(material, tmp_path, refused, changed, words):
    error = refused(material.train(tmp_path / "run", **changed))
    assert all(word in error for word in words), error
    assert not (tmp_path / "run").exists()


GOOD = {"id": "a", "source": "few drusen", "target": "drusen"}


@pytest.mark.parametrize(
    ("train", "words"),
    [
        (b"", ["train.jsonl: no rows", "'source'"]),
        (rows(GOOD, GOOD), ["train.jsonl, line 2", "id 'a' duplicates line 1"]),
        (rows({**GOOD, "id": "shared"}), ["id shared is in the train split and in the validation split"]),
        (rows(GOOD) + b'{"id": "b", "source": "\xff"}\n', ["train.jsonl, line 2", "not UTF-8 at byte 24"]),
        (rows(GOOD) + b'{"id": "b"\n', ["train.jsonl, line 2", "not JSON"]),
        (rows({"id": "a", "source": "x"}), ["train.jsonl, line 1", "'target' is missing"]),
        (rows({**GOOD, "target": 7}), ["train.jsonl, line 1", "'target' must be str"]),
        (rows({**GOOD, "source": " "}), ["the train split is empty"]),
    ],
    ids=["empty", "repeated", "shared", "not-utf-8", "torn", "no-target", "number", "no-text"],
)
def test_a_data_file_that_cannot_be_trusted_is_refused(material, tmp_path, refused, train, words):
    (tmp_path / "train.jsonl").write_bytes(train)
    (tmp_path / "validation.jsonl").write_bytes(rows({**GOOD, "id": "shared"}))
    files = {f"data__{name}": tmp_path / f"{name}.jsonl" for name in ("train", "validation")}
    error = refused(material.train(tmp_path / "run", **files))
    assert all(word in error for word in words), error
    assert not (tmp_path / "run").exists()


REPORTS = [REPORT.format(number) for number in range(1, 9)]


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (None, ["reports.tgz: does not exist", "NLMCXR_reports.tgz"]),
        (archive(REPORTS)[:-60], ["reports.tgz is not a complete gzipped tar archive"]),
        (b"<html>", ["reports.tgz is not a complete gzipped tar archive"]),
        (gzip.compress(b""), ["reports.tgz"]),
        (archive([*REPORTS, "<eCitation><uId"]), ["ecgen-radiology/9.xml", "not well-formed XML"]),
        (archive([*REPORTS, REPORTS[0]]), ["ecgen-radiology/9.xml", "CXR1", "ecgen-radiology/1.xml"]),
        (archive(["<eCitation><uId id='CXR1'/></eCitation>"]), ["no study has both report text and"]),
        (archive(REPORTS[:2]), ["validation records"]),
    ],
    ids=["missing", "truncated", "no-archive", "no-member", "no-xml", "repeated", "no-text", "too-few"],
)
def test_an_archive_that_cannot_be_trusted_is_refused(material, tmp_path, refused, content, words):
    if content is not None:
        (tmp_path / "reports.tgz").write_bytes(content)
    (tmp_path / "ids.txt").write_text("CXR1\nCXR2\n")
    openi = {
        "data__corpus": "openi",
        "data__archive": tmp_path / "reports.tgz",
        "data__test_ids": tmp_path / "ids.txt",
        "data__validation_size": 2,
    }
    error = refused(material.train(tmp_path / "run", **openi))
    assert all(word in error for word in words), error
    assert not (tmp_path / "run").exists()


def damaged(base: Path, how: str) -> None:
    """Damage a copy of a base model."""
    file, config = base / "model.safetensors", base / "config.json"
    tensors = load_file(file)
    name = "model.layers.1.mlp.up_proj.weight"
    if how == "missing tensor":
        del tensors[name]
    elif how == "surplus tensor":
        tensors["model.layers.2.mlp.up_proj.weight"] = tensors[name]
    elif how == "misshapen tensor":
        tensors[name] = tensors[name][:-1].copy()
    elif how == "NaN":
        tensors[name] = np.where(np.arange(tensors[name].shape[1]) == 5, np.float32("nan"), tensors[name])
    if how == "truncated":
        file.write_bytes(file.read_bytes()[:-100])
    elif how == "no weights":
        file.unlink()
    elif how == "no tokenizer":
        (base / "tokenizer.model").unlink()
    elif how == "vocabulary":
        config.write_text(json.dumps({**json.loads(config.read_text()), "vocab_size": 300}))
    elif how == "architecture":
        config.write_text(json.dumps({**json.loads(config.read_text()), "model_type": "mistral"}))
    else:
        save_file(tensors, file)


@pytest.mark.parametrize(
    ("how", "words"),
    [
        ("missing tensor", ["tensor model.layers.1.mlp.up_proj.weight is missing"]),
        ("surplus tensor", ["model.safetensors: tensor model.layers.2.mlp.up_proj.weight is surplus"]),
        ("misshapen tensor", ["model.layers.1.mlp.up_proj.weight has shape [47, 32], expected [48, 32]"]),
        ("NaN", ["model.layers.1.mlp.up_proj.weight holds values that are not finite"]),
        ("truncated", ["model.safetensors: not a complete safetensors file"]),
        ("no weights", ["no model.safetensors"]),
        ("no tokenizer", ["no tokenizer found"]),
        ("vocabulary", ["the tokenizer has 448 ids, the model's vocab_size is 300"]),
        ("architecture", ["config.json: model_type is 'mistral', expected 'qwen2'"]),
    ],
)
def test_a_damaged_base_model_is_refused_by_tensor(material, tmp_path, refused, how, words):
    shutil.copytree(material.base, tmp_path / "base")
    damaged(tmp_path / "base", how)
    error = refused(material.train(tmp_path / "run", model__base=tmp_path / "base"))
    assert all(word in error for word in words), error
    assert not (tmp_path / "run").exists()


def test_a_run_directory_that_cannot_be_used_is_left_alone(material, tmp_path, refused):
    file, foreign, damaged_run = tmp_path / "file", tmp_path / "foreign", tmp_path / "damaged"
    file.write_text("mine")
    foreign.mkdir()
    (foreign / "thesis.txt").write_text("mine")
    damaged_run.mkdir()
    (damaged_run / "config.json").write_text("{")
    assert "file is not a directory" in refused(material.train(file))
    assert "file is not a directory" in refused(material.train(file / "below" / "run"))
    assert "foreign: is not empty and contains no config.json" in refused(material.train(foreign))
    assert "config.json: not JSON" in refused(material.train(damaged_run))
    claim_run_directory(tmp_path / "demo", PRESETS["small"])
    error = refused(material.train(tmp_path / "demo"))
    assert "contains a run with a different config" in error
    assert "batch_size was 8 and is now 4" in error
    assert file.read_text() == (foreign / "thesis.txt").read_text() == "mine"
    assert [path.name for path in (tmp_path / "demo").iterdir()] == ["config.json"]


def test_commands_and_their_arguments_are_checked(refused):
    assert "retsta trian: unknown command (did you mean train?); expected train, evaluate" in refused(["trian"])
    assert "--preset NAME is missing; presets are demo, small, openi" in refused(["train", "--run-dir", "x"])
    assert "arguments are required: --run-dir" in refused(["train", "--preset", "demo"])
    assert "--preset: expected one argument" in refused(["train", "--preset"])
    assert "--run-dir" in refused(["evaluate"])
    assert "invalid choice: 'trian'" in refused(["evaluate", "--run-dir", "x", "--split", "trian"])
    assert "expected a whole number, found 'few'" in refused(["evaluate", "--run-dir", "x", "--limit", "few"])
    assert "--runs: unknown option" in refused(["demo", "--runs", "3"])
    assert "source" in refused(["standardize", "--run-dir", "x"])


@pytest.mark.parametrize("command", [[], ["train"], ["evaluate"], ["standardize"], ["demo"]], ids=" ".join)
def test_every_command_has_help(command, capsys):
    assert retsta([*command, "--help"]) == 0
    shown = capsys.readouterr().out
    assert "--run-dir" in shown


@pytest.mark.parametrize(
    ("name", "content", "words"),
    [
        ("reports.jsonl", rows({"id": 1, "report": "x"}) + b"{\n", ["reports.jsonl, line 2", "not JSON"]),
        ("reports.jsonl", rows({"id": 1, "text": "x"}), ["reports.jsonl, line 1", "'report' is missing"]),
        ("reports.txt", "OD: drusen\nOS: é".encode("latin-1"), ["reports.txt, line 2: not UTF-8"]),
        ("reports.txt", "OD: drusen".encode("utf-16"), ["reports.txt: is UTF-16; save the file as UTF-8"]),
        ("reports.txt", b"OD: drusen\nOS: \0", ["reports.txt, line 2: contains a NUL character"]),
        ("reports.jsonl", rows({"id": 1, "report": "x"}) + b"[" * 100_000, ["reports.jsonl, line 2: not JSON (nested"]),
        ("reports.txt", b"\n\n", ["reports.txt: contains no report"]),
        ("reports.txt", b"OD: drusen\n\xe2\x80\x8b\n", ["reports.txt, line 2: report 2 has no text"]),
        ("reports.jsonl", rows({"id": "a", "report": " "}), ["reports.jsonl, line 1: report 'a' has no text"]),
        ("reports.txt", rows({"id": 1, "report": "x"}) * 2, ["reports.txt, line 2: id 1 duplicates line 1"]),
        (
            "reports.jsonl",
            rows({"id": 1, "report": "x"}, {"id": "1", "report": "x"}),
            ["reports.jsonl, line 2: id '1' duplicates line 1"],
        ),
        ("reports.csv", b"id,report\n1,OD: drusen\n", ["reports.csv: is a table; expected reports, one per line"]),
        ("reports.json", b'[{"id": 1, "report": "x"}]', ["reports.json, line 1: expected a JSON object, found list"]),
        ("reports.txt", b'[{"id": 1, "report": "x"}]', ["reports.txt, line 1: expected a JSON object, found list"]),
        ("reports.txt", None, ["reports.txt: cannot be read"]),
        ("reports.txt", b"OD: drusen\n", ["no-run: no config.json there"]),
    ],
    ids=[
        "torn",
        "no-report",
        "not-utf-8",
        "utf-16",
        "nul",
        "deep",
        "empty",
        "invisible",
        "blank",
        "repeated",
        "number-and-text",
        "table",
        "array",
        "array-in-text",
        "missing",
        "no-run",
    ],
)
def test_reports_that_cannot_be_standardized_are_named_by_line(tmp_path, refused, name, content, words):
    if content is not None:
        (tmp_path / name).write_bytes(content)
    output = tmp_path / "output.jsonl"
    error = refused(
        ["standardize", "--run-dir", str(tmp_path / "no-run"), str(tmp_path / name), "--output", str(output)]
    )
    assert all(word in error for word in words), error
    assert not output.exists()
    assert not (tmp_path / "no-run").exists()


def test_rows_from_standard_input_are_named_by_line(refused, monkeypatch, tmp_path):
    monkeypatch.setattr("sys.stdin", io.TextIOWrapper(io.BytesIO(b'{"id": 1, "report": "x"}\n{"id": 2}\n')))
    error = refused(["standardize", "--run-dir", str(tmp_path), "-"])
    assert "standard input, line 2: key 'report' is missing" in error


@pytest.mark.parametrize("source", ["reports.txt", "-"])
def test_reports_are_lines_or_rows_by_the_first_line_that_is_not_blank(monkeypatch, tmp_path, source):
    def read(content: bytes) -> list:
        (tmp_path / "reports.txt").write_bytes(content)
        monkeypatch.setattr("sys.stdin", io.TextIOWrapper(io.BytesIO(content)))
        return read_reports(source if source == "-" else str(tmp_path / source))

    mark = b"\xef\xbb\xbf"
    assert read(mark + b"\n" + rows({"id": "a", "report": "OD: drusen"})) == [("a", "OD: drusen")]
    for end in (b"\n", b"\r\n", b"\r"):
        assert read(mark + end.join([b"OD: drusen", b"", b"OS: scar", b""])) == [(1, "OD: drusen"), (3, "OS: scar")]
    assert read(mark + "OD: drusen\u2028few\n\nOS: scar".encode()) == [(1, "OD: drusen\u2028few"), (3, "OS: scar")]


def test_a_report_too_long_for_the_model_is_refused_by_id_and_left_out_of_an_evaluation(tmp_path, material):
    base = tmp_path / "base"
    shutil.copytree(material.base, base)
    published = json.loads((base / "config.json").read_text())
    (base / "config.json").write_text(json.dumps({**published, "max_position_embeddings": 300}))
    config = RetstaConfig(instruction="Standardize", max_new_tokens=8)
    trained = Trained(config, Base(base, SIZES, {}, load_tokenizer(base)), {}, {}, 0, make_device_layout("jit"))
    with pytest.raises(UserError, match=r"in.jsonl: report 'long': longer than 292 tokens .* leave it out"):
        check_usable(trained.encoder, [("s", "drusen"), ("long", "xyz " * 400)], "in.jsonl")
    pairs = [ReportPair("s", "drusen", "x"), ReportPair("long", "xyz " * 400, "x"), ReportPair("none", "\u200b", "x")]
    kept, quarantine = usable(trained, pairs)
    assert [pair.id for pair in kept] == ["s"]
    assert quarantine.summary() == (
        "2 records quarantined (longer than 292 tokens with its instruction: 1, no report text: 1)"
    )


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["evaluate", "--batch-size", "0"], "argument --batch-size: must be at least 1"),
        (["evaluate", "--limit", "-1"], "argument --limit: must be at least 0"),
        (["standardize", "in.txt", "--batch-size", "0"], "argument --batch-size: must be at least 1"),
    ],
)
def test_numbers_out_of_bounds_are_refused(tmp_path, refused, arguments, said):
    assert said in refused([*arguments, "--run-dir", str(tmp_path)])


def test_a_run_without_checkpoint_cannot_be_used(tmp_path, refused):
    claim_run_directory(tmp_path / "run", PRESETS["demo"])
    assert "run: contains no checkpoint; train first" in refused(["evaluate", "--run-dir", str(tmp_path / "run")])
    assert [path.name for path in (tmp_path / "run").iterdir()] == ["config.json"]


def test_rows_without_text_are_counted_and_listed(material: Material, tmp_path, capsys):
    train = tmp_path / "train.jsonl"
    bad = [{"id": "blank", "source": " ", "target": "x"}, {"id": "silent", "source": "few drusen", "target": ""}]
    long = {"id": "long", "source": "drusen " * 300, "target": "drusen"}
    train.write_bytes(rows(*bad, long) + (material.data / "train.jsonl").read_bytes())
    assert retsta(material.train(tmp_path / "run", data__train=train, max_steps=1)) == 0
    assert "quarantined 3 (" in capsys.readouterr().out
    listed = [json.loads(line) for line in (tmp_path / "run" / "quarantine.jsonl").read_text().splitlines()]
    assert listed == [
        {"id": "blank", "reason": "no source text"},
        {"id": "silent", "reason": "no target text"},
        {"id": "long", "reason": "longer than 256 tokens"},
    ]


@pytest.mark.parametrize("command", ["standardize", "evaluate"])
def test_a_table_of_drafts_of_another_tokenizer_is_refused_before_anything_is_written(
    retsta_run, tmp_path, refused, command
):
    run_dir = shutil.copytree(retsta_run, tmp_path / "run")
    table = run_dir / "drafts.safetensors"
    save_file(load_file(table), table, metadata={"tokenizer": "another"})
    (tmp_path / "in.txt").write_text("no drusen\n")
    own = [str(tmp_path / "in.txt"), "--output", str(tmp_path / "out.jsonl")] if command == "standardize" else []
    before = sorted(tmp_path.rglob("*"))
    error = refused([command, "--run-dir", str(run_dir), "--draft", "reports", *own])
    assert (
        "drafts.safetensors: was made with another tokenizer than the run's; delete it, or give --draft none" in error
    )
    assert sorted(tmp_path.rglob("*")) == before
