"""How often reports of each split state a finding: by a labeler, a terminology, their codes, or the source's labels."""

import argparse
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

from common.clinical.labeler import load_labeler
from common.clinical.report_labeler import ReportLabeler
from common.clinical.scores import default_labeler
from common.metrics.clinical import FINDINGS
from launch.data_card.reading import DataSet, Record
from retsta_jax.codes import head, parse_codes
from retsta_jax.terminology.check import load_terminology
from retsta_jax.terminology.matching import find_terms
from retsta_jax.terminology.terms import SHIPPED, Terminology

POSITIVE, UNCERTAIN = 1, 3  # classes of CheXbert
FUNDUS = ("fundus", "ffa-ir", "odir", "pairs")  # layouts whose reports are read by the shipped terminology


class Labels(NamedTuple):
    """`counts[label][split]`: reports that state the label, the most frequent first; `by` says what told them."""

    by: str
    counts: Mapping[str, Mapping[str, int]]
    notes: Sequence[str] = ()


def count_labels(chosen: argparse.Namespace, data: DataSet) -> Labels | None:
    """What the reports state; None where nothing can tell. Raises UserError."""
    if chosen.labeler is not None:
        labeler = load_labeler(chosen.labeler, chosen.labeler_tokenizer, option="--labeler-tokenizer")
        return _by_labeler(data, labeler, f"the labeler {chosen.labeler}")
    if (rules := default_labeler(chosen.layout)) is not None:
        return _by_labeler(data, rules, "the rules for phantom reports")
    if chosen.layout == "openi-codes" or chosen.targets == "codes":
        return Labels(
            "the codes of the standard reports, by what stands before the first slash", _counted(data, _codes)
        )
    if chosen.terminology is not None or chosen.layout in FUNDUS:
        return _by_terms(data, load_terminology(chosen.terminology or SHIPPED), chosen.terminology)
    counts = _counted(data, lambda record: record.labels)
    return Labels("the labels of the source", counts) if counts else None


def _by_labeler(data: DataSet, labeler: ReportLabeler, name: str) -> Labels:
    records = [record for records in data.splits.values() for record in records]
    labelled = labeler.label([record.report for record in records], [record.id for record in records])
    stated = {
        record.id: [label for label, own in zip(labeler.labels, row, strict=True) if own in (POSITIVE, UNCERTAIN)]
        for record, row in zip(records, labelled.classes.tolist(), strict=True)
    }
    counts = _counted(data, lambda record: stated[record.id], labeler.labels)
    ending = ", uncertain ones included" if labeler.labels == FINDINGS else ""
    return Labels(f"{name}; positive{ending}", counts, list(labelled.notes().values()))


def _by_terms(data: DataSet, terms: Terminology, file: Path | None) -> Labels:
    def stated(record: Record) -> set[str]:
        matches = find_terms(record.standard or record.report, terms)
        return {
            terms.by_id[match.term].name("en")
            for match in matches
            if match.status != "absent" and terms.by_id[match.term].states
        }

    name = "the shipped terminology" if file is None else f"the terminology {file}"
    return Labels(f"{name}; present or suspected", _counted(data, stated))


def _codes(record: Record) -> set[str]:
    return {head(code) for code in parse_codes(record.standard)}


def _counted(data: DataSet, labels_of, order: Sequence[str] = ()) -> dict[str, dict[str, int]]:
    found = {
        name: Counter(label for record in records for label in set(labels_of(record)))
        for name, records in data.splits.items()
    }
    total: Counter[str] = sum(found.values(), Counter())
    names: Iterable[str] = order or sorted(total, key=lambda label: (-total[label], label))
    return {label: {name: found[name][label] for name in found} for label in names}
