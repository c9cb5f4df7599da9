"""The files next to exported weights that make transformers tokenize, format turns and end answers as here.

`AutoTokenizer` silently misreads a directory with a SentencePiece model or with the bare files of Qwen2; without a chat
template it does not know the format of turns; and `generate` stops only at the tokens listed in
`generation_config.json`.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from common.data.huggingface_tokenizer import HuggingFaceTokenizer, end_ids
from common.data.pieces import CHAT_MARKS
from common.data.tokenizers import Tokenizer
from common.io.text import json_text, read_json_object, read_text

TEMPLATE_FILES = ("chat_template.jinja", "chat_template.json")
# The conversation of `Tokenizer.chat` where no template is published: ChatML, or lines `role: content`.
CHATML = (
    "{{ bos_token }}{% for message in messages %}<|im_start|>{{ message['role'] }}\n{{ message['content'] }}<|im_end|>"
    "{{ '\n' }}{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant{{ '\n' }}{% endif %}"
)
IMAGE = "<|vision_start|><|image_pad|><|vision_end|>"  # of Qwen2-VL; its processor repeats the middle one
# Contents of several parts, as engines that speak chat completions hand them over; other messages give `CHATML`.
CHATML_IMAGES = CHATML.replace(
    "{{ message['content'] }}",
    "{% if message['content'] is string %}{{ message['content'] }}{% else %}{% for part in message['content'] %}"
    "{% if 'image' in part or part['type'] in ('image', 'image_url') %}" + IMAGE + "{% else %}{{ part['text'] }}"
    "{% endif %}{% endfor %}{% endif %}",
)
LINES = (
    "{{ bos_token }}{% for message in messages %}{{ message['role'] }}: {{ message['content'] }}{{ '\n' }}"
    "{% if message['role'] == 'assistant' %}{{ eos_token }}{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}assistant:{% endif %}"
)
ALONE, TOGETHER = 1000, 100  # words of a vocabulary that are compared one by one, and in one text
PROBE = ({"role": "user", "content": "Left eye: 2.5 mm.\n\n左眼"}, {"role": "assistant", "content": "No drusen."})


def exported_files(directory: str | Path, tokenizer: Tokenizer) -> dict[str, str]:
    """Texts by file name that an export of the model in `directory` holds beside, or in place of, its companions.

    Files of a published tokenizer are left alone. Where the program's own reading cannot be expressed in a file, the
    file is not there. Raises UserError for files that cannot be read.
    """
    directory = Path(directory)
    files = {"generation_config.json": _generation_config(directory, tokenizer)}
    fast = _as_published(directory, tokenizer)
    if fast is None:
        return files
    if not _has_template(directory, fast) and (template := _template(fast, tokenizer)):
        files["chat_template.jinja"] = template
    if not (directory / "tokenizer.json").is_file():
        roles = ("bos_token", "eos_token", "pad_token", "unk_token")
        named = {role: str(token) for role in roles if (token := getattr(fast, role)) is not None}
        config = {"tokenizer_class": "PreTrainedTokenizerFast", "clean_up_tokenization_spaces": False, **named}
        if isinstance(fast.chat_template, str):  # which may stand in the file that the next one takes the place of
            files["chat_template.jinja"] = fast.chat_template
        files["tokenizer.json"] = fast.backend_tokenizer.to_str(pretty=True)
        files["tokenizer_config.json"] = json_text(config, directory, 2) + "\n"
    return files


def reading_note(directory: str | Path, tokenizer: Tokenizer) -> str:
    """How to read the tokenizer of an export where `AutoTokenizer` reads it as another one; "" where it does not.

    For some types of models, such as Qwen2, transformers takes a class of their own, whatever the files say.
    """
    from transformers import AutoTokenizer, PreTrainedTokenizerFast

    for kind in (AutoTokenizer, PreTrainedTokenizerFast):
        try:
            fast: Any = kind.from_pretrained(str(directory), local_files_only=True)
        except (OSError, ValueError, KeyError, TypeError, AttributeError):
            continue
        if _same_tokens(fast, tokenizer):
            break
    else:
        return (
            f"note: {directory}: no tokenizer of transformers gives the tokens of this run; encode with the files in "
            "it as this program does"
        )
    if kind is AutoTokenizer:
        return ""
    return (
        f"note: {directory}: read its tokenizer with transformers' PreTrainedTokenizerFast; AutoTokenizer goes by the "
        "model's type and gives other tokens"
    )


def _generation_config(directory: Path, tokenizer: Tokenizer) -> str:
    """The base model's own entries, with every token that ends an answer here."""
    file = directory / "generation_config.json"
    own = read_json_object(file) if file.is_file() else {}
    if set(end_ids(file)) == set(tokenizer.stop_ids):
        return read_text(file)
    return (
        json_text({**own, "eos_token_id": list(tokenizer.stop_ids), "pad_token_id": tokenizer.pad_id}, file, 2) + "\n"
    )


def _as_published(directory: Path, tokenizer: Tokenizer) -> Any:
    """The tokenizer as one of transformers, or None where that gives other tokens."""
    if isinstance(tokenizer, HuggingFaceTokenizer):
        return tokenizer.published
    from transformers import PreTrainedTokenizerFast

    try:
        fast: Any = PreTrainedTokenizerFast.from_pretrained(str(directory), local_files_only=True)
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return None  # no tokenizer.json can stand for it; the SentencePiece model goes along alone
    for name, id_ in (
        ("eos_token", tokenizer.eos_id),
        ("pad_token", tokenizer.pad_id),
        ("bos_token", tokenizer.bos_id),
    ):
        setattr(fast, name, None if id_ is None else fast.convert_ids_to_tokens(id_))
    return fast if _same_tokens(fast, tokenizer) else None


def _same_tokens(fast: Any, tokenizer: Tokenizer) -> bool:
    """Whether both cut texts alike: the words of the vocabulary, between others and (some) alone."""
    special = {*fast.all_special_ids, *fast.added_tokens_decoder}
    words = [tokenizer.decode([id_]) for id_ in range(tokenizer.vocab_size) if id_ not in special]
    alone = words[:: -(-len(words) // ALONE)]
    together = [" ".join(words[start : start + TOGETHER]) for start in range(0, len(words), TOGETHER)]
    marks = [str(token) for token in fast.added_tokens_decoder.values() if token.special]
    texts = [*alone, *together, *(message["content"] for message in PROBE)]
    texts = [text for text in texts if not any(mark in text for mark in marks)]
    return fast(texts, add_special_tokens=False)["input_ids"] == [tokenizer.encode(text) for text in texts]


def _has_template(directory: Path, fast: Any) -> bool:
    return bool(fast.chat_template) or any((directory / name).is_file() for name in TEMPLATE_FILES)


def _template(fast: Any, tokenizer: Tokenizer) -> str:
    """The template by which transformers makes the tokens of `Tokenizer.chat`; "" where none does."""
    marked = all(mark in fast.get_vocab() for mark in CHAT_MARKS)
    sees = "<|image_pad|>" in fast.get_vocab()
    template = (CHATML_IMAGES if sees else CHATML) if marked else LINES
    if tokenizer.bos_id is None:
        template = template.removeprefix("{{ bos_token }}")
    conversations: list[tuple[Sequence[dict[str, str]], bool]] = [(PROBE[:1], True), (PROBE, False), (PROBE, True)]
    for messages, answer in conversations:
        ids = fast.apply_chat_template(
            list(messages), chat_template=template, add_generation_prompt=answer, tokenize=True, return_dict=False
        )
        if ids != tokenizer.chat(messages, answer):
            return ""
    return template
