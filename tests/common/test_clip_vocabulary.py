"""CLIP's token file: a whole one is read, and others are refused in one line."""

import gzip
import itertools

import pytest

from common.data.clip_tokenizer import MERGES, ClipTokenizer
from common.data.pieces import byte_of_character
from common.errors import UserError

LINES = ["version", *map(" ".join, itertools.islice(itertools.product(byte_of_character(), repeat=2), MERGES))]


@pytest.mark.parametrize(
    ("lines", "message"),
    [
        (LINES[:-1], "has 48893 merges, expected 48894; is it bpe_simple_vocab_16e6.txt.gz"),
        ([*LINES[:-1], "zzzz z"], "merges zzzz, which is not a token; expected CLIP's bpe_simple_vocab_16e6.txt.gz"),
        ([*LINES[:-1], LINES[-2]], "gives 49407 different tokens, expected 49408"),
    ],
)
def test_a_file_of_other_merges_is_one_line(tmp_path, lines, message):
    file = tmp_path / "bpe.txt.gz"
    file.write_bytes(gzip.compress("\n".join(lines).encode()))
    with pytest.raises(UserError, match=message):
        ClipTokenizer(file)


def test_a_whole_file_is_read(tmp_path):
    file = tmp_path / "bpe.txt.gz"
    file.write_bytes(gzip.compress("\n".join(LINES).encode()))
    tokenizer = ClipTokenizer(file)
    assert tokenizer.decode(tokenizer.encode("No Effusion")) == "no effusion"
