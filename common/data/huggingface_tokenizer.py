"""Tokenizers in the layout of the Hugging Face hub, loaded and run by transformers and its `tokenizers` library.

Neither library documents a closed list of errors, and Rust's panics are not an `Exception`. So each call goes through
`_one_line`, which turns all of them into a one-line error.
"""

import contextlib
import functools
import os
import sys
import tempfile
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from common.bounds import Within
from common.data.pieces import (
    CHAT_MARKS,
    SPACE,
    TURN_ENDS,
    Messages,
    byte_level_bytes,
    chat_by_roles,
    chat_without_template,
    sentencepiece_bytes,
    without_first_space,
)
from common.errors import UserError
from common.io.terminal import printable
from common.io.text import parse_json, read_json_object
from common.models.published import Entries

USUAL_ENDS = (CHAT_MARKS[1], "<|endoftext|>", "</s>", "<eos>")  # of a sequence, where no file names its end
# Of Qwen2 and Qwen2.5 (tokenizer_config.json on the hub), for a directory that has only the ranks.
QWEN2_RANKS = 151_643
QWEN2_SPECIAL = (
    *("<|im_start|>", "<|im_end|>", "<|object_ref_start|>", "<|object_ref_end|>", "<|box_start|>", "<|box_end|>"),
    *("<|quad_start|>", "<|quad_end|>", "<|vision_start|>", "<|vision_end|>", "<|vision_pad|>", "<|image_pad|>"),
    "<|video_pad|>",
)
DATE = (
    "26 Jul 2024"  # of every conversation in Llama 3's templates, and their own default: results do not change by day
)
ROLES = {"user": 195, "assistant": 196}  # of Baichuan2, whose generation_config.json says so where there is one
TRIED = "Left eye: 2.5 mm.\n\n左眼"  # so that files which no text can be encoded with are met when they are loaded
MOST_IDS = 1 << 24  # a hundred times the largest published vocabulary
FILES = ("tokenizer.json", "tokenizer_config.json", "special_tokens_map.json", "added_tokens.json", "vocab.json")


def end_ids(file: Path) -> tuple[int, ...]:
    """`eos_token_id` of a generation_config.json or config.json; () where it is not there. Raises UserError."""
    found = read_json_object(file).get("eos_token_id") if file.is_file() else None
    ids = found if isinstance(found, list) else [] if found is None else [found]
    if not all(type(id_) is int and 0 <= id_ < MOST_IDS for id_ in ids):
        raise UserError(
            f"{file}: eos_token_id is {printable(found)!r}, expected a token's number or a list of them, each below "
            f"{MOST_IDS}"
        )
    return tuple(ids)


def published_ends(directory: Path) -> tuple[int, ...]:
    """What ends an answer by generation_config.json and by config.json: a model may have its turns end by one alone."""
    return (*end_ids(directory / "generation_config.json"), *end_ids(directory / "config.json"))


def published_roles(directory: Path) -> dict[str, int]:
    """Tokens that begin a message by its role, where a model has such in place of a chat template; else {}."""
    config = directory / "config.json"
    if not config.is_file() or read_json_object(config).get("model_type") != "baichuan":
        return {}
    file = directory / "generation_config.json"
    published = Entries(read_json_object(file) if file.is_file() else {}, file)
    return {role: published.whole(f"{role}_token_id", Within(0, MOST_IDS), own) for role, own in ROLES.items()}


class HuggingFaceTokenizer:
    """A fast tokenizer of transformers. `stops` are ids that end an answer beside its end-of-sequence token.

    `roles` are tokens that begin messages where there is no chat template (`published_roles`).
    """

    def __init__(self, tokenizer: Any, stops: Iterable[int] = (), roles: Mapping[str, int] | None = None):
        self._tokenizer = tokenizer
        self._roles = roles or {}
        self._name = tokenizer.name_or_path
        vocabulary = tokenizer.get_vocab()
        named = (tokenizer.eos_token_id, tokenizer.sep_token_id, *map(vocabulary.get, USUAL_ENDS))
        eos = next((id_ for id_ in named if id_ is not None), None)
        if eos is None:
            raise UserError(f"{self._name}: no eos_token; expected one in tokenizer_config.json")
        self.eos_id: int = eos
        self.pad_id: int = eos if tokenizer.pad_token_id is None else tokenizer.pad_token_id
        self.bos_id: int | None = tokenizer.bos_token_id
        self.vocab_size: int = 1 + max(vocabulary.values())
        if self.vocab_size > MOST_IDS:
            raise UserError(f"{self._name}: has ids up to {self.vocab_size - 1}, expected them below {MOST_IDS}")
        self._added = {id_: str(token) for id_, token in tokenizer.added_tokens_decoder.items()}
        self._special = set(tokenizer.all_special_ids)
        self._special |= {id_ for id_, token in tokenizer.added_tokens_decoder.items() if token.special}
        known = {text: vocabulary[text] for text in (*TURN_ENDS, "<|endoftext|>") if text in vocabulary}
        self.stop_ids = tuple(sorted({eos, *stops, *known.values()}))
        self.chat_end_id: int = next((known[end] for end in TURN_ENDS if end in known), eos)

    @property
    def has_chat(self) -> bool:
        """As the protocol says."""
        return bool(self._tokenizer.chat_template or self._roles) or set(CHAT_MARKS) <= set(self._added.values())

    @property
    def published(self) -> Any:
        """The tokenizer of transformers."""
        return self._tokenizer

    def encode(self, text: str) -> list[int]:
        return self._encoded(text, add_special_tokens=False)

    def encode_prompt(self, text: str) -> list[int]:
        return self._encoded(text, add_special_tokens=True)

    def decode(self, ids: Sequence[int]) -> str:
        if self._writes is None:
            with _one_line(self._name, "these tokens cannot be decoded"):
                return self._tokenizer.decode(ids, skip_special_tokens=True, clean_up_tokenization_spaces=False)
        return b"".join(self.token_bytes(ids)).decode("utf-8", "replace")

    def token_bytes(self, ids: Sequence[int]) -> list[bytes]:
        """As the protocol says. Raises UserError for tokenizers that are neither byte-level BPE nor SentencePiece."""
        if self._writes is None:
            raise UserError(
                f"{self._name}: bytes of tokens are known for byte-level BPE and SentencePiece, not for this kind of "
                "tokenizer"
            )
        kind, drops_first_space = self._writes
        written = []
        for id_, piece in zip(ids, self._tokenizer.convert_ids_to_tokens(list(ids)), strict=True):
            if id_ in self._special or piece is None:  # None: a padding row of the embedding
                written.append(b"")
            elif id_ in self._added:
                written.append(self._added[id_].encode())
            else:
                written.append(byte_level_bytes(piece) if kind == "bytes" else sentencepiece_bytes(piece))
        return without_first_space(written) if drops_first_space else written

    def chat(self, messages: Messages, add_generation_prompt: bool = True) -> list[int]:
        if not self._tokenizer.chat_template and self._roles:
            return chat_by_roles(self.encode, messages, add_generation_prompt, self._roles)
        if not self._tokenizer.chat_template:
            ids_of = {text: id_ for id_, text in self._added.items()}
            marks = [ids_of[mark] for mark in CHAT_MARKS if mark in ids_of]
            return chat_without_template(
                self.encode, messages, add_generation_prompt, start=self._start, end=self.eos_id, marks=marks
            )
        with _one_line(self._name, "the chat template fails"):
            return self._tokenizer.apply_chat_template(
                list(messages),
                add_generation_prompt=add_generation_prompt,
                tokenize=True,
                return_dict=False,
                date_string=DATE,
            )

    def _encoded(self, text: str, add_special_tokens: bool) -> list[int]:
        with _one_line(self._name, "a text cannot be encoded"):
            return self._tokenizer(text, add_special_tokens=add_special_tokens, verbose=False)["input_ids"]

    @functools.cached_property
    def _start(self) -> list[int]:
        """What post-processing puts before a text."""
        own = self.encode("a")
        whole = self.encode_prompt("a")
        indices = range(len(whole) - len(own) + 1)
        return whole[: next((index for index in indices if whole[index : index + len(own)] == own), 0)]

    @functools.cached_property
    def _writes(self) -> tuple[str, bool] | None:
        """How pieces become bytes, and whether a sequence loses its first space; None where they do not."""
        if self._tokenizer.backend_tokenizer.decoder is None:
            return None
        decoder = parse_json(self._tokenizer.backend_tokenizer.decoder.__getstate__(), self._name)
        steps = {step["type"]: step for step in decoder.get("decoders", [decoder])}
        if "ByteLevel" in steps:
            return "bytes", False
        if "Metaspace" in steps:
            return "pieces", steps["Metaspace"].get("prepend_scheme", "always") != "never"
        if "Replace" in steps and steps["Replace"].get("pattern") == {"String": SPACE}:
            return "pieces", steps.get("Strip", {}).get("start", 0) == 1
        return None


def load_hugging_face(directory: Path) -> HuggingFaceTokenizer:
    """The tokenizer of a directory with `tokenizer.json` or `tokenizer_config.json`. Raises UserError."""
    from transformers import AutoTokenizer, PreTrainedTokenizerFast

    def load(kind: Any) -> Any:
        return kind.from_pretrained(str(directory), local_files_only=True, trust_remote_code=False)

    for name in FILES:
        if (directory / name).is_file():
            read_json_object(directory / name)
    if has_own_code(directory):
        raise UserError(
            f"{directory}: its tokenizer is code, which is not executed; put the tokenizer.json of a copy "
            "for transformers beside it (of GLM-4-9B-hf for GLM-4)"
        )
    with _one_line(directory, "transformers cannot load this tokenizer"), _without_panics():
        # The class that AutoTokenizer takes by the name of the model has pre-tokenization and special tokens of its own
        # beside those of tokenizer.json. It is of use where no file names an end, as for the published BERT.
        tokenizer = load(PreTrainedTokenizerFast) if (directory / "tokenizer.json").is_file() else None
        if tokenizer is None or tokenizer.eos_token_id is None is tokenizer.sep_token_id:
            tokenizer = load(AutoTokenizer)
        if tokenizer.get_vocab().keys() <= tokenizer.get_added_vocab().keys():
            raise UserError(f"{directory}: no vocabulary found; expected tokenizer.json, or vocab.json with merges.txt")
        if not tokenizer.is_fast:
            raise UserError(f"{directory}: no fast tokenizer; expected tokenizer.json (save it with transformers once)")
        loaded = HuggingFaceTokenizer(tokenizer, published_ends(directory), published_roles(directory))
        loaded.decode(loaded.encode_prompt(TRIED))
        return loaded


def has_own_code(directory: Path) -> bool:
    """Whether a tokenizer is published as Python code, without a tokenizer.json that says the same."""
    config = directory / "tokenizer_config.json"
    if (directory / "tokenizer.json").is_file() or not config.is_file():
        return False
    classes = read_json_object(config).get("auto_map")
    return isinstance(classes, list) or (isinstance(classes, dict) and "AutoTokenizer" in classes)


def load_bare_qwen2(directory: Path) -> HuggingFaceTokenizer:
    """From `vocab.json` and `merges.txt` alone, with the special tokens of the published Qwen2 models."""
    from transformers import Qwen2Tokenizer

    ranks = len(read_json_object(directory / "vocab.json"))
    if ranks != QWEN2_RANKS:
        raise UserError(
            f"{directory}: vocab.json has {ranks} entries, Qwen2's has {QWEN2_RANKS}; add the tokenizer.json of this "
            "tokenizer, which defines its kind"
        )
    with _one_line(directory, "transformers cannot load this tokenizer"):
        tokenizer = Qwen2Tokenizer.from_pretrained(str(directory), extra_special_tokens=list(QWEN2_SPECIAL))
        tokenizer.eos_token = CHAT_MARKS[1]
        return HuggingFaceTokenizer(tokenizer)


@contextlib.contextmanager
def _without_panics() -> Iterator[None]:
    """Keeps from standard error what Rust writes there itself before its panic is raised; all else is passed on."""
    try:
        terminal = os.dup(2)
    except OSError:  # standard error is closed
        yield
        return
    with tempfile.TemporaryFile() as written:
        sys.stderr.flush()
        os.dup2(written.fileno(), 2)
        try:
            yield
        except BaseException as error:
            if _is_panic(error) or _is_panic(error.__cause__):
                written.truncate(0)
            raise
        finally:
            sys.stderr.flush()
            os.dup2(terminal, 2)
            written.seek(0)
            while part := written.read(1 << 16):
                os.write(terminal, part)
            os.close(terminal)


@contextlib.contextmanager
def _one_line(where: str | Path, what: str) -> Iterator[None]:
    try:
        yield
    except UserError:
        raise
    except BaseException as error:  # see the module's docstring
        if not isinstance(error, Exception) and not _is_panic(error):
            raise
        reason = printable(error) or type(error).__name__
        raise UserError(f"{where}: {what} ({reason})") from error


def _is_panic(error: BaseException | None) -> bool:
    """Whether Rust code has panicked; the class cannot be imported."""
    return type(error).__name__ == "PanicException"
