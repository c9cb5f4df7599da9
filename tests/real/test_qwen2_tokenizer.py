"""The published ranks of Qwen2 against reference encodings."""

import json

import pytest

from common.data.tokenizers import load_tokenizer


@pytest.fixture(scope="module")
def directory(real_data):
    found = real_data / "tokenizers" / "qwen2"
    if not found.is_dir():
        pytest.skip("no tokenizers/qwen2 in the folder of real data")
    return found


@pytest.fixture(scope="module")
def tokenizer(directory):
    return load_tokenizer(directory)


def test_reference_encodings_with_their_special_tokens(tokenizer, directory):
    cases = json.loads((directory / "golden_ids.json").read_text(encoding="utf-8"))["cases"]
    assert cases
    for case in cases:
        assert tokenizer.encode(case["text"]) == case["ids"]


def test_ids_of_the_published_special_tokens(tokenizer):
    assert tokenizer.eos_id == 151_645
    assert tokenizer.pad_id == 151_643
    assert tokenizer.stop_ids == (151_643, 151_645)
    assert tokenizer.encode("<|vision_start|><|image_pad|><|video_pad|>") == [151_652, 151_655, 151_656]
    assert tokenizer.vocab_size == 151_657


def test_chat_is_the_published_chatml(tokenizer):
    ids = tokenizer.chat([{"role": "user", "content": "SanFrancisco is a"}])
    assert ids == [151644, 872, 198, 23729, 80328, 9464, 374, 264, 151645, 198, 151644, 77091, 198]


def test_bytes_of_tokens_are_the_text(tokenizer):
    text = "右眼黄斑区可见3.5mm出血🫁。\n\nNo acute disease.  "
    ids = tokenizer.encode(text)
    assert b"".join(tokenizer.token_bytes(ids)) == text.encode()
    assert tokenizer.decode(ids) == text
