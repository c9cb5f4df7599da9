"""The host side of a reinforcement learning step: rewards and token weights of sampled texts."""

import functools
import time
from collections.abc import Callable, Sequence

import numpy as np
from jaxtyping import Int

from common.clinical.labeler import Labeler
from common.clinical.report_labeler import ReportLabeler
from common.errors import UserError
from common.io.terminal import say
from common.metrics.clinical import POSITIVE
from deer_jax.measures import finding_measures
from deer_jax.rewards import Reward, bleu2, checked_rewards, label_f1
from deer_jax.rl import Judge, Judged
from deer_jax.token_weights import (
    STRENGTH,
    GradientScores,
    Group,
    Rollout,
    ScoreFunction,
    Scores,
    checked_scores,
    tfidf_scores,
    uniform_scores,
    weights_of,
)


def score_function(
    method: str,
    labeler: Labeler | None,
    stop_ids: Sequence[int],
    uncertain: bool = False,
    option: str = "--labeler",
) -> ScoreFunction:
    """The score function named `uniform`, `tfidf` or `gradient`. Raises UserError for another name.

    `option` is what names the labeler on the command line.
    """
    if method == "gradient":
        if labeler is None:
            raise UserError(f"gradient weights: need a labeler; name one with {option}")
        return GradientScores(labeler, uncertain)
    if method == "tfidf":
        return functools.partial(tfidf_scores, stop_ids=frozenset(stop_ids))
    if method == "uniform":
        return uniform_scores
    raise UserError(f"token weights {method!r}: unknown; expected {', '.join(STRENGTH)} or module:function")


def make_judge(
    references: Sequence[str],
    labeler: ReportLabeler | None,
    scores: ScoreFunction,
    strength: float,
    *,
    gamma: Callable[[int], float] = lambda step: 0.0,
    reward: Reward | None = None,
    names: tuple[str, str] = ("reward", "weights"),
    option: str = "--labeler",
    ids: Sequence[str | int] | None = None,
    learning: bool = True,
) -> Judge:
    """Judges rollouts of studies by their number in `references`.

    The reward is `reward` where given, else label F1 + gamma(step) x BLEU-2 (Eq. 1), which takes a labeler. Token
    weights are 1 + strength x score. `names` are those of the two functions, for what is said when they misbehave, and
    `option` names the labeler on the command line; `ids` are those of the studies, by default their numbers. A reward
    that is not finite is said once; where a call has no finite one and rewards are there for `learning`, it is a
    UserError. Where `scores` are by gradients of the same labeler, one pass gives them and the labels; its time counts
    as that of the labels.
    """
    ids = range(len(references)) if ids is None else ids
    if reward is None and labeler is None:
        raise UserError(f"rewards: label F1 needs a labeler; name one with {option}, or another reward")
    expected = np.zeros((len(references), 0), np.int8)
    if labeler is not None:
        expected = labeler.label(references, ids).classes
    together = scores.with_labels if isinstance(scores, GradientScores) and scores.labeler is labeler else None
    warned = False

    def check_rewards(rewards: np.ndarray, of_text: Sequence[str | int]) -> None:
        nonlocal warned
        bad = np.flatnonzero(~np.isfinite(rewards))
        if not len(bad):
            return
        what = (
            f"{names[0]}: the reward of a report of id {of_text[bad[0]]!r} is {rewards[bad[0]]}, and {len(bad)} of "
            f"{len(rewards)} are not finite"
        )
        if learning and len(bad) == len(rewards):
            raise UserError(f"{what}, so there is nothing to learn from; return a finite number for a report")
        if not warned:
            say(f"warning: {what}; such reports are left out, and counted (rewards_not_finite)", error=True)
        warned = True

    def judge(studies: Int[np.ndarray, " B"], groups: Sequence[Sequence[Rollout]], step: int) -> Judged:
        started = time.perf_counter()
        shape = len(groups), len(groups[0])
        texts = [rollout.text for group in groups for rollout in group]
        of_text = np.repeat(studies, shape[1])
        against, names_of = [references[study] for study in of_text], [ids[study] for study in of_text]
        batch = [
            Group(references[study], group, expected[study], ids[study])
            for study, group in zip(studies, groups, strict=True)
        ]
        measured = {"bleu2": bleu2(texts, against)}
        scored: Scores | None = None
        findings: np.ndarray | None = None
        if labeler is not None:
            if together is None:
                found = labeler.label(texts, names_of)
            else:
                scored, found = together(batch)
            measured["label_f1"] = label_f1(found.classes, expected[of_text])
            said, true = found.classes == POSITIVE, expected[of_text] == POSITIVE
            findings = np.stack([said & true, said, true], axis=-1).reshape(*shape, -1, 3)
            measured["no_positive_reference"] = ~(expected[of_text] == POSITIVE).any(-1)
            measured["beyond_labeler_window"] = np.full(len(texts), found.cut.reports / len(texts))
            measured["unknown_to_labeler"] = np.full(len(texts), found.unknown / len(texts))
        if reward is not None:
            rewards = checked_rewards(reward(texts, against), len(texts), names[0])
        else:
            rewards = measured["label_f1"] + gamma(step) * measured["bleu2"]
        check_rewards(rewards, names_of)
        if labeler is not None:
            measured |= finding_measures(labeler.labels, rewards, expected[of_text] == POSITIVE)
        judged = time.perf_counter()
        scored = scores(batch) if scored is None else scored
        weights = weights_of(checked_scores(scored, batch, names[1]), strength)
        seconds = {"labels": judged - started, "token_weights": time.perf_counter() - judged}
        shaped = {name: np.asarray(values, np.float32).reshape(shape) for name, values in measured.items()}
        return Judged(rewards.reshape(shape), weights, shaped, seconds, findings)

    return judge
