"""A signal to one of two hosts that write rows ends both, with the rows written that both have found."""

import json
import signal

import pytest

from tests.hosts import on_hosts

ROWS, SHARE = 80, 16  # rows of all hosts, and those of each between two exchanges


@pytest.mark.parametrize(("host", "row", "number", "code"), [(1, 21, signal.SIGTERM, 75), (0, 40, signal.SIGINT, 130)])
def test_rows_that_were_found_are_written(host, row, number, code, tmp_path):
    words = [str(ROWS), str(host), str(row), str(int(number))]
    commands = [["rows", str(tmp_path / name), *words] for name in ("out.jsonl", "never.jsonl")]
    codes, said = on_hosts("tests.stopped_rows", commands, devices=1)
    assert codes == [code, code], said
    rows = [json.loads(line)["id"] for line in (tmp_path / "out.jsonl").read_text().splitlines()]
    assert rows == list(range(len(rows)))
    # The row at hand is the last that its host finds; the next one is the other's, which hears a little later.
    before = row - row % (2 * SHARE)
    assert before < len(rows) <= row + 2
    assert not (tmp_path / "never.jsonl").exists()
