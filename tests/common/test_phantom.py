"""Phantom studies: a function of (seed, index), drawn where they say, worded as they are labelled, and learnable."""

import re
from collections import Counter
from functools import cache

import numpy as np
import pytest
from PIL import Image
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import roc_auc_score

from common.errors import UserError
from common.phantoms.phantom import FINDINGS, Phantom, draw_frontal, draw_lateral, main, make_phantom
from common.phantoms.study import (
    AIRSPACE,
    COMPANIONS,
    DEVICES,
    LOBES,
    PRIORS,
    Finding,
    Study,
    sample_study,
)
from common.phantoms.text import render_report

REPORTS = 1500
SIZE = 64


@cache
def studies() -> list[Study]:
    return [sample_study(5, index) for index in range(REPORTS)]


@cache
def reports() -> list[tuple[str, np.ndarray]]:
    return [render_report(study) for study in studies()]


@cache
def phantoms() -> list[Phantom]:
    return [make_phantom(0, index, SIZE) for index in range(12)]


def same(one: Phantom, other: Phantom) -> bool:
    texts = (one.id, one.findings, one.indication, one.report) == (
        other.id,
        other.findings,
        other.indication,
        other.report,
    )
    images = (one.frontal == other.frontal).all() and (one.lateral == other.lateral).all()
    return texts and bool(images) and bool((one.labels == other.labels).all())


# A function of (seed, index)


def test_a_study_does_not_depend_on_the_studies_made_before():
    first = phantoms()[3]
    for index in (9, 0, 3):
        again = make_phantom(0, index, SIZE)
    assert same(first, again)


def test_seeds_and_indices_give_different_patients():
    images = [make_phantom(seed, index, 32).frontal for seed in (0, 1) for index in (0, 1)]
    assert len({image.tobytes() for image in images}) == 4


@pytest.mark.parametrize("index", range(3))
def test_a_study_looks_the_same_at_every_size(index):
    large = make_phantom(2, index, 512)
    for size in (64, 128):
        small = make_phantom(2, index, size)
        assert small.report == large.report
        assert (small.labels == large.labels).all()
        for view in ("frontal", "lateral"):
            reduced = getattr(large, view).reshape(size, 512 // size, size, 512 // size).mean((1, 3))
            difference = np.abs(reduced - getattr(small, view))
            assert difference.mean() < 4
            assert np.percentile(difference, 99) < 25


def test_images_are_square_grey_and_use_the_range():
    for phantom in phantoms():
        for image in (phantom.frontal, phantom.lateral):
            assert image.dtype == np.uint8
            assert image.shape == (SIZE, SIZE)
            low, high = np.percentile(image, (2, 98))
            assert low < 60
            assert high > 180


@pytest.mark.parametrize(
    ("arguments", "named"), [((-1, 0, 64), "seed -1"), ((0, -2, 64), "index -2"), ((0, 0, 4), "4")]
)
def test_what_cannot_be_made_is_named(arguments, named):
    with pytest.raises(UserError, match=named):
        make_phantom(*arguments)


# Findings in the images


def plain(*findings: Finding, index: int = 0) -> Study:
    """A patient with these findings and no others."""
    body = sample_study(4, index).body
    return Study(4, index, body, findings, "cough")


def change(finding: Finding, index: int = 0) -> np.ndarray:
    """What a finding does to the frontal image."""
    study = plain(finding, index=index)
    return draw_frontal(study, SIZE).astype(float) - draw_frontal(study.without(finding), SIZE)


ONE_SIDED = [
    *(Finding("pleural effusion", "none", "", severity) for severity in ("small", "moderate", "large")),
    *(Finding("pneumothorax", "none", "", severity) for severity in ("small", "moderate", "large")),
    *(Finding(name, "none", "lower lobe") for name in AIRSPACE),
    *(Finding(name, "none", "upper lobe") for name in AIRSPACE),
    *(
        Finding("nodule", "none", zone, size)
        for zone, size in (("upper", "small"), ("mid", "large"), ("lower", "small"))
    ),
    Finding("atelectasis"),
    Finding("pleural thickening"),
    Finding("rib fracture"),
    Finding("pacemaker"),
]


@pytest.mark.parametrize("finding", ONE_SIDED, ids=str)
def test_the_patients_left_is_on_the_images_right(finding):
    for index in range(2):
        for side in ("left", "right"):
            on_side = Finding(finding.name, side, finding.site, finding.severity)
            changed = np.abs(change(on_side, index))
            image_left, image_right = changed[:, : SIZE // 2].sum(), changed[:, SIZE // 2 :].sum()
            its_own, other = (image_right, image_left) if side == "left" else (image_left, image_right)
            assert its_own > 20
            assert other < 0.25 * its_own  # a pacemaker's leads cross


@pytest.mark.parametrize("side", ["left", "right"])
def test_effusions_brighten_the_base_and_pneumothoraces_darken_the_apex(side):
    half = slice(SIZE // 2, None) if side == "left" else slice(None, SIZE // 2)
    fluid = change(Finding("pleural effusion", side, "", "moderate"))[:, half]
    assert fluid[SIZE // 2 :].sum() > 2000
    assert fluid[SIZE // 2 :].sum() > 10 * np.abs(fluid[: SIZE // 4]).sum()
    air = change(Finding("pneumothorax", side, "", "moderate"))[:, half]
    assert air[: SIZE // 2].min() < -8


def test_severe_changes_more_than_mild_and_certain_more_than_uncertain():
    for name, side, grades in (
        ("pleural effusion", "left", ("small", "moderate", "large")),
        ("pneumothorax", "right", ("small", "moderate", "large")),
        ("cardiomegaly", "none", ("mild", "moderate", "severe")),
        ("edema", "both", ("mild", "moderate", "severe")),
    ):
        amounts = [np.abs(change(Finding(name, side, "", grade))).sum() for grade in grades]
        assert amounts == sorted(amounts)
        uncertain = np.abs(change(Finding(name, side, "", grades[0], "uncertain"))).sum()
        assert 0.2 * amounts[0] < uncertain < 0.95 * amounts[0]


def test_taking_a_finding_away_changes_its_region_and_little_else():
    seen = Counter()
    for index in range(45):
        study = sample_study(6, index)
        for finding in study.findings:
            seen[finding.name] += 1
            changed = np.abs(draw_frontal(study, SIZE).astype(float) - draw_frontal(study.without(finding), SIZE))
            assert changed.max() > 8, str(finding)
            assert np.median(changed) <= (3 if finding.name == "edema" else 1), str(finding)
    assert len(seen) >= 12


def test_what_matters_is_in_the_lateral_view_too():
    for finding in (
        Finding("pleural effusion", "left", "", "small"),
        Finding("cardiomegaly", "none", "", "moderate"),
        Finding("consolidation", "right", "middle lobe"),
        Finding("nodule", "left", "mid", "small"),
        Finding("edema", "both", "", "mild"),
        Finding("pacemaker", "left"),
    ):
        study = plain(finding)
        changed = draw_lateral(study, SIZE).astype(float) - draw_lateral(study.without(finding), SIZE)
        assert np.abs(changed).max() > 10, str(finding)


# Reports and labels

MENTIONS = {
    "Enlarged Cardiomediastinum": r"mediastin",
    "Cardiomegaly": r"cardiomegaly|\bheart\b|cardiac (?!device)",
    "Lung Opacity": r"opacity|infiltrate|airspace",
    "Lung Lesion": r"nodule|mass\b",
    "Edema": r"edema|congestion",
    "Consolidation": r"consolidation",
    "Pneumonia": r"pneumonia",
    "Atelectasis": r"atelectasis",
    "Pneumothorax": r"pneumothorax",
    "Pleural Effusion": r"effusion|pleural fluid",
    "Pleural Other": r"pleural (thickening|scarring)",
    "Fracture": r"fracture",
    "Support Devices": r"tube|catheter|jugular|central line|pacemaker|device|(ECG|EKG|monitoring) ",
}
DENIAL = re.compile(r"\b(no|not|negative for|normal|unremarkable|within normal limits)\b", re.IGNORECASE)
HEDGE = re.compile(r"\b(may|possibl[ey]|cannot|questionable|suspected|suspicious for)\b", re.IGNORECASE)


def read_labels(report: str) -> dict[str, int]:
    """What a reader who knows no grammar makes of it: each clause is denied, hedged or stated as a whole."""
    read: dict[str, int] = {}
    for sentence in re.split(r"(?<=\.) ", report):
        listed = DENIAL.search(sentence) is not None and HEDGE.search(sentence) is None
        for clause in [sentence] if listed else sentence.split(", "):
            value = 3 if HEDGE.search(clause) else 2 if DENIAL.search(clause) else 1
            for label, mention in MENTIONS.items():
                if re.search(mention, clause, re.IGNORECASE):
                    read[label] = value
    return read


def test_labels_are_what_a_simple_reader_finds_in_the_text():
    for report, labels in reports():
        read = read_labels(report)
        for label, value in zip(FINDINGS[:-1], labels, strict=False):
            assert read.get(label, 0) == value, f"{label}: {value} in {report}"


def test_no_finding_is_positive_only_without_findings():
    for study, (_, labels) in zip(studies(), reports(), strict=True):
        assert (labels[-1] == 1) == all(finding.is_device for finding in study.findings)
        assert labels[-1] in (0, 1)


def test_reports_name_the_side_of_each_finding():
    for study, (report, _) in zip(studies(), reports(), strict=True):
        sides = {finding.side for finding in study.findings if finding.name != "edema"}
        for side in ("left", "right"):
            assert bool(re.search(rf"\b{side}\b", report, re.IGNORECASE)) == (side in sides), report
        both = re.search(r"bilateral |bibasilar|both (sides|lung bases)", report, re.IGNORECASE)
        assert bool(both) == ("both" in sides), report


def test_reports_are_short_varied_and_distinct():
    texts = [report for report, _ in reports()]
    lengths = np.array([len(text.split()) for text in texts])
    sentences = np.array([len(re.findall(r"\.(?: |$)", text)) for text in texts])
    assert lengths.max() <= 60
    assert set(sentences) <= set(range(2, 7))
    assert len(set(texts)) > 0.97 * len(texts)
    assert len({word for text in texts for word in re.findall(r"[a-z-]+", text.lower())}) >= 250
    assert not any(re.search(r"  |[*+{}]| \.|\ba [aeiou]| an [^aeiouE]|none", text) for text in texts)


# The population


def test_a_quarter_is_normal_and_the_rest_shows_one_to_three_findings():
    counts = np.array([len(study.findings) for study in studies()])
    assert 0.23 < (counts == 0).mean() < 0.32
    assert counts.max() == 3
    names = Counter(finding.name for study in studies() for finding in study.findings)
    assert set(names) == {*PRIORS, *DEVICES}
    assert min(names.values()) > 0.015 * REPORTS
    sided = Counter((finding.name, finding.side) for study in studies() for finding in study.findings)
    for name in (*AIRSPACE, "nodule", "atelectasis", "pneumothorax", "pleural effusion", "rib fracture"):
        assert sided[name, "left"] > 10
        assert sided[name, "right"] > 10
    uncertain = np.mean([finding.certainty == "uncertain" for study in studies() for finding in study.findings])
    assert 0.05 < uncertain < 0.25


def test_every_label_occurs_in_every_class_it_can_have():
    labels = np.stack([labels for _, labels in reports()])
    for column, name in enumerate(FINDINGS):
        expected = {"Support Devices": {0, 1}, "No Finding": {0, 1}}.get(name, {0, 1, 2, 3})
        assert set(labels[:, column]) == expected, name


def test_no_study_shows_what_cannot_go_together():
    for study in studies():
        names = [finding.name for finding in study.findings]
        assert len(set(names)) == len(names)
        assert sum(name in AIRSPACE for name in names) <= 1
        for air in study.find("pneumothorax"):
            for other in study.find("pleural effusion", *AIRSPACE):
                assert {air.side, other.side} == {"left", "right"}
        for finding in study.find(*AIRSPACE):
            assert finding.site in LOBES[finding.side]
    assert set(COMPANIONS) <= set(PRIORS)


# What can be learned


def test_pixels_tell_what_the_indication_does_not():
    """A linear model of small images beats chance by far; the indication says little, and nothing of wording."""
    count, size, train = 300, 24, 200
    cases = [sample_study(8, index) for index in range(count)]
    pixels = np.stack([draw_frontal(study, size).reshape(-1) for study in cases]) / 255.0
    kinds = sorted({study.indication for study in cases})
    reasons = np.array([[study.indication == kind for kind in kinds] for study in cases], float)
    for name in ("pleural effusion", "cardiomegaly"):
        shown = np.array([bool(study.find(name)) for study in cases])
        areas = []
        for inputs in (pixels, reasons):
            model = LogisticRegression(C=0.1, max_iter=500).fit(inputs[:train], shown[:train])
            areas.append(roc_auc_score(shown[train:], model.decision_function(inputs[train:])))
        assert areas[0] > 0.75, name
        assert areas[1] < 0.70, name
    for kind in kinds:
        normal = [not study.findings for study in studies() if study.indication == kind]
        assert 0.1 < np.mean(normal) < 0.5, kind


def test_the_sheet_is_one_image(tmp_path):
    main(["--sheet", str(tmp_path / "sheet.png"), "--rows", "1", "--columns", "2", "--size", "32"])
    assert Image.open(tmp_path / "sheet.png").size == (128, 32 + 34)
    with pytest.raises(UserError, match="--rows: must be at least 1"):
        main(["--sheet", str(tmp_path / "none.png"), "--rows", "0"])
    with pytest.raises(UserError, match="existing folder"):
        main(["--sheet", str(tmp_path / "none" / "sheet.png"), "--rows", "1", "--columns", "1", "--size", "32"])
