"""The page that compares the reports of two systems: which differences hold, and the studies that differ most."""

import difflib
from collections.abc import Sequence
from importlib import resources
from pathlib import PurePath
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Int

from common.errors import UserError
from common.io.jsonl import parse_rows
from common.io.numbers import score_text
from common.io.terminal import printable
from common.metrics.bootstrap import values
from common.metrics.clinical import FINDINGS, POSITIVE, UNCERTAIN
from common.metrics.comparison import compare
from common.report.compare_command import ROW, same_studies
from common.report.comparison import chosen_scores, drawn, measure, summary
from common.report.differences import Piece, differences
from common.report.findings import WORDS, Marks, mark_findings, tally
from launch.app.forms import File, Form
from launch.app.models import Models

MOST_ROWS = 5_000  # of a file; more take minutes
SHOWN = 30  # studies
EXAMPLE = ("first-scanner.jsonl", "second-scanner.jsonl")
SIDES = ("first", "second")
STATED = (POSITIVE, UNCERTAIN)


class Study(NamedTuple):
    """A study as the page shows it; `labels` counts the findings that one system states or suspects, not the other."""

    id: str
    reference: str
    outputs: list[list[Piece]]  # of each system
    marks: list[Marks]
    labels: int
    distance: float


def blank(models: Models) -> dict[str, Any]:
    """The page before files are given."""
    return {"result": None, "most": MOST_ROWS, "labeler": models.sources.labeler}


def answer(models: Models, form: Form) -> dict[str, Any]:
    """The page with the comparison of two files. Raises UserError for files that cannot be compared."""
    files = example() if form.text("example") else chosen(form)
    labels = [f"{letter} · {printable(file.name, 60)}" for letter, file in zip("AB", files, strict=True)]
    rows = [parse_rows(file.content, label, ROW) for file, label in zip(files, labels, strict=True)]
    for own, label in zip(rows, labels, strict=True):
        if len(own) > MOST_ROWS:
            raise UserError(f"{label}: {len(own):,} rows; at most {MOST_ROWS:,} here, or use `medreport compare`")
    systems = same_studies(dict(zip(system_names(files), rows, strict=True)), labels)
    measured, notes, classes = measure(systems, models.fast_labeler)
    scores = chosen_scores(measured, None)
    found = compare(measured, scores)
    own = [{name: value for one in measures for name, value in values(one).items()} for measures in measured.values()]
    studies = sorted(
        studies_of(list(systems.values()), classes), key=lambda study: (study.labels, study.distance), reverse=True
    )
    return {
        **blank(models),
        "result": {
            "names": list(systems),
            "count": len(studies),
            "summary": summary(found),
            "scores": [
                {"row": row, "first": score_text(own[0].get(score)), "second": score_text(own[1].get(score))}
                for score in scores
                for row in drawn([one for one in found if one.score == score])
                for row in [row | {"score": score}]
            ],
            "notes": notes,
            "tallies": [tally([study.marks[side] for study in studies]) for side in range(2)],
            "differing": sum(study.labels > 0 for study in studies),
            "studies": studies[:SHOWN],
        },
    }


def chosen(form: Form) -> list[File]:
    """The two files of a form. Raises UserError where one is missing."""
    if missing := [letter for letter, side in zip("AB", SIDES, strict=True) if not form.files.get(side)]:
        raise UserError(f"File {missing[0]} is missing: choose two prediction files, or the example.")
    return [form.files[side][0] for side in SIDES]


def example() -> list[File]:
    """The example's files."""
    folder = resources.files("launch.app").joinpath("examples")
    return [File(name, folder.joinpath(name).read_bytes()) for name in EXAMPLE]


def system_names(files: Sequence[File]) -> list[str]:
    """The names of the files, told apart by a letter where they are the same."""
    names = [printable(PurePath(file.name).stem or "file", 40) for file in files]
    return names if names[0] != names[1] else [f"{name} ({letter})" for name, letter in zip(names, "AB", strict=True)]


def studies_of(systems: Sequence[Sequence[dict[str, Any]]], classes: Sequence[Int[np.ndarray, "N 14"]]) -> list[Study]:
    """The studies of two systems; `classes` are those of the references and of each system's reports."""
    studies = []
    for number, (first, second) in enumerate(zip(*systems, strict=True)):
        expected, one, two = (own[number] for own in classes)
        texts = first["prediction"], second["prediction"]
        studies.append(
            Study(
                str(first["id"]),
                first["reference"],
                [differences(first["reference"], text) for text in texts],
                [mark_findings(stated(expected), stated(own)) for own in (one, two)],
                int((np.isin(one, STATED) != np.isin(two, STATED)).sum()),
                1 - difflib.SequenceMatcher(a=texts[0].split(), b=texts[1].split(), autojunk=False).ratio(),
            )
        )
    return studies


def stated(classes: Int[np.ndarray, " 14"]) -> list[str]:
    """What a report states or suspects; what it denies changes no score."""
    return [WORDS[int(one)] + name for one, name in zip(classes, FINDINGS, strict=True) if one in STATED]
