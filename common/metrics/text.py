"""Text metrics of generated reports under named conventions, with intervals.

| key | tokens | numbers of |
|---|---|---|
| `coco/BLEU-1..4`, `coco/ROUGE-L`, `coco/CIDEr` | white space (en), characters (zh) | pycocoevalcap, no PTB tokenizer |
| `coco/METEOR` | its own (en only) | METEOR 1.5, the Java program, where its file is named |
| `coco-jieba/...` | jieba words (zh only) | the same |
| `nltk/BLEU-1..4` | white space (en), characters (zh) | nltk corpus_bleu, no smoothing |
| `nltk/ROUGE-L` | rouge-score's own: lower case, ASCII letters and digits (en), characters (zh) | rouge-score F1 |
| `nltk/METEOR` | white space (en only) | nltk, with WordNet |
| `nltk/METEOR-exact` | characters (zh only) | nltk, exact matches only |

All are fractions in [0, 1], but CIDEr, which goes to 10. Texts are scored as given: nothing is lower-cased or cleaned
first.
"""

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any, Literal

from common.errors import UserError
from common.io.terminal import say
from common.metrics import meteor_java
from common.metrics.bootstrap import Measure, summarize
from common.metrics.cider import coco_cider
from common.metrics.meteor import absence, meteor, meteor_exact
from common.metrics.overlap import coco_bleu, coco_rouge, ngram_statistics, nltk_bleu, nltk_rouge
from common.metrics.tokenize import Language, characters, jieba_words, languages_of

Convention = Literal["coco", "coco-jieba", "nltk", "all"]


def evaluate_texts(
    predictions: Sequence[str],
    references: Sequence[str],
    *,
    language: Language | Sequence[Language] | None = None,
    convention: Convention = "all",
    intervals: bool = True,
    seed: int = 0,
) -> dict[str, Any]:
    """Scores of predictions against their references, one of each per report.

    `language` is that of all reports or of each; where it is not given, `languages_of` tells it from the texts. Of two
    languages each is scored by itself, and names begin with it: "zh/coco/BLEU-4".

    Returns {"coco/BLEU-4": {"value": v, "low": l, "high": h}, ..., "distinct_outputs": share, "notes": {key: why}};
    low and high are the 95% bootstrap interval over reports and left out with `intervals=False`. Under "all", METEOR
    without WordNet is None with its reason in the notes; under "nltk" it is a UserError. coco/METEOR is
    None with its reason where its program was named and fails.
    """
    if not predictions or len(predictions) != len(references):
        raise UserError(
            f"{len(predictions)} predictions and {len(references)} references: expected the same "
            "number of each, at least one"
        )
    measures, notes = measures_by_language(predictions, references, language, convention)
    result: dict[str, Any] = summarize(measures, with_intervals=intervals, seed=seed)
    result.update(dict.fromkeys(notes), distinct_outputs=distinct_outputs(predictions), notes=notes)
    return result


def measures_by_language(
    predictions: Sequence[str],
    references: Sequence[str],
    language: Language | Sequence[Language] | None,
    convention: Convention,
) -> tuple[list[Measure], dict[str, str]]:
    """`text_measures` of reports in one language or two, as `evaluate_texts` names them."""
    if isinstance(language, str):
        return text_measures(predictions, references, language, convention)
    if language is None:
        pairs = zip(predictions, references, strict=True)
        language = languages_of([{"prediction": prediction, "reference": reference} for prediction, reference in pairs])
    if len(set(language)) == 1:
        return text_measures(predictions, references, language[0], convention)
    measures: list[Measure] = []
    notes: dict[str, str] = {}
    for one in sorted(set(language)):
        indices = [index for index, own in enumerate(language) if own == one]
        own, absent = text_measures(
            [predictions[index] for index in indices], [references[index] for index in indices], one, convention
        )
        measures += [
            dataclasses.replace(measure, names=tuple(f"{one}/{name}" for name in measure.names)) for measure in own
        ]
        notes |= {f"{one}/{name}": reason for name, reason in absent.items()}
    return measures, notes


def text_measures(
    predictions: Sequence[str], references: Sequence[str], language: Language, convention: Convention
) -> tuple[list[Measure], dict[str, str]]:
    """The measures of a convention, for values, intervals and paired differences; and what is absent, with why."""
    if language not in ("en", "zh"):
        raise UserError(f"language {language!r} is unknown; expected en or zh")
    if convention not in ("coco", "coco-jieba", "nltk", "all"):
        raise UserError(f"convention {convention!r} is unknown; expected coco, coco-jieba, nltk or all")
    if convention == "coco-jieba" and language != "zh":
        raise UserError("convention coco-jieba segments Chinese words; use it with language zh")
    measures: list[Measure] = []
    notes: dict[str, str] = {}
    tokens = str.split if language == "en" else characters
    split = [*map(tokens, predictions)], [*map(tokens, references)]
    statistics = ngram_statistics(*split)
    if convention in ("coco", "all"):
        spaced = str if language == "en" else lambda text: " ".join(characters(text))
        rouge = coco_rouge([*map(spaced, predictions)], [*map(spaced, references)])
        measures += [coco_bleu(statistics), rouge, coco_cider(*split)]
        if language == "en" and meteor_java.wanted():
            try:
                measures.append(meteor_java.meteor_java(predictions, references))
            except UserError as error:
                notes["coco/METEOR"] = str(error)
    if convention in ("coco-jieba", "all") and language == "zh":
        predicted, expected = [*map(jieba_words, predictions)], [*map(jieba_words, references)]
        measures += [
            coco_bleu(ngram_statistics(predicted, expected), "coco-jieba"),
            coco_rouge([*map(" ".join, predicted)], [*map(" ".join, expected)], "coco-jieba"),
            coco_cider(predicted, expected, "coco-jieba"),
        ]
    if convention in ("nltk", "all"):
        words = _rouge_words if language == "en" else characters
        measures += [
            nltk_bleu(statistics),
            nltk_rouge([*map(words, predictions)], [*map(words, references)]),
        ]
        try:
            score = meteor if language == "en" else meteor_exact
            measures.append(score(*split))
        except UserError as error:
            if convention == "nltk":
                raise UserError(
                    f"{error}; without it, use convention coco, or all, which reports METEOR as absent"
                ) from error
            notes["nltk/METEOR"] = str(error)
    return measures, notes


def warn_of_absent(systems: Mapping[str, Mapping[str, Any]], unread: str = "") -> list[str]:
    """A note for each metric without a value in the scores by system and name: why, and how to get it.

    Before them is what is `unread` (`unread_note`). They are also printed to standard error.
    """
    names = {
        name
        for scores in systems.values()
        for name, score in scores.items()
        if name.endswith("/METEOR") and score["value"] is None
    }
    why = {name: meteor_java.absence() if "coco/" in name else absence() for name in names}
    absent = [f"{name} is absent: {reason or 'its program failed'}" for name, reason in sorted(why.items())]
    notes = [unread] * bool(unread) + absent
    for note in notes:
        say(f"warning: {note}", error=True)
    return notes


def one_line(text: str) -> str:
    """Text with every white space a single space, because the published metrics split on single spaces."""
    return " ".join(text.split())


def distinct_outputs(predictions: Sequence[str]) -> float:
    """Share of different texts among the predictions: near 0 for a model that always says the same."""
    return len(set(predictions)) / len(predictions)


def _rouge_words(text: str) -> list[str]:
    from rouge_score.tokenize import tokenize

    return tokenize(text, stemmer=None)
