"""ReXrank's files: an object of studies by their ids, and the same with `model_prediction` in each study.

A study has `image_path` (paths under a folder), `key_image_path` (the one for models of a single view) and `context`
("Age:50-60.Gender:M.Indication: ... Comparison: ..."), and for the evaluation `section_findings` and
`section_impression` (rexrank.ai, submission guideline and evaluation script).
"""

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from common.errors import UserError
from common.io.jsonl import check_row
from common.io.terminal import printable
from common.io.text import read_json_object

STUDY = {"image_path": list}
PREDICTION = "model_prediction"
NOTHING = "nan"  # an empty indication of CheXpert Plus, "Indication:nanComparison: None."


def read_studies(file: Path) -> dict[str, dict[str, Any]]:
    """The studies of ReXrank's file by their ids. Raises UserError naming what is wrong."""
    studies = read_json_object(file)
    if not studies:
        raise UserError(f"{file}: holds no study; expected ReXrank's object of studies by their ids")
    for name, study in studies.items():
        where = f"{file}: study {printable(name)}"
        check_row(study, STUDY, where)
        if not study["image_path"] or not all(isinstance(path, str) for path in study["image_path"]):
            raise UserError(f"{where}: image_path must list the paths of its images")
        check_row({"key_image_path": "", "context": ""} | study, {"key_image_path": str, "context": str}, where)
    return studies


def indication_of(study: Mapping[str, Any]) -> str:
    """The indication in a study's context."""
    found = re.search(r"Indication:(.*?)(?:Comparison:|</context>|$)", study.get("context", ""), re.DOTALL)
    indication = " ".join(found[1].split()) if found else ""
    return "" if indication == NOTHING else indication


def add_predictions(
    studies: Mapping[str, Mapping[str, Any]], predictions: Mapping[str, str], where: object
) -> dict[str, dict[str, Any]]:
    """Every study with its prediction. Ids are ReXrank's, or MIMIC-CXR's with their "s" (s50414267).

    Raises UserError where a study has no prediction; those of other studies are left out.
    """
    found = {name: predictions.get(name, predictions.get(f"s{name}")) for name in studies}
    if missing := [name for name, text in found.items() if text is None]:
        raise UserError(
            f"{where}: has no row of id {printable(repr(missing[0]))} ({len(missing):,} of {len(studies):,} studies "
            "are missing); ReXrank wants a report for each of its studies, by its ids"
        )
    return {name: {**study, PREDICTION: found[name]} for name, study in studies.items()}
