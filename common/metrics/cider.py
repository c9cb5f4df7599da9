"""CIDEr-D of Vedantam et al. (2015), which the COCO captions toolkit calls CIDEr: mean over reports, from 0 to 10.

n-grams of a report and of its reference are weighed by how rare they are among the references, so that what every
report says counts little; the cosine of the two is taken for n = 1..4 with the report's counts clipped, lowered for
another length (sigma 6), averaged and multiplied by 10. The references are those that are scored, all of one file: the
score of a report depends on the others, a single report scores 0, and files of different studies cannot be compared.
"""

from collections import Counter
from collections.abc import Sequence

import numpy as np
from jaxtyping import Float

from common.metrics.bootstrap import Measure, mean_measure
from common.metrics.overlap import ORDERS, Tokens, ngrams

SIGMA = 6.0
Weights = tuple[dict[tuple[str, ...], float], ...]  # of the n-grams of each order


def coco_cider(predictions: Sequence[Tokens], references: Sequence[Tokens], convention: str = "coco") -> Measure:
    """coco/CIDEr. Its interval is over reports, with the rarity of n-grams in all references left as it is."""
    return mean_measure(f"{convention}/CIDEr", report_cider(predictions, references))


def report_cider(predictions: Sequence[Tokens], references: Sequence[Tokens]) -> Float[np.ndarray, " N"]:
    """The score of each report, one reference each (pycocoevalcap's `Cider`)."""
    known = [_counts(tokens) for tokens in references]
    holding = Counter(ngram for orders in known for counts in orders for ngram in counts)
    most = np.log(max(1, len(known)))
    rarity = {ngram: float(most - np.log(count)) for ngram, count in holding.items()}
    unknown = float(most)  # of an n-gram that stands in no reference

    def weights(orders: Sequence[Counter[tuple[str, ...]]]) -> Weights:
        return tuple(
            {ngram: count * rarity.get(ngram, unknown) for ngram, count in counts.items()} for counts in orders
        )

    scores = []
    for prediction, expected in zip(predictions, known, strict=True):
        predicted = _counts(prediction)
        # The toolkit takes the number of pairs of words for the length.
        difference = predicted[1].total() - expected[1].total()
        penalty = np.exp(-(difference**2) / (2 * SIGMA**2))
        cosines = map(_clipped_cosine, weights(predicted), weights(expected))
        scores.append(10 * penalty * sum(cosines) / ORDERS)
    return np.array(scores)


def _counts(tokens: Tokens) -> list[Counter[tuple[str, ...]]]:
    return [ngrams(tokens, order) for order in range(1, ORDERS + 1)]


def _clipped_cosine(predicted: dict[tuple[str, ...], float], expected: dict[tuple[str, ...], float]) -> float:
    shared = ((weight, expected[ngram]) for ngram, weight in predicted.items() if ngram in expected)
    product = sum(min(own, other) * other for own, other in shared)
    norms = _norm(predicted) * _norm(expected)
    return product / norms if norms else 0.0


def _norm(weights: dict[tuple[str, ...], float]) -> float:
    return sum(weight * weight for weight in weights.values()) ** 0.5
