"""`medreport decode` on a model whose float16 logits overflow for some prompts: those are errors, not rows."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest

from common.data.tokenizers import load_tokenizer
from common.errors import UserError
from common.generation import command as decode_cli
from common.models.qwen2_weights import load_qwen2, save_qwen2
from tests.overflow import overflowing
from tests.runs import Material

LOUD = "OD"  # a word of the tokenizer's, and in no prompt but the third
PROMPTS = ["few drusen.", "no", LOUD, "macula"]


@pytest.fixture(scope="module")
def model(material: Material, tmp_path_factory) -> Path:
    directory = tmp_path_factory.mktemp("loud") / "model"
    config, params = load_qwen2(material.base)
    token = load_tokenizer(material.base).encode(LOUD)[0]
    save_qwen2(directory, config, overflowing(params, token))
    shutil.copy(material.base / "tokenizer.model", directory)
    return directory


@pytest.fixture
def rows(tmp_path) -> Path:
    file = tmp_path / "rows.jsonl"
    written = [{"id": f"r{index}", "prompt": text, "completion": "no"} for index, text in enumerate(PROMPTS)]
    file.write_text("".join(json.dumps(row) + "\n" for row in written), "utf-8")
    return file


def decode(model: Path, rows: Path, output: Path, *options: str) -> list[dict]:
    common = ["--model", str(model), "--prompts", str(rows), "--output", str(output), "--max-new-tokens", "1"]
    decode_cli.main([*common, *options])
    return [json.loads(line) for line in output.read_text("utf-8").splitlines()]


@pytest.mark.parametrize(
    ("options", "what"),
    [
        ([], "the model's logits"),
        (["--top-k", "5", "--top-p", "0.9"], "the model's logits"),
        (["--beams", "2"], "the model's logits"),
        (["--score"], "the completion's log-probabilities"),
    ],
    ids=["greedy", "sampling", "beams", "scoring"],
)
def test_the_row_is_named_and_those_before_it_stay(model, rows, tmp_path, options, what):
    output = tmp_path / "out.jsonl"
    said = rf"^id 'r2': {what} are not finite .* compute in bfloat16 or float32 \(--dtype, and another --output"
    for _ in range(2):  # resumed it ends at the same row, and adds none
        with pytest.raises(UserError, match=said):
            decode(model, rows, output, "--dtype", "float16", *options)
        written = [json.loads(line) for line in output.read_text("utf-8").splitlines()]
        assert [row["id"] for row in written] == ["r0", "r1"]
        assert all(row["log_probs"] and np.isfinite(row["log_probs"]).all() for row in written)
    if not options:  # what the message says to do
        assert len(decode(model, rows, tmp_path / "other.jsonl", "--dtype", "float32")) == len(PROMPTS)


@pytest.mark.parametrize("value", ["NaN", "-Infinity", "1e999"])
def test_an_output_that_holds_what_is_not_finite_is_not_continued(model, rows, tmp_path, value):
    output = tmp_path / "out.jsonl"
    output.write_text(f'{{"id": "r0", "text": "", "token_ids": [0], "log_probs": [{value}], "finish": "length"}}\n')
    before = output.read_bytes()
    with pytest.raises(UserError, match=r"out\.jsonl: contains something other .*line 1: not JSON"):
        decode(model, rows, output, "--dtype", "float32")
    assert output.read_bytes() == before
