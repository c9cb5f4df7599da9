"""METEOR as nltk computes it (Lavie and Agarwal 2007; alpha 0.9, beta 3, gamma 0.5), mean over reports.

English matches exact words, then Porter stems, then WordNet synonyms, and therefore needs the WordNet 3.0 database.
Chinese tokens are matched exactly, which needs no data and is called METEOR-exact to keep the two apart. The Java
METEOR 1.5 of COCO captions is another metric with other numbers (`meteor_java`).
"""

import functools
import io
import os
import warnings
from collections.abc import Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np

from common.errors import UserError
from common.metrics.bootstrap import Measure, mean_measure

WORDNET_VARIABLE = "MEDREPORT_WORDNET"
DEBIAN_WORDNET = Path("/usr/share/wordnet")


def meteor(predictions: Sequence[Sequence[str]], references: Sequence[Sequence[str]]) -> Measure:
    """nltk/METEOR of English tokens. Raises UserError where there is no WordNet."""
    wordnet = load_wordnet()
    from nltk.stem.porter import PorterStemmer

    # What nltk asks of a reader and of a stemmer, with an answer kept for each word.
    synonyms = SimpleNamespace(synsets=functools.cache(wordnet.synsets))
    stemmer = SimpleNamespace(stem=functools.cache(PorterStemmer().stem))
    return mean_measure("nltk/METEOR", _scores(predictions, references, stemmer, synonyms))


def meteor_exact(predictions: Sequence[Sequence[str]], references: Sequence[Sequence[str]]) -> Measure:
    """nltk/METEOR-exact: tokens match only when they are equal (but for case); no stems, no synonyms, no data."""
    nothing = SimpleNamespace(stem=lambda word: word, synsets=lambda word: [])
    return mean_measure("nltk/METEOR-exact", _scores(predictions, references, nothing, nothing))


def _scores(
    predictions: Sequence[Sequence[str]], references: Sequence[Sequence[str]], stemmer: Any, wordnet: Any
) -> np.ndarray:
    from nltk.translate.meteor_score import single_meteor_score

    return np.array(
        [
            single_meteor_score(reference, prediction, stemmer=stemmer, wordnet=wordnet)
            for prediction, reference in zip(predictions, references, strict=True)
        ]
    )


def absence() -> str:
    """Why nltk/METEOR cannot be computed here, and how it can; "" where it can."""
    try:
        load_wordnet()
    except UserError as error:
        return str(error)
    return ""


def load_wordnet() -> Any:
    """nltk's reader of WordNet: of the directory named by the user, else of nltk's data, else of Debian's wordnet-base.

    Raises UserError where there is none.
    """
    if directory := os.environ.get(WORDNET_VARIABLE):
        return _read_directory(Path(directory))
    from nltk.corpus import wordnet

    try:
        wordnet.ensure_loaded()
    except LookupError as error:
        if (DEBIAN_WORDNET / "data.noun").exists():
            return _read_directory(DEBIAN_WORDNET)
        raise UserError(
            "nltk/METEOR needs WordNet, which is not installed: run `medreport wordnet`, or install Debian's "
            f"wordnet-base, or name a directory with the WordNet 3.0 database files in {WORDNET_VARIABLE}"
        ) from error
    return wordnet


@functools.cache
def _read_directory(directory: Path) -> Any:
    import nltk.data
    from nltk.corpus.reader.wordnet import WordNetCorpusReader, WordNetError

    class DirectoryReader(WordNetCorpusReader):
        def open(self, file: str) -> Any:
            # Debian leaves out `lexnames`, 45 names of source files that the reader insists on and METEOR never reads.
            if file == "lexnames":
                return io.StringIO("".join(f"{index:02d}\tunused\t1\n" for index in range(45)))
            return super().open(file)

        def map_wn(self, version: str = "wordnet") -> None:
            """No mapping between WordNet versions: it would need nltk's own copy, which is what is missing."""

    nltk.data.path.append(str(directory))  # nltk opens no file outside these folders
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # other languages than English are not available: none is asked for
            return DirectoryReader(str(directory), None)
    except (OSError, LookupError, ValueError, WordNetError) as error:
        raise UserError(
            f"{directory}: not a WordNet database ({error}); expected index.noun, data.noun, noun.exc and the same "
            f"for verb, adj and adv (set in {WORDNET_VARIABLE})"
        ) from error
