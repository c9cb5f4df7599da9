"""`medreport decode` on a published directory: rows in order, resumed, scored, and refused in one line."""

import dataclasses
import json
import os
import re
import subprocess
import sys
from pathlib import Path

import jax
import numpy as np
import pytest

from common.command import run_cli
from common.data.tokenizers import load_tokenizer
from common.errors import UserError
from common.generation import command as decode_cli
from common.models.peft import save_peft
from common.models.qwen2 import Qwen2
from common.models.qwen2_weights import load_qwen2, save_qwen2
from tests import tiny
from tests.common.test_generation_memory import WANTED, exhausted

TEXTS = ["no acute disease", "heart size is normal", "lungs", "the lungs are clear and the heart is normal", "acute"]


@pytest.fixture(scope="module")
def model(tmp_path_factory) -> Path:
    """A tiny random model with a word tokenizer and a chat template, in the layout of the hub."""
    from transformers import Qwen2TokenizerFast

    directory = tmp_path_factory.mktemp("published") / "model"
    learned = json.loads(tiny.byte_level_bpe(TEXTS, 290, ["<|endoftext|>"]).to_str())["model"]
    merges = [tuple(merge) for merge in learned["merges"]]
    tokenizer = Qwen2TokenizerFast(vocab=learned["vocab"], merges=merges, eos_token="<|endoftext|>")
    tokenizer.chat_template = "{% for m in messages %}user: {{ m.content }} {% endfor %}assistant:"
    config = dataclasses.replace(tiny.CONFIG, vocab_size=320)
    base = tiny.params(config)
    save_qwen2(directory, config, {**base, "lm_head": base["lm_head"] * 20})
    tokenizer.save_pretrained(directory)
    save_peft(directory.parent / "adapter", tiny.lora(base), tiny.LORA, "model")
    return directory


@pytest.fixture
def prompts(tmp_path) -> Path:
    return jsonl(tmp_path / "prompts.jsonl", [{"id": f"r{i}", "prompt": text} for i, text in enumerate(TEXTS)])


def jsonl(file: Path, rows: list[dict]) -> Path:
    file.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return file


def rows_of(file: Path) -> list[dict]:
    return [json.loads(line) for line in file.read_text(encoding="utf-8").splitlines()]


def decode(model: Path, prompts: Path, output: Path, *options: str) -> list[dict]:
    decode_cli.main(
        ["--model", str(model), "--prompts", str(prompts), "--output", str(output), "--max-new-tokens", "6", *options]
    )
    return rows_of(output)


SAMPLED = ("--temperature", "1", "--top-p", "0.9", "--top-k", "30", "--batch-size", "2", "--seed", "3")


def test_rows_come_in_input_order_with_text_tokens_and_why_they_end(model, prompts, tmp_path):
    rows = decode(model, prompts, tmp_path / "out.jsonl", *SAMPLED)
    assert [row["id"] for row in rows] == [f"r{i}" for i in range(5)]
    tokenizer = load_tokenizer(model)
    for row in rows:
        assert set(row) == {"id", "text", "token_ids", "log_probs", "finish"}
        assert len(row["token_ids"]) == len(row["log_probs"]) <= 6
        assert (row["finish"] == "stop") == (row["token_ids"][-1] == tokenizer.eos_id)
        assert row["text"] == tokenizer.decode(row["token_ids"])


@pytest.mark.parametrize("kept_bytes", ["two rows", "two rows and a torn one"])
def test_a_stopped_run_goes_on_where_it_stopped(model, prompts, tmp_path, kept_bytes):
    whole = decode(model, prompts, tmp_path / "whole.jsonl", *SAMPLED)
    lines = (tmp_path / "whole.jsonl").read_bytes().splitlines(keepends=True)
    output = tmp_path / "resumed.jsonl"  # it may have moved, with its record
    (tmp_path / "whole.jsonl.config.json").rename(tmp_path / "resumed.jsonl.config.json")
    output.write_bytes(b"".join(lines[:2]) + (lines[2][:20] if "torn" in kept_bytes else b""))
    assert decode(model, prompts, output, *SAMPLED) == whole


LANGUAGE = "warning: attention: xla (language): cudnn takes bfloat16, not float32"


@pytest.mark.parametrize(
    ("score", "towers"), [([], [LANGUAGE, "attention: xla (new tokens)"]), (["--score"], [LANGUAGE])]
)
def test_the_attention_of_each_tower_is_said(model, tmp_path, as_on_a_gpu, capsys, score, towers):
    rows = [{"id": number, "prompt": "the heart " * number, "completion": "no"} for number in (1, 60)]
    decode(model, jsonl(tmp_path / "rows.jsonl", rows), tmp_path / "out.jsonl", *score)
    assert [line for line in capsys.readouterr().err.splitlines() if "attention: " in line] == towers


def test_scores_are_the_log_probs_of_the_completions_tokens(model, prompts, tmp_path):
    completions = ["the heart", "", "w", "lungs are clear", "normal"]
    rows = [{"id": i, "prompt": text, "completion": completions[i]} for i, text in enumerate(TEXTS)]
    scores = decode(model, jsonl(tmp_path / "pairs.jsonl", rows), tmp_path / "scores.jsonl", "--score")
    config, params = load_qwen2(model)
    tokenizer = load_tokenizer(model)
    for row, score in zip(rows, scores, strict=True):
        before, after = tokenizer.encode(row["prompt"]), tokenizer.encode(row["completion"])
        tokens = np.array([before + after])
        hidden, _ = Qwen2(config).apply({"params": params}, tokens, np.arange(tokens.size)[None], np.ones_like(tokens))
        logits = hidden[0, len(before) - 1 : -1] @ params["lm_head"].T
        expected = np.asarray(jax.nn.log_softmax(logits))[np.arange(len(after)), after]
        assert score["token_ids"] == after
        np.testing.assert_allclose(score["log_probs"], expected, atol=1e-4)
        assert score["total"] == pytest.approx(expected.sum(), abs=1e-3)


def test_beams_and_adapters_run_and_change_the_result(model, prompts, tmp_path):
    plain = decode(model, prompts, tmp_path / "plain.jsonl")
    adapted = decode(model, prompts, tmp_path / "adapted.jsonl", "--adapter", str(model.parent / "adapter"))
    beams = decode(model, prompts, tmp_path / "beams.jsonl", "--beams", "3")
    assert [row["log_probs"] for row in plain] != [row["log_probs"] for row in adapted]
    mean = [sum(row["log_probs"]) / len(row["log_probs"]) for row in beams]
    greedy = [sum(row["log_probs"]) / len(row["log_probs"]) for row in plain]
    assert any(found > first + 1e-3 for found, first in zip(mean, greedy, strict=True))


def refusal(model: Path, prompts: Path, output: Path, *options: str) -> str:
    with pytest.raises(UserError) as error:
        decode(model, prompts, output, *options)
    assert not output.exists()
    return str(error.value)


def test_bad_input_is_named_and_nothing_is_written(model, prompts, tmp_path):
    output = tmp_path / "out.jsonl"
    assert "nowhere" in refusal(tmp_path / "nowhere", prompts, output)
    assert "nowhere.jsonl" in refusal(model, tmp_path / "nowhere.jsonl", output)
    assert "line 2" in refusal(model, jsonl(tmp_path / "a.jsonl", [{"id": 1, "prompt": "x"}, {"id": 2}]), output)
    assert "line 2" in refusal(model, jsonl(tmp_path / "b.jsonl", [{"id": 1, "prompt": "x"}] * 2), output)
    assert "no tokens" in refusal(model, jsonl(tmp_path / "c.jsonl", [{"id": 1, "prompt": ""}]), output)
    long = jsonl(tmp_path / "d.jsonl", [{"id": "long", "prompt": "lungs " * 40_000}])
    assert "'long'" in refusal(model, long, output)
    assert "adapter_config.json" in refusal(model, prompts, output, "--adapter", str(tmp_path))
    for option, value in (("--top-p", "0"), ("--temperature", "1e-40"), ("--temperature", "nan"), ("--seed", "9" * 30)):
        assert re.search(f"{option}:? must be", refusal(model, prompts, output, option, value))
    assert "beams or sampling" in refusal(model, prompts, output, "--beams", "2", "--top-p", "0.5")
    assert "folder" in refusal(model, prompts, tmp_path / "missing" / "out.jsonl")


@pytest.mark.parametrize(
    ("options", "temperature"),
    [([], 0.0), (["--seed", "3"], 0.0), (["--top-p", "0.9"], 1.0), (["--top-k", "5"], 1.0)],
)
def test_a_truncated_distribution_is_sampled_from(options, temperature):
    required = ["--model", "m", "--prompts", "p.jsonl"]
    assert decode_cli.parse([*required, *options]).temperature == temperature
    assert decode_cli.parse([*required, *options, "--temperature", "0"]).temperature == 0


def test_another_architecture_and_another_tokenizer_are_refused(model, prompts, tmp_path):
    config = json.loads((model / "config.json").read_text())
    for changed, said in (
        ({"model_type": "llama"}, "llama"),
        ({"vocab_size": 8}, "vocab_size"),
        ({"eos_token_id": "</s>"}, "eos_token_id"),
        ({"max_position_embeddings": "x"}, "max_position_embeddings"),
    ):
        other = tmp_path / said
        other.mkdir()
        for file in model.iterdir():
            (other / file.name).symlink_to(file)
        (other / "config.json").unlink()
        (other / "config.json").write_text(json.dumps(config | changed))
        assert said in refusal(other, prompts, tmp_path / "out.jsonl")


def test_an_output_of_other_rows_is_refused_and_kept(model, prompts, tmp_path):
    output = jsonl(tmp_path / "out.jsonl", [{"id": "other", "text": "", "token_ids": [], "log_probs": []}])
    before = output.read_bytes()
    with pytest.raises(UserError, match="not the first ids of the input"):
        decode(model, prompts, output)
    assert output.read_bytes() == before


def test_the_command_ends_with_code_2_and_one_line(model, prompts):
    command = [sys.executable, "-m", "launch.cli", "decode", "--model", "nowhere", "--prompts", str(prompts)]
    root = Path(__file__).parents[2]
    run = subprocess.run(command, cwd=root, env=os.environ, capture_output=True, text=True, check=False)
    assert run.returncode == 2
    assert run.stderr.strip().count("\n") == 0
    assert run.stderr.startswith("error: ")


def test_the_file_of_the_prompts_is_no_output(model, prompts, tmp_path):
    before = prompts.read_bytes()
    (tmp_path / "link.jsonl").symlink_to(prompts)
    for output in (prompts, tmp_path / "link.jsonl"):
        with pytest.raises(UserError, match=r"--output: .* is the file of the prompts"):
            decode(model, prompts, output)
    assert prompts.read_bytes() == before


def test_rows_of_other_settings_are_not_continued(model, prompts, tmp_path):
    output = tmp_path / "out.jsonl"
    whole = decode(model, prompts, output, *SAMPLED)
    output.write_text("".join(json.dumps(row) + "\n" for row in whole[:2]))
    before = output.read_bytes()
    others = ("--seed", "4"), ("--chat",), ("--max-new-tokens", "5"), ("--adapter", str(model.parent / "adapter"))
    for other in others:
        with pytest.raises(UserError, match=r"out\.jsonl: holds rows .* \(.* was .* and is now .*"):
            decode(model, prompts, output, *SAMPLED, *other)
        assert output.read_bytes() == before
    (tmp_path / "link").symlink_to(model)
    assert decode(tmp_path / "link", prompts, output, *SAMPLED, "--batch-size", "3") == whole


def test_decoding_names_the_options_that_decide_its_memory(model, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr("common.generation.generate.run_slots", exhausted)
    prompts = jsonl(tmp_path / "prompts.jsonl", [{"id": i, "prompt": TEXTS[i % len(TEXTS)]} for i in range(40)])
    options = ["--batch-size", "4", "--draft", "prompt", "--max-new-tokens", "6"]
    files = ["--model", str(model), "--prompts", str(prompts), "--output", str(tmp_path / "rows.jsonl")]
    with pytest.raises(SystemExit) as ended:
        run_cli(decode_cli.main, [*files, *options])
    assert ended.value.code == 2
    said = "--batch-size 2 in place of 4, then --draft none, then --max-new-tokens 3 in place of 6\n"
    assert capsys.readouterr().err.endswith(f"error: {WANTED}{said}")
