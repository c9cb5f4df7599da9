"""Two hosts write the rows that one process writes, and end together where a row of one of them is not finite."""

import json
import shutil

import pytest

from common.data.tokenizers import load_tokenizer
from common.models.qwen2_weights import load_qwen2, save_qwen2
from tests.corpus import make_pairs
from tests.hosts import on_hosts
from tests.overflow import overflowing

LOUD = "OD"  # a word of the tokenizer's, and in no prompt but one


def rows_file(file, rows):
    file.write_text("".join(json.dumps(row) + "\n" for row in rows), "utf-8")
    return file


def written(module, command, folder, hosts=2, devices=2):
    """What stands in the output of a command; the other host has one of its own, as where hosts share no disk."""
    names = ["out.jsonl", "never.jsonl"][:hosts]
    commands = [[*command, "--output", str(folder / name)] for name in names]
    codes, said = on_hosts(module, commands, devices)
    assert codes == [0] * hosts, said
    assert not list(folder.glob("never*"))
    return (folder / "out.jsonl").read_bytes()


def check_same(module, command, tmp_path):
    """What one process with one device writes, two with two each write, and go on with."""
    (tmp_path / "alone").mkdir()
    alone = written(module, command, tmp_path / "alone", hosts=1, devices=1)
    first = alone.splitlines(keepends=True)[0]
    assert len(first) < len(alone) / 4
    (tmp_path / "out.jsonl").write_bytes(first)
    shutil.copy(tmp_path / "alone" / "out.jsonl.config.json", tmp_path)
    assert written(module, command, tmp_path) == alone


def test_standardize(retsta_run, tmp_path):
    rows = [{"id": pair.id, "report": pair.source} for pair in make_pairs(9, seed=2, language="both")]
    reports = rows_file(tmp_path / "reports.jsonl", rows)
    check_same("retsta_jax.cli", ["standardize", str(reports), "--run-dir", str(retsta_run)], tmp_path)


@pytest.mark.parametrize("options", [["--temperature", "1", "--batch-size", "2"], ["--score"]], ids=["text", "scores"])
def test_decode(material, tmp_path, options):
    pairs = make_pairs(9, seed=2, language="both")
    rows = [{"id": pair.id, "prompt": pair.source, "completion": pair.target} for pair in pairs]
    prompts = rows_file(tmp_path / "prompts.jsonl", rows)
    command = ["decode", "--model", str(material.base), "--prompts", str(prompts), "--max-new-tokens", "6", *options]
    check_same("launch.cli", command, tmp_path)


def test_sample(tmp_path):
    options = {
        "data.train-size": 6, "data.side": 56, "rollout.group": 2, "rollout.max-new-tokens": 6, "batch-size": 4
    }  # fmt: skip
    words = [part for name, value in options.items() for part in (f"--{name}", str(value))]
    check_same("deer_jax.cli", ["sample", "--preset", "demo", *words], tmp_path)


@pytest.mark.parametrize("score", [[], ["--score"]], ids=["text", "scores"])
def test_a_row_that_is_not_finite_on_one_host_ends_both_with_its_line(material, tmp_path, score):
    model = tmp_path / "model"
    config, params = load_qwen2(material.base)
    save_qwen2(model, config, overflowing(params, load_tokenizer(material.base).encode(LOUD)[0]))
    shutil.copy(material.base / "tokenizer.model", model)
    texts = ["few drusen.", "no", "macula", "no drusen", LOUD, "few"]
    rows = [{"id": f"r{number}", "prompt": text, "completion": "no"} for number, text in enumerate(texts)]
    prompts = rows_file(tmp_path / "prompts.jsonl", rows)
    command = ["decode", "--model", str(model), "--prompts", str(prompts), "--max-new-tokens", "1", *score]
    commands = [
        [*command, "--dtype", "float16", "--output", str(tmp_path / name)] for name in ("out.jsonl", "never.jsonl")
    ]
    codes, said = on_hosts("launch.cli", commands, devices=1)
    assert codes == [2, 2], said
    lines = [[line for line in one.splitlines() if line.startswith("error: ")] for one in said]
    assert lines[0] == lines[1]
    assert len(lines[0]) == 1
    assert lines[0][0].startswith("error: id 'r4': the ")
    kept = [json.loads(line)["id"] for line in (tmp_path / "out.jsonl").read_text("utf-8").splitlines()]
    assert kept == ["r0", "r1", "r2", "r3"]
