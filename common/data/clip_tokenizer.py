"""CLIP's byte-level BPE, from the published `bpe_simple_vocab_16e6.txt.gz`, run by the tokenizers library.

Texts are lower-cased and a token is "</w>" longer where it ends a word, so decoding gives words with single spaces, not
the text. OpenAI also repairs mis-decoded Unicode (ftfy), which is left to the readers of the records. transformers'
`CLIPTokenizer` is built from the same components; it reads other files, and takes 1.5 s to import.
"""

import gzip
import html
import itertools
import unicodedata
import zlib
from collections.abc import Sequence
from pathlib import Path
from typing import Protocol

import numpy as np
import tokenizers
from jaxtyping import Int
from tokenizers import decoders, models, pre_tokenizers

from common.data.pieces import byte_of_character
from common.errors import UserError
from common.io.inputs import open_input, reason
from common.io.terminal import printable
from common.io.text import decode_text

MERGES = 49_152 - 256 - 2  # the lines of the file that are used, after its first
LARGEST = 64 << 20  # bytes, unpacked; the published file has 3 million
PUBLISHED = "CLIP's bpe_simple_vocab_16e6.txt.gz"
WORD_END = "</w>"
SPECIAL = ("<|startoftext|>", "<|endoftext|>")
# Special tokens, English contractions, words, single digits, runs of anything else; white space only separates.
PIECES = r"<\|startoftext\|>|<\|endoftext\|>|'s|'t|'re|'ve|'m|'ll|'d|\p{L}+|\p{N}|[^\s\p{L}\p{N}]+"


class ClipTokenizer:
    """Text to CLIP's ids and back."""

    bos_id = 49_406
    eos_id = 49_407
    pad_id = 0
    vocab_size = 49_408

    def __init__(self, file: str | Path):
        """From the published file, gzipped. Raises UserError where it is another one."""
        merges = _merges(Path(file))
        characters = list(byte_of_character())
        words = [*characters, *(character + WORD_END for character in characters), *map("".join, merges), *SPECIAL]
        vocabulary = {word: id_ for id_, word in enumerate(words)}
        if len(vocabulary) != self.vocab_size:
            raise UserError(f"{file}: gives {len(vocabulary)} different tokens, expected {self.vocab_size}")
        if foreign := {*itertools.chain.from_iterable(merges)} - {*vocabulary}:
            raise UserError(f"{file}: merges {printable(min(foreign))}, which is not a token; expected {PUBLISHED}")
        self._tokenizer = tokenizers.Tokenizer(models.BPE(vocabulary, merges, end_of_word_suffix=WORD_END))
        self._tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
            [
                pre_tokenizers.Split(tokenizers.Regex(PIECES), behavior="removed", invert=True),
                pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
            ]
        )
        self._tokenizer.decoder = decoders.ByteLevel()
        self._tokenizer.add_special_tokens([*SPECIAL])

    def encode(self, text: str) -> list[int]:
        """Tokens of `text`, without start and end; HTML entities are resolved, as in OpenAI's code."""
        text = html.unescape(html.unescape(text))
        return self._tokenizer.encode(unicodedata.normalize("NFC", text).lower(), add_special_tokens=False).ids

    def decode(self, ids: Sequence[int]) -> str:
        """The words of `ids` with single spaces; start and end write nothing, nor does padding after the end."""
        ids = list(ids)
        if self.eos_id in ids:
            ids = ids[: ids.index(self.eos_id)]
        return self._tokenizer.decode(ids).replace(WORD_END, " ").strip()


class CanEncode(Protocol):
    """What `token_rows` needs: `ClipTokenizer` has it, and `WordTokenizer`."""

    @property
    def bos_id(self) -> int: ...
    @property
    def eos_id(self) -> int: ...
    @property
    def pad_id(self) -> int: ...
    def encode(self, text: str) -> list[int]: ...


def token_rows(
    tokenizer: CanEncode, texts: Sequence[str], length: int = 77
) -> tuple[Int[np.ndarray, "N T"], Int[np.ndarray, " N"]]:
    """Rows of start, text, end and padding, and the indices of the end tokens.

    A text that is too long is cut; its end token stays.
    """
    rows = np.full((len(texts), length), tokenizer.pad_id, np.int32)
    ends = np.zeros(len(texts), np.int32)
    for index, text in enumerate(texts):
        ids = [tokenizer.bos_id, *tokenizer.encode(text)[: length - 2], tokenizer.eos_id]
        rows[index, : len(ids)] = ids
        ends[index] = len(ids) - 1
    return rows, ends


def _merges(file: Path) -> list[tuple[str, str]]:
    try:
        with open_input(file) as zipped:
            content = gzip.GzipFile(fileobj=zipped).read(LARGEST)
    except (OSError, EOFError, ValueError, zlib.error) as error:
        problem = f"cannot be read ({reason(error)})"
        raise UserError(f"{file}: {problem}; expected {PUBLISHED}") from error
    lines = decode_text(content, file).split("\n")[1 : MERGES + 1]
    pairs = [tuple(line.split()) for line in lines]
    merges = [(pair[0], pair[1]) for pair in pairs if len(pair) == 2]
    if len(merges) != MERGES or len(pairs) != MERGES:
        raise UserError(f"{file}: has {len(merges)} merges, expected {MERGES}; is it bpe_simple_vocab_16e6.txt.gz?")
    return merges
