"""Rows in and out: order, line numbers in errors, whole files only."""

import os
import resource
import subprocess
import sys

import pytest

from common.config import claim_run_directory
from common.data.tokenizers import WordTokenizer, save_words
from common.errors import UserError
from common.io.jsonl import read_jsonl, write_rows
from common.io.resumable import claim_output
from common.io.safetensors import write_json
from common.models.lora import LoraConfig
from common.report.page import Page, save_run_page

REQUIRED = {"id": str | int, "text": str}


def test_rows_survive_a_round_trip(tmp_path) -> None:
    rows: list[dict[str, object]] = [
        {"id": "a", "text": "视盘 \u2028 “0.6”", "more": [1, None]},
        {"id": 2, "text": "line\nbreak"},
    ]
    write_rows(tmp_path / "rows.jsonl", rows)
    assert read_jsonl(tmp_path / "rows.jsonl", REQUIRED) == rows
    assert "视盘" in (tmp_path / "rows.jsonl").read_text(encoding="utf-8")


def test_blank_lines_byte_order_mark_and_carriage_returns_are_accepted(tmp_path) -> None:
    path = tmp_path / "rows.jsonl"
    path.write_bytes(b'\xef\xbb\xbf\r\n{"id": 1, "text": ""}\r\n  \n{"id": "1", "text": "b"}')
    assert [row["id"] for row in read_jsonl(path, REQUIRED)] == [1, "1"]


@pytest.mark.parametrize(
    ("line", "message"),
    [
        (b'{"id": "b", "text": "t"', "line 3: not JSON"),
        (b"[" * 100_000, "line 3: not JSON"),
        (b'["b", "t"]', "line 3: expected a JSON object, found list"),
        (b'{"id": "b"}', "line 3: key 'text' is missing; expected 'id', 'text'"),
        (b'{"id": "b", "text": null}', "line 3: 'text' must be str, found NoneType"),
        (b'{"id": true, "text": "t"}', r"line 3: 'id' must be str \| int, found bool"),
        (b'{"id": "a", "text": "t"}', "line 3: id 'a' duplicates line 1"),
        (b'{"id": "b", "text": "caf\xe9"}', "line 3: not UTF-8 at byte 25"),
        (b'{"id": "b", "text": "\\ud800"}', "line 3: 'text' contains an unpaired surrogate"),
    ],
)
def test_a_bad_line_is_named_by_file_and_number(tmp_path, line, message) -> None:
    path = tmp_path / "rows.jsonl"
    path.write_bytes(b'{"id": "a", "text": "t"}\n\n' + line + b"\n")
    with pytest.raises(UserError, match=rf"rows\.jsonl, {message}"):
        read_jsonl(path, REQUIRED)


def test_files_without_rows_or_that_cannot_be_read_are_refused(tmp_path) -> None:
    (tmp_path / "empty.jsonl").write_text("\n \n")
    with pytest.raises(UserError, match=r"empty\.jsonl: no rows"):
        read_jsonl(tmp_path / "empty.jsonl", REQUIRED)
    with pytest.raises(UserError, match=r"missing\.jsonl: cannot be read \(No such file"):
        read_jsonl(tmp_path / "missing.jsonl", REQUIRED)
    with pytest.raises(UserError, match=r"cannot be read \(Is a directory"):
        read_jsonl(tmp_path, REQUIRED)


def test_a_failed_write_leaves_the_old_file_and_nothing_else(tmp_path) -> None:
    path = tmp_path / "rows.jsonl"
    write_rows(path, [{"id": "old"}])

    def rows():
        yield {"id": "new"}
        raise RuntimeError("stopped half-way")

    with pytest.raises(RuntimeError):
        write_rows(path, rows())
    assert [row["id"] for row in read_jsonl(path, {"id": str})] == ["old"]
    assert list(tmp_path.iterdir()) == [path]


def test_what_a_killed_process_left_is_removed_by_the_next_that_writes(tmp_path) -> None:
    """But not what a living one is at, or what only looks alike."""
    ended = subprocess.Popen([sys.executable, "-c", ""])
    ended.wait()
    names = (f"rows.jsonl.{ended.pid}.partial", f"rows.jsonl.{os.getppid()}.partial", "rows.jsonl.own.partial")
    for name in names:
        (tmp_path / f".{name}").touch()
    write_rows(tmp_path / "rows.jsonl", [{"id": 1}])
    assert {path.name for path in tmp_path.iterdir()} == {"rows.jsonl", *(f".{name}" for name in names[1:])}


def test_a_full_disk_leaves_no_part_of_a_file(tmp_path) -> None:
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    for write in (
        lambda path: write_rows(path, [{"id": 1}]),
        lambda path: claim_output(path, {"model": "m"}),
        lambda path: write_json(path, {"a": 1}),
        lambda path: claim_run_directory(path, LoraConfig()),
        lambda path: save_run_page(path, Page(title="t", verdict="v", command="c")),
        lambda path: save_words(path, WordTokenizer(("a",))),
    ):
        try:
            resource.setrlimit(resource.RLIMIT_FSIZE, (0, limits[1]))
            with pytest.raises(UserError, match=r"File too large"):
                write(tmp_path / "out")
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, limits)
        assert not [path for path in tmp_path.rglob("*") if path.is_file()]


def test_a_folder_that_is_not_there_is_named(tmp_path) -> None:
    with pytest.raises(UserError, match=r"nowhere/rows\.jsonl: cannot be written"):
        write_rows(tmp_path / "nowhere" / "rows.jsonl", [])
