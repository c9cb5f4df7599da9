"""CLIP's published BPE: golden encodings, transformers' tokenizer, and a brute-force BPE."""

import gzip
import itertools
import re

import numpy as np
import pytest

from common.data.clip_tokenizer import ClipTokenizer, token_rows
from common.data.pieces import byte_of_character
from common.errors import UserError

TEXTS = [
    "a photo of a cat",
    "The heart is NORMAL in size; no pneumothorax (or effusion).",
    "3.5 cm nodule, right-lower lobe; it's stable & they're unchanged!!!",
    "  Small\tbilateral\n\npleural   effusions  ",
    "café, naïve façade 右肺 🫁",
    "XXXX-year-old with c/o SOB x 2days, don't",
    "",
]


@pytest.fixture(scope="module")
def file(real_data):
    found = real_data / "tokenizers" / "clip" / "bpe_simple_vocab_16e6.txt.gz"
    if not found.is_file():
        pytest.skip("no tokenizers/clip in the folder of real data")
    return found


@pytest.fixture(scope="module")
def tokenizer(file):
    return ClipTokenizer(file)


@pytest.fixture(scope="module")
def merges(file):
    return gzip.decompress(file.read_bytes()).decode().split("\n")[1:48_895]


@pytest.fixture(scope="module")
def vocabulary(merges):
    characters = list(byte_of_character())
    words = [
        *characters,
        *(f"{character}</w>" for character in characters),
        *(line.replace(" ", "") for line in merges),
    ]
    return {word: id_ for id_, word in enumerate([*words, "<|startoftext|>", "<|endoftext|>"])}


@pytest.mark.parametrize(
    ("text", "ids"),
    [
        ("a photo of a cat", [320, 1125, 539, 320, 2368]),
        ("a photo of a dog", [320, 1125, 539, 320, 1929]),
        ("a diagram", [320, 22697]),
        ("hello world!", [3306, 1002, 256]),
    ],
)
def test_published_encodings(tokenizer, text, ids):
    assert tokenizer.encode(text) == ids
    np.testing.assert_array_equal(token_rows(tokenizer, [text], 9)[0][0], [49406, *ids, 49407, *[0] * (7 - len(ids))])
    assert tokenizer.decode([49406, *ids, 49407, 0, 0]) == text.replace("!", " !")


def test_agrees_with_transformers(tokenizer, vocabulary, merges):
    transformers = pytest.importorskip("transformers")
    pairs = [tuple(line.split()) for line in merges]
    peer = transformers.CLIPTokenizer(vocab=vocabulary, merges=pairs)
    for text in TEXTS:
        assert tokenizer.encode(text) == peer(text, add_special_tokens=False)["input_ids"], text
        assert [49406, *tokenizer.encode(text), 49407] == peer(text)["input_ids"]


def test_agrees_with_brute_force_merging(tokenizer, vocabulary, merges):
    ranks = {tuple(line.split()): rank for rank, line in enumerate(merges)}
    character_of_byte = {byte: character for character, byte in byte_of_character().items()}

    def pieces(word):
        parts = [character_of_byte[byte] for byte in word.encode()]
        parts[-1] += "</w>"
        while len(parts) > 1:
            rank, index = min((ranks.get(pair, len(ranks)), i) for i, pair in enumerate(itertools.pairwise(parts)))
            if rank == len(ranks):
                break
            parts[index : index + 2] = ["".join(parts[index : index + 2])]
        return parts

    for text in TEXTS:
        words = re.findall(r"'s|'t|'re|'ve|'m|'ll|'d|[^\W\d_]+|\d|(?:[^\w\s]|_)+", text.lower())
        assert tokenizer.encode(text) == [vocabulary[piece] for word in words for piece in pieces(word)], text


def test_long_texts_keep_their_end_and_short_ones_are_padded(tokenizer):
    ids, ends = token_rows(tokenizer, ["heart " * 100, "", "heart"], length=8)
    assert ids.shape == (3, 8)
    assert ids.dtype == np.int32
    assert (ids.argmax(-1) == [7, 1, 2]).all()
    assert (ends == [7, 1, 2]).all()
    assert (ids[:, 0] == 49406).all()
    assert ids[0, 7] == 49407
    assert (ids[1, 2:] == 0).all()


def test_decoding_gives_the_words_back(tokenizer):
    for text in TEXTS:
        words = tokenizer.decode(tokenizer.encode(text))
        assert words.replace(" ", "") == "".join(text.lower().split())
    assert tokenizer.encode("&lt;b&gt; &amp;amp;") == tokenizer.encode("<b> &")
    assert tokenizer.decode([49406, *tokenizer.encode("右")[:1]]) == "�"  # a part of a character


def test_another_file_is_refused(tmp_path):
    foreign = tmp_path / "bpe.txt.gz"
    foreign.write_bytes(gzip.compress(b"#version\na b\n"))
    with pytest.raises(UserError, match=r"bpe\.txt\.gz: has 1 merges, expected 48894"):
        ClipTokenizer(foreign)
    foreign.write_bytes(b"plain")
    with pytest.raises(UserError, match=r"cannot be read"):
        ClipTokenizer(foreign)
    with pytest.raises(UserError, match=r"cannot be read"):
        ClipTokenizer(tmp_path / "absent.gz")
