"""`deer select`: choose the studies to learn from by the labels of their samples (DDSampling, DEER Eq. 3-5)."""

import argparse
import contextlib
import json
import sys
from collections import defaultdict
from collections.abc import Callable, Sequence
from itertools import chain
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import UInt8

from common.bounds import FINITE, bounded
from common.data.summary import data_line, say_data
from common.errors import Parser, UserError
from common.io.jsonl import read_jsonl, write_rows
from common.io.locks import locked_file
from common.io.outputs import check_output, check_own_object
from common.io.text import json_text, read_json_object
from common.metrics.clinical import FINDINGS
from deer_jax.ddsampling import (
    Strategy,
    distinct_labels,
    diversity,
    label_statistics,
    reward_statistics,
    select,
    top_fifth,
)

DESCRIPTION = """Choose a share of the studies by how much the labels of their sampled reports differ. Prints one JSON
object: `ids`, in the order drawn (top: the most diverse first), so that the first ones are the choice of a smaller
share; and `statistics` of all studies and of those selected. The choice depends on the ids, the labels and the seed,
not on the order of the rows; ties are ordered by the seed. The share of all studies is rounded, but at
least one study is chosen."""


class Studies(NamedTuple):
    """What the rows of a file hold, in the order of their ids: `labels[n]` is [K, 14], `rewards[n]` is [K]."""

    ids: list[str | int]
    labels: list[UInt8[np.ndarray, "K 14"]]
    rewards: list[list[float]] | None


def main(arguments: list[str]) -> None:
    """Run the command. Raises UserError for whatever is wrong with its input."""
    parser = Parser("deer select", description=DESCRIPTION)
    parser.add_argument(
        "file", help=f'JSONL, a row {{"id", "labels": [[0 or 1, {len(FINDINGS)} times], a list a sample]}} per study, '
        'and optionally "rewards": [a number a sample], for the statistics of Table 7'
    )  # fmt: skip
    parser.add_argument(
        "--fraction", type=_fraction, required=True, help="share of the studies to choose, above 0 to 1"
    )
    parser.add_argument("--seed", type=_seed, default=0, help="of the draw and of the order of ties; default: 0")
    parser.add_argument(
        "--strategy", choices=("log-rank", "top", "random"), default="log-rank",
        help="log-rank: with the probabilities of Eq. 5, without replacement (default); top: the most diverse; random",
    )  # fmt: skip
    parser.add_argument(
        "--exponent",
        type=bounded(FINITE, float),
        help="log-rank: power of the probabilities, 1 being the paper's; more is sharper",
    )
    parser.add_argument("--output", type=Path, help="file to which the object is also written")
    chosen = parser.parse_args(arguments)
    if chosen.exponent is not None and chosen.strategy != "log-rank":
        raise UserError(f"deer select: --exponent is for --strategy log-rank; leave it out with {chosen.strategy}")
    check_output(chosen.output, chosen.file)
    exponent = 1.0 if chosen.exponent is None else chosen.exponent
    with locked_file(chosen.output):
        check_own_object(chosen.output, ["ids", "statistics"])
        studies = read_studies(chosen.file)
        counts = {"studies": len(studies.ids), "samples": sum(map(len, studies.labels))}
        say_data(data_line([chosen.file], "rows", counts), rows_on_stdout=True)
        result = choose(studies, chosen.fraction, chosen.seed, chosen.strategy, exponent)
        if chosen.output is not None:
            write_rows(chosen.output, [result])
    print(json_text(result, "deer select"))


def choose(
    studies: Studies, fraction: float, seed: int, strategy: Strategy = "log-rank", exponent: float = 1.0
) -> dict[str, Any]:
    """The object that the command prints: ids of the chosen studies, and statistics of all and of the chosen."""
    count = max(1, round(fraction * len(studies.ids)))
    diversities = _each_study(diversity, studies.labels)
    distinct = _each_study(distinct_labels, studies.labels)
    rule: dict[str, Any] = {"strategy": strategy, "exponent": exponent, "seed": seed}
    chosen = select(diversities, count, **rule)
    parts = {"all": np.arange(len(studies.ids)), "selected": chosen}
    samples = [len(labels) for labels in studies.labels]
    statistics: dict[str, Any] = {
        "studies": len(studies.ids),
        "selected": count,
        "fraction": fraction,
        **rule,
        "samples_per_study": {"least": min(samples), "most": max(samples)},
        "top_fifth": top_fifth(diversities, chosen, **rule),
        "labels": {
            name: label_statistics(diversities[part], distinct[part], len(FINDINGS)) for name, part in parts.items()
        },
    }
    if studies.rewards is not None:
        rewards = studies.rewards
        statistics["rewards"] = {
            name: reward_statistics(rewards[index] for index in part) for name, part in parts.items()
        }
    return {"ids": [studies.ids[index] for index in chosen], "statistics": statistics}


def read_studies(file: str | Path) -> Studies:
    """The rows of a file, checked, in the order of their ids. Raises UserError naming the file and the study."""
    rows = read_jsonl(file, {"id": str | int, "labels": list})
    rows.sort(key=lambda row: json.dumps(row["id"]))
    labels = [_labels(row["labels"], f"{file}: id {row['id']}") for row in rows]
    with_rewards = [row for row in rows if "rewards" in row]
    if with_rewards and len(with_rewards) < len(rows):
        without = next(row["id"] for row in rows if "rewards" not in row)
        raise UserError(f"{file}: id {without} has no rewards, but others do; expected them in all rows or in none")
    for row, samples in zip(with_rewards, labels, strict=False):
        _check_rewards(row["rewards"], len(samples), f"{file}: id {row['id']}")
    rewards = [[float(reward) for reward in row["rewards"]] for row in with_rewards]
    return Studies([row["id"] for row in rows], labels, rewards or None)


def read_ids(file: str | Path) -> list[str]:
    """The ids of the studies that the command chose. Raises UserError."""
    ids = read_json_object(file, "what deer select prints").get("ids")
    if not isinstance(ids, list) or not all(type(id_) in (str, int) for id_ in ids):
        raise UserError(f"{file}: 'ids' must be a list of texts or whole numbers; expected the output of deer select")
    return [str(id_) for id_ in ids]


def _labels(found: list[Any], where: str) -> UInt8[np.ndarray, "K 14"]:
    expected = f"expected a list of {len(FINDINGS)} labels, 0 or 1, for each of 2 samples or more"
    if len(found) < 2:
        raise UserError(f"{where}: {len(found)} samples, which cannot differ; {expected}")
    if not all(isinstance(sample, list) and len(sample) == len(FINDINGS) for sample in found):
        raise UserError(f"{where}: a sample does not have {len(FINDINGS)} labels; {expected}")
    try:
        # Through bytes, which takes whole numbers alone, in half of the time that NumPy takes for nested lists.
        flat = bytes(chain.from_iterable(found))
    except (TypeError, ValueError):
        values = [*chain.from_iterable(found)]
        known = all(isinstance(value, int | float) and value in (0, 1) for value in values)
        flat = bytes(map(int, values)) if known else b"\2"
    if max(flat) > 1:
        raise UserError(f"{where}: a label is neither 0 nor 1; {expected}")
    return np.frombuffer(flat, np.uint8).reshape(-1, len(FINDINGS))


def _check_rewards(found: Any, samples: int, where: str) -> None:
    largest = sys.float_info.max  # an int may be larger, and NaN is not smaller
    numbers = isinstance(found, list) and all(type(value) in (int, float) and abs(value) <= largest for value in found)
    if not numbers or len(found) != samples:
        raise UserError(f"{where}: expected rewards as a list of {samples} finite numbers, one per sample")


def _fraction(text: str) -> float:
    with contextlib.suppress(ValueError):
        if 0 < float(text) <= 1:
            return float(text)
    raise argparse.ArgumentTypeError(f"expected a number above 0 and at most 1, found {text}")


def _seed(text: str) -> int:
    if not text.isdecimal():
        raise argparse.ArgumentTypeError(f"expected 0 or more, found {text}")
    return int(text)


def _each_study(function: Callable[[Any], np.ndarray], labels: Sequence[UInt8[np.ndarray, "K 14"]]) -> np.ndarray:
    """`function` of all studies, those with as many samples at a time."""
    by_count: dict[int, list[int]] = defaultdict(list)
    for index, samples in enumerate(labels):
        by_count[len(samples)].append(index)
    result = np.empty(len(labels))
    for group in by_count.values():
        result[group] = function(np.stack([labels[index] for index in group]))
    return result
