"""Findings of standardized reports beside those of the reference: term, eye and certainty, whatever the words."""

import numpy as np
import pytest

from common.report.findings import Marks
from retsta_jax.config import DataConfig, scored_as
from retsta_jax.corpus.findings import standard_report
from retsta_jax.corpus.fundus import sample_study
from retsta_jax.evaluate import statements
from retsta_jax.finding_marks import pair_marks
from retsta_jax.terminology.check import load_terminology
from retsta_jax.terminology.terms import SHIPPED

TERMS = load_terminology(SHIPPED)


def marks(reference: str, output: str, corpus: str = "fundus", language: str = "en") -> Marks:
    return Marks(*map(tuple, pair_marks(reference, output, language, corpus, TERMS)))  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("reference", "output", "language"),
    [
        ("Right eye: drusen; no retinal detachment. Left eye: suspected macular oedema.",
         "OS possible macular edema. OD drusen, no RD.", "en"),
        ("右眼：硬性渗出；未见视网膜脱离。", "右眼可见硬性渗出,未见网脱", "zh"),
        ("Both eyes: drusen.", "Right eye: drusen. Left eye: drusen.", "en"),
    ],
)  # fmt: skip
@pytest.mark.parametrize("corpus", ["fundus", "jsonl"])
def test_other_words_for_the_same_findings_are_right(reference: str, output: str, language: str, corpus: str) -> None:
    found = marks(reference, output, corpus, language)
    assert len(found.right) > 1
    assert found[1:] == ((), ())


@pytest.mark.parametrize("output", ["Left eye: drusen.", "OS: drusen seen"])
def test_a_swapped_side_is_missed_and_invented(output: str) -> None:
    assert marks("Right eye: drusen.", output) == Marks((), ("Right eye: drusen",), ("Left eye: drusen",))


def test_a_denied_finding_is_missed_and_invented() -> None:
    found = marks("右眼：未见视网膜脱离；硬性渗出。", "右眼：视网膜脱离；硬性渗出。", language="zh")
    assert found == Marks(("右眼：硬性渗出",), ("右眼：未见视网膜脱离",), ("右眼：视网膜脱离",))


def test_of_standard_reports_degree_and_ratio_count_as_in_findings_f1() -> None:
    reference = "Right eye: enlarged cup-to-disc ratio (C/D 0.7)."
    assert marks(reference, reference.replace("0.7", "0.8"))[1:] == (
        ("Right eye: enlarged cup-to-disc ratio (C/D 0.7)",), ("Right eye: enlarged cup-to-disc ratio (C/D 0.8)",)
    )  # fmt: skip


@pytest.mark.parametrize("language", ["en", "zh"])
def test_the_counts_are_those_of_findings_f1(language: str) -> None:
    rng = np.random.default_rng(3)
    texts = [standard_report(sample_study(rng), language) for _ in range(20)]
    for first, second in zip(texts, texts[1:] + texts[:1], strict=True):
        expected, found = (statements(text, language, "fundus", TERMS) for text in (first, second))
        right, missed, invented = map(len, marks(first, second, language=language))
        assert (right, missed, invented) == (len(expected & found), len(expected - found), len(found - expected))


def test_codes_are_compared_as_they_are() -> None:
    form = scored_as(DataConfig(corpus="jsonl", targets="codes"))
    found = marks("Opacity/lung/left\nnormal", "normal\nOpacity/lung/right", form)
    assert found == Marks(("normal",), ("Opacity/lung/left",), ("Opacity/lung/right",))
