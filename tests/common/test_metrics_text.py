"""Conventions by name, absent METEOR, tokens of both languages, and what is refused."""

import nltk.corpus
import nltk.data
import pytest
from nltk.corpus.reader.wordnet import WordNetCorpusReader
from nltk.corpus.util import LazyCorpusLoader

from common.errors import UserError
from common.metrics import meteor
from common.metrics.cider import report_cider
from common.metrics.text import evaluate_texts, warn_of_absent
from common.metrics.tokenize import characters, jieba_words

BLEU_ROUGE = ["BLEU-1", "BLEU-2", "BLEU-3", "BLEU-4", "ROUGE-L"]


@pytest.fixture
def no_wordnet(monkeypatch: pytest.MonkeyPatch, tmp_path) -> None:
    monkeypatch.delenv(meteor.WORDNET_VARIABLE, raising=False)
    monkeypatch.setattr(meteor, "DEBIAN_WORDNET", tmp_path)
    monkeypatch.setattr(nltk.data, "path", [])
    # A reader that another test has loaded would answer for the empty path.
    monkeypatch.setattr(nltk.corpus, "wordnet", LazyCorpusLoader("wordnet", WordNetCorpusReader, None))


@pytest.fixture
def small_wordnet(monkeypatch: pytest.MonkeyPatch, tmp_path) -> None:
    """A database as Debian installs it, without `lexnames`, that knows one thing: a cyst is a sac."""
    header = "  1 WordNet 3.0 Copyright\n"
    for part in ("noun", "verb", "adj", "adv"):
        (tmp_path / f"{part}.exc").write_text("")
        (tmp_path / f"index.{part}").write_text(header)
        (tmp_path / f"data.{part}").write_text(header)
    offset = len(header)
    (tmp_path / "data.noun").write_text(f"{header}{offset:08d} 08 n 02 cyst 0 sac 0 000 | a closed pouch\n")
    (tmp_path / "index.noun").write_text(
        f"{header}cyst n 1 0 1 0 {offset:08d}\nsac n 1 0 1 0 {offset:08d}\n",
    )
    monkeypatch.setenv(meteor.WORDNET_VARIABLE, str(tmp_path))


def test_each_convention_names_its_scores(small_wordnet) -> None:
    def keys(**options) -> set[str]:
        return {key for key in evaluate_texts(["a b"], ["a b"], intervals=False, **options) if "/" in key}

    coco = {f"coco/{name}" for name in [*BLEU_ROUGE, "CIDEr"]}
    nltk_names = {f"nltk/{name}" for name in BLEU_ROUGE}
    jieba = {f"coco-jieba/{name}" for name in [*BLEU_ROUGE, "CIDEr"]}
    assert keys(convention="coco") == coco
    assert keys(convention="nltk") == nltk_names | {"nltk/METEOR"}
    assert keys() == coco | nltk_names | {"nltk/METEOR"}
    assert keys(convention="coco-jieba", language="zh") == jieba
    assert keys(convention="nltk", language="zh") == nltk_names | {"nltk/METEOR-exact"}
    assert keys(language="zh") == coco | jieba | nltk_names | {"nltk/METEOR-exact"}


def test_scores_worked_by_hand() -> None:
    # 3 of 4 words and 1 of 3 pairs match, lengths 4 and 6; the longest common subsequence is "no or effusion".
    result = evaluate_texts(
        ["no , or effusion"], ["no pneumothorax or pleural effusion no"], convention="coco", intervals=False
    )
    penalty = 2.718281828459045 ** (1 - 6 / 4)
    assert result["coco/BLEU-1"]["value"] == pytest.approx(3 / 4 * penalty)
    assert result["coco/BLEU-2"]["value"] < 1e-6
    assert result["coco/ROUGE-L"]["value"] == pytest.approx(2.44 * (3 / 4) * (3 / 6) / (3 / 6 + 1.44 * 3 / 4))


@pytest.mark.parametrize(
    ("language", "texts"),
    [
        ("en", ["the heart is normal", "no acute disease seen"]),
        ("zh", ["双眼视盘边界清晰色淡红", "黄斑区中央未见明显出血"]),
    ],
)
def test_perfect_predictions_score_one_in_every_convention(language, texts) -> None:
    result = evaluate_texts(texts, texts, language=language)
    scores = {key: score["value"] for key, score in result.items() if "/" in key and score and "METEOR" not in key}
    assert scores == pytest.approx({key: 10 if "CIDEr" in key else 1 for key in scores}, abs=1e-8)


def test_cider_is_that_of_the_coco_toolkit() -> None:
    """The numbers that pycocoevalcap 1.2 prints of these reports; tests/parity compares more where it is installed."""
    predictions = ["no pleural effusion or pneumothorax .", "the heart is normal in size ."]
    predictions += ["no acute bony lesion .", "heart size is normal ."]
    references = ["no pleural effusion is seen .", "the heart size is normal ."]
    references += ["no acute bony lesion .", "large left pleural effusion ."]
    scores = report_cider([*map(str.split, predictions)], [*map(str.split, references)])
    assert scores == pytest.approx([2.1597968, 3.11859347, 10, 0], abs=1e-7)
    result = evaluate_texts(predictions, references, convention="coco")["coco/CIDEr"]
    assert result["value"] == pytest.approx(3.8195975686000487, abs=1e-12)
    assert result["low"] < result["value"] < result["high"]


def test_cider_is_zero_where_no_word_tells_references_apart() -> None:
    assert report_cider([["normal"]], [["normal"]]).tolist() == [0]
    assert report_cider([["a"], []], [["a"], ["a"]]).tolist() == [0, 0]
    assert report_cider([[], ["a"]], [[], []]).tolist() == [0, 0]


def test_values_lie_in_their_intervals_and_seeds_repeat() -> None:
    references = [f"finding {index % 7} of the left lung base" for index in range(40)]
    predictions = [f"finding {index % 5} of the lung base" for index in range(40)]
    first = evaluate_texts(predictions, references, convention="coco", seed=3)
    assert first == evaluate_texts(predictions, references, convention="coco", seed=3)
    assert first != evaluate_texts(predictions, references, convention="coco", seed=4)
    for name in BLEU_ROUGE:
        score = first[f"coco/{name}"]
        assert 0 < score["low"] <= score["value"] <= score["high"] < 1


def test_distinct_outputs_is_the_share_of_different_texts() -> None:
    result = evaluate_texts(["a", "a", "a", "b"], ["a", "b", "c", "d"], convention="coco", intervals=False)
    assert result["distinct_outputs"] == 0.5


def test_meteor_counts_synonyms_of_a_wordnet_directory_without_lexnames(small_wordnet) -> None:
    def value(prediction: str, reference: str) -> float:
        result = evaluate_texts([prediction], [reference], convention="nltk", intervals=False)
        return result["nltk/METEOR"]["value"]

    # Both words match in one chunk: 1 - 0.5 * (1 / 2) ** 3. "nodule" is no synonym: P = R = 1/2 and penalty 0.5.
    assert value("cyst seen", "sac seen") == pytest.approx(0.9375)
    assert value("nodule seen", "sac seen") == pytest.approx(0.25)


def test_meteor_counts_stems(small_wordnet) -> None:
    result = evaluate_texts(["opacities seen"], ["opacity seen"], convention="nltk", intervals=False)
    assert result["nltk/METEOR"]["value"] == pytest.approx(0.9375)


def test_meteor_asked_for_without_wordnet_is_an_error_that_says_how_to_get_it(no_wordnet) -> None:
    with pytest.raises(UserError, match=r"needs WordNet.*`medreport wordnet`.*wordnet-base.*MEDREPORT_WORDNET"):
        evaluate_texts(["no effusion"], ["no effusion"], convention="nltk")


def test_all_without_wordnet_names_meteor_as_absent_and_keeps_the_rest(no_wordnet) -> None:
    result = evaluate_texts(["no acute bony lesion"], ["no acute bony lesion"], intervals=False)
    assert result["nltk/METEOR"] is None
    assert "`medreport wordnet`" in result["notes"]["nltk/METEOR"]
    assert result["nltk/BLEU-4"]["value"] == pytest.approx(1)


def test_an_evaluation_says_what_is_absent_and_how_to_get_it(no_wordnet, capsys) -> None:
    scores = {"coco/BLEU-4": {"value": 0.5}, "zh/nltk/METEOR-exact": {"value": 0.5}}
    assert warn_of_absent({"model": scores}) == []
    assert capsys.readouterr().err == ""
    notes = warn_of_absent({"model": scores | {"en/nltk/METEOR": {"value": None}}, "constant": scores})
    assert [note.partition(":")[0] for note in notes] == ["en/nltk/METEOR is absent"]
    assert "`medreport wordnet`" in notes[0]
    assert capsys.readouterr().err == f"warning: {notes[0]}\n"


def test_chinese_meteor_needs_no_wordnet_and_says_that_it_is_exact(no_wordnet) -> None:
    result = evaluate_texts(["未见出血"], ["未见出血"], language="zh", convention="nltk", intervals=False)
    assert result["nltk/METEOR-exact"]["value"] == pytest.approx(1 - 0.5 * (1 / 4) ** 3)
    assert "nltk/METEOR" not in result
    assert result["notes"] == {}


def test_a_wordnet_directory_without_wordnet_is_an_error_that_names_it(monkeypatch, tmp_path) -> None:
    monkeypatch.setenv(meteor.WORDNET_VARIABLE, str(tmp_path / "nowhere"))
    with pytest.raises(UserError, match=r"nowhere: not a WordNet database.*index\.noun"):
        evaluate_texts(["a"], ["a"], convention="nltk")


def test_chinese_tokens_are_characters_with_latin_words_and_decimals_whole() -> None:
    assert characters("C/D约0.6，OCT示 T2.\n") == ["C", "/", "D", "约", "0.6", "，", "OCT", "示", "T2", "."]
    assert jieba_words("视盘 边界0.6") == ["视盘", "边界", "0.6"]


def test_rouge_of_chinese_is_not_zero_though_rouge_score_drops_han_characters() -> None:
    result = evaluate_texts(["未见出血"], ["未见渗出"], language="zh", convention="nltk", intervals=False)
    assert result["nltk/ROUGE-L"]["value"] == pytest.approx(3 / 4)


@pytest.mark.parametrize(
    ("predictions", "references", "options", "message"),
    [
        ([], [], {}, "at least one"),
        (["a"], ["a", "b"], {}, "1 predictions and 2 references"),
        (["a"], ["a"], {"language": "fr"}, "'fr' is unknown"),
        (["a"], ["a"], {"convention": "bleu"}, "'bleu' is unknown"),
        (["a"], ["a"], {"convention": "coco-jieba"}, "language zh"),
    ],
)
def test_impossible_requests_are_refused(predictions, references, options, message) -> None:
    with pytest.raises(UserError, match=message):
        evaluate_texts(predictions, references, **options)
