"""A whole text is encoded as the published tokenizer does by default; the peer is `AutoTokenizer` of transformers."""

import dataclasses
import json

import pytest
import sentencepiece
import tokenizers
from tokenizers import processors
from transformers import AutoTokenizer, PreTrainedTokenizerFast
from transformers.models.qwen2.tokenization_qwen2 import PRETOKENIZE_REGEX

from common.data.tokenizers import build_word_tokenizer, load_tokenizer, save_words
from common.errors import UserError
from common.generation import command as decode_cli
from common.models.qwen2_weights import save_qwen2
from tests import tiny

TEXTS = ["No pleural effusion.", "", " two  spaces\n", "左眼黄斑区水肿", "begin <s> written out", "<s>begins"]
START, END = ("<s>", 1), ("</s>", 2)
BEGIN = processors.TemplateProcessing(single="<s> $A", pair="<s> $A <s> $B", special_tokens=[START])
PROCESSORS = {
    "none": None,
    "byte level": processors.ByteLevel(trim_offsets=False),
    "template with a beginning": BEGIN,
    "template with both ends": processors.TemplateProcessing(
        single="<s> $A </s>", pair="$A $B", special_tokens=[START, END]
    ),
    "sequence, as DeepSeek-R1-Distill-Qwen": processors.Sequence([processors.ByteLevel(trim_offsets=False), BEGIN]),
    "BERT": processors.BertProcessing(END, START),
    "RoBERTa": processors.RobertaProcessing(END, START),
}
LLAMA = {"tokenizer_class": "LlamaTokenizerFast", "add_bos_token": True, "add_eos_token": False}
# What DeepSeek-R1-Distill-Qwen has beside its tokenizer.json, entries that contradict it, and nothing of that.
DESCRIBED = {"as published": LLAMA, "contradicting": {"add_bos_token": False}, "plain": {}}


@pytest.fixture(scope="module")
def trained():
    bpe = tokenizers.Tokenizer(tokenizers.models.BPE())
    # As in every Qwen2, or `AutoTokenizer` would read another text than tokenizer.json says.
    bpe.normalizer = tokenizers.normalizers.NFC()
    words = tokenizers.pre_tokenizers.Split(tokenizers.Regex(PRETOKENIZE_REGEX), "isolated")
    bytes_ = tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    bpe.pre_tokenizer = tokenizers.pre_tokenizers.Sequence([words, bytes_])
    bpe.decoder = tokenizers.decoders.ByteLevel()
    alphabet = tokenizers.pre_tokenizers.ByteLevel.alphabet()
    special = ["<pad>", "<s>", "</s>"]
    bpe.train_from_iterator(
        TEXTS[:3],
        tokenizers.trainers.BpeTrainer(
            vocab_size=280, special_tokens=special, initial_alphabet=alphabet, show_progress=False
        ),
    )
    return bpe.to_str()


def published(directory, trained, processor, **described):
    bpe = tokenizers.Tokenizer.from_str(trained)
    if processor is not None:
        bpe.post_processor = processor
    PreTrainedTokenizerFast(tokenizer_object=bpe, bos_token="<s>", eos_token="</s>").save_pretrained(directory)
    file = directory / "tokenizer_config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | described))
    return directory


@pytest.mark.parametrize("described", DESCRIBED.values(), ids=DESCRIBED)
@pytest.mark.parametrize("processor", PROCESSORS.values(), ids=PROCESSORS)
def test_a_prompt_has_what_post_processing_adds_and_an_answer_has_not(trained, tmp_path, processor, described):
    directory = published(tmp_path, trained, processor, **described)
    tokenizer, peer = load_tokenizer(directory), AutoTokenizer.from_pretrained(directory)
    for text in TEXTS:
        assert tokenizer.encode_prompt(text) == peer(text)["input_ids"]
        assert tokenizer.encode(text) == peer(text, add_special_tokens=False)["input_ids"]


def test_a_sentencepiece_model_begins_as_its_tokenizer_config_says(tmp_path):
    with (tmp_path / "tokenizer.model").open("wb") as model:
        sentencepiece.SentencePieceTrainer.train(
            sentence_iterator=iter(TEXTS[:4] * 8), model_writer=model, vocab_size=340, byte_fallback=True,
            hard_vocab_limit=False, model_type="bpe", minloglevel=2,
        )  # fmt: skip
    alone = load_tokenizer(tmp_path)
    assert alone.encode_prompt("No effusion.") == alone.encode("No effusion.")
    for begins, ends in ((True, False), (False, False), (True, True)):
        described = {"tokenizer_class": "LlamaTokenizer", "add_bos_token": begins, "add_eos_token": ends}
        (tmp_path / "tokenizer_config.json").write_text(
            json.dumps(described | {"bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>"})
        )
        tokenizer, peer = load_tokenizer(tmp_path), AutoTokenizer.from_pretrained(tmp_path)
        ids = tokenizer.encode_prompt("No effusion.")
        assert ids == peer("No effusion.")["input_ids"]
        assert (ids[0] == tokenizer.bos_id) == begins
        assert (ids[-1] == tokenizer.eos_id) == ends


def test_a_chat_begins_once(trained, tmp_path):
    messages = [{"role": "user", "content": "Hi"}]
    directory = published(tmp_path, trained, PROCESSORS["sequence, as DeepSeek-R1-Distill-Qwen"])
    assert load_tokenizer(directory).chat(messages).count(1) == 1  # without a template: as a text begins
    template = "<s>{% for m in messages %}{{ m.content }}{% endfor %}{% if add_generation_prompt %}!{% endif %}"
    directory = published(tmp_path, trained, BEGIN, chat_template=template)
    tokenizer, peer = load_tokenizer(directory), AutoTokenizer.from_pretrained(directory)
    ids = tokenizer.chat(messages)
    assert ids == peer.apply_chat_template(messages, add_generation_prompt=True, return_dict=False)
    assert ids.count(1) == 1
    assert 1 not in load_tokenizer(published(tmp_path, trained, None)).chat(messages)


def test_words_have_no_beginning_of_their_own(tmp_path):
    save_words(tmp_path / "words.json", build_word_tokenizer(["a b"], 1))
    tokenizer = load_tokenizer(tmp_path / "words.json")
    assert tokenizer.encode_prompt("a b") == tokenizer.encode("a b")


@pytest.mark.parametrize(("processor", "ended"), [("sequence, as DeepSeek-R1-Distill-Qwen", 0), ("BERT", 2)])
def test_decode_gives_prompts_and_not_completions_what_post_processing_adds(
    trained, tmp_path, capsys, monkeypatch, processor, ended
):
    model = tmp_path / "model"
    config = dataclasses.replace(tiny.CONFIG, vocab_size=288)
    save_qwen2(model, config, tiny.params(config))
    published(model, trained, PROCESSORS[processor], **LLAMA)
    rows = [{"id": i, "prompt": text, "completion": "clear"} for i, text in enumerate(TEXTS[2:4])]
    file = tmp_path / "rows.jsonl"
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    seen: list = []

    def score_rows(_scorer, _variables, prompts, completions, _batch_size):
        seen.extend([prompts, completions])
        return [[-1.0] * len(completion) for completion in completions]

    monkeypatch.setattr(decode_cli, "score_rows", score_rows)
    decode_cli.main(["--model", str(model), "--prompts", str(file), "--score", "--output", str(tmp_path / "out.jsonl")])
    peer = AutoTokenizer.from_pretrained(model)
    prompts, completions = seen
    assert list(prompts) == [peer(row["prompt"])["input_ids"] for row in rows]
    assert list(completions) == [peer("clear", add_special_tokens=False)["input_ids"]] * 2
    said = capsys.readouterr().err
    assert (f"{ended} of 2 prompts end with a token that ends an answer" in said) == bool(ended)


def test_a_post_processor_that_fails_is_one_line_when_the_tokenizer_is_loaded(trained, tmp_path, capfd):
    entries = json.loads(trained)
    piece = {"SpecialToken": {"id": "<s>", "type_id": 0}}
    text = {"Sequence": {"id": "A", "type_id": 0}}
    template = {"type": "TemplateProcessing", "single": [piece, text], "pair": [text, text], "special_tokens": {}}
    (tmp_path / "tokenizer.json").write_text(json.dumps({**entries, "post_processor": template}), encoding="utf-8")
    (tmp_path / "tokenizer_config.json").write_text(json.dumps({"eos_token": "</s>"}), encoding="utf-8")
    with pytest.raises(UserError, match="a text cannot be encoded"):  # Rust panics, and would print where
        load_tokenizer(tmp_path)
    assert capfd.readouterr().err == ""
