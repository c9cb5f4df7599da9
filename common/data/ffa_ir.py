"""FFA-IR as PhysioNet publishes it: fluorescein angiographies of tens of images, with reports in English and Chinese.

`ffair_annotation.json` holds {train, val, test: {case: {"Image_path": [...], "En_Report": ..., and the Chinese report
under another name that ends in _Report}}}; image paths are relative to the folder of all cases. Source: Li et al.,
FFA-IR 1.1.0, PhysioNet, 2025 (doi 10.13026/f7w3-gm74), and the code of its authors.
"""

from pathlib import Path
from typing import Any

from common.data.cleaning import clean_report
from common.data.readers import (
    SPLIT_NAMES,
    VIEWS_LEFT_OUT,
    ImageStudy,
    StudySplits,
    at_equal_distances,
    checked_splits,
    is_usable,
)
from common.data.records import Language, Quarantine
from common.errors import UserError
from common.io.jsonl import check_row
from common.io.terminal import printable
from common.io.text import read_json_object

ENGLISH, ENDING = "En_Report", "_Report"


def read_ffa_ir(
    annotation: str | Path,
    image_dir: str | Path,
    quarantine: Quarantine,
    *,
    language: Language = "en",
    maximum_images: int | None = None,
) -> StudySplits:
    """The cases of the published split with their reports in one language; ids are those of the cases.

    Of more than `maximum_images` images that many are taken at equal distances, the first and the last among them: an
    angiography shows the same eye over minutes.

    Raises UserError for a file of another form, an id in two splits, or a split without a usable study.
    """
    cases = check_row(read_json_object(annotation), {"train": dict, "val": dict, "test": dict}, str(annotation))
    splits: StudySplits = {}
    for name in ("train", "val", "test"):
        usable = splits[SPLIT_NAMES[name]] = []
        for id, entry in cases[name].items():
            where = f"{annotation}: case {printable(id)}"
            check_row({"case": id}, {"case": str}, where)
            check_row(entry, {"Image_path": list}, where)
            files = tuple(Path(image_dir, str(path)) for path in entry["Image_path"])
            chosen = at_equal_distances(files, maximum_images)
            study = ImageStudy(id, chosen, clean_report(_report(entry, language, where)), language=language)
            if is_usable(study, quarantine):
                usable.append(study)
                quarantine.note(VIEWS_LEFT_OUT, len(files) - len(chosen))
    return checked_splits(splits, annotation, quarantine)


def _report(entry: dict[str, Any], language: Language, where: str) -> str:
    if language == "en":
        return check_row(entry, {ENGLISH: str}, where)[ENGLISH]
    names = [name for name in entry if name.endswith(ENDING) and name != ENGLISH]
    if len(names) != 1:
        raise UserError(
            f"{where}: {len(names)} names that end in {ENDING} beside {ENGLISH}; expected the Chinese report"
        )
    return check_row(entry, {names[0]: str}, where)[names[0]]
