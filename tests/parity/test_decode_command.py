"""`medreport decode` against transformers' own loading, generation and log-probabilities."""

import json

import numpy as np
import pytest

from common.data.tokenizers import load_tokenizer
from common.generation import command as decode_cli
from tests.tiny import byte_level_bpe

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")

PROMPTS = ["the heart", "lungs are clear", "no effusion or edema", "x"]
NEW = 8


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    """Embedding rows beyond the tokenizer, as published Qwen2.5 models have them; ends differ between the files."""
    directory = tmp_path_factory.mktemp("padded") / "model"
    torch.manual_seed(5)
    config = transformers.Qwen2Config(
        vocab_size=320, hidden_size=32, intermediate_size=48, num_hidden_layers=2, num_attention_heads=4,
        num_key_value_heads=2, initializer_range=0.3, eos_token_id=7, bos_token_id=None,
    )  # fmt: skip
    transformers.AutoModelForCausalLM.from_config(config).save_pretrained(directory)
    (directory / "generation_config.json").unlink()
    bpe = byte_level_bpe(PROMPTS * 3, 300)
    fast = transformers.PreTrainedTokenizerFast(tokenizer_object=bpe, eos_token="<|endoftext|>")
    fast.save_pretrained(directory)
    return directory


def decoded(model, tmp_path, *options, rows=None):
    file, output = tmp_path / "prompts.jsonl", tmp_path / "out.jsonl"
    rows = rows or [{"id": i, "prompt": text} for i, text in enumerate(PROMPTS)]
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    output.unlink(missing_ok=True)
    decode_cli.main(
        ["--model", str(model), "--prompts", str(file), "--output", str(output), "--max-new-tokens", str(NEW), *options]
    )
    return [json.loads(line) for line in output.read_text().splitlines()]


def reference(model, text, **options):
    peer = transformers.AutoModelForCausalLM.from_pretrained(model).eval()
    tokens = torch.tensor([load_tokenizer(model).encode(text)])
    with torch.no_grad():
        out = peer.generate(
            tokens,
            attention_mask=torch.ones_like(tokens),
            max_new_tokens=NEW,
            do_sample=False,
            pad_token_id=0,
            **options,
        )
    return out[0, tokens.shape[1] :].tolist()


def unpadded(ids, stops):
    """Up to the first stop."""
    ends = [index for index, id_ in enumerate(ids) if id_ in stops]
    return ids[: ends[0] + 1] if ends else ids


@pytest.mark.parametrize("beams", [1, 3])
def test_padding_rows_of_the_embedding_count_as_in_transformers(model, tmp_path, beams):
    rows = decoded(model, tmp_path, "--beams", str(beams))
    expected = [unpadded(reference(model, text, num_beams=beams, early_stopping=False), {7}) for text in PROMPTS]
    assert [row["token_ids"] for row in rows] == expected
    assert max(map(max, expected)) >= load_tokenizer(model).vocab_size
    tokenizer = load_tokenizer(model)
    for row in rows:
        written = [id_ for id_ in row["token_ids"] if id_ < tokenizer.vocab_size]
        assert row["text"] == tokenizer.decode(written[:-1] if row["finish"] == "stop" else written)


def test_scores_are_log_softmax_over_the_whole_vocabulary(model, tmp_path):
    rows = [{"id": i, "prompt": text, "completion": " is clear"} for i, text in enumerate(PROMPTS)]
    tokenizer = load_tokenizer(model)
    peer = transformers.AutoModelForCausalLM.from_pretrained(model).eval()
    for row, found in zip(rows, decoded(model, tmp_path, "--score", rows=rows), strict=True):
        before, after = tokenizer.encode(row["prompt"]), tokenizer.encode(row["completion"])
        with torch.no_grad():
            logits = peer(torch.tensor([before + after])).logits[0, len(before) - 1 : -1]
        expected = torch.log_softmax(logits, -1)[torch.arange(len(after)), torch.tensor(after)]
        np.testing.assert_allclose(found["log_probs"], expected, atol=1e-4)


def test_an_answer_ends_where_it_does_in_transformers(model, tmp_path):
    tokenizer = load_tokenizer(model)
    assert set(tokenizer.stop_ids) == {0, 2, 7}
    assert decode_cli.stop_ids(model, tokenizer, 320) == (7,)  # of config.json
    other = tmp_path / "other"
    other.mkdir()
    for file in model.iterdir():
        (other / file.name).symlink_to(file)
    never, third = reference(model, PROMPTS[1]), reference(model, PROMPTS[1])[2]
    assert len(never) == NEW
    (other / "generation_config.json").write_text(json.dumps({"eos_token_id": [third, 9]}))
    expected = [unpadded(reference(other, text), {third, 9}) for text in PROMPTS]
    rows = decoded(other, tmp_path)
    assert [row["token_ids"] for row in rows] == expected
    assert rows[1]["finish"] == "stop"
    assert decode_cli.stop_ids(other, tokenizer, 320) == tuple(sorted((third, 9)))
    assert decode_cli.stop_ids(other, tokenizer, 320, chat=True) == tuple(sorted({third, 9, 2, 7}))
