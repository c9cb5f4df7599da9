"""The numbers of a data card: counts, lengths, leaks, labels and identifiers. No text and no id of a report."""

import argparse
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from common.data.identifiers import Identifiers, can_check, count_identifiers
from common.data.tokenizers import load_tokenizer
from common.io.numbers import rounded
from common.metrics.tokenize import tokens_of
from launch.data_card.labels import Labels, count_labels
from launch.data_card.leaks import Leak, leaks, repeated_within
from launch.data_card.reading import APART, DataSet, Record
from retsta_jax.labelling.duplicates import DuplicateConfig

QUANTILES = {"least": 0.0, "5%": 0.05, "median": 0.5, "95%": 0.95, "most": 1.0}
TEXTS = {"report": "Reports", "standard": "Standard reports", "indication": "Indications"}  # fields of a record
LONGEST = 0.995  # quantile at which histograms end; what is longer is counted there
BINS = 30


class Lengths(NamedTuple):
    """Of the texts of one field in one unit: of each split the lengths, without records that have no such text."""

    field: str
    unit: str
    splits: Mapping[str, Sequence[int]]


class Measures(NamedTuple):
    """All numbers of a card."""

    counts: Mapping[str, int]
    images: Mapping[str, int]
    patients: Mapping[str, int]
    languages: Mapping[str, int]
    lengths: Sequence[Lengths]
    leaks: Sequence[Leak]
    repeated: Mapping[str, int]
    labels: Labels | None
    identifiers: Mapping[str, Identifiers] | None


def measure(chosen: argparse.Namespace, data: DataSet) -> Measures:
    """Measure a data set. Raises UserError for a labeler, terminology or tokenizer that cannot be read."""
    splits = data.splits
    return Measures(
        {name: len(records) for name, records in splits.items()},
        {name: sum(record.images for record in records) for name, records in splits.items()},
        {
            name: len({data.patients[record.id] for record in records if record.id in data.patients})
            for name, records in splits.items()
        },
        Counter(record.language for records in splits.values() for record in records),
        measure_lengths(data, None if chosen.tokenizer is None else load_tokenizer(chosen.tokenizer).encode),
        leaks(data),
        repeated_within(data),
        count_labels(chosen, data),
        {name: count_identifiers(record.text for record in records) for name, records in splits.items()}
        if can_check()
        else None,
    )


def measure_lengths(data: DataSet, encode: Callable[[str], Sequence[int]] | None) -> list[Lengths]:
    """The lengths of all texts in characters, words (of Chinese: characters) and, with `encode`, tokens."""
    units: dict[str, Callable[[Record, str], int]] = {
        "characters": lambda record, text: len(text),
        "words": lambda record, text: len(tokens_of(text, "zh" if record.language == "zh" else "en")),
    }
    if encode is not None:
        units["tokens"] = lambda record, text: len(encode(text))
    return [
        Lengths(field, unit, {
            name: [count(record, getattr(record, field)) for record in records if getattr(record, field)]
            for name, records in data.splits.items()
        })
        for field in TEXTS
        if any(getattr(record, field) for records in data.splits.values() for record in records)
        for unit, count in units.items()
    ]  # fmt: skip


def quantiles(lengths: Sequence[int]) -> dict[str, float]:
    """Some quantiles, by linear interpolation; empty where there are no lengths."""
    if not lengths:
        return {}
    return dict(zip(QUANTILES, np.quantile(lengths, list(QUANTILES.values())).tolist(), strict=True))


def histogram(lengths: Lengths) -> dict[str, list[tuple[int, float]]]:
    """Of each split points (length, percent of its texts), the same bins for all; the last one has what is longer."""
    every = [length for own in lengths.splits.values() for length in own]
    end = max(int(np.quantile(every, LONGEST)), 1)
    width = -(-end // BINS)
    edges = np.arange(0, end + width, width)
    found = {}
    for name, own in lengths.splits.items():
        if own:
            counts = np.bincount(np.minimum(np.array(own) // width, len(edges) - 1), minlength=len(edges))
            middles = (edges + width // 2).tolist()
            found[name] = list(zip(middles, (100 * counts / len(own)).tolist(), strict=True))
    return found


def as_object(data: DataSet, found: Measures, layout: str, command: str) -> dict[str, Any]:
    """The measures for JSON."""
    config = DuplicateConfig()
    return rounded({
        "layout": layout,
        "command": command,
        "splits": {
            name: {"records": count, "images": found.images[name], "patients": found.patients[name] or None}
            for name, count in found.counts.items()
        },
        "languages": dict(sorted(found.languages.items())),
        "quarantine": data.quarantine.counts(),
        "notes": dict(data.quarantine.notes),
        "lengths": {
            field: {own.unit: {name: quantiles(values) for name, values in own.splits.items()}
                    for own in found.lengths if own.field == field}
            for field in dict.fromkeys(own.field for own in found.lengths)
        },
        "duplicates": {
            "threshold": config.threshold,
            "ngram": config.ngram,
            "within": dict(found.repeated),
            "across": [leak._asdict() for leak in found.leaks],
            "patients_apart": layout in APART or None,
        },
        "labels": None if found.labels is None else {"by": found.labels.by, "reports": found.labels.counts},
        "identifiers": None
        if found.identifiers is None
        else {name: own._asdict() for name, own in found.identifiers.items()},
    })  # fmt: skip
