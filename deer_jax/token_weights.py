"""Weights of sampled tokens, w = 1 + strength * score (DEER Eq. 8 and 12), by frequency or by influence on the labeler.

- `uniform`: score 0; DiTPO with it is GRPO.
- `tfidf`: how often the token stands in its report, times how few reports of the group have it (Eq. 7); alpha = 4.
- `gradient`: how strongly it moves the labeler towards the reference's findings (Eq. 9-11); beta = 1.

A score function takes the groups of a batch and returns a score for each sampled token; another one can be passed by
its import path. Tokens that end a report (`stop_ids`) have a score of 0 and are not counted.
"""

import dataclasses
import math
from collections import Counter
from collections.abc import Callable, Collection, Sequence
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Bool, Float

from common.clinical.alignment import Spans, text_and_spans, transfer
from common.clinical.labeler import Labeler
from common.clinical.report_labeler import Labelled
from common.clinical.saliency import TokenSaliency, label_with_saliency, token_saliency
from common.data.tokenizers import Tokenizer
from common.errors import UserError
from common.io.terminal import printable
from common.metrics.clinical import POSITIVE
from deer_jax.rewards import as_numbers

STRENGTH = {"uniform": 0.0, "tfidf": 4.0, "gradient": 1.0}  # alpha and beta of the paper


class Rollout(NamedTuple):
    """A sampled report: its tokens, the text that they write, and of each the characters [start, end)."""

    tokens: Sequence[int]
    text: str
    spans: Spans


class Group(NamedTuple):
    """The rollouts of one study, its reference report, the labeler's classes of that, and the id of the study."""

    reference: str
    rollouts: Sequence[Rollout]
    reference_classes: Sequence[int]
    id: str | int = ""


Scores = list[list[Float[np.ndarray, " T"]]]  # of each group, of each rollout, of each token
ScoreFunction = Callable[[Sequence[Group]], Scores]


def read_rollout(tokens: Sequence[int], tokenizer: Tokenizer) -> Rollout:
    """A rollout from its tokens."""
    return Rollout(tokens, *text_and_spans(tokenizer.token_bytes(tokens)))


def uniform_scores(groups: Sequence[Group]) -> Scores:
    """Score 0 for every token."""
    return [[np.zeros(len(rollout.tokens)) for rollout in group.rollouts] for group in groups]


def tfidf_scores(groups: Sequence[Group], stop_ids: Collection[int] = ()) -> Scores:
    """TF-IDF of each token in its group (Eq. 7).

    TF is the token's share of its report; IDF is log(N / number of the N reports that have it), without smoothing, so
    that what every report says weighs exactly 1.
    """
    return [_group_tfidf([rollout.tokens for rollout in group.rollouts], stop_ids) for group in groups]


def _group_tfidf(reports: Sequence[Sequence[int]], stop_ids: Collection[int]) -> list[Float[np.ndarray, " T"]]:
    counts = [Counter(token for token in tokens if token not in stop_ids) for tokens in reports]
    holding = Counter(token for count in counts for token in count)
    return [
        np.array(
            [
                count[token] / count.total() * math.log(len(reports) / holding[token]) if count[token] else 0.0
                for token in tokens
            ]
        )
        for tokens, count in zip(reports, counts, strict=True)
    ]


def gradient_scores(groups: Sequence[Group], labeler: Labeler, uncertain: bool = False) -> Scores:
    """Saliency of each token for the positive findings of its reference (Eq. 9-11), moved to the policy's tokens.

    Of a reference without a positive finding all scores are 0.
    """
    texts, targets, ids = _to_read(groups)
    return _transferred(groups, token_saliency(labeler, texts, targets, uncertain, ids=ids))


@dataclasses.dataclass(frozen=True)
class GradientScores:
    """`gradient_scores` by a labeler, as a score function that can tell the labels of the rollouts at little cost."""

    labeler: Labeler
    uncertain: bool = False

    def __call__(self, groups: Sequence[Group]) -> Scores:
        """The scores alone."""
        return gradient_scores(groups, self.labeler, self.uncertain)

    def with_labels(self, groups: Sequence[Group]) -> tuple[Scores, Labelled]:
        """The scores, and what `labeler.label` says of all rollouts; each is read once for both."""
        texts, targets, ids = _to_read(groups)
        labels, found = label_with_saliency(self.labeler, texts, targets, self.uncertain, ids=ids)
        return _transferred(groups, found), self.labeler.labelled(labels)


def _to_read(groups: Sequence[Group]) -> tuple[list[str], Bool[np.ndarray, "N L"], list[str | int]]:
    """Of all rollouts the texts, the positive findings of the reference, and the id of the study."""
    texts = [rollout.text for group in groups for rollout in group.rollouts]
    targets = np.array([np.equal(group.reference_classes, POSITIVE) for group in groups for _ in group.rollouts])
    return texts, targets, [group.id for group in groups for _ in group.rollouts]


def _transferred(groups: Sequence[Group], found: Sequence[TokenSaliency]) -> Scores:
    """The saliency of the labeler's tokens as scores of the policy's."""
    rest = iter(found)
    scores: Scores = []
    for group in groups:
        scores.append([])
        for rollout in group.rollouts:
            values, spans = next(rest)
            scores[-1].append(transfer(values, spans, rollout.spans, len(rollout.text)))
    return scores


def checked_scores(scores: Any, groups: Sequence[Group], where: str) -> Scores:
    """The scores as arrays. Raises UserError where they do not fit the rollouts or are not finite numbers.

    `where` names the function that returned them.
    """
    try:
        found = [[as_numbers(values) for values in group] for group in scores]
    except (TypeError, ValueError, OverflowError) as error:
        raise UserError(
            f"{where}: did not return lists of scores for each group and rollout ({printable(error)})"
        ) from error
    if [len(group) for group in found] != [len(group.rollouts) for group in groups]:
        raise UserError(f"{where}: expected scores of {len(groups)} groups, and in each of all its rollouts")
    for values, group in zip(found, groups, strict=True):
        for number, (own, rollout) in enumerate(zip(values, group.rollouts, strict=True), start=1):
            row = f"{where}: id {group.id!r}, rollout {number}"
            if own.shape != (len(rollout.tokens),):
                raise UserError(f"{row}: scores of shape {own.shape} for a rollout of {len(rollout.tokens)} tokens")
            if not np.isfinite(own).all():
                raise UserError(f"{row}: returned a score that is not finite (NaN or infinity); expected a number")
    return found


def weights_of(scores: Scores, strength: float) -> Scores:
    """w = 1 + strength * score. Raises UserError where that is too large for a float32, in which weights are used."""
    with np.errstate(over="ignore"):
        weights = [[1 + strength * values for values in group] for group in scores]
    largest = max((float(np.abs(own).max(initial=0)) for group in weights for own in group), default=0.0)
    if not largest <= float(np.finfo(np.float32).max):
        raise UserError(f"token weights: 1 + {strength:g} x score is too large for float32; give a smaller strength")
    return weights
