"""Characters of sampled tokens, and scores of one tokenizer's tokens on another's: against brute force over bytes."""

import numpy as np
import pytest

from common.clinical.alignment import text_and_spans, transfer
from common.data.tokenizers import load_tokenizer

TEXTS = [
    "No acute cardiopulmonary process.",
    "Effusion  à gauche, 2.5 cm.\n\nÉpanchement",
    "右肺下叶 肺炎 🫁🫀 ok",
    "",
    "a\u0301e",
]


def cut(data: bytes, random: np.random.Generator) -> list[bytes]:
    cuts = sorted(random.integers(0, len(data) + 1, random.integers(0, len(data) + 2)))
    return [data[start:end] for start, end in zip([0, *cuts], [*cuts, len(data)], strict=True)]


def characters_by_bytes(data: bytes) -> list[tuple[int, int]]:
    """The bytes of each character of `data.decode("utf-8", "replace")`, found by decoding longer and longer prefixes.

    A character ends where the text of the prefix is a whole prefix of the text and one longer than before.
    """
    text = data.decode("utf-8", "replace")
    found, start = [], 0
    for end in range(1, len(data) + 1):
        count = len(found) + 1
        rest = data[end:].decode("utf-8", "replace")
        if data[:end].decode("utf-8", "replace") == text[:count] and rest == text[count:]:
            found.append((start, end))
            start = end
    return found


@pytest.mark.parametrize("seed", range(30))
def test_spans_hold_the_characters_of_a_tokens_bytes(seed):
    random = np.random.default_rng(seed)
    data = TEXTS[seed % len(TEXTS)].encode()
    if seed % 3 == 0:  # damage it
        data = bytes(byte for byte in data if random.random() > 0.1)
    written = cut(data, random)
    text, spans = text_and_spans(written)
    assert text == data.decode("utf-8", "replace")
    characters = characters_by_bytes(data)
    assert len(characters) == len(text)
    start = 0
    for piece, (first, last) in zip(written, spans, strict=True):
        end = start + len(piece)
        expected = [index for index, (low, high) in enumerate(characters) if low < end and start < high]
        assert list(range(first, last)) == (expected if piece else [])
        start = end


def test_a_character_of_several_tokens_belongs_to_each():
    text, spans = text_and_spans([b"a\xf0\x9f", b"\xab\x81", b"", b"b\xff", b"\xfe"])
    assert text == "a\N{LUNGS}b\ufffd\ufffd"
    assert spans.tolist() == [[0, 2], [1, 2], [2, 2], [2, 4], [4, 5]]


@pytest.mark.parametrize("seed", range(10))
def test_transfer_is_the_largest_overlapping_score(seed):
    random = np.random.default_rng(seed)
    length = 30

    def spans(count):
        return np.sort(random.integers(0, length + 1, (count, 2)), axis=1)

    source, target, scores = spans(8), spans(12), random.random(8)
    expected = [
        max([score for (a, b), score in zip(source, scores, strict=True) if max(a, start) < min(b, end)], default=0.0)
        for start, end in target
    ]
    np.testing.assert_array_equal(transfer(scores, source, target, length), expected)


def test_non_canonical_tokens_of_a_real_tokenizer(real_data):
    tokenizer = load_tokenizer(real_data / "tokenizers" / "qwen2")
    text = "Small  pleural effusion, 2.5 cm; épanchement 🫁."
    letters = [tokenizer.encode(character)[0] for character in "Small"]  # a spelling that encode never gives
    tokens = [*letters, *tokenizer.encode(text.removeprefix("Small"))]
    assert tokens != tokenizer.encode(text)
    read, spans = text_and_spans(tokenizer.token_bytes(tokens))
    assert read == text
    assert [read[start:end] for start, end in spans[:5]] == list("Small")
