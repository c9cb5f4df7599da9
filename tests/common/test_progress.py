"""What is said of long work: by the clock, never more than there is, and nothing of short work."""

import queue

from common.io import progress


def test_short_work_is_not_counted(capsys):
    assert [*progress.counted("abcd", 4, "reports")] == [*"abcd"]
    assert capsys.readouterr().err == ""


def test_items_that_come_many_at_once_are_counted_together_and_at_the_end(monkeypatch):
    lines = queue.Queue()
    monkeypatch.setattr(progress, "SECONDS", 0.001)
    monkeypatch.setattr(progress, "print", lambda line, **_: lines.put(line), raising=False)
    said = []

    def wait_for(line):
        while not said or said[-1] != line:
            said.append(lines.get(timeout=60))

    def in_bulk():
        for start in range(0, 600, 200):
            if start:
                wait_for(f"reports: {start} of 600")  # while the next ones are made
            yield from range(start, start + 200)

    assert [*progress.counted(in_bulk(), 600, "reports")] == [*range(600)]
    wait_for("reports: 600 of 600")
    assert lines.empty()
    counts = [int(line.split()[1]) for line in said]
    assert counts == sorted(set(counts))
    assert counts[0] > 0
