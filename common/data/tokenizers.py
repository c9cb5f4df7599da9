"""Text to tokens and back behind one small protocol: Hugging Face directory, SentencePiece file, or word level.

The bytes of sampled tokens determine the characters of each:
`b"".join(tokenizer.token_bytes(ids)).decode("utf-8", "replace") == tokenizer.decode(ids)` holds for every sequence.
"""

import dataclasses
import functools
import json
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

from common.data.huggingface_tokenizer import (
    load_bare_qwen2,
    load_hugging_face,
    published_ends,
    published_roles,
)
from common.data.pieces import (
    CHAT_MARKS,
    Messages,
    chat_by_roles,
    chat_without_template,
    sentencepiece_bytes,
    without_first_space,
)
from common.errors import UserError
from common.io.files import atomic_file
from common.io.inputs import read_bytes
from common.io.safetensors import disk_errors
from common.io.terminal import printable
from common.io.text import read_json_object
from common.models.qwen2 import Qwen2Config

MOST_MODEL_BYTES = 256 << 20  # of a SentencePiece model; a million pieces take 30 MB


class Tokenizer(Protocol):
    """What data, decoding and alignment need of a tokenizer."""

    @property
    def vocab_size(self) -> int:
        """One more than the largest id."""

    @property
    def eos_id(self) -> int:
        """Ends an answer in training."""

    @property
    def stop_ids(self) -> tuple[int, ...]:
        """Each of these ends an answer in decoding; `eos_id` is among them."""

    @property
    def chat_end_id(self) -> int:
        """Ends the assistant's turn: `<|im_end|>` where the vocabulary has it, else `eos_id`."""

    @property
    def pad_id(self) -> int:
        """Fills rows; always masked."""

    @property
    def bos_id(self) -> int | None:
        """Starts a text, in models that have such a token."""

    @property
    def has_chat(self) -> bool:
        """Whether `chat` is a format of the model's own: a template, tokens of the roles, or the marks of ChatML."""

    def encode(self, text: str) -> list[int]:
        """Tokens of a piece of text; none is added, but special tokens in it are recognised (not at word level)."""

    def encode_prompt(self, text: str) -> list[int]:
        """Tokens of a whole text as the published tokenizer gives them, with those its post-processing adds.

        That of a Hugging Face directory may add a beginning and an end; a SentencePiece file and word level add none.
        An answer, a report or the text of a chat template is not whole: `encode` is for these.
        """

    def decode(self, ids: Sequence[int]) -> str:
        """Text of `ids`; special tokens write nothing, bytes that are no UTF-8 become U+FFFD."""

    def token_bytes(self, ids: Sequence[int]) -> list[bytes]:
        """The bytes that each token writes as part of this sequence; b"" for special tokens."""

    def chat(self, messages: Messages, add_generation_prompt: bool = True) -> list[int]:
        """Tokens of a conversation, ready for the assistant's answer or (False) complete.

        By the tokenizer's own chat template, which writes its own beginning. Without one: with Baichuan's tokens of the
        roles; for other models what begins a text, then ChatML as Qwen writes it where its marks are in the vocabulary,
        otherwise lines `role: content`, `eos_id` after each of the assistant's, and `assistant:` to answer.
        """


def load_tokenizer(path: str | Path) -> Tokenizer:
    """The tokenizer at `path`, by what is there.

    A directory in the layout of the hub (`tokenizer.json` or `tokenizer_config.json`; or only `vocab.json` and
    `merges.txt` of Qwen2), a directory with one SentencePiece `.model`, such a file, or a word vocabulary (`.json`).
    Raises UserError for anything else.
    """
    path = Path(path)
    if path.is_dir():
        has = {entry.name for entry in path.iterdir()}
        models = sorted(name for name in has if name.endswith(".model"))
        if len(models) == 1 and "tokenizer.json" not in has and (roles := published_roles(path)):
            return SentencePieceTokenizer(path / models[0], published_ends(path), roles)  # Baichuan's
        if has & {"tokenizer.json", "tokenizer_config.json"}:
            return load_hugging_face(path)
        if {"vocab.json", "merges.txt"} <= has:
            return load_bare_qwen2(path)
        if len(models) == 1:
            return SentencePieceTokenizer(path / models[0], published_ends(path))
        raise UserError(
            f"{path}: no tokenizer found; expected tokenizer.json, vocab.json with merges.txt, or one SentencePiece "
            f".model file ({len(models)} there)"
        )
    if not path.is_file():
        raise UserError(f"{path}: no such file or directory; expected a tokenizer")
    if path.suffix == ".model":
        return SentencePieceTokenizer(path)
    if path.name == "tokenizer.json":
        return load_hugging_face(path.parent)
    if path.suffix == ".json":
        return _words(path)
    raise UserError(f"{path}: not a tokenizer; expected a directory, a SentencePiece .model or a word vocabulary .json")


class SentencePieceTokenizer:
    """A SentencePiece model file (arXiv:1808.06226), with `stops` and `roles` as `HuggingFaceTokenizer` has them."""

    def __init__(self, file: str | Path, stops: Iterable[int] = (), roles: Mapping[str, int] | None = None):
        import sentencepiece
        from google.protobuf.message import DecodeError
        from sentencepiece import sentencepiece_model_pb2

        protobuf: Any = sentencepiece_model_pb2
        content = read_bytes(file, "a SentencePiece model", MOST_MODEL_BYTES)
        try:
            described = protobuf.ModelProto.FromString(content)
            self._model = sentencepiece.SentencePieceProcessor(model_proto=content)
        except (RuntimeError, ValueError, DecodeError) as error:
            raise UserError(f"{file}: cannot be read as a SentencePiece model ({printable(error)})") from error
        if self._model.eos_id() < 0:
            raise UserError(f"{file}: the SentencePiece model has no end-of-sequence piece; train it with an eos_id")
        self.vocab_size: int = self._model.vocab_size()
        self.eos_id: int = self._model.eos_id()
        self.pad_id: int = self.eos_id if self._model.pad_id() < 0 else self._model.pad_id()
        self.bos_id: int | None = None if self._model.bos_id() < 0 else self._model.bos_id()
        self._marks = [id_ for id_ in map(self._model.piece_to_id, CHAT_MARKS) if id_ != self._model.unk_id()]
        self.stop_ids = tuple(sorted({self.eos_id, *stops, *self._marks[1:]}))
        self._roles = roles or {}
        self.chat_end_id: int = [self.eos_id, *self._marks][2 if len(self._marks) == 2 else 0]
        self._drops_all_first_spaces = described.normalizer_spec.remove_extra_whitespaces
        self._drops_first_space = described.normalizer_spec.add_dummy_prefix or self._drops_all_first_spaces
        self._unknown = described.trainer_spec.unk_surface.encode()
        self.unk_id = None if described.trainer_spec.byte_fallback else int(self._model.unk_id())
        self.has_chat = bool(self._roles) or len(self._marks) == len(CHAT_MARKS)

    def encode(self, text: str) -> list[int]:
        return self._model.encode(text)

    def encode_prompt(self, text: str) -> list[int]:
        return self.encode(text)

    def decode(self, ids: Sequence[int]) -> str:
        return b"".join(self.token_bytes(ids)).decode("utf-8", "replace")

    def token_bytes(self, ids: Sequence[int]) -> list[bytes]:
        model = self._model
        known = [0 <= id_ < self.vocab_size and not model.is_control(id_) for id_ in ids]
        written = [
            sentencepiece_bytes(model.id_to_piece(id_)) if used else b"" for id_, used in zip(ids, known, strict=True)
        ]
        if self._drops_first_space:
            written = without_first_space(written, self._drops_all_first_spaces)
        return [self._unknown if id_ == model.unk_id() else piece for id_, piece in zip(ids, written, strict=True)]

    def chat(self, messages: Messages, add_generation_prompt: bool = True) -> list[int]:
        if self._roles:
            return chat_by_roles(self.encode, messages, add_generation_prompt, self._roles)
        start = [] if self.bos_id is None else [self.bos_id]
        return chat_without_template(
            self.encode, messages, add_generation_prompt, start=start, end=self.eos_id, marks=self._marks
        )


@dataclasses.dataclass(frozen=True)
class WordTokenizer:
    """Words between white space, as the report generators since R2Gen use them; `words[i]` has id i + 4.

    Clean the text first (`common.data.cleaning`): white space itself is not kept, and decoding puts single spaces.
    """

    words: tuple[str, ...]

    RESERVED = ("<pad>", "<bos>", "<eos>", "<unk>")
    pad_id = 0
    bos_id = 1
    eos_id = 2
    stop_ids = (2,)
    chat_end_id = 2
    unk_id = 3
    has_chat = False

    @property
    def vocab_size(self) -> int:
        return len(self.RESERVED) + len(self.words)

    @functools.cached_property
    def _ids(self) -> dict[str, int]:
        return {word: id_ for id_, word in enumerate(self.words, start=len(self.RESERVED))}

    def encode(self, text: str) -> list[int]:
        return [self._ids.get(word, self.unk_id) for word in text.split()]

    def encode_prompt(self, text: str) -> list[int]:
        return self.encode(text)

    def decode(self, ids: Sequence[int]) -> str:
        return b"".join(self.token_bytes(ids)).decode("utf-8", "replace")

    @functools.cached_property
    def _bytes(self) -> list[bytes]:
        return [b"", b"", b"", b" <unk>", *(f" {word}".encode() for word in self.words)]

    def token_bytes(self, ids: Sequence[int]) -> list[bytes]:
        return without_first_space([self._bytes[id_] if id_ < self.vocab_size else b"" for id_ in ids])

    def chat(self, messages: Messages, add_generation_prompt: bool = True) -> list[int]:
        return chat_without_template(
            self.encode, messages, add_generation_prompt, start=[self.bos_id], end=self.eos_id, marks=[]
        )


def build_word_tokenizer(texts: Iterable[str], minimum_count: int = 3) -> WordTokenizer:
    """The words that occur at least `minimum_count` times, in alphabetical order. Raises UserError where none does.

    A report in which "<eos>" or another reserved name is written out has an unknown word there, however often.
    """
    counts = Counter(word for text in texts for word in text.split())
    words = sorted(
        word for word, count in counts.items() if count >= minimum_count and word not in WordTokenizer.RESERVED
    )
    if not words:
        raise UserError(f"no word occurs {minimum_count} times in the training texts; lower the minimum count")
    return WordTokenizer(tuple(words))


def save_words(file: str | Path, tokenizer: WordTokenizer) -> None:
    """Write the vocabulary that `load_tokenizer` reads: {"words": [...]}, without the reserved ones."""
    file = Path(file)
    with disk_errors(file), atomic_file(file) as aside:
        aside.write_text(json.dumps({"words": tokenizer.words}, ensure_ascii=False, indent=0), encoding="utf-8")


def _words(file: Path) -> WordTokenizer:
    words = read_json_object(file).get("words")
    if not isinstance(words, list) or not words or not all(isinstance(word, str) and word for word in words):
        raise UserError(f'{file}: not a word vocabulary; expected {{"words": [text, ...]}}')
    if len(set(words)) < len(words) or set(words) & set(WordTokenizer.RESERVED):
        raise UserError(f"{file}: words must differ from one another and from {', '.join(WordTokenizer.RESERVED)}")
    return WordTokenizer(tuple(words))


def check_vocabulary(tokenizer: Tokenizer, config: Qwen2Config) -> None:
    """Raise UserError where the tokenizer has ids for which the model has no embedding."""
    if tokenizer.vocab_size > config.vocab_size:
        raise UserError(
            f"tokenizer and model do not match: the tokenizer has {tokenizer.vocab_size} ids, the model's vocab_size "
            "is "
            f"{config.vocab_size}; use the tokenizer published with the model"
        )
