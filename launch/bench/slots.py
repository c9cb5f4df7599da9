"""`medreport bench slots [--peer]`: reports written for held-out indications, greedy, until each ends.

Static batches wait for their longest report; slots do not; drafts of the training reports save passes. All write the
same tokens. The peer (`launch.bench.peer_reports`) is transformers' `generate` with the same weights: in batches, with
its dynamic and its static cache, and its own drafts, of the text so far, which it has for one report at a time only.
`launch.bench.speculation` has what drafts are worth apart from slots.
"""

import dataclasses
import functools
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np

from common.generation.drafts import Table
from common.generation.generate import (
    Continuation,
    bucket,
    continuations,
    generate_rows,
    make_generator,
    padded,
    qwen2_slots,
    row_keys,
)
from common.generation.loop import Generated
from common.generation.sampling import GREEDY, Sampling
from common.generation.settings import DecodeSettings
from common.generation.slots import Slots
from common.training.parallel import DeviceLayout, device_put_tree, generation_layout
from common.types import PyTree
from launch.bench.report_model import ReportModel, Shape, lengths, report_model
from launch.bench.timing import Timed, about, against_goals, in_turns, peak_bytes, rates, timed

GOALS = {"to_transformers": 6.0, "to_static_batches": 2.5, "devices_to_one": 0.9}
PEERS = ("dynamic_cache", "static_cache")  # in batches
LOOKUP = 4  # tokens that transformers drafts at a time

Rows = list[list[Continuation]]


class Work(NamedTuple):
    """A way to write reports: `write()` does it, `counted()` returns the passes that it took too."""

    write: Callable[[], Rows]
    counted: Callable[[], tuple[Rows, int]]


def measure(shape: Shape, reports: Path, directory: Path, with_peer: bool) -> dict[str, Any]:
    """Each way with its rate, and the ratios of the best with drafts to the others."""
    model = report_model(shape, reports, directory)
    if not with_peer:
        return _measured(shape, model, None)
    from launch.bench.peer import Peer

    with Peer("launch.bench.peer_reports", {"directory": str(directory)}) as peer:
        return _measured(shape, model, peer)


def _measured(shape: Shape, model: ReportModel, peer: Any) -> dict[str, Any]:
    ours = batch_works(shape, model)
    alone = dataclasses.replace(shape, slots=1)
    few = model.prompts[: shape.single]
    ours |= {f"single_{name}": slot_work(alone, model, few, count) for name, count in draft_counts(shape).items()}
    cases: dict[str, dict[str, Any]] = {}
    tokens: dict[str, list[list[int]]] = {}
    works: dict[str, Timed] = {}
    for name, work in ours.items():
        rows, passes = work.counted()
        cases[name] = described(rows, passes)
        tokens[name] = [row.token_ids for (row,) in rows]
        works[name] = functools.partial(timed, work.write)
    theirs = _peer_works(shape, model, peer) if peer else {}
    for name, ask in theirs.items():
        tokens[name] = ask()["tokens"]
        works[name] = functools.partial(_seconds, ask)
    expected = tokens["static_batches"]
    seconds = in_turns(works, shape.repetitions)
    found: dict[str, Any] = {}
    for name, written in tokens.items():
        differing = sum(own != other for own, other in zip(written, expected, strict=False))
        found[name] = (
            rates(seconds[name], len(written), "reports") | cases.get(name, {}) | {"rows_that_differ": differing}
        )
    result = about("slots", shape) | {"reports": corpus(model, expected)}
    if peer:
        result["peer"] = peer.versions
    result["cases"] = found
    return result | against_goals(_ratios(found), GOALS) | {"best": _best(found), "peak_bytes": peak_bytes()}


def _ratios(cases: dict[str, Any]) -> dict[str, float]:
    """Of rates: the best way with drafts to the others, and what slots and drafts do for themselves."""

    def ratio(name: str, other: str) -> float:
        return cases[name]["reports_per_second"] / cases[other]["reports_per_second"]

    best = _best(cases)
    found = {"to_static_batches": ratio(best, "static_batches"), "to_slots": ratio(best, "slots")}
    found["slots_to_static_batches"] = ratio("slots", "static_batches")
    found["single_drafts_to_none"] = ratio(_best(cases, "single_drafts"), "single_none")
    if "dynamic_cache" in cases:
        found["to_transformers"] = ratio(best, "dynamic_cache")
        found["static_batches_to_transformers"] = ratio("static_batches", "dynamic_cache")
        found["single_to_prompt_lookup"] = ratio(_best(cases, "single_drafts"), "prompt_lookup")
        found["to_prompt_lookup"] = ratio(best, "prompt_lookup")
    if "one_device" in cases:
        found["devices_to_one"] = ratio("slots", "one_device")
    if "static_cache" in cases:
        found["to_static_cache"] = ratio(best, "static_cache")
    return found


def _best(cases: dict[str, Any], beginning: str = "slots_drafts") -> str:
    """The fastest of the ways with drafts."""
    return max((name for name in cases if name.startswith(beginning)), key=lambda name: cases[name]["lowest"])


def draft_counts(shape: Shape) -> dict[str, int]:
    """Tokens drafted at a time, by name."""
    return {"none": 0} | {f"drafts_{count}": count for count in shape.drafts}


def batch_works(shape: Shape, model: ReportModel) -> dict[str, Work]:
    """Static batches, and slots without and with drafts; where there are several devices, slots on one of them."""
    works = {"static_batches": static_work(shape, model)}
    for name, count in draft_counts(shape).items():
        works["slots" if not count else f"slots_{name}"] = slot_work(shape, model, model.prompts, count)
    if jax.local_device_count() > 1:
        works["one_device"] = slot_work(shape, model, model.prompts, 0, layout=generation_layout(mode="jit"))
    return works


def static_work(shape: Shape, model: ReportModel) -> Work:
    """Batches in input order, in one bucket; a batch takes the passes of its longest report."""
    run = make_generator(model.config, decode_settings(shape, model))
    weights = {"params": model.params}
    width = bucket(max(map(len, model.prompts)))
    inputs = []
    for start in range(0, len(model.prompts), shape.batch):
        rows = range(start, min(start + shape.batch, len(model.prompts)))
        filled = [*rows, *[rows[-1]] * (shape.batch - len(rows))]
        inputs.append(
            (len(rows), padded([model.prompts[row] for row in filled], width, left=True), row_keys(0, filled))
        )

    def write() -> Rows:
        found: Rows = []
        for count, prompts, keys in inputs:
            generated = jax.device_get(run(weights, prompts, keys))
            found += [continuations(jax.tree.map(lambda leaf, row=row: leaf[row], generated)) for row in range(count)]
        return found

    def counted() -> tuple[Rows, int]:
        rows = write()
        own = [passes_of(row) for (row,) in rows]
        return rows, sum(max(own[start : start + shape.batch]) for start in range(0, len(own), shape.batch))

    return Work(write, counted)


def slot_work(
    shape: Shape,
    model: ReportModel,
    prompts: Sequence[Sequence[int]],
    drafts: int,
    *,
    sampling: Sampling = GREEDY,
    group: int = 1,
    seed: int = 0,
    references: Sequence[Sequence[Sequence[int]]] = (),
    with_table: bool = True,
    layout: DeviceLayout | None = None,
) -> Work:
    """Slots over a queue of prompts; drafts of the training reports, of `references`, or of both.

    The slots are those of all devices together.
    """
    layout = layout or generation_layout()
    size = -(-min(shape.slots, len(prompts)) // layout.row_shards)
    slots = qwen2_slots(model.config, decode_settings(shape, model, drafts, sampling, group), size, layout)
    weights = device_put_tree({"params": model.params}, layout)
    table: Table | None = device_put_tree(model.table, layout) if drafts and with_table else None
    texts = references if drafts else ()

    def write(slots: Slots = slots) -> Rows:
        rows = range(len(prompts))
        return list(generate_rows(slots, weights, prompts, rows, seed=seed, references=texts, table=table))

    def counted() -> tuple[Rows, int]:
        passes = 0

        def advance(weights: PyTree, state: Any, *rest: Any) -> Any:
            nonlocal passes
            before = _chosen(state.generated)
            found = slots.advance(weights, state, *rest)
            passes += int((_chosen(found[2]) - before).max())
            return found

        rows = write(slots._replace(advance=advance))
        return rows, passes

    return Work(write, counted)


def _chosen(generated: Generated) -> np.ndarray:
    """How many tokens of each continuation were no drafts: one of each pass that it was in, and the first."""
    return np.asarray(generated.lengths) - np.asarray(generated.drafted).sum(axis=-1)


def passes_of(row: Continuation) -> int:
    """The passes that a continuation was in; its first token comes of reading the prompt."""
    return len(row.token_ids) - sum(row.drafted) - 1


def decode_settings(
    shape: Shape, model: ReportModel, drafts: int = 0, sampling: Sampling = GREEDY, group: int = 1
) -> DecodeSettings:
    """Until the token that ends a report."""
    return DecodeSettings(shape.new_tokens, sampling, group=group, stop_ids=(model.stop_id,), drafts=drafts)


def described(rows: Rows, passes: int) -> dict[str, Any]:
    """Passes of the program; and the tokens that a continuation gains in one, with those before the first pass."""
    every = [one for row in rows for one in row]
    tokens = sum(len(one.token_ids) for one in every)
    return {
        "passes": passes,
        "tokens_per_pass": tokens / sum(passes_of(one) + 1 for one in every),
        "tokens": lengths([one.token_ids for one in every]),
    }


def corpus(model: ReportModel, written: Sequence[Sequence[int]]) -> dict[str, Any]:
    """What the texts are like, in tokens."""
    return {
        "training": len(model.written_by_people),
        "training_tokens": lengths(model.written_by_people),
        "prompt_tokens": lengths(model.prompts),
        "written": len(written),
        "written_tokens": lengths(written),
        "written_distinct": len({tuple(row) for row in written}),
        "table_contexts": int((np.asarray(model.table.marks) != 0).sum()),
    }


def _peer_works(shape: Shape, model: ReportModel, peer: Any) -> dict[str, Callable[[], dict[str, Any]]]:
    ends = {"stop_id": model.stop_id, "pad_id": model.pad_id, "new_tokens": shape.new_tokens}
    batched = {"prompts": model.prompts, "batch": shape.batch, **ends}
    works = {
        name: functools.partial(peer.ask, "generate", cache=name.removesuffix("_cache"), lookup=0, **batched)
        for name in PEERS
        if peer.versions.get(name, "works") == "works"
    }
    single = {"prompts": model.prompts[: shape.single], "batch": 1, "cache": "dynamic", "lookup": LOOKUP, **ends}
    return works | {"prompt_lookup": functools.partial(peer.ask, "generate", **single)}


def _seconds(ask: Callable[[], dict[str, Any]]) -> float:
    return ask()["seconds"]
