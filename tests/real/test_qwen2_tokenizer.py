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


def test_the_same_tokenizer_as_tokenizer_json_is_that_of_auto_tokenizer(directory, tmp_path):
    from transformers import AutoTokenizer, Qwen2Tokenizer

    special = ["<|im_start|>", "<|im_end|>", "<|vision_start|>"]
    saved = Qwen2Tokenizer.from_pretrained(str(directory), extra_special_tokens=special, eos_token="<|im_end|>")
    saved.chat_template = "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endfor %}"
    saved.save_pretrained(tmp_path)
    (tmp_path / "config.json").write_text('{"model_type": "qwen2"}')
    ours, peer = load_tokenizer(tmp_path), AutoTokenizer.from_pretrained(tmp_path)
    cases = json.loads((directory / "golden_ids.json").read_text(encoding="utf-8"))["cases"]
    for text in [
        *(case["text"] for case in cases),
        "e\u0301 ＡＢ don't I'LL 右眼3.5mm🫁。\n\n<|im_end|>a<|vision_start|> b",
    ]:
        assert ours.encode(text) == peer(text)["input_ids"]
        ids = ours.encode(text)
        assert ours.decode(ids) == peer.decode(ids, skip_special_tokens=True, clean_up_tokenization_spaces=False)
    turns = [{"role": "user", "content": "SanFrancisco is a"}]
    assert ours.chat(turns) == peer.apply_chat_template(turns, return_dict=False)
    assert (ours.eos_id, ours.pad_id) == (peer.eos_token_id, peer.pad_token_id)
    assert ours.vocab_size == 1 + max(peer.get_vocab().values())
