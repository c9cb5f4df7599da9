"""ODIR-5K: colour photographs of both eyes, with a physician's keywords for each eye and eight labels of the patient.

A table with the columns of `ODIR-5K_Training_Annotations(Updated)_V2.xlsx`, saved as CSV, or Kaggle's `full_df.csv`, in
which each patient is there once for each eye: ID, Left-Fundus, Right-Fundus, Left-Diagnostic Keywords, Right-Diagnostic
Keywords, and N, D, G, C, A, H, M, O. Source: Li et al., Bench 2020, LNCS 12614 (OIA-ODIR). Labels of its test sets are
published apart, so patients of this table are split.
"""

from pathlib import Path

from common.data.cleaning import clean_report
from common.data.readers import ImageStudy, StudySplits, checked_splits, is_usable, split_by_patient
from common.data.records import Quarantine
from common.errors import UserError
from common.io.terminal import printable
from common.io.text import read_csv

LABELS = {
    "N": "normal",
    "D": "diabetic retinopathy",
    "G": "glaucoma",
    "C": "cataract",
    "A": "age-related macular degeneration",
    "H": "hypertensive retinopathy",
    "M": "pathological myopia",
    "O": "other",
}
EYES = ("Left", "Right")
COLUMNS = ("ID", *(f"{eye}-Fundus" for eye in EYES), *(f"{eye}-Diagnostic Keywords" for eye in EYES), *LABELS)


def read_odir(table: str | Path, image_dir: str | Path, quarantine: Quarantine) -> StudySplits:
    """Patients with their left and right eye, in this order; the report states the keywords of each.

    "Left eye: drusen. Right eye: normal fundus." Patients are split at random, but always alike (`split_by_patient`).

    Raises UserError for a missing, damaged or unrelated table, two different rows of a patient, or a split without a
    usable study.
    """
    if Path(table).suffix.lower() in (".xlsx", ".xls"):
        raise UserError(f"{table}: is a workbook; save its sheet as CSV in UTF-8, and name that file")
    studies: dict[str, ImageStudy] = {}
    line_of: dict[str, int] = {}
    for line, row in read_csv(table, COLUMNS):
        told = (f"{eye} eye: {_keywords(row[f'{eye}-Diagnostic Keywords'])}." for eye in EYES)
        study = ImageStudy(
            row["ID"],
            tuple(Path(image_dir, row[f"{eye}-Fundus"]) for eye in EYES),
            clean_report(" ".join(told)) if all(row[f"{eye}-Diagnostic Keywords"] for eye in EYES) else "",
            labels=tuple(name for letter, name in LABELS.items() if row[letter] in ("1", "1.0")),
        )
        if studies.setdefault(study.id, study) != study:
            raise UserError(
                f"{table}, line {line}: patient {printable(study.id)} differs from line {line_of[study.id]}; "
                "restore the published file"
            )
        line_of.setdefault(study.id, line)
    usable = [(study.id, study) for study in studies.values() if is_usable(study, quarantine)]
    return checked_splits(split_by_patient(usable), table, quarantine)


def _keywords(text: str) -> str:
    """Keywords with a comma and a space between them; the table parts them by full-width commas too."""
    return ", ".join(filter(None, (word.strip() for word in text.replace("，", ",").split(","))))
