"""`medreport bench speculation`: what drafts are worth. No peer; the ratios are between our own ways.

Greedy reports with drafts of the training reports: tokens accepted a pass. Rollouts at temperature 1, twice for the
same studies: in the second round, drafts of what the first one wrote for the same study (arXiv:2511.13841), of the
training reports, of both, or none. The policy is the same in both rounds, which an update would change by little.
"""

import functools
from pathlib import Path
from typing import Any

from common.generation.sampling import Sampling
from launch.bench.report_model import ReportModel, Shape, report_model
from launch.bench.slots import Work, corpus, described, draft_counts, slot_work
from launch.bench.timing import Timed, about, against_goals, in_turns, peak_bytes, rates, timed

GOALS = {"greedy_tokens_per_pass": 3.5, "history_to_none": 1.5}
SOURCES = {"history": (True, False), "reports": (False, True), "both": (True, True)}  # references, table


def measure(shape: Shape, reports: Path, directory: Path) -> dict[str, Any]:
    """Tokens accepted a pass for each number of drafts, and the rollouts with their rates."""
    model = report_model(shape, reports, directory)
    greedy: dict[str, Any] = {}
    expected = None
    for name, count in draft_counts(shape).items():
        rows, passes = slot_work(shape, model, model.prompts, count).counted()
        tokens = [row.token_ids for (row,) in rows]
        expected = expected or tokens
        differing = sum(own != other for own, other in zip(tokens, expected, strict=True))
        greedy[name] = described(rows, passes) | {"rows_that_differ": differing}
    rollouts = _rollouts(shape, model)
    samples = {name: case["samples_per_second"] for name, case in rollouts.items()}
    ratios = {"greedy_tokens_per_pass": max(case["tokens_per_pass"] for case in greedy.values())}
    ratios |= {
        f"{source}_to_none": max(rate for name, rate in samples.items() if name.startswith(source)) / samples["none"]
        for source in SOURCES
    }
    result = about("speculation", shape) | {"reports": corpus(model, expected or [])}
    result |= {"greedy": greedy, "rollouts": rollouts}
    return result | against_goals(ratios, GOALS) | {"peak_bytes": peak_bytes()}


def _rollouts(shape: Shape, model: ReportModel) -> dict[str, Any]:
    """The second round of rollouts, in turns: all prompts are in slots at the same time, as in a training step."""
    prompts = model.prompts[: shape.prompts]
    once = functools.partial(slot_work, shape, model, prompts, sampling=Sampling(1.0), group=shape.group)
    history = [[one.token_ids for one in row] for row in once(0, seed=0).write()]
    ways: dict[str, Work] = {"none": once(0, seed=1)}
    for count in shape.drafts:
        for source, (referred, with_table) in SOURCES.items():
            references = history if referred else ()
            ways[f"{source}_{count}"] = once(count, seed=1, references=references, with_table=with_table)
    cases: dict[str, Any] = {}
    works: dict[str, Timed] = {}
    expected = None
    for name, way in ways.items():
        rows, passes = way.counted()
        tokens = [one.token_ids for row in rows for one in row]
        expected = expected or tokens
        differing = sum(own != other for own, other in zip(tokens, expected, strict=True))
        cases[name] = described(rows, passes) | {"rows_that_differ": differing}
        works[name] = functools.partial(timed, way.write)
    seconds = in_turns(works, shape.repetitions)
    samples = len(prompts) * shape.group
    return {name: rates(seconds[name], samples, "samples") | cases[name] for name in ways}
