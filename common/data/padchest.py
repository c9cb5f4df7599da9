"""PadChest as BIMCV publishes it: one CSV table of images, Spanish reports and labels, and 16-bit PNG files.

Under one root: `PADCHEST_chest_x_ray_images_labels_160K_01.02.19.csv` (plain or .gz), a row an image, and the images as
`<ImageDir>/<ImageID>`, a folder for each of its archives, or all in one folder. The reports are published in lower case
with stemmed words and without sections ("sin signific alteracion"). Source: Bustos et al., Medical Image Analysis
66:101797, 2020 (arXiv:1901.07441). No split is published.
"""

import re
from collections import defaultdict
from pathlib import Path

from common.data.cleaning import clean_report
from common.data.readers import (
    ImageStudy,
    StudySplits,
    check_once,
    checked_splits,
    first_present,
    is_usable,
    split_by_patient,
)
from common.data.records import Quarantine
from common.errors import UserError
from common.io.text import read_csv

TABLES = "PADCHEST_chest_x_ray_images_labels_160K*.csv*"
COLUMNS = ("ImageID", "ImageDir", "StudyID", "PatientID", "Projection", "Report", "Labels")
_LABEL = re.compile(r"'([^']*)'")


def read_padchest(root: str | Path, quarantine: Quarantine, *, images: str | Path | None = None) -> StudySplits:
    """Studies with all their images, frontal ones first (projections PA and AP), then of unknown projection, then L.

    `images` is the folder of the images where they lie apart from the table. Patients are split at random, but always
    alike (`split_by_patient`). Reports are marked as "en", so that words are what white space separates.

    Raises UserError for a missing, damaged or unrelated table, an image that is there twice, a study of two patients,
    or a split without a usable study.
    """
    root = Path(root)
    table = _table(root)
    folder = (root if root.is_dir() else root.parent) if images is None else Path(images)
    rows_of: dict[str, list[dict[str, str]]] = defaultdict(list)
    line_of_image: dict[str, int] = {}
    for line, row in read_csv(table, COLUMNS):
        check_once(row["ImageID"], line, line_of_image, table)
        rows = rows_of[row["StudyID"]]
        rows.append(row)
        if row["PatientID"] != rows[0]["PatientID"]:
            raise UserError(f"{table}, line {line}: its study has another patient before; restore the published file")
    studies = []
    for id, rows in rows_of.items():
        rows.sort(key=lambda row: (_direction(row["Projection"]), row["ImageID"]))
        study = ImageStudy(
            id,
            tuple(first_present(folder / row["ImageDir"] / row["ImageID"], folder / row["ImageID"]) for row in rows),
            clean_report(next((row["Report"] for row in rows if row["Report"]), "")),
            labels=tuple(label.strip() for label in _LABEL.findall(rows[0]["Labels"]) if label.strip()),
        )
        if is_usable(study, quarantine):
            studies.append((rows[0]["PatientID"], study))
    return checked_splits(split_by_patient(studies), table, quarantine)


def _table(root: Path) -> Path:
    if root.is_file():
        return root
    found = sorted(root.glob(TABLES))
    if not found:
        raise UserError(f"{root}: no {TABLES} there; expected the root of PadChest, the folder that contains it")
    return found[0]


def _direction(projection: str) -> int:
    """0 frontal, 1 unknown, 2 lateral; there are PA, AP, AP_horizontal, L, COSTAL and others."""
    if projection.startswith(("PA", "AP")):
        return 0
    return 2 if projection == "L" else 1
