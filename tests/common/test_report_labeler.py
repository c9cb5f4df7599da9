"""Labelers are one protocol: what scores make of it, and that a text is labelled once however often it occurs."""

from collections.abc import Sequence

import numpy as np
import pytest

from common.clinical.labeler import load_labeler
from common.clinical.report_labeler import Labelled, PhantomRules, ReportLabeler, classes_of_groups, label_lists
from common.clinical.scores import difference, leading_scores, measure_systems, score_systems
from common.data.readers import ImageStudy
from common.data.summary import Cut
from common.errors import UserError
from common.metrics.clinical import FINDINGS, POSITIVE, evaluate_labels
from common.phantoms.labels import label_report

REPORTS = ["There is a large left pleural effusion.", "The heart is enlarged.", "The lungs are clear."]


class Noting:
    """The rules, which note what they are asked."""

    labels = FINDINGS

    def __init__(self) -> None:
        self.asked: list[tuple[list[str], list[object]]] = []

    def label(self, texts: Sequence[str], ids: Sequence[object] | None = None) -> Labelled:
        self.asked.append((list(texts), list(ids or [])))
        return PhantomRules().label(texts, ids)._replace(cut=Cut(2, 30), unknown=1)

    def record(self) -> dict[str, str]:
        return {"name": "noting"}


def test_each_different_text_is_labelled_once_under_the_id_that_it_has_first() -> None:
    labeler, lists = Noting(), (REPORTS, [REPORTS[1], "No edema.", REPORTS[1]])
    found, labelled = label_lists(labeler, lists, ["a", "b", "c"])
    assert labeler.asked == [([*REPORTS, "No edema."], ["a", "b", "c", "b"])]
    for texts, classes in zip(lists, found, strict=True):
        np.testing.assert_array_equal(classes, [label_report(text) for text in texts])
    assert [*labelled.notes()] == ["labeler", "unknown_to_labeler"]
    assert "2 different texts were longer than the labeler's 30 tokens" in labelled.notes()["labeler"]


def test_groups_are_labelled_together() -> None:
    labeler, groups = Noting(), [REPORTS[:2], [], REPORTS[1:]]
    for texts, classes in zip(groups, classes_of_groups(labeler, groups, ["a", "b", "c"]), strict=True):
        np.testing.assert_array_equal(classes, PhantomRules().label(texts).classes)
    assert labeler.asked == [([*REPORTS[:2], *REPORTS[1:]], ["a", "a", "c", "c"])]


def test_a_labeler_of_other_labels_is_refused() -> None:
    labeler = Noting()
    labeler.labels = ("Effusion", "Nodule")
    with pytest.raises(UserError, match="clinical scores need CheXbert's 14"):
        label_lists(labeler, [REPORTS])
    assert labeler.asked == []


@pytest.mark.parametrize("labeler", [PhantomRules(), load_labeler("phantom")], ids=["rules", "model"])
def test_systems_are_scored_by_what_the_labeler_finds(labeler: ReportLabeler) -> None:
    studies = [ImageStudy(str(number), (), text) for number, text in enumerate(REPORTS)]
    outputs = {"right": REPORTS, "turned": [*REPORTS[1:], REPORTS[0]]}
    systems = score_systems(outputs, studies, labeler)
    assert leading_scores(systems["right"])[0] == "promptmrg/F1"
    assert systems["right"]["promptmrg/F1"]["value"] == 1
    assert systems["turned"]["promptmrg/F1"]["value"] == 0
    assert not any(name.startswith("findings/") for name in systems["right"])
    predicted, expected = (labeler.label(texts).classes for texts in (outputs["turned"], REPORTS))
    for name, score in evaluate_labels(predicted, expected).items():
        assert systems["turned"][name] == score


def test_findings_that_are_known_are_compared_with_what_reports_state_or_suspect() -> None:
    known = [("Pleural Effusion",), ("Cardiomegaly", "Edema"), ("No Finding",)]
    studies = [ImageStudy(text, (), text, labels=own) for text, own in zip(REPORTS, known, strict=True)]
    texts = [REPORTS[0], "The heart is enlarged. Possible edema.", "The lungs are clear."]
    (scores,) = score_systems({"own": texts}, studies, PhantomRules()).values()
    assert leading_scores(scores) == ("findings/F1",)
    assert scores["findings/F1"]["value"] == 1
    assert scores["promptmrg/F1"]["value"] == 1  # the reference states no edema, and what is suspected does not count
    other = [ImageStudy("0", (), REPORTS[0], labels=("Opacity/lung",)), *studies[1:]]  # of another vocabulary
    (scores,) = score_systems({"own": texts}, other, PhantomRules()).values()
    assert "findings/F1" not in scores


def test_without_a_labeler_there_are_text_metrics_alone() -> None:
    studies = [ImageStudy(str(number), (), text, labels=("Edema",)) for number, text in enumerate(REPORTS)]
    systems, notes = measure_systems({"own": REPORTS}, studies, None)
    assert notes == []
    names = {name.partition("/")[0] for measure in systems["own"].measures for name in measure.names}
    assert names == {"coco", "nltk"}


def test_all_systems_are_labelled_in_one_call_and_differences_are_those_of_their_scores() -> None:
    studies = [ImageStudy(str(number), (), text) for number, text in enumerate(REPORTS)]
    labeler = Noting()
    outputs = {"own": [REPORTS[0], REPORTS[0], REPORTS[2]], "constant": [REPORTS[2]] * 3}
    systems, notes = measure_systems(outputs, studies, labeler)
    assert [texts for texts, _ in labeler.asked] == [REPORTS]
    assert len(notes) == 2
    above = difference(systems["own"], systems["constant"])
    values = {name: score["value"] for name, score in score_systems(outputs, studies, labeler)["own"].items()}
    less = {name: score["value"] for name, score in score_systems(outputs, studies, labeler)["constant"].items()}
    for name, score in above.items():
        assert score["value"] == pytest.approx(values[name] - less[name])
        assert score["low"] <= score["value"] <= score["high"]
    assert above["finding/Pleural Effusion"]["value"] == pytest.approx(2 / 3)


def test_a_record_tells_labelers_apart() -> None:
    model = load_labeler("phantom").record()
    assert model["name"] == "phantom"
    assert [*model] == ["name", "weights", "sizes", "tokenizer"]
    assert PhantomRules().record() == {"name": "rules for phantom reports"}
    assert POSITIVE in PhantomRules().label(REPORTS).classes
