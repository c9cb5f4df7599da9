"""`medreport bench standardize --run DIR`: fundus reports in two languages, standardized by a trained run.

`static_batches` are batches of one bucket without drafts, each waiting for its longest report. The others are
`retsta standardize` with each value of `--draft`. All write the same texts. There is no peer: `slots` has one.

Modules of `retsta_jax` are imported where they are used: they need packages that other benchmarks do without.
"""

import dataclasses
import functools
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any, get_args

import jax

from common.bounds import Count, check_numbers
from common.data.cleaning import clean_report
from common.data.records import Quarantine
from common.generation.draft_option import Draft
from common.generation.generate import batches, continuations, make_generator, padded, row_keys
from launch.bench.timing import Timed, about, against_goals, in_turns, peak_bytes, rates, timed

if TYPE_CHECKING:
    from retsta_jax.standardize import Standardized, Trained

GOALS = {"to_static_batches": 2.0, "tokens_per_pass": 2.5}
Way = Callable[[], "list[Standardized]"]  # writes all reports
DRAFTS = tuple(draft for draft in get_args(Draft) if draft != "auto")


@dataclasses.dataclass(frozen=True)
class Shape:
    """What is measured."""

    reports: Count = 512  # generated as the run's test split is
    slots: Count = 32  # and rows of a static batch
    repetitions: Count = 2


def measure(shape: Shape, run: Path) -> dict[str, Any]:
    """Each way with its rate, and the ratio of the best to static batches. Raises UserError."""
    from retsta_jax.data import load_splits
    from retsta_jax.standardize import load_trained

    check_numbers(shape)
    trained = load_trained(run)
    data = dataclasses.replace(trained.config.data, corpus="fundus", language="both", test_size=shape.reports)
    config = dataclasses.replace(trained.config, data=data)
    reports = [pair.source for pair in load_splits(config, Quarantine()).test][: shape.reports]
    ways: dict[str, Way] = {"static_batches": functools.partial(_static, trained, reports, shape)}
    for draft in DRAFTS:
        ways["slots" if draft == "none" else f"slots_{draft}"] = _slots(trained, run, reports, shape, draft)
    written = {name: way() for name, way in ways.items()}
    works: dict[str, Timed] = {name: functools.partial(timed, way) for name, way in ways.items()}
    seconds = in_turns(works, shape.repetitions)
    cases: dict[str, Any] = {}
    for name, rows in written.items():
        differing = sum(own.text != other.text for own, other in zip(rows, written["static_batches"], strict=True))
        tokens, drafted = sum(row.tokens for row in rows), sum(row.drafted for row in rows)
        cases[name] = rates(seconds[name], len(rows), "reports") | {
            "tokens_per_pass": tokens / (tokens - drafted),
            "rows_that_differ": differing,
        }
    static = cases["static_batches"]["reports_per_second"]
    ratios = {f"{name}_to_static_batches": case["reports_per_second"] / static for name, case in cases.items()}
    del ratios["static_batches_to_static_batches"]
    ratios["to_static_batches"] = max(ratios.values())
    ratios["tokens_per_pass"] = max(case["tokens_per_pass"] for case in cases.values())
    result = about("standardize", shape) | {"cases": cases}
    return result | against_goals(ratios, GOALS) | {"peak_bytes": peak_bytes()}


def _slots(trained: "Trained", run: Path, reports: list[str], shape: Shape, draft: Draft) -> Way:
    from retsta_jax.standardize import draft_table, standardize

    table = draft_table(trained, run, draft)

    def write() -> "list[Standardized]":
        size = -(-shape.slots // trained.layout.row_shards)
        return list(standardize(trained, trained.variables, reports, size, draft=draft, table=table))

    return write


def _static(trained: "Trained", reports: list[str], shape: Shape) -> "list[Standardized]":
    from retsta_jax.prompts import prompt_tokens
    from retsta_jax.standardize import Standardized, decode_settings

    tokenizer = trained.base.tokenizer
    run = make_generator(trained.base.config, decode_settings(trained))
    prompts = [prompt_tokens(tokenizer, trained.config.instruction, clean_report(report)) for report in reports]
    written: list[Any] = [None] * len(reports)
    for rows, length in batches([len(prompt) for prompt in prompts], shape.slots):
        batch = padded([prompts[row] for row in rows], length, left=True)
        found = jax.device_get(run(trained.variables, batch, row_keys(0, rows)))
        for index, row in enumerate(rows):
            (one,) = continuations(jax.tree.map(lambda leaf, index=index: leaf[index], found))
            text = clean_report(tokenizer.decode(one.token_ids[:-1] if one.stopped else one.token_ids))
            written[row] = Standardized(text, one.stopped, len(one.token_ids))
    return written
