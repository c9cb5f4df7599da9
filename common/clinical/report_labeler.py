"""The protocol of whatever reads the findings that a report states.

CheXbert and similar models (`common.clinical.labeler.Labeler`) are one implementation; the rules for phantom reports,
which only know the words of those reports, are another.
"""

from collections.abc import Sequence
from typing import NamedTuple, Protocol

import numpy as np
from jaxtyping import Int

from common.data.summary import Cut
from common.errors import UserError
from common.metrics.clinical import FINDINGS
from common.phantoms.labels import label_report


class Labelled(NamedTuple):
    """The classes of N texts, one column for each label; how many texts were cut and where, or have an unknown word."""

    classes: Int[np.ndarray, "N K"]
    cut: Cut = Cut(0, 0)
    unknown: int = 0

    def notes(self) -> dict[str, str]:
        """What to say of texts that were not read whole, by its name."""
        notes = {}
        if self.cut.reports:
            notes["labeler"] = (
                f"{self.cut.reports} different texts were longer than the labeler's {self.cut.limit} tokens and were "
                "cut"
            )
        if self.unknown:
            notes["unknown_to_labeler"] = (
                f"{self.unknown} different texts have words that the labeler's vocabulary lacks, as those of another "
                "language"
            )
        return notes


class ReportLabeler(Protocol):
    """A function from texts to classes (0 blank, 1 positive, 2 negative, 3 uncertain), and what it is."""

    @property
    def labels(self) -> tuple[str, ...]:
        """The names of the columns, for clinical scores those of `FINDINGS`."""

    def label(self, texts: Sequence[str], ids: Sequence[object] | None = None) -> Labelled:
        """The classes of each text. Raises UserError, which names one of `ids`, where there are none."""

    def record(self) -> dict[str, str]:
        """What tells this labeler from others: its name, and digests of what it has learnt."""


class PhantomRules:
    """The rules for phantom reports (`common.phantoms.labels`)."""

    labels = FINDINGS

    def label(self, texts: Sequence[str], ids: Sequence[object] | None = None) -> Labelled:
        """The classes of each text."""
        return Labelled(np.array([label_report(text) for text in texts], np.int8).reshape(-1, len(FINDINGS)))

    def record(self) -> dict[str, str]:
        """The name alone: rules have learnt nothing."""
        return {"name": "rules for phantom reports"}


def check_findings(labeler: ReportLabeler) -> None:
    """Raise UserError for a labeler of other labels than CheXbert's 14."""
    if labeler.labels != FINDINGS:
        raise UserError(
            f"the labeler has the labels {', '.join(labeler.labels)}; clinical scores need CheXbert's 14, so "
            "give CheXbert, or a labeler trained on its labels"
        )


def label_lists(
    labeler: ReportLabeler, lists: Sequence[Sequence[str]], ids: Sequence[object] | None = None
) -> tuple[list[Int[np.ndarray, "N 14"]], Labelled]:
    """The classes of each of several lists of texts, and what was found for the different texts in them, labelled once.

    `ids` are those of the texts of each list. Raises UserError for a labeler of other labels than CheXbert's 14, and
    as `label` does.
    """
    check_findings(labeler)
    index = {text: number for number, text in enumerate(dict.fromkeys(text for texts in lists for text in texts))}
    first: dict[str, object] = {}
    for texts in lists:
        for id_, text in zip(ids or range(1, len(texts) + 1), texts, strict=True):
            first.setdefault(text, id_)
    found = labeler.label(list(index), [first[text] for text in index])
    return [found.classes[[index[text] for text in texts]] for texts in lists], found


def classes_of_groups(
    labeler: ReportLabeler, groups: Sequence[Sequence[str]], ids: Sequence[object] | None = None
) -> list[Int[np.ndarray, "G K"]]:
    """The classes of the texts of each group, all of them labelled together: full batches, whatever the groups.

    `ids` are those of the groups, or their numbers from 1, for the error of `label`.
    """
    of_text = [id_ for group, id_ in zip(groups, ids or range(1, len(groups) + 1), strict=True) for _ in group]
    classes = labeler.label([text for group in groups for text in group], of_text).classes
    return np.split(classes, np.cumsum([len(group) for group in groups])[:-1]) if groups else []
