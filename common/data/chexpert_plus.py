"""CheXpert Plus as Stanford AIMI publishes it: one CSV table of images and report sections, and PNG or DICOM files.

Under one root: `df_chexpert_plus_240401.csv`, a row an image, whose `path_to_image` is
`train/patient42142/study5/view1_frontal.jpg`, and a folder `PNG` with the files of these names that end in `.png`, or
`DICOM/Uncompressed` with those that end in `.dcm`.
Source: Chambon et al., arXiv:2405.19538. It was published without a test split, so papers use that of MambaXray-VL
(arXiv:2410.00379): a JSON file as R2Gen's, `{train, val, test: [{id, image_path: [...], report}]}`. Whether it keeps
patients apart is not documented; `shared_patients` checks it.
"""

import re
from collections import defaultdict
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import NamedTuple

from common.data.readers import (
    ImageStudy,
    StudySplits,
    annotation_entries,
    check_once,
    checked_splits,
    first_present,
    is_usable,
)
from common.data.records import Quarantine
from common.data.section_headings import Section
from common.data.sections import HeadingCounts, Wanted, report_and_indication, report_sections
from common.errors import UserError
from common.io.terminal import printable
from common.io.text import read_csv

TABLE = "df_chexpert_plus_240401.csv"
# As unpacked, as its archives name it, and as MambaXray-VL does; DICOM as unpacked.
IMAGE_FOLDERS = ("PNG/PNG", "PNG", "PNGs", "DICOM/Uncompressed", "DICOM")
PUBLISHED_SPLITS = {"train": "train", "valid": "validation", "test": "test"}
# Each with the section that its text begins with; of history, the second where the first is empty.
SECTION_COLUMNS: dict[str, Section] = {
    "section_findings": "findings",
    "section_impression": "impression",
    "section_clinical_history": "indication",
    "section_history": "history",
}
COLUMNS = ("path_to_image", "frontal_lateral", "deid_patient_id", "split", *SECTION_COLUMNS)


class _Image(NamedTuple):
    """A row of the table: where the image is, whose it is, and the texts of its study."""

    path: str
    lateral: bool
    patient: str
    split: str
    report: str
    indication: str


_Study = tuple[str, list[_Image]]  # id, and the images in the order in which a model sees them


def read_chexpert_plus(
    root: str | Path,
    quarantine: Quarantine,
    *,
    images: str | Path | None = None,
    split: str | Path | None = None,
    report: Wanted = "findings",
    headings: HeadingCounts | None = None,
) -> StudySplits:
    """Studies of the published split (train and validation), or of MambaXray-VL's `split` file.

    `report` says which sections make the report; of "findings+impression" what there is. A column ends at a heading
    that stands for another section, and `headings` counts those that no list has. `images` is the folder that holds
    `train/` and `valid/`, if it is neither `PNG` nor `DICOM` under the root. The published studies have ids such as
    `patient42142_study5` and all their images, frontal ones first; those of a split file have its ids and images. Texts
    come from the table in either case (`common.data.readers.read_annotation` takes those of the split file). Studies
    without the report or an image are quarantined: three studies of four have no findings.

    Raises UserError for a missing, damaged or unrelated table or split file, an image twice in the table, a patient in
    two of the published splits, an id in two splits of a split file, or a split without a usable study.
    """
    root = Path(root)
    if not (root / TABLE).is_file():
        raise UserError(f"{root}: no {TABLE} there; expected the root of CheXpert Plus, the folder that contains it")
    folder = _image_folder(root) if images is None else Path(images)
    rows = _rows(root / TABLE, report, headings)
    found = _published(rows) if split is None else _listed(rows, split, quarantine)
    splits: StudySplits = {name: [] for name in found}
    for name, studies in found.items():
        for id, views in studies:
            study = ImageStudy(
                id, tuple(_file(folder, view.path) for view in views), views[0].report, views[0].indication
            )
            if not study.report:
                quarantine.add(id, f"no {report}")
            elif is_usable(study, quarantine):
                splits[name].append(study)
    return checked_splits(splits, root / TABLE if split is None else split, quarantine)


def without_shared_patients(splits: StudySplits, quarantine: Quarantine) -> StudySplits:
    """The splits with each patient in one split: test, else validation, else training; the rest is quarantined.

    Raises UserError where a split is left empty.
    """
    split_of = {id: name for name, ids in shared_patients(splits).items() for id in ids}
    for id, name in split_of.items():
        quarantine.add(id, f"patient of the {name} split is in a later split too")
    kept = {name: [study for study in studies if study.id not in split_of] for name, studies in splits.items()}
    return checked_splits(kept, "after taking patients apart", quarantine)


def shared_patients(splits: StudySplits) -> dict[str, list[str]]:
    """The ids of each split's studies whose patient is in a later split too."""
    taken: set[str] = set()
    shared = {}
    for name in ("test", "validation", "train"):
        studies = splits.get(name, [])
        shared[name] = [study.id for study in studies if patient_of(study) in taken]
        taken |= {patient_of(study) for study in studies}
    return shared


def _published(rows: Iterable[tuple[str, _Image]]) -> dict[str, list[_Study]]:
    """The studies of each split, by their ids, each with its images."""
    studies: dict[str, dict[str, list[_Image]]] = defaultdict(lambda: defaultdict(list))
    split_of_patient: dict[str, str] = {}
    for where, image in rows:
        split = PUBLISHED_SPLITS.get(image.split)
        if split is None:
            raise UserError(f"{where}: expected the split train or valid; restore the published file")
        if split_of_patient.setdefault(image.patient, split) != split:
            raise UserError(f"{where}: {printable(image.patient)} is also in another split; restore the published file")
        studies[split]["_".join(_key(image.path).split("/")[-3:-1])].append(image)
    return {
        name: [(id, sorted(views, key=lambda view: (view.lateral, view.path))) for id, views in of_split.items()]
        for name, of_split in studies.items()
    }


def _listed(rows: Iterable[tuple[str, _Image]], split: str | Path, quarantine: Quarantine) -> dict[str, list[_Study]]:
    """The entries of each split of a split file, each with its id and its images."""
    table = {_key(image.path): image for _, image in rows}
    found: dict[str, list[_Study]] = {}
    for name, entries in annotation_entries(split, {"id": str | int, "image_path": list}).items():
        found[name] = []
        for entry in entries:
            keys = [_key(str(path)) for path in entry["image_path"]]
            if keys and all(key in table for key in keys):
                found[name].append((str(entry["id"]), [table[key] for key in keys]))
            else:
                quarantine.add(str(entry["id"]), f"image not in {TABLE}" if keys else "no image")
    return found


def _rows(file: Path, report: Wanted, headings: HeadingCounts | None) -> Iterator[tuple[str, _Image]]:
    """Where each row stands, and what it says."""
    line_of_image: dict[str, int] = {}
    counted: set[str] = set()  # studies: each image of one has its texts
    for line, row in read_csv(file, COLUMNS):
        check_once(_key(row["path_to_image"]), line, line_of_image, file)
        study = _key(row["path_to_image"]).rpartition("/")[0]
        count = None if study in counted else headings
        counted.add(study)
        found = {
            section: report_sections(row[column], section, count).get(section, "")
            for column, section in SECTION_COLUMNS.items()
        }
        text, indication = report_and_indication({name: text for name, text in found.items() if text}, report)
        lateral = row["frontal_lateral"] == "Lateral"
        yield (
            f"{file}, line {line}",
            _Image(row["path_to_image"], lateral, row["deid_patient_id"], row["split"], text, indication),
        )


def _key(path: str) -> str:
    """What the paths of one image have in common: train/patient42142/study5/view1_frontal."""
    return "/".join([part for part in _stem(path).split("/") if part not in ("", ".")][-4:])


def _stem(path: str) -> str:
    return re.sub(r"\.\w+$", "", path)


def patient_of(study: ImageStudy) -> str:
    """The patient of a study, by the folders of its first image."""
    return Path(str(study.images[0])).parts[-3]


def _file(folder: Path, path: str) -> Path:
    """The PNG file of an image, or the JPEG of CheXpert or DICOM where that is what there is."""
    return first_present(folder / f"{_stem(path)}.png", folder / path, folder / f"{_stem(path)}.dcm")


def _image_folder(root: Path) -> Path:
    for name in IMAGE_FOLDERS:
        if (root / name / "train").is_dir():
            return root / name
    raise UserError(f"{root}: no folder {' or '.join(IMAGE_FOLDERS)} with train in it; name the folder of the images")
