"""The records that readers yield, and the quarantine of records that cannot be used.

A reader raises UserError for a file it cannot trust, and quarantines a single record that is well-formed but
unusable. Nothing is dropped silently: the quarantine counts records by reason and is written beside the run.
"""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol, TypeVar

from common.errors import UserError
from common.io.jsonl import write_rows
from common.metrics.tokenize import Language

SPLITS = ("train", "validation", "test")


class Identified(Protocol):
    """A record with an id that is unique in its data set."""

    @property
    def id(self) -> str: ...


Record = TypeVar("Record", bound=Identified)


@dataclass(frozen=True)
class ReportPair:
    """A free-text report (`source`) and the same report in standard form (`target`)."""

    id: str
    source: str
    target: str
    language: Language = "en"


@dataclass
class Quarantine:
    """Records left out of a run, as (id, reason), and `notes` that count what is left out of others.

    Report text is patient data and never enters it.
    """

    entries: list[tuple[str, str]] = field(default_factory=list)
    cleaning: str = ""  # of the reports that were read, where a config had a choice
    notes: dict[str, int] = field(default_factory=dict)

    def note(self, what: str, count: int) -> None:
        """Count what is left out of records that stay, or altered in them, such as "views left out"."""
        self.notes[what] = self.notes.get(what, 0) + count

    def add(self, id: str, reason: str) -> None:
        """Leave record `id` out. Reasons are short and fixed, so that counting them says something."""
        self.entries.append((id, reason))

    def __len__(self) -> int:
        return len(self.entries)

    def counts(self) -> dict[str, int]:
        """Number of records by reason, the most frequent first."""
        return dict(Counter(reason for _, reason in self.entries).most_common())

    def summary(self) -> str:
        """One line for the end of a run."""
        if not self.entries:
            return "0 records quarantined"
        reasons = ", ".join(f"{reason}: {count}" for reason, count in self.counts().items())
        return f"{len(self)} record{'s' if len(self) > 1 else ''} quarantined ({reasons})"

    def write(self, path: str | Path) -> None:
        """Write rows `{"id", "reason"}` as JSON lines; an empty quarantine writes an empty file."""
        write_rows(path, ({"id": id, "reason": reason} for id, reason in self.entries))


def check_splits(splits: Mapping[str, Sequence[Identified]]) -> None:
    """Raise UserError where a split is empty or an id occurs twice, in one split or across splits."""
    seen: dict[str, str] = {}
    for name, records in splits.items():
        if not records:
            raise UserError(f"the {name} split is empty; expected at least one record")
        for record in records:
            first = seen.setdefault(record.id, name)
            if first != name:
                raise UserError(
                    f"id {record.id} is in the {first} split and in the {name} split; "
                    f"remove it from one, or the {name} result is measured on known records"
                )
        if len({record.id for record in records}) < len(records):
            repeated, count = Counter(record.id for record in records).most_common(1)[0]
            raise UserError(f"id {repeated} occurs {count} times in the {name} split; ids must be unique, keep one")
