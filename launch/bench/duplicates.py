"""`medreport bench duplicates`: the time and memory that near-duplicates among many reports take, on a CPU.

Reports are those of the embedded corpus, in both languages. Studies are drawn so that the logarithm of their number is
uniform: a few are reported very often, as in a clinic, and most of them hardly ever.
"""

import dataclasses
import resource
import sys
import time
from typing import Any

import numpy as np

from common.bounds import Count, Share, check_numbers
from launch.bench.timing import about


@dataclasses.dataclass(frozen=True)
class Shape:
    """What is measured."""

    reports: Count = 1_000_000
    studies: Count = 100_000  # of which the reports are drawn
    threshold: Share = 0.8  # similarity from which on a report is a near-duplicate


def measure(shape: Shape) -> dict[str, Any]:
    """What is removed within findings and by text alone, the seconds for both, and the most memory of the process.

    Raises UserError for a shape out of bounds.
    """
    from retsta_jax.labelling.duplicates import DuplicateConfig, deduplicate

    check_numbers(shape)
    reports = make_reports(shape)
    print(f"made {len(reports):,} reports", file=sys.stderr, flush=True)
    started = time.perf_counter()
    found = deduplicate(reports, DuplicateConfig(threshold=shape.threshold))
    seconds = time.perf_counter() - started
    exact = sum(row.kind == "exact" for row in found.removed)
    return {
        **about("duplicates", shape),
        "characters": float(np.mean([len(text) for _, text, _ in reports])),
        "states": len({states for _, _, states in reports}),
        "removed": {"exact": exact, "near": len(found.removed) - exact},
        "plain_text": {name: getattr(found.plain_text, name) for name in ("removed", "different", "states_lost")},
        "seconds": seconds,
        "reports_per_second": len(reports) / seconds,
        "peak_bytes": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024,  # with the reports and JAX
    }


def make_reports(shape: Shape) -> list[tuple[int, str, frozenset[Any]]]:
    """(id, text, findings) of reports as clinicians write them."""
    from retsta_jax.corpus.fundus import sample_study
    from retsta_jax.corpus.wording import original_report
    from retsta_jax.terminology.terms import LANGUAGES

    studies: dict[int, tuple[Any, frozenset[Any]]] = {}
    reports = []
    for index in range(shape.reports):
        rng = np.random.default_rng([0, index])
        number = int(shape.studies ** rng.random())
        if number not in studies:
            study = sample_study(np.random.default_rng([1, number]))
            studies[number] = study, frozenset(study.findings)
        study, states = studies[number]
        reports.append((index, original_report(study, LANGUAGES[index % 2], rng, rng.random()), states))
    return reports
