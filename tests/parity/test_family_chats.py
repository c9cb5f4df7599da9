"""Prompts, turns and ends of Llama 3, Yi, GLM-4 and Baichuan2: the tokens of transformers, and whole answers by both.

The templates are small ones of the same features as the published ones, whose vocabularies are not at hand either.
"""

import json

import numpy as np
import pytest
import sentencepiece
from safetensors.numpy import load_file, save_file
from tokenizers import processors

from common.data.tokenizers import load_tokenizer
from common.errors import UserError
from common.generation import command as decode_cli
from tests.tiny import byte_level_bpe

torch = pytest.importorskip("torch", reason="PyTorch is the reference here (requirements-parity.txt)")
transformers = pytest.importorskip("transformers")

TEXTS = ["Left eye: 2.5 mm drusen.\n", "左眼视网膜出血。", "  OS:  normal"]
TURNS = [
    {"role": "user", "content": TEXTS[0]},
    {"role": "assistant", "content": "No drusen."},
    {"role": "user", "content": TEXTS[1]},
]
LLAMA_SPECIAL = ("<|begin_of_text|>", "<|end_of_text|>", "<|start_header_id|>", "<|end_header_id|>", "<|eot_id|>")
LLAMA_TEMPLATE = (
    "{{- bos_token }}{%- if not date_string is defined %}{%- set date_string = strftime_now('%d %b %Y') %}{%- endif %}"
    "{{- '<|start_header_id|>system<|end_header_id|>\n\nCutting Knowledge Date: December 2023\nToday Date: ' }}"
    "{{- date_string + '\n\n<|eot_id|>' }}{%- for message in messages %}"
    "{{- '<|start_header_id|>' + message['role'] + '<|end_header_id|>\n\n' }}"
    "{{- message['content'] | trim + '<|eot_id|>' }}"
    "{%- endfor %}{%- if add_generation_prompt %}{{- '<|start_header_id|>assistant<|end_header_id|>\n\n' }}{%- endif %}"
)
GLM_SPECIAL = ("<|endoftext|>", "[gMASK]", "<sop>", "<|system|>", "<|user|>", "<|assistant|>", "<|observation|>")
GLM_TEMPLATE = (
    "[gMASK]<sop>{% for item in messages %}<|{{ item['role'] }}|>\n{{ item['content'] }}{% endfor %}"
    "{% if add_generation_prompt %}<|assistant|>{% endif %}"
)
YI_TEMPLATE = (
    "{% for message in messages %}{{ '<|im_start|>' + message['role'] + '\n' + message['content'] + '<|im_end|>\n' }}"
    "{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)


def byte_level(directory, special, before, **options):
    """A tokenizer that puts `before` before a whole text, with special tokens and a template, as it is published."""
    bpe = byte_level_bpe(TEXTS, 290, special)
    bpe.post_processor = processors.TemplateProcessing(
        single=[*before, "$A"], special_tokens=[(mark, bpe.token_to_id(mark)) for mark in before]
    )
    fast = transformers.PreTrainedTokenizerFast(tokenizer_object=bpe, **options)
    fast.save_pretrained(directory)
    return bpe


def pieces(directory, **options):
    with (directory / "tokenizer.model").open("wb") as model:
        sentencepiece.SentencePieceTrainer.train(
            sentence_iterator=iter(TEXTS * 8), model_writer=model, vocab_size=320, byte_fallback=True,
            hard_vocab_limit=False, model_type="bpe", minloglevel=2, **options,
        )  # fmt: skip


def config(directory, name="config.json", **entries):
    (directory / name).write_text(json.dumps(entries))


@pytest.fixture
def llama(tmp_path):
    """Turns end with <|eot_id|>; the file names another end, as that of tunings of the base model does."""
    byte_level(
        tmp_path, LLAMA_SPECIAL, ["<|begin_of_text|>"], bos_token="<|begin_of_text|>", eos_token="<|end_of_text|>",
        chat_template=LLAMA_TEMPLATE,
    )  # fmt: skip
    config(tmp_path, model_type="llama", eos_token_id=1)
    return tmp_path


@pytest.fixture
def glm(tmp_path):
    byte_level(tmp_path, GLM_SPECIAL, ["[gMASK]", "<sop>"], eos_token="<|endoftext|>", chat_template=GLM_TEMPLATE)
    config(tmp_path, model_type="glm", eos_token_id=[0, 4, 6])
    return tmp_path


@pytest.fixture
def yi(tmp_path):
    """A SentencePiece model, which tokenizer_config.json says has no beginning; config.json names one end of two."""
    pieces(tmp_path, user_defined_symbols=["<|im_start|>", "<|im_end|>"], remove_extra_whitespaces=False)
    described = {"tokenizer_class": "LlamaTokenizer", "add_bos_token": False, "add_eos_token": False}
    added = {str(i): {"content": mark, "special": True} for i, mark in ((3, "<|im_start|>"), (4, "<|im_end|>"))}
    config(
        tmp_path, "tokenizer_config.json", **described, bos_token="<s>", eos_token="</s>", unk_token="<unk>",
        chat_template=YI_TEMPLATE, added_tokens_decoder=added,
    )  # fmt: skip
    config(tmp_path, model_type="llama", eos_token_id=2)
    config(tmp_path, "generation_config.json", eos_token_id=4)
    return tmp_path


@pytest.fixture
def baichuan(tmp_path):
    """Without a template, and with a tokenizer that is code of its own beside a SentencePiece model."""
    pieces(tmp_path)
    code = {"AutoTokenizer": ["tokenization_baichuan.BaichuanTokenizer", None]}
    config(tmp_path, "tokenizer_config.json", tokenizer_class="BaichuanTokenizer", auto_map=code, add_bos_token=False)
    config(tmp_path, model_type="baichuan", eos_token_id=2)
    return tmp_path


def same_as_transformers(directory, **date):
    tokenizer, peer = load_tokenizer(directory), transformers.AutoTokenizer.from_pretrained(directory)
    for turns, answer in ((TURNS[:1], True), (TURNS, True), (TURNS[:2], False)):
        ids = tokenizer.chat(turns, answer)
        assert ids == peer.apply_chat_template(turns, add_generation_prompt=answer, return_dict=False, **date)
    for text in TEXTS:
        assert tokenizer.encode_prompt(text) == peer(text)["input_ids"]
        assert tokenizer.encode(text) == peer(text, add_special_tokens=False)["input_ids"]
    return tokenizer


def test_llama_3_begins_once_and_on_the_same_day(llama):
    tokenizer = same_as_transformers(llama, date_string="26 Jul 2024")
    ids = tokenizer.chat(TURNS)
    assert ids.count(0) == 1
    assert "Today Date: 26 Jul 2024" in tokenizer.decode(ids)
    assert tokenizer.encode_prompt("OS")[0] == 0
    assert decode_cli.stop_ids(llama, tokenizer, 300) == (1,)
    assert decode_cli.stop_ids(llama, tokenizer, 300, chat=True) == (1, 4)
    assert tokenizer.chat_end_id == 4


def test_glm_begins_with_its_mask_and_ends_where_another_would_speak(glm):
    tokenizer = same_as_transformers(glm)
    assert tokenizer.encode_prompt("OS")[:2] == tokenizer.chat(TURNS)[:2] == [1, 2]
    assert tokenizer.stop_ids == decode_cli.stop_ids(glm, tokenizer, 300, chat=True) == (0, 4, 6)


def test_yi_has_no_beginning_and_stops_on_both_ends(yi):
    tokenizer = same_as_transformers(yi)
    assert tokenizer.bos_id not in (tokenizer.encode_prompt("OS")[0], tokenizer.chat(TURNS)[0])
    assert tokenizer.chat(TURNS)[0] == 3
    assert tokenizer.stop_ids == decode_cli.stop_ids(yi, tokenizer, 400, chat=True) == (2, 4)
    (yi / "generation_config.json").unlink()
    assert decode_cli.stop_ids(yi, load_tokenizer(yi), 400, chat=True) == (2, 4)


def by_baichuan(model, messages, user=195, assistant=196):
    """What `build_chat_input` of the published model says, on one level."""
    ids = model.encode(messages[0]["content"]) if messages[0]["role"] == "system" else []
    for message in messages:
        if message["role"] != "system":
            ids += [user if message["role"] == "user" else assistant, *model.encode(message["content"])]
    return ids if messages[-1]["role"] == "assistant" else [*ids, assistant]


def test_baichuan_speaks_by_tokens_of_the_roles(baichuan):
    tokenizer = load_tokenizer(baichuan)
    model = sentencepiece.SentencePieceProcessor(model_file=str(baichuan / "tokenizer.model"))
    system = [{"role": "system", "content": "Be brief."}]
    for turns in (TURNS[:1], TURNS[:2], TURNS, system + TURNS):
        answer = turns[-1]["role"] == "user"
        assert tokenizer.chat(turns, add_generation_prompt=answer) == by_baichuan(model, turns)
    assert tokenizer.encode_prompt("OS") == model.encode("OS")
    assert decode_cli.stop_ids(baichuan, tokenizer, 400, chat=True) == (2,)
    config(baichuan, "generation_config.json", user_token_id=205, assistant_token_id=206)
    assert load_tokenizer(baichuan).chat(TURNS) == by_baichuan(model, TURNS, 205, 206)
    config(baichuan, "generation_config.json", user_token_id="<user>")
    with pytest.raises(UserError, match=r"generation_config\.json: user_token_id is '<user>', expected a whole number"):
        load_tokenizer(baichuan)


@pytest.mark.parametrize("family", ["llama", "glm", "yi", "baichuan"])
def test_each_family_has_a_chat_of_its_own_and_a_base_model_has_none(family, request):
    directory = request.getfixturevalue(family)
    assert load_tokenizer(directory).has_chat
    if family != "baichuan":
        for name in ("tokenizer_config.json", "chat_template.jinja"):
            if (directory / name).is_file():
                kept = json.loads((directory / name).read_text()) if name.endswith("json") else {}
                kept.pop("chat_template", None)
                (directory / name).write_text(json.dumps(kept)) if kept else (directory / name).unlink()
        assert load_tokenizer(directory).has_chat == (family == "yi")  # whose marks are those of ChatML


def test_a_tokenizer_that_is_code_is_not_run(baichuan):
    config(baichuan, model_type="chatglm")
    with pytest.raises(UserError, match=r"is code, which is not executed; put the tokenizer\.json of a copy"):
        load_tokenizer(baichuan)


SIZES = {"hidden_size": 64, "intermediate_size": 96, "num_hidden_layers": 2, "num_attention_heads": 4}


def random_model(kind, **options):
    torch.manual_seed(3)
    options = {"pad_token_id": 0, "bos_token_id": None, "initializer_range": 0.3} | SIZES | options
    return transformers.AutoModelForCausalLM.from_config(getattr(transformers, kind)(**options)).eval()


def answers(directory, peer, tmp_path, stops):
    """Our answers to two messages in a chat are the peer's, token for token."""
    prompts, output = tmp_path / "prompts.jsonl", tmp_path / "out.jsonl"
    prompts.write_text("".join(json.dumps({"id": i, "prompt": text}) + "\n" for i, text in enumerate(TEXTS)))
    decode_cli.main(
        ["--model", str(directory), "--prompts", str(prompts), "--output", str(output), "--chat", "--max-new-tokens=12"]
    )
    tokenizer = load_tokenizer(directory)
    for line, text in zip(output.read_text().splitlines(), TEXTS, strict=True):
        prompt = torch.tensor([tokenizer.chat([{"role": "user", "content": text}])])
        with torch.no_grad():
            out = peer.generate(
                prompt, attention_mask=torch.ones_like(prompt), max_new_tokens=12, do_sample=False, eos_token_id=stops
            )
        assert json.loads(line)["token_ids"] == out[0, prompt.shape[1] :].tolist()


def test_the_command_answers_as_transformers_does(llama, tmp_path_factory):
    rope = {"rope_type": "llama3", "rope_theta": 1e4, "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0}
    rope["original_max_position_embeddings"] = 32
    peer = random_model("LlamaConfig", vocab_size=300, num_key_value_heads=2, rope_parameters=rope, eos_token_id=1)
    peer.save_pretrained(llama)
    answers(llama, peer, tmp_path_factory.mktemp("rows"), [1, 4])


def test_the_command_answers_as_glm_does(glm, tmp_path_factory):
    peer = random_model("Glm4Config", vocab_size=300, num_key_value_heads=2, head_dim=16, eos_token_id=[0, 4, 6])
    peer.save_pretrained(glm)
    answers(glm, peer, tmp_path_factory.mktemp("rows"), [0, 4, 6])


@pytest.mark.parametrize("stored", ["safetensors", "pytorch_model.bin", "two .bin"])
def test_the_command_answers_as_baichuan2_does(baichuan, tmp_path_factory, stored):
    """Also from the PyTorch files that Baichuan2 is published in."""
    peer = random_model("LlamaConfig", vocab_size=400, eos_token_id=2)
    said = (baichuan / "config.json").read_text()
    peer.save_pretrained(baichuan)
    sizes = {"vocab_size": 400, "max_position_embeddings": 512, "architectures": ["BaichuanForCausalLM"]}
    config(baichuan, **json.loads(said), **SIZES, **sizes, torch_dtype="float32")
    tensors = load_file(baichuan / "model.safetensors")
    for layer in range(2):
        parts = [tensors.pop(f"model.layers.{layer}.self_attn.{name}_proj.weight") for name in "qkv"]
        tensors[f"model.layers.{layer}.self_attn.W_pack.weight"] = np.concatenate(parts)
    save_file(tensors, baichuan / "model.safetensors")
    if stored != "safetensors":
        (baichuan / "model.safetensors").unlink()
        states = {name: torch.tensor(tensor) for name, tensor in tensors.items()}
        files = ["pytorch_model.bin"] if stored == "pytorch_model.bin" else ["a.bin", "b.bin"]
        file_of = {name: files[number % len(files)] for number, name in enumerate(states)}
        for file in files:
            torch.save({name: states[name] for name in states if file_of[name] == file}, baichuan / file)
        if len(files) > 1:
            config(baichuan, "pytorch_model.bin.index.json", weight_map=file_of)
    with torch.no_grad():
        peer.lm_head.weight.copy_(torch.nn.functional.normalize(peer.lm_head.weight))
    answers(baichuan, peer, tmp_path_factory.mktemp("rows"), [2])
