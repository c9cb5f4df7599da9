"""Text to tokens and back behind one small protocol: Hugging Face directory, SentencePiece file, or word level.

The bytes of sampled tokens say which characters each of them wrote (contract 13):
`b"".join(tokenizer.token_bytes(ids)).decode("utf-8", "replace") == tokenizer.decode(ids)` holds for every sequence.
"""

import dataclasses
import functools
import json
import re
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

from common.errors import UserError
from common.files import written_aside
from common.io.text import read_json_object
from common.weights import writing

Messages = Sequence[Mapping[str, str]]  # {"role": "system" | "user" | "assistant", "content": text}

CHAT_MARKS = ("<|im_start|>", "<|im_end|>")
USUAL_ENDS = (CHAT_MARKS[1], "<|endoftext|>", "</s>", "<eos>")  # of a sequence, where no file names its end
# Of Qwen2 and Qwen2.5 (tokenizer_config.json on the hub), for a directory that has only the ranks.
QWEN2_RANKS = 151_643
QWEN2_SPECIAL = (
    *("<|im_start|>", "<|im_end|>", "<|object_ref_start|>", "<|object_ref_end|>", "<|box_start|>", "<|box_end|>"),
    *("<|quad_start|>", "<|quad_end|>", "<|vision_start|>", "<|vision_end|>", "<|vision_pad|>", "<|image_pad|>"),
    "<|video_pad|>",
)
SPACE = "\u2581"  # how SentencePiece writes a space
BYTE_PIECE = re.compile(r"<0x([0-9A-F]{2})>")


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

    def encode(self, text: str) -> list[int]:
        """Tokens of `text`; none is added, but special tokens written in it are recognised (not at word level)."""

    def decode(self, ids: Sequence[int]) -> str:
        """Text of `ids`; special tokens write nothing, bytes that are no UTF-8 become U+FFFD."""

    def token_bytes(self, ids: Sequence[int]) -> list[bytes]:
        """The bytes that each token writes as part of this sequence; b"" for special tokens."""

    def chat(self, messages: Messages, add_generation_prompt: bool = True) -> list[int]:
        """Tokens of a conversation, ready for the assistant's answer or (False) complete.

        By the tokenizer's own chat template. Without one: ChatML as Qwen writes it where its marks are in the
        vocabulary, else lines `role: content`, `eos_id` after each of the assistant's, and `assistant:` to answer.
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
        if has & {"tokenizer.json", "tokenizer_config.json"}:
            return _hugging_face(path)
        if {"vocab.json", "merges.txt"} <= has:
            return _bare_qwen2(path)
        if len(models) == 1:
            return SentencePieceTokenizer(path / models[0])
        raise UserError(
            f"{path}: no tokenizer found; expected tokenizer.json, vocab.json with merges.txt, or one SentencePiece "
            f".model file ({len(models)} there)"
        )
    if not path.is_file():
        raise UserError(f"{path}: no such file or directory; expected a tokenizer")
    if path.suffix == ".model":
        return SentencePieceTokenizer(path)
    if path.name == "tokenizer.json":
        return _hugging_face(path.parent)
    if path.suffix == ".json":
        return _words(path)
    raise UserError(f"{path}: not a tokenizer; expected a directory, a SentencePiece .model or a word vocabulary .json")


def end_ids(file: Path) -> tuple[int, ...]:
    """`eos_token_id` of a generation_config.json or config.json; () where it is not there. Raises UserError."""
    found = read_json_object(file).get("eos_token_id") if file.is_file() else None
    ids = found if isinstance(found, list) else [] if found is None else [found]
    if not all(type(id_) is int and id_ >= 0 for id_ in ids):
        raise UserError(f"{file}: eos_token_id is {found!r}, expected a token's number or a list of them")
    return tuple(ids)


class HuggingFaceTokenizer:
    """A fast tokenizer of transformers. `stops` are ids that end an answer beside its end-of-sequence token."""

    def __init__(self, tokenizer: Any, stops: Iterable[int] = ()):
        self._tokenizer = tokenizer
        named = (tokenizer.eos_token_id, tokenizer.sep_token_id, *map(tokenizer.get_vocab().get, USUAL_ENDS))
        eos = next((id_ for id_ in named if id_ is not None), None)
        if eos is None:
            raise UserError(f"{tokenizer.name_or_path}: no eos_token; expected one in tokenizer_config.json")
        self.eos_id: int = eos
        self.pad_id: int = eos if tokenizer.pad_token_id is None else tokenizer.pad_token_id
        self.bos_id: int | None = tokenizer.bos_token_id
        self.vocab_size: int = 1 + max(tokenizer.get_vocab().values())
        self._added = {id_: str(token) for id_, token in tokenizer.added_tokens_decoder.items()}
        self._special = set(tokenizer.all_special_ids)
        self._special |= {id_ for id_, token in tokenizer.added_tokens_decoder.items() if token.special}
        marks = {text: id_ for id_, text in self._added.items() if text in (CHAT_MARKS[1], "<|endoftext|>")}
        self.stop_ids = tuple(sorted({eos, *stops, *marks.values()}))
        self.chat_end_id: int = marks.get(CHAT_MARKS[1], eos)

    @property
    def published(self) -> Any:
        """The tokenizer of transformers."""
        return self._tokenizer

    def encode(self, text: str) -> list[int]:
        return self._tokenizer(text, add_special_tokens=False, verbose=False)["input_ids"]

    def decode(self, ids: Sequence[int]) -> str:
        if self._writes is None:
            return self._tokenizer.decode(ids, skip_special_tokens=True, clean_up_tokenization_spaces=False)
        return b"".join(self.token_bytes(ids)).decode("utf-8", "replace")

    def token_bytes(self, ids: Sequence[int]) -> list[bytes]:
        """As the protocol says. Raises UserError for tokenizers that are neither byte-level BPE nor SentencePiece."""
        if self._writes is None:
            raise UserError(
                f"{self._tokenizer.name_or_path}: bytes of tokens are known for byte-level BPE and SentencePiece, not "
                "for this kind of tokenizer"
            )
        kind, drops_first_space = self._writes
        written = []
        for id_, piece in zip(ids, self._tokenizer.convert_ids_to_tokens(list(ids)), strict=True):
            if id_ in self._special or piece is None:  # None: a padding row of the embedding
                written.append(b"")
            elif id_ in self._added:
                written.append(self._added[id_].encode())
            elif kind == "bytes":
                written.append(bytes(byte_of_character()[character] for character in piece))
            else:
                written.append(_piece_bytes(piece))
        return _without_first_space(written) if drops_first_space else written

    def chat(self, messages: Messages, add_generation_prompt: bool = True) -> list[int]:
        if not self._tokenizer.chat_template:
            ids_of = {text: id_ for id_, text in self._added.items()}
            return _chat(self, messages, add_generation_prompt, [ids_of[mark] for mark in CHAT_MARKS if mark in ids_of])
        import jinja2

        try:
            return self._tokenizer.apply_chat_template(
                list(messages), add_generation_prompt=add_generation_prompt, tokenize=True, return_dict=False
            )
        except (jinja2.TemplateError, TypeError, ValueError, LookupError, AttributeError, ArithmeticError) as error:
            raise UserError(f"{self._tokenizer.name_or_path}: the chat template fails: {error}") from error

    @functools.cached_property
    def _writes(self) -> tuple[str, bool] | None:
        """How pieces become bytes, and whether a sequence loses its first space; None where they do not."""
        if self._tokenizer.backend_tokenizer.decoder is None:
            return None
        decoder = json.loads(self._tokenizer.backend_tokenizer.decoder.__getstate__())
        steps = {step["type"]: step for step in decoder.get("decoders", [decoder])}
        if "ByteLevel" in steps:
            return "bytes", False
        if "Metaspace" in steps:
            return "pieces", steps["Metaspace"].get("prepend_scheme", "always") != "never"
        if "Replace" in steps and steps["Replace"].get("pattern") == {"String": SPACE}:
            return "pieces", steps.get("Strip", {}).get("start", 0) == 1
        return None


class SentencePieceTokenizer:
    """A SentencePiece model file (arXiv:1808.06226)."""

    def __init__(self, file: str | Path):
        import sentencepiece
        from sentencepiece import sentencepiece_model_pb2

        try:
            content = Path(file).read_bytes()
            self._model = sentencepiece.SentencePieceProcessor(model_proto=content)
        except (OSError, RuntimeError) as error:
            raise UserError(f"{file}: cannot be read as a SentencePiece model ({error})") from error
        if self._model.eos_id() < 0:
            raise UserError(f"{file}: the SentencePiece model has no end-of-sequence piece; train it with an eos_id")
        self.vocab_size: int = self._model.vocab_size()
        self.eos_id: int = self._model.eos_id()
        self.pad_id: int = self.eos_id if self._model.pad_id() < 0 else self._model.pad_id()
        self.bos_id: int | None = None if self._model.bos_id() < 0 else self._model.bos_id()
        self._marks = [id_ for id_ in map(self._model.piece_to_id, CHAT_MARKS) if id_ != self._model.unk_id()]
        self.stop_ids = tuple(sorted({self.eos_id, *self._marks[1:]}))
        self.chat_end_id: int = [self.eos_id, *self._marks][2 if len(self._marks) == 2 else 0]
        protobuf: Any = sentencepiece_model_pb2
        described = protobuf.ModelProto.FromString(content)
        self._drops_all_first_spaces = described.normalizer_spec.remove_extra_whitespaces
        self._drops_first_space = described.normalizer_spec.add_dummy_prefix or self._drops_all_first_spaces
        self._unknown = described.trainer_spec.unk_surface.encode()

    def encode(self, text: str) -> list[int]:
        return self._model.encode(text)

    def decode(self, ids: Sequence[int]) -> str:
        return b"".join(self.token_bytes(ids)).decode("utf-8", "replace")

    def token_bytes(self, ids: Sequence[int]) -> list[bytes]:
        model = self._model
        known = [0 <= id_ < self.vocab_size and not model.is_control(id_) for id_ in ids]
        written = [_piece_bytes(model.id_to_piece(id_)) if used else b"" for id_, used in zip(ids, known, strict=True)]
        if self._drops_first_space:
            written = _without_first_space(written, self._drops_all_first_spaces)
        return [self._unknown if id_ == model.unk_id() else piece for id_, piece in zip(ids, written, strict=True)]

    def chat(self, messages: Messages, add_generation_prompt: bool = True) -> list[int]:
        return _chat(self, messages, add_generation_prompt, self._marks)


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

    @property
    def vocab_size(self) -> int:
        return len(self.RESERVED) + len(self.words)

    @functools.cached_property
    def _ids(self) -> dict[str, int]:
        return {word: id_ for id_, word in enumerate(self.words, start=len(self.RESERVED))}

    def encode(self, text: str) -> list[int]:
        return [self._ids.get(word, self.unk_id) for word in text.split()]

    def decode(self, ids: Sequence[int]) -> str:
        return b"".join(self.token_bytes(ids)).decode("utf-8", "replace")

    @functools.cached_property
    def _bytes(self) -> list[bytes]:
        return [b"", b"", b"", b" <unk>", *(f" {word}".encode() for word in self.words)]

    def token_bytes(self, ids: Sequence[int]) -> list[bytes]:
        return _without_first_space([self._bytes[id_] if id_ < self.vocab_size else b"" for id_ in ids])

    def chat(self, messages: Messages, add_generation_prompt: bool = True) -> list[int]:
        return _chat(self, messages, add_generation_prompt, [])


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
    with writing(file), written_aside(file) as aside:
        aside.write_text(json.dumps({"words": tokenizer.words}, ensure_ascii=False, indent=0), encoding="utf-8")


@functools.cache
def byte_of_character() -> dict[str, int]:
    """The printable characters by which byte-level BPE writes the 256 bytes (GPT-2's `bytes_to_unicode`)."""
    printable = [*range(ord("!"), ord("~") + 1), *range(ord("¡"), ord("¬") + 1), *range(ord("®"), ord("ÿ") + 1)]
    others = [byte for byte in range(256) if byte not in printable]
    return {chr(byte): byte for byte in printable} | {chr(256 + place): byte for place, byte in enumerate(others)}


def _hugging_face(directory: Path) -> HuggingFaceTokenizer:
    from transformers import AutoTokenizer, PreTrainedTokenizerFast

    def load(kind: Any) -> Any:
        return kind.from_pretrained(str(directory), local_files_only=True)

    for name in ("tokenizer.json", "tokenizer_config.json", "vocab.json"):
        if (directory / name).is_file():
            read_json_object(directory / name)
    try:
        # The class that AutoTokenizer takes by the name of the model has pre-tokenization and special tokens of its own
        # beside those of tokenizer.json. It is of use where no file names an end, as for the published BERT.
        tokenizer = load(PreTrainedTokenizerFast) if (directory / "tokenizer.json").is_file() else None
        if tokenizer is None or tokenizer.eos_token_id is None is tokenizer.sep_token_id:
            tokenizer = load(AutoTokenizer)
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise UserError(f"{directory}: transformers cannot load this tokenizer ({error})") from error
    if tokenizer.get_vocab().keys() <= tokenizer.get_added_vocab().keys():
        raise UserError(f"{directory}: no vocabulary found; expected tokenizer.json, or vocab.json with merges.txt")
    if not tokenizer.is_fast:
        raise UserError(f"{directory}: no fast tokenizer; expected tokenizer.json (save it with transformers once)")
    return HuggingFaceTokenizer(tokenizer, end_ids(directory / "generation_config.json"))


def _bare_qwen2(directory: Path) -> HuggingFaceTokenizer:
    """From `vocab.json` and `merges.txt` alone, with the special tokens of the published Qwen2 models."""
    from transformers import Qwen2Tokenizer

    ranks = len(read_json_object(directory / "vocab.json"))
    if ranks != QWEN2_RANKS:
        raise UserError(
            f"{directory}: vocab.json has {ranks} entries, Qwen2's has {QWEN2_RANKS}; add the tokenizer.json of this "
            "tokenizer, which says what kind it is"
        )
    try:
        tokenizer = Qwen2Tokenizer.from_pretrained(str(directory), extra_special_tokens=list(QWEN2_SPECIAL))
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise UserError(f"{directory}: transformers cannot load this tokenizer ({error})") from error
    tokenizer.eos_token = CHAT_MARKS[1]
    return HuggingFaceTokenizer(tokenizer)


def _words(file: Path) -> WordTokenizer:
    words = read_json_object(file).get("words")
    if not isinstance(words, list) or not words or not all(isinstance(word, str) and word for word in words):
        raise UserError(f'{file}: not a word vocabulary; expected {{"words": [text, ...]}}')
    if len(set(words)) < len(words) or set(words) & set(WordTokenizer.RESERVED):
        raise UserError(f"{file}: words must differ from one another and from {', '.join(WordTokenizer.RESERVED)}")
    return WordTokenizer(tuple(words))


def _chat(tokenizer: Tokenizer, messages: Messages, add_generation_prompt: bool, marks: Sequence[int]) -> list[int]:
    """The fallback described at `Tokenizer.chat`; ChatML where both `marks` are known."""
    encode = tokenizer.encode
    ids = [] if tokenizer.bos_id is None else [tokenizer.bos_id]
    chatml = len(marks) == len(CHAT_MARKS)
    for message in messages:
        role, content = message["role"], message["content"]
        if chatml:
            ids += [marks[0], *encode(f"{role}\n{content}"), marks[1], *encode("\n")]
        else:
            ids += [*encode(f"{role}: {content}\n"), *([tokenizer.eos_id] if role == "assistant" else [])]
    if add_generation_prompt:
        ids += [marks[0], *encode("assistant\n")] if chatml else encode("assistant:")
    return ids


def _piece_bytes(piece: str) -> bytes:
    byte = BYTE_PIECE.fullmatch(piece)
    return bytes([int(byte[1], 16)]) if byte else piece.replace(SPACE, " ").encode()


def _without_first_space(written: list[bytes], each: bool = False) -> list[bytes]:
    """Without the space before the first word, or (`each`) without one in each piece until something is written."""
    written = list(written)
    for place, piece in enumerate(written):
        written[place] = piece.removeprefix(b" ")
        if written[place] or (piece and not each):
            break
    return written
