"""Which studies a config names; `common.data.parts` reads them."""

import dataclasses
from typing import Literal


@dataclasses.dataclass(frozen=True)
class StudySource:
    """Which studies to learn from."""

    layout: Literal["phantom", "annotation", "openi", "rows", "prepared"] = "phantom"  # drawn; R2Gen; Open-i; your own
    source: str = ""  # annotation.json; Open-i's reports; JSONL rows; folder made by python -m common.data.builders
    images: str = ""  # annotation, openi, rows: folder of the images
    split: str = ""  # openi: R2Gen's split (.json), or a file with the ids of the test part
    train_size: int = 1600  # phantom studies
    validation_size: int = 64  # phantom studies
    test_size: int = 200  # phantom studies
    phantom_seed: int = 0  # which phantom studies: other seeds draw others
    views: int = 2  # images of a study that are used, at most
    cleaning: Literal["lossless", "r2gen-iu", "r2gen-mimic"] = "lossless"  # of reports
