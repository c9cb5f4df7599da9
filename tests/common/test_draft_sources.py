"""The table of drafts beside a run: read as it was written, and refused in one line where it is not this run's."""

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from common.errors import UserError
from common.generation import draft_sources as draft_sources_module
from common.generation.draft_sources import TABLE_FILE, draft_sources, load_table, save_table, tokenizer_mark
from common.generation.ngrams import build_table

TEXTS = [[4, 5, 6, 7, 1], [4, 5, 9, 7, 1], [4, 5, 6, 7, 1]]


class Letters:
    def __init__(self, shift=0):
        self.shift = shift

    def encode(self, text):
        return [ord(letter) % 50 + self.shift for letter in text]


def test_a_table_comes_back_as_it_was_built(tmp_path):
    save_table(tmp_path, TEXTS, Letters())
    found, built = load_table(tmp_path, Letters(), 50), build_table(TEXTS)
    np.testing.assert_array_equal(found.marks, built.marks)
    np.testing.assert_array_equal(found.tokens, built.tokens)
    assert [file.name for file in tmp_path.iterdir()] == [TABLE_FILE]


def test_a_table_is_the_same_bytes_each_time(tmp_path):
    contents = set()
    for _ in range(16):  # safetensors orders metadata by chance
        save_table(tmp_path, TEXTS, Letters())
        contents.add((tmp_path / TABLE_FILE).read_bytes())
    assert len(contents) == 1


def test_nothing_is_kept_of_texts_that_hold_too_little(tmp_path, capsys):
    save_table(tmp_path, [[3], []], Letters())
    assert not list(tmp_path.iterdir())
    assert load_table(tmp_path, Letters(), 50) is None
    assert "there are no drafts from reports" in capsys.readouterr().err


def test_the_table_of_another_tokenizer_is_refused(tmp_path):
    save_table(tmp_path, TEXTS, Letters(1))
    with pytest.raises(UserError, match="made with another tokenizer than the run's; delete it, or give --draft none"):
        load_table(tmp_path, Letters(), 50)


@pytest.mark.parametrize("damage", ["cut", "changed", "larger ids", "no metadata", "numbers", "shape", "directory"])
def test_a_damaged_table_is_refused(tmp_path, damage):
    save_table(tmp_path, TEXTS, Letters())
    file = tmp_path / TABLE_FILE
    arrays = load_file(file)
    marks = {"tokenizer": tokenizer_mark(Letters()), "content": "0" * 16}
    if damage == "cut":
        file.write_bytes(file.read_bytes()[:-9])
    elif damage == "changed":
        save_file({**arrays, "tokens": arrays["tokens"] + 1}, file, metadata=marks)
    elif damage == "no metadata":
        save_file(arrays, file)
    elif damage == "directory":
        file.unlink()
        file.mkdir()
    elif damage in ("numbers", "shape"):  # with the right digest
        tokens = arrays["tokens"]
        arrays["tokens"] = tokens.astype(np.float32) if damage == "numbers" else tokens[:-1]
        save_file(arrays, file, metadata=marks | {"content": draft_sources_module._content(arrays)})
    with pytest.raises(UserError, match=r"is damaged|another tokenizer"):
        load_table(tmp_path, Letters(), 6 if damage == "larger ids" else 50)


def test_sources_of_a_cpu():
    assert draft_sources("auto") == ()
    assert draft_sources("all") == ("prompt", "reports")
    assert draft_sources("reports") == ("reports",)
