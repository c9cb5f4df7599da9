"""Tables of gold labels and word lists of labelers, however they were saved."""

import pytest

from common.clinical.labeler import load_tokenizer
from common.clinical.labelled_reports import openi_corpus
from common.data.records import Quarantine
from common.errors import UserError
from tests.common.test_openi import report, write_archive

MARK = b"\xef\xbb\xbf"
GOLD = b"filename,Edema,Fracture\n" + b"".join(b"CXR%d,%d,0\n" % (number, number % 2) for number in range(1, 7))


@pytest.fixture
def files(tmp_path):
    archive = write_archive(tmp_path / "reports.tgz", {f"{number}.xml": report(number) for number in range(1, 7)})
    (tmp_path / "gold.csv").write_bytes(GOLD)
    (tmp_path / "ids.txt").write_bytes(MARK + b"CXR1\r\nCXR2\r\nCXR70\r\n")
    return archive, tmp_path / "gold.csv", tmp_path / "ids.txt"


@pytest.mark.parametrize("end", [b"\n", b"\r\n", b"\r", b" \n\n"])
@pytest.mark.parametrize("mark", [b"", MARK])
def test_gold_labels_are_the_same_however_they_were_saved(files, mark, end):
    files[1].write_bytes(mark + GOLD.replace(b"\n", end))
    quarantine = Quarantine()
    corpus = openi_corpus(*files, validation=1, seed=0, quarantine=quarantine)
    assert corpus.labels == ("Edema", "Fracture")
    assert {one.id: one.labels for one in corpus.tests["test"]} == {"CXR1": (1, 0), "CXR2": (0, 0)}
    assert len(corpus.train) == 3
    assert quarantine.entries == [("CXR70", "test id that no report has")]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "expected a first line 'filename,LABEL,...', found ''"),
        (GOLD.replace(b"filename", b"f" * 100_000), r"found 'f+ ... \(99,"),
        (GOLD + b"CXR1,0,0\n", "line 8: expected a new id and 2 values that are 0 or 1"),
        (GOLD + b"CXR8,0\n", "line 8: too few columns"),
        (GOLD + b"CXR8,0,2\n", "line 8: expected a new id"),
        (GOLD + b"\xff", "not UTF-8"),
        (GOLD + b"CXR8,0,0\n", "1 reports, such as CXR8, are not in"),
    ],
)
def test_other_gold_tables_are_refused(files, content, message):
    files[1].write_bytes(content)
    with pytest.raises(UserError, match=message) as refusal:
        openi_corpus(*files, validation=1, seed=0, quarantine=Quarantine())
    assert len(str(refusal.value)) < 500


def test_a_word_list_has_the_same_words_however_it_was_saved(tmp_path):
    words = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "lung", "##s"]
    for mark in (b"", MARK):
        for end in ("\n", "\r\n", "\r"):
            (tmp_path / "vocab.txt").write_bytes(mark + (end.join(words) + end).encode())
            assert load_tokenizer(tmp_path).get_vocab() == {word: index for index, word in enumerate(words)}
    for encoding in ("utf-16", "utf-16-le"):
        (tmp_path / "vocab.txt").write_text("\n".join(words), encoding=encoding)
        with pytest.raises(UserError, match=r"vocab\.txt.*save the file as UTF-8"):
            load_tokenizer(tmp_path)
