"""Labelled reports to train a labeler on: phantoms, the gold labels of Open-i, or your own rows.

Phantom reports come intact and damaged in the way a policy writes early in training: cut, repeated, mixed, scrambled.
Damaged text is labelled by the rules of `common.phantoms.labels`.
"""

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np

from common.data.cleaning import r2gen_clean_iu
from common.data.openi import count_unknown_ids, openi_splits, read_openi, read_test_ids
from common.data.records import Quarantine, check_splits
from common.errors import UserError
from common.io.rows import read_rows
from common.io.terminal import printable
from common.io.text import csv_rows
from common.models.bert import ClassifierConfig
from common.phantoms.labels import label_report
from common.phantoms.study import sample_study
from common.phantoms.text import render_report

CHEXBERT = ClassifierConfig()
HELD_OUT = 0.1  # share of a file without validation rows of its own


@dataclass(frozen=True)
class LabeledReport:
    """A report and the class of each of its corpus's labels."""

    id: str
    text: str
    labels: tuple[int, ...]


class LabeledCorpus(NamedTuple):
    """Labels, their numbers of classes, and the splits; `tests` by name, none where there are none."""

    labels: tuple[str, ...]
    classes: tuple[int, ...]
    train: list[LabeledReport]
    validation: list[LabeledReport]
    tests: dict[str, list[LabeledReport]]


def phantom_corpus(train: int, validation: int, test: int, damaged: float, seed: int) -> LabeledCorpus:
    """Reports of phantom studies of one seed; this share of the training and validation texts is damaged.

    The test splits are `written`, reports as they are, and `damaged`, all of them damaged.
    """
    total = train + validation + test
    written = [render_report(sample_study(seed, index)) for index in range(total)]
    whole = [
        LabeledReport(f"phantom-{seed}-{index:06d}", text, tuple(labels.tolist()))
        for index, (text, labels) in enumerate(written)
    ]
    broken = []
    for index, report in enumerate(whole):
        random = np.random.default_rng([seed, index])
        text = damage(report.text, whole[random.integers(total)].text, random)
        broken.append(LabeledReport(f"{report.id}-damaged", text, tuple(label_report(text).tolist())))
    chosen = np.random.default_rng(seed).random(total) < damaged
    mixed = [broken[index] if chosen[index] else whole[index] for index in range(total)]
    start = train + validation
    tests = {"written": whole[start:], "damaged": broken[start:]}
    return LabeledCorpus(CHEXBERT.labels, CHEXBERT.classes, mixed[:train], mixed[train:start], tests)


def damage(text: str, other: str, random: np.random.Generator) -> str:
    """The text as a poor policy might write it: one to three accidents, with sentences of `other` in one of them."""
    for kind in random.choice(len(ACCIDENTS), size=random.integers(1, 4), replace=False):
        text = ACCIDENTS[kind](text, other, random)
    return text


def _cut(text: str, _: str, random: np.random.Generator) -> str:
    return text[: random.integers(len(text) + 1)]


def _beheaded(text: str, _: str, random: np.random.Generator) -> str:
    words = text.split()
    return " ".join(words[random.integers(len(words) + 1) :])


def _shuffled(text: str, _: str, random: np.random.Generator) -> str:
    return " ".join(random.permutation(sentences(text)).tolist())


def _mixed(text: str, other: str, random: np.random.Generator) -> str:
    both = random.permutation([*sentences(text), *sentences(other)]).tolist()
    return " ".join(both[: random.integers(1, len(both) + 1)])


def _repeated(text: str, _: str, random: np.random.Generator) -> str:
    words = text.split()
    start = int(random.integers(len(words) + 1))
    again = words[start : start + int(random.integers(1, 9))] * int(random.integers(1, 4))
    return " ".join([*words[:start], *again, *words[start:]])


def _thinned(text: str, _: str, random: np.random.Generator) -> str:
    return " ".join(word for word in text.split() if random.random() > 0.15)


def _scrambled(text: str, _: str, random: np.random.Generator) -> str:
    parts = sentences(text)
    for index in range(len(parts)):
        if random.random() < 0.3:
            parts[index] = " ".join(random.permutation(parts[index].split()).tolist())
    return " ".join(parts)


def _plain(text: str, _: str, __: np.random.Generator) -> str:
    return r2gen_clean_iu(text)


ACCIDENTS = (_cut, _beheaded, _shuffled, _mixed, _repeated, _thinned, _scrambled, _plain)


def sentences(text: str) -> list[str]:
    """The text's sentences, each with its full stop."""
    return [part if part.endswith(".") else f"{part}." for part in text.split(". ") if part]


def openi_corpus(
    archive: Path, gold: Path, test_ids: Path, validation: int, seed: int, quarantine: Quarantine
) -> LabeledCorpus:
    """Reports of Open-i (FINDINGS, then IMPRESSION) with their gold labels, NegBio's test ids as the test split.

    A few reports have neither section: their text is empty. Test ids without a gold label are counted in `quarantine`.
    Raises UserError where files do not fit together.
    """
    labels, rows = _read_gold(gold)
    studies = {study.id: study for study in read_openi(archive)}
    if missing := [id for id in rows if id not in studies]:
        raise UserError(f"{gold}: {len(missing)} reports, such as {printable(missing[0])}, are not in {archive}")
    reports = []
    for id, classes in rows.items():
        text = "\n".join(filter(None, (studies[id].findings, studies[id].impression)))
        reports.append(LabeledReport(id, text, classes))
    chosen = read_test_ids(test_ids)
    count_unknown_ids(chosen, rows, quarantine)
    splits = openi_splits(reports, chosen, validation, seed)
    tests = {"test": splits["test"]}
    return LabeledCorpus(labels, (2,) * len(labels), splits["train"], splits["validation"], tests)


def _read_gold(file: Path) -> tuple[tuple[str, ...], dict[str, tuple[int, ...]]]:
    """Labels, and 0 or 1 for each of them, of every report of `openi_gld_std14.csv`."""
    lines = csv_rows(file)
    _, header = next(lines, (1, []))
    if header[:1] != ["filename"] or len(header) < 2:
        found = printable(repr(",".join(header[:3])))
        raise UserError(f"{file}: expected a first line 'filename,LABEL,...', found {found}")
    rows: dict[str, tuple[int, ...]] = {}
    for number, (id, *values) in lines:
        if not set(values) <= {"0", "1"} or id in rows:
            raise UserError(f"{file}, line {number}: expected a new id and {len(header) - 1} values that are 0 or 1")
        rows[id] = tuple(map(int, values))
    return tuple(header[1:]), rows


def rows_corpus(file: Path, validation: str, test: str, seed: int) -> LabeledCorpus:
    """Rows {"id", "report", "labels"} with CheXbert's classes; without validation rows, a tenth is held out.

    Raises UserError naming the row of a malformed one.
    """
    train = read_labeled(file)
    if validation:
        held_out = read_labeled(Path(validation))
    else:
        order = sorted(train, key=lambda report: hashlib.sha256(f"{seed}/{report.id}".encode()).digest())
        chosen = {report.id for report in order[: max(int(len(train) * HELD_OUT), 1)]}
        held_out = [report for report in train if report.id in chosen]
        train = [report for report in train if report.id not in chosen]
    tests = {"test": read_labeled(Path(test))} if test else {}
    check_splits({"train": train, "validation": held_out, **tests})
    return LabeledCorpus(CHEXBERT.labels, CHEXBERT.classes, train, held_out, tests)


def read_labeled(file: Path) -> list[LabeledReport]:
    """The labelled reports of a file of rows. Raises UserError for labels that are not CheXbert's."""
    reports = []
    for row in read_rows(file, {"id": str | int, "report": str, "labels": list}):
        if not fits(row["labels"], CHEXBERT.classes):
            raise UserError(
                f"{file}: row {row['id']!r}: 'labels' must be {len(CHEXBERT.classes)} class ids in CheXbert's order, "
                "from 0 to 3, and 0 or 1 for the last (No Finding)"
            )
        reports.append(LabeledReport(str(row["id"]), row["report"], tuple(row["labels"])))
    return reports


def fits(labels: Sequence[object], classes: Sequence[int]) -> bool:
    """Whether these are as many class ids as there are labels, each one of its label's classes."""
    if len(labels) != len(classes):
        return False
    return all(type(label) is int and 0 <= label < count for label, count in zip(labels, classes, strict=True))
