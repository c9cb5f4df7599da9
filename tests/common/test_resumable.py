"""Outputs that are continued: only ours, only with what began them, by one process at a time."""

import pytest

from common.errors import UserError
from common.io.outputs import check_output, check_own_object
from common.io.resumable import claim_output, row_writer, rows_done
from tests.lock_holder import held_elsewhere

OURS = b'{"id": "a", "text": "t"}\n'


@pytest.mark.parametrize(
    "content",
    [
        b"shopping list",
        b"first line\nsecond line without end",
        b'{"id": "z", "text": "another\'s"',
        b'{"key": "a", "text": "t"}',
        b'{"id": "z", "text": "t"}\n{"id": "y"',
        b"\n\nnotes",
    ],
)
def test_a_file_that_is_not_ours_is_refused_and_keeps_every_byte(tmp_path, content) -> None:
    path = tmp_path / "notes.txt"
    path.write_bytes(content)
    with pytest.raises(
        UserError, match=r"notes\.txt: (contains something other than .*, and is left unchanged|its ids are)"
    ):
        rows_done(path, ["a", "b"], {"text": str})
    assert path.read_bytes() == content


@pytest.mark.parametrize(
    ("content", "done", "left"),
    [
        (b"", 0, b""),
        (OURS, 1, OURS),
        (OURS + b'{"id": "b", "te', 1, OURS),
        (OURS + b"{", 1, OURS),
        (b'{"id": "a", "te', 0, b""),
        (b'{"i', 0, b""),
    ],
)
def test_a_torn_row_of_ours_is_cut_off_when_the_next_is_written(tmp_path, content, done, left) -> None:
    path = tmp_path / "rows.jsonl"
    path.write_bytes(content)
    assert rows_done(path, ["a", "b"], {"text": str}) == done
    assert path.read_bytes() == content
    with row_writer(path):
        assert path.read_bytes() == left


def test_rows_are_continued_with_the_settings_that_began_them(tmp_path) -> None:
    path = tmp_path / "rows.jsonl"
    claim_output(path, {"model": "old"})
    claim_output(path, {"model": "m", "seed": 1})  # no row yet: nothing to mix
    path.write_bytes(OURS)
    claim_output(path, {"model": "m", "seed": 1})
    with pytest.raises(UserError, match=r"rows\.jsonl: holds rows .* \(seed was 1 and is now 2\)"):
        claim_output(path, {"model": "m", "seed": 2})
    with pytest.raises(UserError, match=r"chat was None and is now True"):
        claim_output(path, {"model": "m", "seed": 1, "chat": True})
    (tmp_path / "rows.jsonl.config.json").write_text("[]")
    with pytest.raises(UserError, match=r"config\.json: expected a JSON object, found list"):
        claim_output(path, {"model": "m", "seed": 1})


def test_rows_of_which_nothing_is_known_are_not_continued(tmp_path) -> None:
    path = tmp_path / "rows.jsonl"
    path.write_bytes(OURS)
    with pytest.raises(
        UserError, match=r"holds rows, but rows\.jsonl\.config\.json, the record of how they were made, is missing"
    ):
        claim_output(path, {"model": "m"})
    (tmp_path / "rows.jsonl.config.json").write_text('{"run_dir": "/runs/a", "inputs": "12345678"}')
    with pytest.raises(UserError, match=r"written by an earlier version, which did not record the content"):
        claim_output(path, {"model": "m"})
    assert path.read_bytes() == OURS


def test_rows_are_continued_with_the_inputs_that_began_them(tmp_path) -> None:
    path = tmp_path / "rows.jsonl"
    claim_output(path, {"model": "m"}, ["first", "second"])
    beside = tmp_path / "rows.jsonl.config.json"
    assert "first" not in beside.read_text()  # digests: what rows are made from is a patient's
    path.write_bytes(OURS)
    with pytest.raises(UserError, match=r"made from other input, which differs from row 2 on; choose another output"):
        claim_output(path, {"model": "m"}, ["first", "changed"])
    claim_output(path, {"model": "m"}, ["first", "second", "third"])  # more rows may come
    with pytest.raises(UserError, match="row 3"):
        claim_output(path, {"model": "m"}, ["first", "second", "changed"])


def test_one_process_at_a_time_writes_a_file(tmp_path) -> None:
    path = tmp_path / "rows.jsonl"
    with held_elsewhere(path), pytest.raises(UserError, match=r"rows\.jsonl: is being written by process"):
        with row_writer(path):
            pass
    assert not path.exists()
    with row_writer(path) as write:
        write({"id": 1})
    with row_writer(path) as write:
        write({"id": 2})
    assert path.read_text() == '{"id": 1}\n{"id": 2}\n'
    assert list(tmp_path.iterdir()) == [path]


def test_a_value_that_is_not_finite_is_no_row(tmp_path) -> None:
    with row_writer(tmp_path / "rows.jsonl") as write, pytest.raises(UserError, match="not finite"):
        write({"id": 1, "score": float("nan")})


def test_an_output_takes_no_input_s_place(tmp_path) -> None:
    path, other = tmp_path / "rows.jsonl", tmp_path / "linked.jsonl"
    path.write_bytes(OURS)
    other.symlink_to(path)
    check_output(None, path)
    check_output(tmp_path / "new.jsonl", path)
    for output, said in ((path, "is also an input"), (other, "is also an input"), (tmp_path, "is a directory")):
        with pytest.raises(UserError, match=said):
            check_output(output, path)


@pytest.mark.parametrize("content", ["my notes", "[1]", '{"ids": [1]}', "\x00"])
def test_a_file_that_is_written_whole_takes_no_foreign_one_s_place(tmp_path, content) -> None:
    path = tmp_path / "chosen.json"
    check_own_object(None, ["ids"])
    check_own_object(path, ["ids"])
    path.write_text('{"ids": [], "statistics": {}}')
    check_own_object(path, ["ids", "statistics"])
    path.write_text(content)
    with pytest.raises(UserError, match=r"chosen\.json: contains something other .*, and is left unchanged"):
        check_own_object(path, ["ids", "statistics"])
    assert path.read_text() == content


def test_what_ends_before_its_first_row_leaves_no_file_and_later_ones_keep_their_rows(tmp_path) -> None:
    path = tmp_path / "out.jsonl"

    def end_after(rows: int) -> None:
        claim_output(path, {"a": 1}, ["x"])
        with row_writer(path) as write:
            for _ in range(rows):
                write({"id": "a", "text": "t"})
            raise UserError("ended")

    with pytest.raises(UserError, match="ended"):
        end_after(0)
    assert list(tmp_path.iterdir()) == []
    for rows in (1, 0):
        with pytest.raises(UserError, match="ended"):
            end_after(rows)
        assert path.read_bytes() == OURS
        assert path.with_name("out.jsonl.config.json").exists()
