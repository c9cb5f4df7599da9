"""A labeler over several processes: each reads a share of the texts, and all get the labels of all texts."""

from collections.abc import Sequence
from typing import NamedTuple

import jax
import numpy as np
from jax.experimental import multihost_utils

from common.clinical.labeler import Labeler, Labels, check_labels, read_texts
from common.clinical.report_labeler import Labelled


class SharedLabeler(NamedTuple):
    """A `ReportLabeler` whose `label` all processes must call with the same texts."""

    labeler: Labeler

    @property
    def labels(self) -> tuple[str, ...]:
        """The names of the labels."""
        return self.labeler.labels

    def label(self, texts: Sequence[str], ids: Sequence[object] | None = None) -> Labelled:
        """The classes of texts. Raises UserError as `Labeler.label` does."""
        found = read_shared(self.labeler, texts, self.labeler.batch_size)
        check_labels(self.labeler, found.finite, range(1, len(texts) + 1) if ids is None else ids)
        return self.labeler.labelled(found)

    def record(self) -> dict[str, str]:
        """The record of the labeler."""
        return self.labeler.record()


def read_shared(labeler: Labeler, texts: Sequence[str], batch_size: int) -> Labels:
    """`read_texts` where all processes have all texts and each reads a share. The labels of all texts."""
    count = jax.process_count()
    if count == 1:
        return read_texts(labeler, texts, batch_size)
    share = -(-len(texts) // count)
    found = read_texts(labeler, texts[jax.process_index() * share :][:share], batch_size)
    missing = share - len(found.classes)  # the last shares may be shorter
    own = tuple(np.pad(part, [(0, missing)] + [(0, 0)] * (part.ndim - 1)) for part in found[:3])
    own, counts = multihost_utils.process_allgather((own, np.array([found.cut, found.unknown])))
    parts = (part.reshape(-1, *part.shape[2:])[: len(texts)] for part in own)
    return Labels(*parts, *map(int, counts.sum(0)))
