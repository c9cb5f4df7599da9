"""Rewards of sampled reports (DEER Eq. 1): F1 of the labels that a labeler finds, and BLEU-2.

A reward is a pure function of texts and references, `(texts, references) -> floats`, so that another one can be
given by its import path (`common.io.functions`).
"""

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from jaxtyping import Float, Int

from common.errors import UserError
from common.io.terminal import printable
from common.metrics.clinical import POSITIVE
from common.metrics.overlap import ngram_statistics, sentence_bleu
from common.metrics.tokenize import language_of, tokens_of

Reward = Callable[[Sequence[str], Sequence[str]], Sequence[float] | Float[np.ndarray, " N"]]
Classes = Int[np.ndarray, "N 14"]


def label_f1(predicted: Classes, expected: Classes) -> Float[np.ndarray, " N"]:
    """F1 of the positive labels (class 1) of each report over the 14; 0 where neither side has any (`promptmrg`)."""
    said, true = predicted == POSITIVE, expected == POSITIVE
    right = (said & true).sum(-1)
    return 2 * right / np.maximum(said.sum(-1) + true.sum(-1), 1)


def bleu2(texts: Sequence[str], references: Sequence[str]) -> Float[np.ndarray, " N"]:
    """BLEU-2 of each text by itself, with the additive constants of COCO captions.

    Tokens are what white space separates, and single characters where a reference is in Chinese.
    """
    languages = [language_of(reference) for reference in references]
    said, true = ([*map(tokens_of, side, languages)] for side in (texts, references))
    return sentence_bleu(ngram_statistics(said, true))[:, 1]


def phase_gamma(gammas: Sequence[float], ends: Sequence[float], progress: float) -> float:
    """gamma at `progress` (0 to 1) through the run: `gammas[i]` up to `ends[i]`, the last one to the end.

    The paper's two phases are gammas (0, 0.25); it does not say where the first ends.
    """
    for gamma, end in zip(gammas, ends, strict=False):
        if progress < end:
            return gamma
    return gammas[-1]


def checked_rewards(values: Any, count: int, where: str) -> Float[np.ndarray, " N"]:
    """The values as float64. Raises UserError where there are not `count` numbers; NaN and infinity pass."""
    try:
        rewards = as_numbers(values)
    except (TypeError, ValueError, OverflowError) as error:
        raise UserError(f"{where}: did not return numbers ({printable(error)}); expected one for each text") from error
    if rewards.shape != (count,):
        raise UserError(f"{where}: returned values of shape {rewards.shape} for {count} texts; expected one each")
    return rewards


def as_numbers(values: Any) -> np.ndarray:
    """What a user's function returned as float64. Raises TypeError and ValueError where it is not numbers.

    NumPy would take a text for the number in it, and None for NaN.
    """
    found = np.asarray(values)
    if found.dtype.kind in "OUSMmc":
        raise TypeError(f"found {found.dtype}")
    return found.astype(np.float64)
