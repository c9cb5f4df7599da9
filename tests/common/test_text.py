"""The one way to read text, JSON and CSV: encodings, marks, line ends, depth, size, pipes."""

import contextlib
import gzip
import io
import json
import os
import threading

import pytest

from common.errors import UserError
from common.io import inputs
from common.io.inputs import read_bytes, read_standard_input
from common.io.text import LONGEST_LINE, decode_text, parse_json, read_csv, read_json, read_json_object, read_text

MARK = b"\xef\xbb\xbf"


@pytest.mark.parametrize("mark", [b"", MARK, MARK * 2])
@pytest.mark.parametrize("end", [b"\n", b"\r\n", b"\r"])
def test_text_has_no_mark_and_one_kind_of_line_end(tmp_path, mark, end):
    path = tmp_path / "text.txt"
    path.write_bytes(mark + "FINDINGS: 视盘\u00a0清".encode() + end + b"IMPRESSION: none" + end)
    assert read_text(path) == "FINDINGS: 视盘\u00a0清\nIMPRESSION: none\n"


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("first\nsecond é".encode("latin-1"), "x, line 2: not UTF-8 at byte 8; save the file as UTF-8"),
        (MARK + b"\xff", "x, line 1: not UTF-8 at byte 4"),
        ("text".encode("utf-16"), "x: is UTF-16; save the file as UTF-8"),
        (
            "a\ntext".encode("utf-16-le"),
            "x, line 1: contains a NUL character, as UTF-16 does; remove it, or save the file as UTF-8",
        ),
        ("text".encode("utf-16-be"), "x, line 1: contains a NUL character"),
        (b"a\r\nb\0", "x, line 2: contains a NUL character"),
    ],
)
def test_other_encodings_are_named_with_their_line(content, message):
    with pytest.raises(UserError) as refusal:
        decode_text(content, "x")
    assert message in str(refusal.value)


def test_what_is_said_to_do_about_an_encoding_helps(tmp_path):
    path = tmp_path / "text.txt"
    for encoding in ("latin-1", "utf-16", "utf-16-le"):
        path.write_text("é\nb", encoding=encoding)
        with pytest.raises(UserError, match="save the file as UTF-8"):
            read_text(path)
        path.write_text(path.read_text(encoding=encoding), encoding="utf-8")
        assert read_text(path) == "é\nb"


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("[" * 100_000, "nested more than 100 deep"),
        ('{"a":' * 100_000, "nested more than 100 deep"),
        ("[" * 101 + "]" * 101, "nested more than 100 deep"),
        ("NaN", "NaN is not a JSON number"),
        ('{"a": [-Infinity]}', "-Infinity is not a JSON number"),
        ("1e999", "the number 1e999 is too large"),
        ("1" * 5000, "the number 1111"),
        ("-" + "1" * 5000, "is too large"),
        ("", "Expecting value"),
        ('{"a": 1} x', "Extra data"),
    ],
)
def test_what_is_not_json_is_one_short_line(content, message):
    with pytest.raises(UserError, match=r"^x: not JSON \(.*; expected JSON$") as refusal:
        parse_json(content, "x")
    assert message in str(refusal.value)
    assert len(str(refusal.value)) < 300


def test_json_of_any_breadth_and_some_depth_is_read():
    deep = json.loads("[" * 100 + "]" * 100)
    assert parse_json(json.dumps(deep), "x") == deep
    wide = {str(index): [[index, 0.5], {"a": None}] for index in range(1000)}
    assert parse_json(MARK + json.dumps(wide).encode(), "x") == wide
    assert parse_json("\ufeff[1]", "x") == [1]


def test_a_json_file_is_named(tmp_path):
    path = tmp_path / "x.json"
    with pytest.raises(UserError, match=r"x\.json: cannot be read \(No such file or directory\); expected a JSON file"):
        read_json(path)
    path.write_text("[1]")
    with pytest.raises(UserError, match=r"x\.json: expected a JSON object, found list"):
        read_json_object(path)
    with pytest.raises(UserError, match=r"cannot be read \(Is a directory\)"):
        read_json(tmp_path)
    with pytest.raises(UserError, match=r"cannot be read \(embedded null byte\)"):
        read_json("a\0b")


def table(path, content: bytes):
    path.write_bytes(gzip.compress(content) if path.suffix == ".gz" else content)
    return path


@pytest.mark.parametrize("name", ["t.csv", "t.csv.gz"])
@pytest.mark.parametrize("mark", [b"", MARK])
@pytest.mark.parametrize("end", [b"\n", b"\r\n", b"\r"])
def test_a_table_has_the_same_rows_however_it_was_saved(tmp_path, name, mark, end):
    content = mark + end.join([b'"id", split,x', b'a ,\xc2\xa0train,"one, ""two""', b'three"', b"", b",,", b"b,test,"])
    rows = list(read_csv(table(tmp_path / name, content + end), ("id", "split", "x")))
    assert [row for _, row in rows] == [
        {"id": "a", "split": "train", "x": 'one, "two"\nthree'},
        {"id": "b", "split": "test", "x": ""},
    ]
    assert [line for line, _ in rows] == [3, 6]


def test_long_fields_are_read_and_endless_ones_refused(tmp_path):
    long = b"x" * 200_000
    ((_, row),) = read_csv(table(tmp_path / "long.csv", b"id,text\n1," + long + b"\n"), ("text",))
    assert len(row["text"]) == 200_000
    bomb = table(tmp_path / "bomb.csv.gz", b"id,text\n1," + b"x" * (LONGEST_LINE + 10))
    with pytest.raises(UserError, match=r"bomb\.csv\.gz, line 2: longer than 16,777,216 characters"):
        list(read_csv(bomb, ("text",)))
    lines = table(tmp_path / "lines.csv.gz", b'id,text\n1,"' + b"line\n" * (LONGEST_LINE // 5 + 10) + b'"')
    with pytest.raises(UserError, match=r"lines\.csv\.gz: not CSV \(field larger than field limit"):
        list(read_csv(lines, ("text",)))


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "no column id; expected id"),
        (b"ID\n1\n", "no column id; expected id"),
        (b"id,id\n1,2\n", "column id occurs 2 times"),
        (b"id,b\n1\n", "line 2: too few columns"),
        (b"id,b\n1,2,3\n", "line 2: too many columns"),
        (b'id,b\n1,"2\n3,4\n', "not CSV (unexpected end of data on line 3)"),
        (b"id,b\n1,2\n\xe9,2\n", "not UTF-8, after line"),
        ("id,b\n".encode("utf-16"), "is UTF-16; save the file as UTF-8"),
        ("id,b\n".encode("utf-16-le"), "line 1: contains a NUL character"),
    ],
)
def test_a_damaged_table_is_refused(tmp_path, content, message):
    with pytest.raises(UserError) as refusal:
        list(read_csv(table(tmp_path / "t.csv", content), ("id",)))
    assert message in str(refusal.value)


def test_a_table_that_is_not_there_or_not_whole_is_named(tmp_path):
    with pytest.raises(UserError, match=r"t\.csv: cannot be read \(No such file or directory\); expected a CSV file"):
        list(read_csv(tmp_path / "t.csv", ("id",)))
    with pytest.raises(UserError, match=r"cannot be read \(Is a directory\)"):
        list(read_csv(tmp_path, ("id",)))
    (tmp_path / "t.csv.gz").write_bytes(b"id\n1\n")
    with pytest.raises(UserError, match=r"t\.csv\.gz: not a complete CSV file \(Not a gzipped file"):
        list(read_csv(tmp_path / "t.csv.gz", ("id",)))
    (tmp_path / "t.csv").write_bytes(gzip.compress(b"id\n1\n"))
    assert list(read_csv(tmp_path / "t.csv", ("id",))) == [(2, {"id": "1"})]


def test_sizes_are_bounded(tmp_path):
    path = tmp_path / "file"
    path.write_bytes(b"x" * 11)
    assert len(read_bytes(path, limit=11)) == 11
    with pytest.raises(UserError, match=r"is larger than 10 bytes; expected a vocabulary"):
        read_bytes(path, "a vocabulary", limit=10)
    with pytest.raises(UserError, match=r"/dev/zero: cannot be read \(not a file but a device\)"):
        read_bytes("/dev/zero")


def test_a_small_file_does_not_reserve_the_memory_of_the_largest(tmp_path, monkeypatch):
    asked = []

    class Watched(io.BytesIO):
        def read(self, size=-1):
            asked.append(size)
            return super().read(size)

    monkeypatch.setattr(inputs, "open_input", lambda path: contextlib.nullcontext(Watched(b"[" * 3_000_000)))
    assert len(read_bytes(tmp_path / "rows.json")) == 3_000_000
    assert max(asked) <= 1 << 20
    assert min(asked) > 0


def test_a_pipe_is_read_and_waited_for_only_while_somebody_writes(tmp_path, monkeypatch):
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    writer = threading.Thread(target=pipe.write_bytes, args=[MARK + b"[1]\r\n" * 100_000])
    writer.start()
    assert read_text(pipe) == "[1]\n" * 100_000
    writer.join()
    monkeypatch.setattr(inputs, "PIPE_SECONDS", 0.0)
    with pytest.raises(UserError, match=r"pipe: cannot be read \(a pipe that nothing writes to\)"):
        read_text(pipe)


def test_a_closed_standard_input_is_named(monkeypatch):
    monkeypatch.setattr("sys.stdin", None)
    with pytest.raises(UserError, match="standard input: is closed; expected text"):
        read_standard_input()
