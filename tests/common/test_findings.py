"""Findings beside those of the reference: by meaning, not by words; signs and words, not only colours."""

from collections.abc import Sequence

import numpy as np
import pytest

from common.clinical.report_labeler import PhantomRules
from common.clinical.scores import measure_systems
from common.data.readers import ImageStudy
from common.metrics.clinical import FINDINGS
from common.report.findings import Marks, Tally, mark_findings, mark_labels, tally
from common.report.page import Example, Page, render
from tests.common.test_report_page import HOSTILE, Reader

REFERENCE = "Mild cardiomegaly. No pleural effusion. Possible pneumonia in the left lower lobe."
OTHER_WORDS = "There may be pneumonia of the lower lobe on the left. The heart is enlarged. No effusion."


def as_lists(marks: Marks) -> list[set[str]]:
    return [set(kind) for kind in marks]


def read(*outputs: str) -> list[Marks]:
    """The marks of reports for one reference, by the labels that an evaluation has found."""
    studies = [ImageStudy(str(number), (), REFERENCE) for number in range(len(outputs))]
    systems, _ = measure_systems({"own": outputs}, studies, PhantomRules())
    assert systems["own"].labels is not None
    return mark_labels(*systems["own"].labels, PhantomRules.labels)


def test_what_is_said_in_other_words_is_right() -> None:
    (marks,) = read(OTHER_WORDS)
    assert {"Cardiomegaly", "possible Pneumonia", "no Pleural Effusion"} <= set(marks.right)
    assert as_lists(marks)[1:] == [set(), set()]


def test_a_denied_finding_is_another_than_the_finding() -> None:
    turned, silent = read(
        "Mild cardiomegaly. Small pleural effusion. Possible pneumonia in the left lower lobe.",
        "Mild cardiomegaly. Possible pneumonia in the left lower lobe.",
    )
    assert as_lists(turned)[1:] == [{"no Pleural Effusion"}, {"Pleural Effusion"}]
    assert as_lists(silent)[1:] == [{"no Pleural Effusion"}, set()]


def test_without_a_labeler_there_is_nothing_to_mark() -> None:
    systems, _ = measure_systems({"own": [REFERENCE]}, [ImageStudy("0", (), REFERENCE)], None)
    assert systems["own"].labels is None
    html = render(Page("t", "v", "c", examples=[Example("0", "", REFERENCE, {"own": OTHER_WORDS})]))
    assert 'class="findings"' not in html
    assert "invented" not in Reader(html).words()


def test_of_a_blank_label_nothing_is_stated() -> None:
    blank, every = np.zeros((1, 14), np.int8), np.array([[1, 2, 3, 0] * 3 + [0, 0]], np.int8)
    (marks,) = mark_labels(blank, every, FINDINGS)
    assert as_lists(marks)[:2] == [set(), set()]
    assert len(marks.invented) == 9
    assert mark_labels(blank, blank, FINDINGS) == [Marks([], [], [])]


@pytest.mark.parametrize("reports", [[], [Marks(["a", "b"], ["c"], [])] * 2])
def test_marks_are_counted(reports: Sequence[Marks]) -> None:
    assert tally(reports) == Tally(len(reports), 2 * len(reports), len(reports), 0)


def test_a_page_shows_each_kind_under_its_report_with_a_sign_and_a_word() -> None:
    marks = mark_findings(["Cardiomegaly", "no Edema"], ["Cardiomegaly", "Edema"])
    examples = [Example("0", "", "One.", {"own": "Two.", "other": "Three."}, findings={"own": marks})]
    words = Reader(render(Page("t", "v", "c", examples=examples, findings=Tally(1200, 7, 8, 9)))).words()
    assert "✓ right Cardiomegaly − missed no Edema + invented Edema" in words
    assert "✓ 7 right − 8 missed + 9 invented findings in 1,200 reports" in words
    both_silent = Example("0", "", "One.", {"own": "Two."}, findings={"own": Marks()})
    assert "<dl" not in render(Page("t", "v", "c", examples=[both_silent]))


def test_no_finding_becomes_markup() -> None:
    marks = mark_findings([HOSTILE], [HOSTILE + "x"])
    html = render(Page("t", "v", "c", examples=[Example("0", "", "One.", {"own": "Two."}, findings={"own": marks})]))
    assert "script" not in Reader(html).tags
    assert "<script>alert(1)</script>" in Reader(html).words()
