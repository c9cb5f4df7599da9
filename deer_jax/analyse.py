"""`deer analyse masking | rewards | page`: the effect of token weights and of a selection of studies.

All read rollouts, rows {"id", "reference", "rollouts": [text, ...]} as `deer sample` writes them. `masking` is the
paper's Table 6, `rewards` its Table 7, `page` its Figure 3.
"""

import argparse
import itertools
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Bool, Float

from common.bounds import COUNT, FINITE, SEED, SHARE, bounded
from common.clinical.labeler import Labeler, load_labeler
from common.clinical.report_labeler import ReportLabeler, classes_of_groups
from common.data.summary import say_data
from common.devices import say_devices
from common.errors import Parser, UserError
from common.io.locks import locked_file
from common.io.numbers import rounded
from common.io.outputs import check_output, check_own_object, check_own_page, write_whole
from common.io.terminal import say
from common.io.text import json_text
from common.metrics.bootstrap import mean_measure, summarize
from common.metrics.clinical import BLANK, POSITIVE
from common.options import Needs, check_options
from common.report.template import render_template
from deer_jax.ddsampling import reward_statistics
from deer_jax.rewarding import score_function
from deer_jax.rewards import bleu2, label_f1
from deer_jax.select import read_ids
from deer_jax.token_weights import STRENGTH, GradientScores, Group, Rollout, weights_of
from deer_jax.weights import read_groups, read_rollout_rows, rollout_reader, rollouts_line

PROGRAM = "deer analyse"
# Up to [.!?] before white space, or a newline; marks and spaces at either end of a text belong to the sentence there.
SENTENCE = re.compile(r"[\s.!?]*[^\s.!?].*?(?:[.!?]+(?=\s|\Z)|\n+|\Z)(?:[\s.!?]+\Z)?|[\s.!?]+", re.DOTALL)
MASK = "[MASK]"
NEEDS = tuple(
    Needs(option, "what", reads, shown=PROGRAM)
    for reads, options in (
        (("masking",), ("share", "seed")),
        (("rewards",), ("selected", "gamma")),
        (("page",), ("method", "limit")),
    )
    for option in options
)


def main(arguments: list[str]) -> None:
    """The command line."""
    parser = Parser(PROGRAM, description=__doc__)
    parser.add_argument("what", choices=("masking", "rewards", "page"))
    parser.add_argument("file", type=Path, metavar="FILE.jsonl")
    parser.add_argument("--labeler", required=True, metavar="PATH")
    parser.add_argument("--labeler-tokenizer", type=Path, metavar="DIR", help="with the vocab.txt of chexbert.pth")
    parser.add_argument("--tokenizer", type=Path, metavar="DIR", help="of the policy (masking, page)")
    parser.add_argument(
        "--share", type=bounded(SHARE, float), default=0.1, help="masking: of each report's tokens (%(default)s)"
    )
    parser.add_argument("--selected", type=Path, help="rewards: the output of deer select")
    parser.add_argument(
        "--gamma", type=bounded(FINITE, float), default=0.0, help="rewards: weight of BLEU-2 (%(default)s)"
    )
    parser.add_argument("--method", choices=("tfidf", "gradient"), default="gradient", help="page: the weights shown")
    parser.add_argument("--limit", type=bounded(COUNT), default=20, help="page: studies shown (%(default)s)")
    parser.add_argument("--seed", type=bounded(SEED), default=0)
    parser.add_argument("--output", type=Path, help="file to write; default: standard output, token_weights.html")
    chosen = parser.parse_args(arguments)
    check_options(chosen, arguments, NEEDS, PROGRAM)
    check_output(chosen.output, chosen.file, *filter(None, [chosen.selected]))
    if chosen.what != "rewards" and chosen.tokenizer is None:
        raise UserError(f"{PROGRAM} {chosen.what}: --tokenizer DIR is missing; name the policy's")
    if chosen.what == "page":
        chosen.output = chosen.output or Path("token_weights.html")
    with locked_file(chosen.output):
        analyse(chosen)


def analyse(chosen: argparse.Namespace) -> None:
    """Print or write what the parsed command line asks for. Raises UserError."""
    if chosen.what == "page":
        check_own_page(chosen.output)
    else:
        check_own_object(chosen.output, ["reports", "share"] if chosen.what == "masking" else ["studies", "all"])
    rows = read_rollout_rows(chosen.file)
    selected = None if chosen.selected is None else set(read_ids(chosen.selected))
    if selected is not None and not selected & {str(row["id"]) for row in rows}:
        raise UserError(f"{PROGRAM} rewards: none of the selected ids is in the rollouts")
    labeler = load_labeler(
        chosen.labeler, chosen.labeler_tokenizer, option="--labeler-tokenizer", policy=chosen.tokenizer
    )
    say_data(rollouts_line(chosen.file, rows, labeler), rows_on_stdout=True)
    say_devices()
    if chosen.what == "rewards":
        table = rewards(rows, labeler, chosen.gamma, selected)
        write_out(scores_text(table), chosen.output)
        return
    read, stop_ids = rollout_reader(chosen.tokenizer)
    if chosen.what == "masking":
        groups = read_groups(rows, read, labeler)
        write_out(scores_text(masking(groups, labeler, stop_ids, chosen.share, chosen.seed)), chosen.output)
        return
    groups = read_groups(rows[: chosen.limit], read, labeler)
    page = chosen.output
    write_out(token_page(groups, [row["id"] for row in rows], labeler, stop_ids, chosen.method), page)
    say(f"page: {page.absolute()}")


def scores_text(table: dict[str, Any]) -> str:
    """A table of scores as JSON. Raises UserError where one is not finite, as under a --gamma too large for a float."""
    return json_text(rounded(table), PROGRAM, indent=2)


def write_out(text: str, file: Path | None) -> None:
    """Print a text, or write it to a file. Raises UserError."""
    if file is None:
        print(text)
        return
    write_whole(file, text + "\n")


def masking(
    groups: Sequence[Group], labeler: Labeler, stop_ids: Sequence[int], share: float, seed: int
) -> dict[str, Any]:
    """Table 6: how far the labels change where the tokens of largest weight are masked.

    `label_modification` is the share of reports whose positive labels change; `F1_after` the mean F1 of the labels
    after against those before, 1 where there are none on both sides. Of a report's tokens the `share`, rounded up, is
    replaced by "[MASK]"; ties are broken by chance.
    """
    rollouts = [rollout for group in groups for rollout in group.rollouts]
    ids = [group.id for group in groups for _ in group.rollouts]
    by_gradient, found = GradientScores(labeler).with_labels(groups)
    before = found.classes == POSITIVE
    rng = np.random.default_rng(seed)
    result: dict[str, Any] = {"reports": len(rollouts), "share": share}
    for method in ("random", "tfidf", "gradient"):
        scores = by_gradient
        if method != "gradient":
            scores = score_function("uniform" if method == "random" else method, labeler, stop_ids)(groups)
        flat = [values for group in scores for values in group]
        texts = [masked(rollout, top(values, share, rng)) for rollout, values in zip(rollouts, flat, strict=True)]
        after = labeler.label(texts, ids).classes == POSITIVE
        same = ~(before | after).any(-1)
        f1 = np.where(same, 1.0, label_f1(after.astype(int), before.astype(int)))
        changed = (before != after).any(-1).astype(float)
        result[method] = summarize(
            [mean_measure("label_modification", changed), mean_measure("F1_after", f1)], with_intervals=True, seed=seed
        )
    return result


def top(scores: Float[np.ndarray, " T"], share: float, rng: np.random.Generator) -> Bool[np.ndarray, " T"]:
    """True on the `share` of tokens, rounded up, of largest score."""
    order = np.lexsort((rng.random(len(scores)), -scores))
    chosen = np.zeros(len(scores), bool)
    chosen[order[: int(np.ceil(share * len(scores)))]] = True
    return chosen


def masked(rollout: Rollout, chosen: Bool[np.ndarray, " T"]) -> str:
    """The text with each chosen token's characters, but for the space before them, replaced by [MASK]."""
    pieces, done = [], 0
    for (start, end), wanted in zip(rollout.spans, chosen, strict=True):
        start = max(start, done)
        if not wanted or start >= end:
            continue
        word = rollout.text[start:end]
        start += len(word) - len(word.lstrip())
        pieces += [rollout.text[done:start], MASK if word.strip() else ""]
        done = max(done, end)
    return "".join([*pieces, rollout.text[done:]])


def rewards(
    rows: Sequence[dict[str, Any]], labeler: ReportLabeler, gamma: float, selected: set[str] | None
) -> dict[str, Any]:
    """Table 7: the rewards of Eq. 1 within groups, of all studies and of the selected ones."""
    ids = [row["id"] for row in rows]
    expected = labeler.label([row["reference"] for row in rows], ids).classes
    found = []
    each = classes_of_groups(labeler, [row["rollouts"] for row in rows], ids)
    for row, classes, own in zip(rows, expected, each, strict=True):
        f1 = label_f1(own, np.broadcast_to(classes, own.shape))
        found.append(f1 + gamma * bleu2(row["rollouts"], [row["reference"]] * len(own)))
    result: dict[str, Any] = {"studies": len(rows), "all": reward_statistics(found)}
    if selected is not None:
        chosen = [group for row, group in zip(rows, found, strict=True) if str(row["id"]) in selected]
        result |= {"selected_studies": len(chosen), "selected": reward_statistics(chosen)}
    return result


def token_page(
    groups: Sequence[Group], ids: Sequence[Any], labeler: Labeler, stop_ids: Sequence[int], method: str
) -> str:
    """Figure 3: references and rollouts, sentences of the same finding in matching colours, weights as red."""
    scores = score_function(method, labeler, stop_ids)(groups)
    weights = weights_of(scores, STRENGTH[method])
    most = max((float(own.max(initial=1)) for group in weights for own in group), default=1.0)
    studies = []
    texts = [text for group in groups for text in (group.reference, *(rollout.text for rollout in group.rollouts))]
    parts = iter(sentences(texts, labeler))
    for id_, group, own in zip(ids, groups, weights, strict=False):
        shown = [tokens_of(rollout, values, most) for rollout, values in zip(group.rollouts, own, strict=True)]
        reference, *reports = itertools.islice(parts, 1 + len(group.rollouts))
        rollouts = [with_tokens(*pair) for pair in zip(reports, shown, strict=True)]
        studies.append({"id": id_, "reference": reference, "rollouts": rollouts})
    names = {finding for study in studies for part in study["reference"] for finding in part["findings"]}
    names |= {name for study in studies for report in study["rollouts"] for part in report for name in part["findings"]}
    colours = {name: index for index, name in enumerate(label for label in labeler.labels if label in names)}
    return render_template(
        "token_page.html.j2", package="deer_jax", folder="", studies=studies, colours=colours, method=method, most=most,
        count=max(len(colours), 1),
    )  # fmt: skip


def sentences(texts: Sequence[str], labeler: ReportLabeler) -> list[list[dict[str, Any]]]:
    """The sentences of each text with their spans, and what the labeler finds mentioned in each."""
    found = [list(SENTENCE.finditer(text)) for text in texts]
    classes = classes_of_groups(labeler, [[sentence[0] for sentence in own] for own in found])
    return [
        [
            {
                "text": sentence[0],
                "start": sentence.start(),
                "end": sentence.end(),
                "findings": [labeler.labels[index] for index in np.flatnonzero(own != BLANK)],
            }
            for sentence, own in zip(*pair, strict=True)
        ]
        for pair in zip(found, classes, strict=True)
    ]


def tokens_of(rollout: Rollout, weights: Float[np.ndarray, " T"], most: float) -> list[dict[str, Any]]:
    """Tokens as texts with their weight, and how red they are: 0 at weight 1, 1 at the largest of the page."""
    scale = max(most - 1, 1e-9)
    shown: list[dict[str, Any]] = []
    done = 0
    for (start, end), weight in zip(rollout.spans.tolist(), weights.tolist(), strict=True):
        if start < done:  # of one character, of which several tokens have the bytes
            shown[-1]["weight"] = max(shown[-1]["weight"], weight)
        if done < end:
            start = max(start, done)
            shown.append({"text": rollout.text[start:end], "start": start, "weight": weight})
            done = end
    return [{**token, "red": (token["weight"] - 1) / scale} for token in shown]


def with_tokens(parts: Sequence[dict[str, Any]], tokens: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """Sentences with the tokens that begin in them."""
    return [
        {**part, "tokens": [token for token in tokens if part["start"] <= token["start"] < part["end"]]}
        for part in parts
    ]
