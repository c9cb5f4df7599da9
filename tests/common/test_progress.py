"""What is said of long work: now and then, and never more than there is."""

from common.io import progress


def test_items_pass_and_are_counted_now_and_then(monkeypatch, capsys):
    clock = iter([0.0, 3.0, 6.0, 7.0, 99.0])
    monkeypatch.setattr(progress.time, "monotonic", lambda: next(clock))
    assert [*progress.counted("abcd", 4, "reports")] == [*"abcd"]
    assert capsys.readouterr().err == "reports: 2 of 4\n"
