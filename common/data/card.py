"""`README.md` beside data that a command writes: a data set card as the Hugging Face hub shows it.

It says what the data were made of, by which command, what was left out and why, and what they are for. It holds counts
alone, no text or id of a report. The licence is left to who publishes.
"""

import argparse
from collections.abc import Mapping, Sequence
from importlib.metadata import version
from typing import Any, NamedTuple

from common.data.identifiers import Identifiers
from common.io.exports import CARD_MARK
from common.io.mirror import with_addresses
from common.io.tables import markdown_table
from common.options import command_line

SIZES = ((10**3, "n<1K"), (10**4, "1K<n<10K"), (10**5, "10K<n<100K"), (10**6, "100K<n<1M"), (10**7, "1M<n<10M"))
INTENDED = (
    "Training and evaluation of models that write or standardize medical reports, for research. Nothing that is learnt "
    "from these data is a basis for a diagnosis or a treatment."
)
PRIVACY = (
    "Reports are data of patients. Whether these may be used, passed on or published, and what must be removed from "
    "them first, is the decision of those responsible for the source, whose terms hold for this copy as well."
)


class DataCard(NamedTuple):
    """What is known of a data set when it is written: records by split, and by reason those that were left out."""

    title: str
    source: str  # in a line
    command: str  # that writes it
    counts: Mapping[str, int]
    left_out: Mapping[str, int]
    notes: Mapping[str, int]  # what was left out of records that stay
    languages: Sequence[str]
    tasks: Sequence[str]  # by their names on the hub
    identifiers: Identifiers | None  # None: not checked
    fields: Mapping[str, str]  # of a record, and what each is
    made_with: Mapping[str, str] = {}  # what decided them beside the source, such as a model
    limits: str = ""  # of their use


def card_text(card: DataCard) -> str:
    """The card; the same data and options give the same text."""
    head = {
        "license": "other  # choose yours; the terms of the source hold as well",
        "language": f"[{', '.join(sorted(card.languages))}]",
        "task_categories": f"[{', '.join(card.tasks)}]",
        "tags": "[medical]",
        "size_categories": f"[{size_category(sum(card.counts.values()))}]",
    }
    front = "".join(f"{name}: {value}\n" for name, value in head.items())
    left_out = [(reason, f"{count:,}") for reason, count in sorted(card.left_out.items())]
    checked = "not checked" if card.identifiers is None else card.identifiers.summary()
    made = [
        f"- source: {with_addresses(card.source)}",
        f"- software: medreport-jax {version('medreport-jax')}",
        *(f"- {what}: {text}" for what, text in card.made_with.items()),
        *(f"- {what}: {count:,}" for what, count in card.notes.items() if count),
        f"\n```\n{with_addresses(card.command)}\n```",
    ]
    sections = {
        "Records": markdown_table(("split", "records"), [(name, f"{n:,}") for name, n in card.counts.items()]),
        "Fields": markdown_table(("field", "what it is"), card.fields.items()),
        "Left out": markdown_table(("reason", "records"), left_out) if left_out else "No record was left out.",
        "How it was made": "\n".join(made),
        "Names, dates and numbers of patients": f"By rules, which find some of them: {checked}. {PRIVACY}",
        "Intended use": INTENDED,
        "Limits": card.limits,
    }
    body = "\n\n".join(f"## {name}\n\n{text}" for name, text in sections.items() if text)
    return f"---\n{front}---\n\n{CARD_MARK}\n\n# {card.title}\n\n{body}\n"


def size_category(records: int) -> str:
    """The hub's name for a number of records."""
    return next((name for limit, name in SIZES if records < limit), "n>10M")


def own_command(program: str, parser: argparse.ArgumentParser, chosen: argparse.Namespace, **in_place: Any) -> str:
    """The command that was given, without options at their defaults; `in_place` are shown for the given values."""
    shown = {}
    for name, value in vars(chosen).items():
        if value != parser.get_default(name):
            shown[name] = in_place.get(name, [] if value is True else value)
    return command_line(program, shown)
