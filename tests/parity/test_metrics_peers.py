"""BLEU, ROUGE-L, CIDEr and METEOR against pycocoevalcap, nltk and rouge-score, whose numbers the conventions name."""

import gzip
import random
import shutil
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from nltk.translate.bleu_score import corpus_bleu
from nltk.translate.meteor_score import meteor_score
from rouge_score.rouge_scorer import RougeScorer

from common.errors import UserError
from common.metrics import meteor_java
from common.metrics.bootstrap import values
from common.metrics.meteor import load_wordnet
from common.metrics.overlap import longest_common_subsequence
from common.metrics.text import Convention, evaluate_texts
from common.metrics.tokenize import Language, characters, jieba_words

WORDS = [
    *("no", "the", "heart", "is", "normal", "size", "pleural", "effusion", "or", "pneumothorax"),
    *("0.6", "cm", "Right-sided", "opacity", ".", ",", "/", "XXXX"),
]
HAN = [*"双眼视盘边界清晰色淡红黄斑区未见出血及渗出杯盘比约为左右", "0.6", "OCT", "，", "。"]

ENGLISH = [
    ("The heart is normal in size.", "The heart size is normal."),
    ("No focal consolidation, pneumothorax or pleural effusion .", "no pleural effusion or pneumothorax ."),
    ("a 2.5 cm nodule in the right upper lobe", "2.5 cm right-upper-lobe nodule"),
]
EDGES = [
    ("", "normal chest"),
    ("normal chest", ""),
    ("", ""),
    ("normal", "normal"),
    ("normal", "abnormal"),
    ("no no no no no no", "no effusion no"),
    ("no effusion no", "no no no no no no"),
    ("two  spaces and a\ttab", "two spaces  and a tab"),
    (" leading and trailing ", "leading and trailing"),
    ("one\nline each", "one\nline each"),
    ("...", "!!!"),
]
CHINESE = [
    ("双眼视盘边界清晰，杯盘比约0.6。", "双眼视盘边界清，C/D约0.6。"),
    ("黄斑区未见出血 OCT 正常", "黄斑区见出血，OCT示水肿"),
    ("", "未见异常"),
    ("眼", "眼"),
]


def random_pairs(vocabulary: list[str], separator: str, count: int, seed: int) -> list[tuple[str, str]]:
    generator = random.Random(seed)
    return [
        (
            separator.join(generator.choices(vocabulary, k=generator.randrange(25))),
            separator.join(generator.choices(vocabulary, k=generator.randrange(25))),
        )
        for _ in range(count)
    ]


CORPORA: dict[str, tuple[Language, list[tuple[str, str]]]] = {
    "random": ("en", random_pairs(WORDS, " ", 60, seed=0)),
    "copies": ("en", [(reference, reference) for _, reference in random_pairs(WORDS, " ", 20, seed=1)]),
    "reports": ("en", ENGLISH),
    "edges": ("en", EDGES),
    "reports and edges": ("en", ENGLISH + EDGES),
    **{f"edge {index}": ("en", [pair]) for index, pair in enumerate(EDGES)},
    "chinese": ("zh", CHINESE),
    "chinese random": ("zh", random_pairs(HAN, "", 40, seed=2)),
}
ALL = pytest.mark.parametrize("corpus", CORPORA)
CHINESE_ONLY = pytest.mark.parametrize("corpus", [name for name in CORPORA if CORPORA[name][0] == "zh"])


def scores_of(corpus: str, convention: Convention) -> tuple[Language, list[str], list[str], dict[str, float]]:
    language, pairs = CORPORA[corpus]
    predictions, references = [list(column) for column in zip(*pairs, strict=True)]
    result = evaluate_texts(predictions, references, language=language, convention=convention, intervals=False)
    return (
        language,
        predictions,
        references,
        {key: result[key] and result[key]["value"] for key in result if "/" in key},
    )


def peer_coco(predictions: list[str], references: list[str]) -> dict[str, float]:
    bleu = pytest.importorskip("pycocoevalcap.bleu.bleu", reason="pycocoevalcap is not installed: make dev").Bleu
    from pycocoevalcap.cider.cider import Cider
    from pycocoevalcap.rouge.rouge import Rouge

    predicted = {index: [text] for index, text in enumerate(predictions)}
    expected = {index: [text] for index, text in enumerate(references)}
    scores, _ = bleu(4).compute_score(expected, predicted, verbose=0)
    rouge, _ = Rouge().compute_score(expected, predicted)
    # The toolkit fails where no reference has a word; there is nothing to agree with.
    cider = Cider().compute_score(expected, predicted)[0] if any(map(str.split, references)) else 0.0
    bleus = {f"BLEU-{order}": score for order, score in enumerate(scores, 1)}
    return {**bleus, "ROUGE-L": rouge, "CIDEr": cider}


@ALL
def test_coco_scores_are_those_of_pycocoevalcap(corpus: str) -> None:
    language, predictions, references, scores = scores_of(corpus, "coco")
    if language == "zh":
        predictions = [" ".join(characters(text)) for text in predictions]
        references = [" ".join(characters(text)) for text in references]
    expected = peer_coco(predictions, references)
    assert scores == pytest.approx({f"coco/{key}": value for key, value in expected.items()}, abs=1e-9, rel=1e-9)


@CHINESE_ONLY
def test_coco_jieba_scores_are_those_of_pycocoevalcap_on_jieba_words(corpus: str) -> None:
    _, predictions, references, scores = scores_of(corpus, "coco-jieba")
    expected = peer_coco(
        [" ".join(jieba_words(text)) for text in predictions], [" ".join(jieba_words(text)) for text in references]
    )
    assert scores == pytest.approx({f"coco-jieba/{key}": value for key, value in expected.items()}, abs=1e-9, rel=1e-9)


@ALL
def test_nltk_bleu_is_that_of_nltk(corpus: str) -> None:
    language, predictions, references, scores = scores_of(corpus, "all")
    split: Callable[[str], list[str]] = str.split if language == "en" else characters
    weights = [tuple([1 / order] * order) for order in range(1, 5)]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # nltk announces each order without a match
        expected = corpus_bleu([[split(text)] for text in references], [*map(split, predictions)], weights)
    assert [scores[f"nltk/BLEU-{order}"] for order in range(1, 5)] == pytest.approx(expected, abs=1e-300, rel=1e-12)


@ALL
def test_nltk_rouge_is_that_of_rouge_score(corpus: str) -> None:
    class Characters:
        def tokenize(self, text: str) -> list[str]:
            return characters(text)

    language, predictions, references, scores = scores_of(corpus, "all")
    scorer = RougeScorer(["rougeL"], tokenizer=Characters() if language == "zh" else None)
    expected = np.mean(
        [
            scorer.score(reference, prediction)["rougeL"].fmeasure
            for prediction, reference in zip(predictions, references, strict=True)
        ]
    )
    assert scores["nltk/ROUGE-L"] == pytest.approx(expected, abs=1e-14)


@ALL
def test_longest_common_subsequence_is_that_of_the_full_table(corpus: str) -> None:
    for prediction, reference in CORPORA[corpus][1]:
        first, second = list(prediction), list(reference)
        table = np.zeros((len(first) + 1, len(second) + 1), int)
        for i, one in enumerate(first, 1):
            for j, other in enumerate(second, 1):
                table[i, j] = table[i - 1, j - 1] + 1 if one == other else max(table[i - 1, j], table[i, j - 1])
        assert longest_common_subsequence(first, second) == table[-1, -1]


def peer_meteor(corpus: str, split: Callable[[str], list[str]], wordnet: Any) -> float:
    scores = [
        meteor_score([split(reference)], split(prediction), wordnet=wordnet)
        for prediction, reference in CORPORA[corpus][1]
    ]
    return float(np.mean(scores))


def test_meteor_is_that_of_nltk() -> None:
    try:
        wordnet = load_wordnet()
    except UserError as error:
        pytest.skip(str(error))
    for corpus in (name for name in CORPORA if CORPORA[name][0] == "en"):
        scores = scores_of(corpus, "nltk")[-1]
        assert scores["nltk/METEOR"] == pytest.approx(peer_meteor(corpus, str.split, wordnet), abs=1e-14)


@CHINESE_ONLY
def test_exact_meteor_is_that_of_nltk_without_synonyms(corpus: str) -> None:
    class NoSynonyms:
        def synsets(self, word: str) -> list[str]:
            return []

    scores = scores_of(corpus, "nltk")[-1]
    assert scores["nltk/METEOR-exact"] == pytest.approx(peer_meteor(corpus, characters, NoSynonyms()), abs=1e-14)


def test_java_meteor_is_that_of_pycocoevalcap(tmp_path, monkeypatch) -> None:
    """Of reports and of sets of them, also with copies and empty texts, and with a table of two paraphrases."""
    peer = pytest.importorskip("pycocoevalcap.meteor.meteor", reason="pycocoevalcap is not installed: make dev")
    if shutil.which("java") is None:
        pytest.skip("Java is not installed")
    jar = tmp_path / "meteor-1.5.jar"
    shutil.copy(Path(peer.__file__).with_name(jar.name), jar)
    (tmp_path / "data").mkdir()
    with gzip.open(tmp_path / meteor_java.PARAPHRASES, "wt") as table:  # the whole one takes long to load
        table.write("0.5\ncardiac silhouette\nheart\n0.5\nheart\ncardiac silhouette\n")
    monkeypatch.setenv(meteor_java.JAR_VARIABLE, str(jar))
    monkeypatch.setattr(peer, "METEOR_JAR", str(jar))
    pairs = [*random_pairs([*WORDS, "hearts", "effusions", "large"], " ", 40, seed=4), *ENGLISH, *EDGES]
    pairs.append(("the cardiac silhouette is enlarged", "the heart is large ."))
    pairs = [(" ".join(prediction.split()), " ".join(reference.split())) for prediction, reference in pairs]
    measure = meteor_java.meteor_java(*map(list, zip(*pairs, strict=True)))
    program = peer.Meteor()

    def expected(chosen: list[int]) -> tuple[float, list[float]]:
        return program.compute_score(
            {place: [pairs[index][1]] for place, index in enumerate(chosen)},
            {place: [pairs[index][0]] for place, index in enumerate(chosen)},
        )

    whole, each = expected([*range(len(pairs))])
    assert values(measure)["coco/METEOR"] == pytest.approx(whole, abs=1e-12)
    assert meteor_java.score(measure.rows)[:, 0] == pytest.approx(each, abs=1e-12)
    assert measure.rows[-1, 16:20].any()  # a paraphrase counted
    generator = random.Random(0)
    for _ in range(30):
        chosen = generator.choices(range(len(pairs)), k=4)
        assert meteor_java.score(measure.rows[chosen].sum(0))[0] == pytest.approx(expected(chosen)[0], abs=1e-12)
