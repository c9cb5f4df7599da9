"""MIMIC-CXR as PhysioNet publishes it: JPEG or DICOM files, reports as text files, split and metadata as CSV.

Under one root: `mimic-cxr-2.0.0-split.csv` and `mimic-cxr-2.0.0-metadata.csv` (each plain or .gz), images
`files/p10/p10000032/s50414267/<dicom id>.jpg` and reports `files/p10/p10000032/s50414267.txt`. MIMIC-CXR itself has the
same folders with `<dicom id>.dcm` in them, and no split: the two tables are those of MIMIC-CXR-JPG, which describe the
same images. Source: Johnson et al., Scientific Data 6:317, 2019 (MIMIC-CXR), and arXiv:1901.07042 (MIMIC-CXR-JPG).
"""

from collections import defaultdict
from pathlib import Path

from common.data.readers import (
    NO_REPORT,
    NO_TEXT,
    SPLIT_NAMES,
    ImageStudy,
    StudySplits,
    check_once,
    checked_splits,
    first_present,
    is_usable,
)
from common.data.records import Quarantine
from common.data.sections import HeadingCounts, Wanted, report_and_indication, report_sections
from common.errors import UserError
from common.io.inputs import read_bytes
from common.io.terminal import printable
from common.io.text import decode_text, read_csv

LONGEST_REPORT = 1 << 20  # bytes of a report file


def read_mimic_cxr(
    root: str | Path,
    quarantine: Quarantine,
    *,
    images: str | Path | None = None,
    reports: str | Path | None = None,
    report: Wanted = "findings",
    headings: HeadingCounts | None = None,
) -> StudySplits:
    """Every study with a findings section, its frontal images first; the split is the published one.

    `images` is the root of the images where they lie apart from the tables, and `reports` that of the reports where
    they lie apart from the images; an image that is there as JPEG and as DICOM is read as JPEG. `report` says which
    sections make a report, and `headings` counts the headings that no list has (`common.data.sections`). Ids are
    `s50414267`. PA and AP views come before those of unknown direction, and these before lateral ones; equals are in
    the order of their ids.

    Raises UserError for a missing, damaged or unrelated CSV file, an image that one of them lists twice, a patient in
    two splits, or a split without a usable study.
    """
    root = Path(root)
    image_root = root if images is None else Path(images)
    report_root = image_root if reports is None else Path(reports)
    split_file = _csv_file(root, "mimic-cxr-2.0.0-split.csv")
    views = _view_positions(_csv_file(root, "mimic-cxr-2.0.0-metadata.csv"))
    images_of: dict[tuple[str, str, str], list[str]] = defaultdict(list)
    split_of_subject: dict[str, str] = {}
    line_of_image: dict[str, int] = {}
    for line, row in read_csv(split_file, ("dicom_id", "study_id", "subject_id", "split")):
        split = SPLIT_NAMES.get(row["split"])
        where = f"{split_file}, line {line}"
        if split is None:
            raise UserError(f"{where}: expected the split train, validate or test; restore the published file")
        if split_of_subject.setdefault(row["subject_id"], split) != split:
            raise UserError(
                f"{where}: subject {printable(row['subject_id'])} is also in another split; restore the published file"
            )
        if row["dicom_id"] not in views:
            dicom = printable(row["dicom_id"])
            raise UserError(f"{where}: {dicom} is not in the metadata; take both files of one release")
        check_once(row["dicom_id"], line, line_of_image, split_file)
        images_of[split, row["subject_id"], row["study_id"]].append(row["dicom_id"])

    splits: StudySplits = {"train": [], "validation": [], "test": []}
    for (split, subject, study), dicoms in images_of.items():
        folder = Path("files", f"p{subject[:2]}", f"p{subject}", f"s{study}")
        text, problem = _report_text(report_root / folder.with_suffix(".txt"))
        if problem:
            quarantine.add(f"s{study}", problem)
            continue
        sections = report_sections(text, headings=headings)
        dicoms.sort(key=lambda dicom: (_direction(views[dicom]), dicom))
        candidate = ImageStudy(
            f"s{study}",
            tuple(_image(image_root / folder, dicom) for dicom in dicoms),
            *report_and_indication(sections, report),
        )
        if not candidate.report:
            quarantine.add(candidate.id, f"no {report.upper()} section")
        elif is_usable(candidate, quarantine):
            splits[split].append(candidate)
    return checked_splits(splits, split_file, quarantine)


def _image(folder: Path, dicom: str) -> Path:
    return first_present(folder / f"{dicom}.jpg", folder / f"{dicom}.dcm")


def _direction(view: str) -> int:
    """0 frontal, 1 unknown, 2 lateral; the metadata has PA, AP, AP AXIAL, LATERAL, LL, LAO, ... and blanks."""
    if view.startswith(("PA", "AP")):
        return 0
    return 2 if view in ("LATERAL", "LL") else 1


def _view_positions(file: Path) -> dict[str, str]:
    """The view of each image, by its id."""
    views: dict[str, str] = {}
    line_of_image: dict[str, int] = {}
    for line, row in read_csv(file, ("dicom_id", "ViewPosition")):
        check_once(row["dicom_id"], line, line_of_image, file)
        views[row["dicom_id"]] = row["ViewPosition"]
    return views


def _report_text(file: Path) -> tuple[str, str]:
    """The text of a report, and why there is none."""
    try:
        content = read_bytes(file, limit=LONGEST_REPORT)
    except UserError:
        return "", NO_REPORT
    try:
        return decode_text(content, file), ""
    except UserError:
        return "", NO_TEXT


def _csv_file(root: Path, name: str) -> Path:
    for file in (root / name, root / f"{name}.gz"):
        if file.is_file():
            return file
    raise UserError(
        f"{root}: no {name} or {name}.gz; expected the root of MIMIC-CXR-JPG 2.0.0; DICOM files are named with --images"
    )
