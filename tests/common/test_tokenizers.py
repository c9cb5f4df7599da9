"""Tokenizers: exact bytes of tokens, chat, what loads and what is refused; peers are the libraries themselves."""

import io
import json
import random
import subprocess
import sys

import pytest
import sentencepiece
import tokenizers
from transformers import LlamaTokenizerFast, PreTrainedTokenizerFast

from common.data.pieces import byte_of_character
from common.data.tokenizers import (
    SentencePieceTokenizer,
    build_word_tokenizer,
    check_vocabulary,
    load_tokenizer,
    save_words,
)
from common.errors import UserError
from common.models.qwen2 import Qwen2Config
from tests.tiny import byte_level_bpe

TEXTS = [
    "The heart is normal in size. 3.5 mm nodule, left lower lobe.",
    "No pleural effusion or pneumothorax. Cardiomediastinal silhouette is stable.",
    "视网膜出血，左眼黄斑区水肿。右眼未见异常。",
    "OD: macular edema +2; OS: within normal limits (WNL).",
]
STRANGE = ["", " ", "  two  spaces ", "a\nb\n\nc", "naïve café 🫁 éé", "未登录词 ẞ 𝔘", "x" * 40, "\u00a0tab\tend"]


@pytest.fixture(scope="module")
def byte_level(tmp_path_factory):
    """A byte-level BPE directory like Qwen2's, with a chat template."""
    directory = tmp_path_factory.mktemp("byte_level")
    bpe = byte_level_bpe(TEXTS, 400)
    fast = PreTrainedTokenizerFast(tokenizer_object=bpe, eos_token="<|im_end|>", pad_token="<|endoftext|>")
    fast.add_tokens(["<tool>"])
    fast.save_pretrained(directory)
    return directory


def train_sentencepiece(directory, **options):
    model = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(TEXTS * 8), model_writer=model, vocab_size=420, byte_fallback=True,
        hard_vocab_limit=False, pad_id=3, minloglevel=2, **options,
    )  # fmt: skip
    file = directory / "tokenizer.model"
    file.write_bytes(model.getvalue())
    return file


VARIANTS = {
    "default": {},
    "exact": {
        "normalization_rule_name": "identity",
        "remove_extra_whitespaces": False,
        "user_defined_symbols": ["\n", "<|im_start|>", "<|im_end|>"],
    },
    "no_prefix": {"add_dummy_prefix": False, "remove_extra_whitespaces": False, "model_type": "bpe"},
}


@pytest.fixture(scope="module", params=VARIANTS)
def sentence_piece_file(request, tmp_path_factory):
    return train_sentencepiece(tmp_path_factory.mktemp(request.param), **VARIANTS[request.param])


def assert_bytes_are_the_text(tokenizer, ids):
    written = tokenizer.token_bytes(ids)
    assert len(written) == len(ids)
    assert b"".join(written).decode("utf-8", "replace") == tokenizer.decode(ids)


def random_sequences(vocab_size, count=50):
    draw = random.Random(0)
    return [[draw.randrange(vocab_size) for _ in range(draw.randrange(1, 30))] for _ in range(count)]


def test_byte_level_bytes_are_exact_for_any_text_and_any_sample(byte_level):
    tokenizer = load_tokenizer(byte_level)
    peer = PreTrainedTokenizerFast.from_pretrained(byte_level)
    for text in TEXTS + STRANGE:
        ids = tokenizer.encode(text)
        assert ids == peer.encode(text, add_special_tokens=False)
        assert b"".join(tokenizer.token_bytes(ids)) == text.encode()
    for ids in random_sequences(tokenizer.vocab_size):
        assert_bytes_are_the_text(tokenizer, ids)
        assert tokenizer.decode(ids) == peer.decode(ids, skip_special_tokens=True, clean_up_tokenization_spaces=False)


def test_a_character_split_over_tokens_gives_each_token_its_own_bytes(byte_level):
    tokenizer = load_tokenizer(byte_level)
    ids = tokenizer.encode("🫁")
    assert len(ids) > 1
    assert b"".join(tokenizer.token_bytes(ids)) == "🫁".encode()
    assert all(tokenizer.token_bytes(ids))


def test_special_tokens_write_nothing_and_added_words_write_themselves(byte_level):
    tokenizer = load_tokenizer(byte_level)
    ids = tokenizer.encode("a<|im_end|>b<tool>")
    assert tokenizer.eos_id in ids
    assert tokenizer.decode(ids) == "ab<tool>"
    assert tokenizer.token_bytes([tokenizer.vocab_size + 5]) == [b""]


def test_chat_is_chatml_without_a_template_and_the_template_with_one(byte_level, tmp_path):
    messages = [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "Hi"}]
    tokenizer = load_tokenizer(byte_level)
    text = "<|im_start|>system\nBe brief.<|im_end|>\n<|im_start|>user\nHi<|im_end|>\n<|im_start|>assistant\n"
    assert tokenizer.chat(messages) == tokenizer.encode(text)
    templated = PreTrainedTokenizerFast.from_pretrained(byte_level)
    templated.chat_template = (
        "{% for m in messages %}{{ m.role }}>{{ m.content }}|{% endfor %}{% if add_generation_prompt %}!{% endif %}"
        "{% if messages[0].role == 'tool' %}{{ raise_exception('no tools') }}{% endif %}"
    )
    templated.save_pretrained(tmp_path)
    tokenizer = load_tokenizer(tmp_path)
    assert tokenizer.chat(messages) == tokenizer.encode("system>Be brief.|user>Hi|!")
    assert tokenizer.chat(messages, add_generation_prompt=False) == tokenizer.encode("system>Be brief.|user>Hi|")
    with pytest.raises(UserError, match="no tools"):
        tokenizer.chat([{"role": "tool", "content": ""}])
    templated.chat_template = "{{ messages[0].content + 1 }}"
    templated.save_pretrained(tmp_path)
    with pytest.raises(UserError, match=r"chat template fails \(can only concatenate"):
        load_tokenizer(tmp_path).chat(messages)


def test_a_directory_without_the_vocabulary_is_refused(byte_level, tmp_path):
    PreTrainedTokenizerFast.from_pretrained(byte_level).save_pretrained(tmp_path)
    (tmp_path / "tokenizer.json").unlink()
    config = json.loads((tmp_path / "tokenizer_config.json").read_text())
    (tmp_path / "tokenizer_config.json").write_text(json.dumps(config | {"tokenizer_class": "Qwen2Tokenizer"}))
    with pytest.raises(UserError, match=r"no vocabulary found; expected tokenizer\.json"):
        load_tokenizer(tmp_path)


def test_stop_ids_include_those_of_the_generation_config(byte_level, tmp_path):
    PreTrainedTokenizerFast.from_pretrained(byte_level).save_pretrained(tmp_path)
    (tmp_path / "generation_config.json").write_text('{"eos_token_id": [2, 77]}')
    assert load_tokenizer(tmp_path).stop_ids == (0, 2, 77)
    assert load_tokenizer(byte_level).stop_ids == (0, 2)


@pytest.mark.parametrize("found", ["</s>", [2, None], -1, True])
def test_an_end_that_is_no_number_is_refused(byte_level, tmp_path, found):
    PreTrainedTokenizerFast.from_pretrained(byte_level).save_pretrained(tmp_path)
    (tmp_path / "generation_config.json").write_text(json.dumps({"eos_token_id": found}))
    with pytest.raises(UserError, match=r"generation_config\.json: eos_token_id is .*, expected a token's number"):
        load_tokenizer(tmp_path)


def test_a_turn_ends_with_the_chat_mark_or_the_end_of_the_text(byte_level, sentence_piece_file):
    assert load_tokenizer(byte_level).chat_end_id == 2
    pieces = load_tokenizer(sentence_piece_file)
    marked = sentencepiece.SentencePieceProcessor(model_file=str(sentence_piece_file)).piece_to_id("<|im_end|>")
    assert pieces.chat_end_id == (marked or pieces.eos_id)


def test_the_model_beside_it_does_not_change_what_tokenizer_json_says(tmp_path):
    vocabulary = {word: i for i, word in enumerate(["[END]", "[UNK]", "the", "heart", "视"])}
    words = tokenizers.Tokenizer(tokenizers.models.WordLevel(vocabulary, unk_token="[UNK]"))
    words.pre_tokenizer = tokenizers.pre_tokenizers.Whitespace()
    assert words.decoder is None
    fast = PreTrainedTokenizerFast(tokenizer_object=words, eos_token="[END]", unk_token="[UNK]")
    fast.save_pretrained(tmp_path)
    (tmp_path / "config.json").write_text('{"model_type": "qwen2"}')
    described = json.loads((tmp_path / "tokenizer_config.json").read_text())
    (tmp_path / "tokenizer_config.json").write_text(json.dumps(described | {"tokenizer_class": "Qwen2Tokenizer"}))
    tokenizer = load_tokenizer(tmp_path)
    assert tokenizer.encode("the heart 视 lung[END]") == [2, 3, 4, 1, 0]
    assert (tokenizer.vocab_size, tokenizer.eos_id) == (5, 0)
    assert tokenizer.decode([2, 3, 0, 9]) == "the heart"
    with pytest.raises(UserError, match="bytes of tokens are known for"):
        tokenizer.token_bytes([2])


def test_a_published_bert_ends_with_sep_though_no_file_says_so(tmp_path):
    words = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "heart", "##s"]
    pieces = tokenizers.Tokenizer(
        tokenizers.models.WordPiece({word: i for i, word in enumerate(words)}, unk_token="[UNK]")
    )
    pieces.pre_tokenizer = tokenizers.pre_tokenizers.BertPreTokenizer()
    pieces.save(str(tmp_path / "tokenizer.json"))
    (tmp_path / "tokenizer_config.json").write_text('{"do_lower_case": true, "tokenizer_class": "BertTokenizer"}')
    tokenizer = load_tokenizer(tmp_path)
    assert (tokenizer.eos_id, tokenizer.pad_id) == (3, 0)
    assert tokenizer.encode("hearts") == [5, 6]


def test_sentencepiece_bytes_agree_with_its_own_decoder(sentence_piece_file):
    tokenizer = load_tokenizer(sentence_piece_file)
    peer = sentencepiece.SentencePieceProcessor(model_file=str(sentence_piece_file))
    for text in TEXTS + STRANGE:
        ids = tokenizer.encode(text)
        assert ids == peer.encode(text)
        assert tokenizer.decode(ids) == peer.decode(ids)
        assert_bytes_are_the_text(tokenizer, ids)
    whole = [i for i in range(tokenizer.vocab_size) if not peer.is_byte(i)]  # invalid UTF-8 is replaced differently
    for indices in random_sequences(len(whole)):
        ids = [whole[index] for index in indices]
        assert tokenizer.decode(ids) == peer.decode(ids)
        assert_bytes_are_the_text(tokenizer, ids)
    for ids in random_sequences(tokenizer.vocab_size):
        assert_bytes_are_the_text(tokenizer, ids)


def test_sentencepiece_with_identity_rules_keeps_lines_and_spaces(tmp_path):
    tokenizer = load_tokenizer(train_sentencepiece(tmp_path, **VARIANTS["exact"]).parent)
    for text in TEXTS + STRANGE:
        assert tokenizer.decode(tokenizer.encode(text)) == text
    ids = tokenizer.chat([{"role": "user", "content": "Hi"}])
    start, end = tokenizer.encode("<|im_start|>")[-1], tokenizer.encode("<|im_end|>")[-1]
    assert ids.count(start) == 2
    assert ids.count(end) == 1
    assert end in tokenizer.stop_ids
    assert tokenizer.eos_id in tokenizer.stop_ids


def test_sentencepiece_without_marks_chats_in_plain_lines(tmp_path):
    tokenizer = load_tokenizer(train_sentencepiece(tmp_path))
    turns = [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Yes"}]
    prompt = tokenizer.chat(turns[:1])
    assert prompt[0] == tokenizer.bos_id
    assert tokenizer.decode(prompt).split() == ["user:", "Hi", "assistant:"]
    assert tokenizer.chat(turns, add_generation_prompt=False)[-1] == tokenizer.eos_id


def test_hugging_face_tokenizer_from_sentencepiece_gives_the_same_bytes(tmp_path):
    file = train_sentencepiece(tmp_path, model_type="bpe", remove_extra_whitespaces=False,
                               normalization_rule_name="identity")  # fmt: skip
    peer = load_tokenizer(file)
    vocabulary = {peer._model.id_to_piece(i): i for i in range(peer.vocab_size)}
    scores = {piece: peer._model.get_score(i) for piece, i in vocabulary.items()}
    pairs = [(piece[:cut], piece[cut:]) for piece in sorted(scores, key=lambda p: -scores[p]) for cut in
             range(1, len(piece)) if piece[:cut] in scores and piece[cut:] in scores
             and not piece.startswith("<")]  # fmt: skip
    directory = tmp_path / "fast"
    LlamaTokenizerFast(vocab=vocabulary, merges=pairs).save_pretrained(directory)
    tokenizer = load_tokenizer(directory)
    for text in ["The heart is normal.", "🫁 lung", "右眼"]:
        ids = peer.encode(text)
        assert tokenizer.token_bytes(ids) == peer.token_bytes(ids)
        assert tokenizer.decode(ids) == text


def test_words_rare_ones_are_unknown_and_text_comes_back(tmp_path):
    tokenizer = build_word_tokenizer(["the heart is normal .", "the lungs are normal .", "the end"], minimum_count=2)
    assert tokenizer.words == (".", "normal", "the")
    save_words(tmp_path / "words.json", tokenizer)
    loaded = load_tokenizer(tmp_path / "words.json")
    assert loaded == tokenizer
    ids = loaded.encode("the heart normal .")
    assert ids == [6, loaded.unk_id, 5, 4]
    assert loaded.decode([loaded.bos_id, *ids, loaded.eos_id, loaded.pad_id]) == "the <unk> normal ."
    assert loaded.token_bytes([1, *ids]) == [b"", b"the", b" <unk>", b" normal", b" ."]
    assert loaded.vocab_size == 7
    with pytest.raises(UserError, match="no word occurs 9 times"):
        build_word_tokenizer(["a b"], minimum_count=9)


def test_ids_beyond_the_model_are_an_error():
    tokenizer = build_word_tokenizer(["a b c"], minimum_count=1)
    check_vocabulary(tokenizer, Qwen2Config(vocab_size=7))
    with pytest.raises(UserError, match=r"7 ids.*vocab_size is 6"):
        check_vocabulary(tokenizer, Qwen2Config(vocab_size=6))


def test_what_is_no_tokenizer_is_named(tmp_path):
    with pytest.raises(UserError, match=r"nothing.model: no such file"):
        load_tokenizer(tmp_path / "nothing.model")
    with pytest.raises(UserError, match="no tokenizer found"):
        load_tokenizer(tmp_path)
    (tmp_path / "broken.model").write_bytes(b"not a model")
    with pytest.raises(UserError, match=r"broken.model: cannot be read as a SentencePiece model"):
        load_tokenizer(tmp_path / "broken.model")
    for content, expected in {
        '{"words": ["a", "a"]}': "must differ",
        '{"words": ["<pad>"]}': "must differ",
        '{"words": [1]}': "not a word vocabulary",
        "[]": "expected a JSON object",
        "{": "not JSON",
    }.items():
        (tmp_path / "words.json").write_text(content)
        with pytest.raises(UserError, match=expected):
            load_tokenizer(tmp_path / "words.json")
    (tmp_path / "notes.txt").write_text("")
    with pytest.raises(UserError, match="not a tokenizer"):
        load_tokenizer(tmp_path / "notes.txt")
    (tmp_path / "cut").mkdir()
    (tmp_path / "cut" / "tokenizer.json").write_text('{"version": "1.0", "model"')
    with pytest.raises(UserError, match=r"tokenizer.json: not JSON"):
        load_tokenizer(tmp_path / "cut")
    (tmp_path / "bare").mkdir()
    (tmp_path / "bare" / "vocab.json").write_text(json.dumps({"a": 0}))
    (tmp_path / "bare" / "merges.txt").write_text("#version: 0.2\n")
    with pytest.raises(UserError, match=r"vocab.json has 1 entries"):
        load_tokenizer(tmp_path / "bare")


def test_a_model_without_an_end_of_sequence_piece_is_refused(tmp_path):
    with pytest.raises(UserError, match="no end-of-sequence piece"):
        SentencePieceTokenizer(train_sentencepiece(tmp_path, eos_id=-1))


def test_importing_the_module_does_not_import_transformers():
    code = "import sys, common.data.tokenizers; sys.exit('transformers' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code]).returncode == 0


def test_an_end_that_no_file_names_goes_by_its_usual_name(tmp_path):
    vocabulary = {character: number for number, character in enumerate(byte_of_character())}
    bare = tokenizers.Tokenizer(tokenizers.models.BPE(vocab=vocabulary, merges=[]))
    bare.pre_tokenizer = tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=False)
    bare.decoder = tokenizers.decoders.ByteLevel()
    bare.save(str(tmp_path / "tokenizer.json"))
    with pytest.raises(UserError, match="no eos_token"):
        load_tokenizer(tmp_path)
    bare.add_special_tokens(["</s>"])
    bare.save(str(tmp_path / "tokenizer.json"))
    tokenizer = load_tokenizer(tmp_path)
    assert tokenizer.stop_ids == (tokenizer.eos_id,) == (256,)
    assert tokenizer.decode(tokenizer.encode("no edema")) == "no edema"
