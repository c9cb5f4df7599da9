"""The rule labeler of phantom reports: exact on the grammar's texts, sensible on what a model makes of its words."""

import re
from functools import cache

import numpy as np
import pytest

from common.data.cleaning import r2gen_clean_iu, r2gen_clean_mimic
from common.metrics.clinical import FINDINGS
from common.phantoms.labels import label_report
from common.phantoms.study import sample_study
from common.phantoms.text import render_report

REPORTS = 3000
NO_FINDING = FINDINGS.index("No Finding")
RANK = np.array([0, 3, 1, 2])  # blank, positive, negative, uncertain: which of two mentions counts

# Classes as in "Edema+ Pneumonia? Fracture-", every other label blank.
MARKS = {"+": 1, "-": 2, "?": 3}


def expected(marks: str) -> dict[str, int]:
    pairs = re.findall(r"([A-Z][A-Za-z ]*)([+?-])", marks)
    return {name: MARKS[mark] for name, mark in pairs}


def read(text: str) -> dict[str, int]:
    """Labels that are not blank, without No Finding."""
    labels = label_report(text)
    return {name: int(value) for name, value in zip(FINDINGS[:-1], labels, strict=False) if value}


@cache
def reports() -> list[tuple[str, np.ndarray]]:
    return [render_report(sample_study(17, index)) for index in range(REPORTS)]


def spaced(text: str) -> str:
    return re.sub(r"([.,])", r" \1 ", text.lower())


def without_commas(text: str) -> str:
    return text.replace(",", "")


# What the grammar writes


@pytest.mark.parametrize("clean", [str, str.lower, spaced, without_commas, r2gen_clean_iu, r2gen_clean_mimic])
def test_labels_of_the_grammars_reports_are_exact_however_they_are_cleaned(clean):
    for report, labels in reports():
        read_labels = label_report(clean(report))
        assert read_labels.dtype == np.int8
        assert (read_labels == labels).all(), f"{clean(report)}: {read_labels} for {labels}"


def test_of_two_reports_in_one_the_stronger_mention_counts():
    for (first, labels), (second, more) in zip(reports()[:500], reports()[500:1000], strict=True):
        both = np.where(RANK[labels] >= RANK[more], labels, more)
        both[NO_FINDING] = min(labels[NO_FINDING], more[NO_FINDING])
        assert (label_report(f"{first} {second}") == both).all(), f"{first} {second}"


# What it does not write


@pytest.mark.parametrize(
    ("text", "marks"),
    [
        ("No pneumothorax, pulmonary edema or rib fracture is identified.", "Pneumothorax- Edema- Fracture-"),
        ("no consolidation , effusion , or acute fracture .", "Consolidation- Pleural Effusion- Fracture-"),
        ("Negative for effusion, nodule and edema.", "Pleural Effusion- Lung Lesion- Edema-"),
        ("Bibasilar atelectasis without effusion or pneumothorax.", "Atelectasis+ Pleural Effusion- Pneumothorax-"),
        ("No pneumothorax, but a small left effusion is seen.", "Pneumothorax- Pleural Effusion+"),
        ("No pneumothorax, small left pleural effusion.", "Pneumothorax- Pleural Effusion+"),
        ("No effusion and the heart is enlarged.", "Pleural Effusion- Cardiomegaly+"),
        ("There is no effusion and there is a lung mass.", "Pleural Effusion- Lung Lesion+"),
        ("No pneumothorax with moderate edema.", "Pneumothorax- Edema+"),
        ("no edema there is a large right pneumothorax", "Edema- Pneumothorax+"),
        ("A right effusion and no pneumothorax.", "Pleural Effusion+ Pneumothorax-"),
        ("Neither pneumothorax nor effusion.", "Pneumothorax- Pleural Effusion-"),
        ("The lungs are clear of infiltrate or nodule.", "Lung Opacity- Lung Lesion-"),
        ("No opacity suspicious for pneumonia.", "Lung Opacity- Pneumonia-"),
        ("No focal consolidation to suggest pneumonia.", "Consolidation- Pneumonia-"),
        ("No suspicious pulmonary nodule.", "Lung Lesion-"),
        ("A suspicious nodule in the left upper zone.", "Lung Lesion+"),
        ("A pneumothorax is not seen.", "Pneumothorax-"),
        ("Pneumonia is not seen, but there is a hazy opacity.", "Pneumonia- Lung Opacity+"),
        ("There is not a pleural effusion.", "Pleural Effusion-"),
        ("The edema has resolved.", "Edema-"),
        ("No change in the small left effusion.", "Pleural Effusion+"),
        ("No new consolidation.", "Consolidation-"),
        ("no no pleural effusion or or pneumothorax", "Pleural Effusion- Pneumothorax-"),
        ("No endotracheal tube.", "Support Devices-"),
    ],
)
def test_denials_reach_as_far_as_their_clause(text, marks):
    assert read(text) == expected(marks)


@pytest.mark.parametrize(
    ("text", "marks"),
    [
        ("Left basilar atelectasis, pneumonia cannot be excluded.", "Atelectasis+ Pneumonia?"),
        ("left basilar atelectasis pneumonia cannot be excluded", "Atelectasis+ Pneumonia?"),
        ("There is mild edema and pneumonia cannot be excluded.", "Edema+ Pneumonia?"),
        ("Edema is noted and pneumonia is not excluded.", "Edema+ Pneumonia?"),
        ("A small effusion and a rib fracture cannot be excluded.", "Pleural Effusion+ Fracture?"),
        ("Effusion or pleural thickening cannot be ruled out.", "Pleural Effusion? Pleural Other?"),
        ("Cannot exclude a tiny pneumothorax.", "Pneumothorax?"),
        ("No effusion, cannot exclude pneumonia.", "Pleural Effusion- Pneumonia?"),
        ("Consolidation which may represent pneumonia or edema.", "Consolidation+ Pneumonia? Edema?"),
        ("Opacity that could reflect atelectasis, pneumonia or edema.", "Lung Opacity+ Atelectasis? Pneumonia? Edema?"),
        ("Possible pneumonia with a small effusion.", "Pneumonia? Pleural Effusion+"),
        ("Possible left pneumonia, rib fracture.", "Pneumonia? Fracture+"),
        ("Pneumonia is possible, no pneumothorax.", "Pneumonia? Pneumothorax-"),
        ("Left effusion is suspected along with cardiomegaly.", "Pleural Effusion? Cardiomegaly+"),
        ("Right lung mass, possibly a fracture.", "Lung Lesion+ Fracture?"),
        ("Findings are consistent with severe edema as well as possible effusions.", "Edema+ Pleural Effusion?"),
        ("Small effusion, the lungs may be hyperinflated.", "Pleural Effusion+"),
        ("Small effusion and the heart may be enlarged.", "Pleural Effusion+ Cardiomegaly?"),
        ("Pneumonia may be present.", "Pneumonia?"),
        ("A 2.5 cm nodule is suspected.", "Lung Lesion?"),
        ("Possible catheter fragment.", "Support Devices?"),
    ],
)
def test_hedges_are_of_what_they_are_said_of(text, marks):
    assert read(text) == expected(marks)


@pytest.mark.parametrize(
    ("text", "marks"),
    [
        ("the heart is slightly enlarged , the mediastinum is normal .", "Cardiomegaly+ Enlarged Cardiomediastinum-"),
        ("Heart size is normal and the mediastinum is possibly widened.", "Cardiomegaly- Enlarged Cardiomediastinum?"),
        ("The heart and mediastinum are not enlarged.", "Cardiomegaly- Enlarged Cardiomediastinum-"),
        ("The heart, mediastinum and hila are unremarkable.", "Cardiomegaly- Enlarged Cardiomediastinum-"),
        ("The heart and mediastinum may be enlarged.", "Cardiomegaly? Enlarged Cardiomediastinum?"),
        ("Normal heart size and mediastinal contours.", "Cardiomegaly- Enlarged Cardiomediastinum-"),
        ("cardiac and mediastinal silhouettes within normal limits", "Cardiomegaly- Enlarged Cardiomediastinum-"),
        ("The cardiomediastinal silhouette is enlarged.", "Enlarged Cardiomediastinum+"),
        ("Cardiomediastinal silhouette unremarkable.", "Enlarged Cardiomediastinum-"),
        ("Widening of the mediastinum is possible.", "Enlarged Cardiomediastinum?"),
        ("No mediastinal widening or enlargement of the heart.", "Enlarged Cardiomediastinum- Cardiomegaly-"),
        ("Heart size is not normal.", "Cardiomegaly+"),
        ("The heart may not be enlarged.", "Cardiomegaly?"),
        ("The heart is no longer enlarged.", "Cardiomegaly-"),
        ("Enlarged heart without edema.", "Cardiomegaly+ Edema-"),
        ("No pneumothorax, heart size is mildly increased.", "Pneumothorax- Cardiomegaly+"),
        ("Consolidation behind the heart, lungs are otherwise normal.", "Consolidation+"),
        ("The heart is stable.", ""),
        ("Soft tissues and the hila are normal.", ""),
    ],
)
def test_the_heart_and_the_mediastinum_are_read_from_what_is_said_of_their_size(text, marks):
    assert read(text) == expected(marks)


@pytest.mark.parametrize(
    ("text", "marks"),
    [
        ("Right lower lobe airspace consolidation.", "Consolidation+"),
        ("Airspace disease and infiltrates.", "Lung Opacity+"),
        ("Left pleural effusion and thickening.", "Pleural Effusion+ Pleural Other+"),
        ("Pacemaker, internal jugular line and ECG leads.", "Support Devices+"),
        ("Mild spondylosis without compression deformity, no free air.", ""),
        ("Clear lungs. No acute cardiopulmonary process. The aorta is tortuous.", ""),
        ("No effusion. Small effusion.", "Pleural Effusion+"),
        ("Possible effusion. No effusion.", "Pleural Effusion?"),
        ("Enlargement of of the heart.", "Cardiomegaly+"),
        ("mass effect . pericardial effusion", ""),
        ("there is no . and of the , may be", ""),
    ],
)
def test_only_mentions_count(text, marks):
    assert read(text) == expected(marks)


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("", 1),
        (" . ", 1),
        ("The lungs are clear.", 1),
        ("No pneumothorax. Dual-lead pacemaker.", 1),
        ("Possible catheter fragment.", 1),
        ("Possible pneumonia.", 0),
        ("No effusion. Cardiomegaly.", 0),
    ],
)
def test_no_finding_is_positive_where_nothing_but_devices_is_positive_or_uncertain(text, value):
    assert label_report(text)[NO_FINDING] == value


def test_empty_text_mentions_nothing():
    assert label_report("").tolist() == [0] * 13 + [1]
