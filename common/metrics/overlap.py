"""BLEU and ROUGE-L as per-report statistics, in the convention of COCO captions and in that of nltk and rouge-score.

`coco`: the numbers of pycocoevalcap (Papineni 2002 with its additive constants; Lin 2004 with beta 1.2) on text split
at white space, without a PTB tokenizer. `nltk`: the numbers of `nltk.translate.bleu_score.corpus_bleu` and of the F
measure of Google's rouge-score. Both are computed here from sums, and not by those packages, because intervals need
1,000 values of each metric; parity tests hold them to the originals.
"""

import sys
from collections import Counter
from collections.abc import Sequence

import numpy as np
from jaxtyping import Float

from common.metrics.bootstrap import Measure, mean_measure

Tokens = Sequence[str]

ORDERS = 4


def ngram_statistics(predictions: Sequence[Tokens], references: Sequence[Tokens]) -> Float[np.ndarray, "N 10"]:
    """Per report: matched n-grams (clipped) for n = 1..4, predicted n-grams for n = 1..4, both lengths in tokens."""
    rows = [
        [
            *((ngrams(prediction, order) & ngrams(reference, order)).total() for order in range(1, ORDERS + 1)),
            *(max(0, len(prediction) - order + 1) for order in range(1, ORDERS + 1)),
            len(prediction),
            len(reference),
        ]
        for prediction, reference in zip(predictions, references, strict=True)
    ]
    return np.array(rows, dtype=np.float64)


def coco_bleu(statistics: Float[np.ndarray, "N 10"], convention: str = "coco") -> Measure:
    """coco/BLEU-1 .. coco/BLEU-4; `convention` names other tokens than the usual ones."""
    return Measure(_bleu_names(convention), statistics, _coco_bleu_score)


def sentence_bleu(statistics: Float[np.ndarray, "N 10"]) -> Float[np.ndarray, "N 4"]:
    """BLEU-1..4 of each report by itself, with the additive constants of `coco`, where a corpus has one score."""
    return _coco_bleu_score(statistics)


def nltk_bleu(statistics: Float[np.ndarray, "N 10"]) -> Measure:
    """nltk/BLEU-1 .. nltk/BLEU-4: uniform weights, no smoothing."""
    statistics = statistics.copy()
    # nltk counts one predicted n-gram for a report that is too short to have any.
    statistics[:, ORDERS : 2 * ORDERS] = np.maximum(statistics[:, ORDERS : 2 * ORDERS], 1)
    return Measure(_bleu_names("nltk"), statistics, _nltk_bleu_score)


def coco_rouge(predictions: Sequence[str], references: Sequence[str], convention: str = "coco") -> Measure:
    """coco/ROUGE-L of spaced texts: mean over reports of F with beta 1.2.

    As in pycocoevalcap, tokens are what single spaces separate: two spaces hold an empty token between them, a line
    break does not separate, and an empty text is one empty token, so that it equals another empty text.
    """
    beta = 1.2
    scores = []
    for prediction, reference in zip(predictions, references, strict=True):
        predicted, expected = prediction.split(" "), reference.split(" ")
        common = longest_common_subsequence(predicted, expected)
        precision, recall = common / len(predicted), common / len(expected)
        scores.append((1 + beta**2) * precision * recall / (recall + beta**2 * precision) if common else 0.0)
    return mean_measure(f"{convention}/ROUGE-L", np.array(scores))


def nltk_rouge(predictions: Sequence[Tokens], references: Sequence[Tokens]) -> Measure:
    """nltk/ROUGE-L: mean over reports of F1, as rouge-score's `rougeL`; 0 where either side has no token."""
    scores = []
    for prediction, reference in zip(predictions, references, strict=True):
        common = longest_common_subsequence(prediction, reference)
        scores.append(2 * common / (len(prediction) + len(reference)) if common else 0.0)
    return mean_measure("nltk/ROUGE-L", np.array(scores))


def longest_common_subsequence(first: Tokens, second: Tokens) -> int:
    """Length of the longest common subsequence, a row of the table at a time in the bits of one integer.

    Hyyrö, Bit-parallel LCS-length computation revisited (2004).
    """
    positions: dict[str, int] = {}
    for index, token in enumerate(first):
        positions[token] = positions.get(token, 0) | 1 << index
    full = (1 << len(first)) - 1
    row = full
    for token in second:
        matches = row & positions.get(token, 0)
        row = (row + matches | row - matches) & full
    return len(first) - row.bit_count()


def _coco_bleu_score(totals: Float[np.ndarray, "... 10"]) -> Float[np.ndarray, "... 4"]:
    tiny, small = 1e-15, 1e-9
    matched, predicted, length, reference_length = _split(totals)
    precisions = np.cumprod((matched + tiny) / (predicted + small), axis=-1)
    ratio = (length + tiny) / (reference_length + small)
    penalty = np.exp(np.minimum(0.0, 1 - 1 / ratio))
    return precisions ** (1 / np.arange(1, ORDERS + 1)) * penalty


def _nltk_bleu_score(totals: Float[np.ndarray, "... 10"]) -> Float[np.ndarray, "... 4"]:
    matched, predicted, length, reference_length = _split(totals)
    # An order without a match counts as the smallest float, which nltk's method0 puts in place of log(0).
    logs = np.log(np.where(matched > 0, matched / predicted, sys.float_info.min))
    penalty = np.exp(np.minimum(0.0, 1 - reference_length / np.maximum(length, 1)))
    scores = penalty * np.exp(np.cumsum(logs, axis=-1) / np.arange(1, ORDERS + 1))
    return np.where(matched[..., :1] > 0, scores, 0.0)


def _split(totals: Float[np.ndarray, "... 10"]) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    return totals[..., :ORDERS], totals[..., ORDERS : 2 * ORDERS], totals[..., 8:9], totals[..., 9:10]


def _bleu_names(convention: str) -> tuple[str, ...]:
    return tuple(f"{convention}/BLEU-{order}" for order in range(1, ORDERS + 1))


def ngrams(tokens: Tokens, order: int) -> Counter[tuple[str, ...]]:
    """How often each n-gram stands in the tokens."""
    return Counter(zip(*(tokens[start:] for start in range(order)), strict=False))
