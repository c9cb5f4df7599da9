"""The word vocabulary of several corpora, each with its own threshold.

UniCrossAdapter trains on IU X-ray and MIMIC-CXR with one vocabulary: words that occur 3 times in the training reports
of the first, or 10 times in those of the second, after R2Gen's cleaning (`common.data.cleaning`).
"""

from collections.abc import Iterable
from dataclasses import dataclass

from common.data.tokenizers import WordTokenizer, build_word_tokenizer


@dataclass(frozen=True)
class Corpus:
    """Cleaned training reports, and how often a word must occur in them."""

    texts: Iterable[str]
    minimum_count: int


def merged_vocabulary(*corpora: Corpus) -> WordTokenizer:
    """The words frequent enough in at least one corpus, alphabetically: their order does not matter.

    Counts are not added up: a word seen twice in IU X-ray and nine times in MIMIC-CXR is in neither. Raises UserError
    where a corpus has no frequent word.
    """
    words = {word for corpus in corpora for word in build_word_tokenizer(corpus.texts, corpus.minimum_count).words}
    return WordTokenizer(tuple(sorted(words)))
