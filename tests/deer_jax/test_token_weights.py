"""Token weights: TF-IDF written out, saliency by finite differences, and functions from outside the package."""

import json
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tokenizers

from common.clinical import labeler as labeling
from common.clinical import saliency
from common.clinical.labeler import Labeler, is_wordpiece, label_texts, make_tokenizer, replicate, save_vocabulary
from common.clinical.report_labeler import Labelled
from common.clinical.saliency import label_with_saliency, saliency_and_logits, target_score, token_saliency
from common.data.pieces import byte_of_character
from common.data.tokenizers import WordTokenizer, save_words
from common.errors import UserError
from common.io.functions import load_function
from common.io.jsonl import write_rows
from common.models.bert import BertConfig, ClassifierConfig, chexbert_logits, init_classifier, word_embeddings
from common.models.bert_weights import save_classifier
from deer_jax.cli import dispatch
from deer_jax.rewarding import make_judge, score_function
from deer_jax.token_weights import (
    Group,
    Rollout,
    checked_scores,
    gradient_scores,
    read_rollout,
    tfidf_scores,
    uniform_scores,
    weights_of,
)
from deer_jax.weights import rollout_reader

VOCABULARY = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "no", "pleural", "eff", "##usion", "heart", "edema", "."]
ENCODER = BertConfig(
    vocab_size=len(VOCABULARY), hidden_size=16, num_hidden_layers=2, num_attention_heads=2, intermediate_size=24,
    max_position_embeddings=12,
)  # fmt: skip
CONFIG = ClassifierConfig(ENCODER)


@pytest.fixture(scope="module")
def labeler() -> Labeler:
    params = jax.tree.map(lambda leaf: leaf * 10 if leaf.ndim > 1 else leaf, init_classifier(CONFIG, jax.random.key(0)))
    return Labeler(CONFIG, params, make_tokenizer({word: index for index, word in enumerate(VOCABULARY)}))


WORDS = WordTokenizer(("no", "pleural", "effusion", "heart", "edema", "."))


def group(*texts: str, classes=(), stop: bool = False) -> Group:
    rollouts = [read_rollout([*WORDS.encode(text), *([WORDS.eos_id] if stop else [])], WORDS) for text in texts]
    return Group("reference", rollouts, classes)


def test_tfidf_is_the_share_of_the_report_times_the_log_of_rarity():
    texts = ["no edema . no effusion", "edema", "no edema ."]
    (scores,) = tfidf_scores([group(*texts)])
    for text, own in zip(texts, scores, strict=True):
        words = text.split()
        expected = [
            words.count(word) / len(words) * math.log(3 / sum(word in other.split() for other in texts))
            for word in words
        ]
        np.testing.assert_allclose(own, expected, rtol=1e-12)
    assert scores[1][0] == 0  # every report says "edema"
    np.testing.assert_array_equal(weights_of([scores], 4.0)[0][1], [1.0])


def test_the_end_of_a_report_weighs_1_and_is_not_counted():
    plain = tfidf_scores([group("no edema", "edema heart .")])[0]
    stopped = tfidf_scores([group("no edema", "edema heart .", stop=True)], WORDS.stop_ids)[0]
    for one, other in zip(plain, stopped, strict=True):
        np.testing.assert_array_equal([*one, 0.0], other)


def test_empty_reports_have_no_scores():
    assert [len(own) for own in tfidf_scores([group("", "edema")])[0]] == [0, 1]
    assert [len(own) for own in uniform_scores([group("", "edema")])[0]] == [0, 1]


@pytest.mark.parametrize("uncertain", [False, True])
def test_saliency_is_the_length_of_the_gradient_by_finite_differences(labeler, uncertain):
    ids, mask = jnp.array([[2, 4, 5, 3]]), jnp.ones((1, 4), bool)
    with jax.enable_x64(True):
        params = jax.tree.map(lambda leaf: leaf.astype(jnp.float64), labeler.params)
        config = ClassifierConfig(BertConfig(**{**vars(ENCODER), "dtype": "float64", "param_dtype": "float64"}))
        targets = np.zeros((1, 14), bool)
        targets[0, [1, 5, 13]] = True
        words = np.asarray(word_embeddings(params, ids), np.float64)

        @jax.jit
        def target(words):
            logits = chexbert_logits(config, params, words, mask)[0]
            total = logits[1, 1] + logits[5, 1] + logits[13, 1]
            return total + logits[1, 3] + logits[5, 3] if uncertain else total

        gradient = np.zeros(words.shape)
        for index in np.ndindex(words.shape):
            step = np.zeros(words.shape)
            step[index] = 1e-3
            gradient[index] = (target(words + step) - target(words - step)) / 2e-3
    found, _ = saliency_and_logits(CONFIG, labeler.params, ids, mask, jnp.asarray(targets), uncertain)
    np.testing.assert_allclose(found[0], np.linalg.norm(gradient[0], axis=-1), rtol=2e-3)


def test_a_labeler_without_an_uncertain_class_has_no_score_of_it():
    logits, targets = jnp.array([[[1.0, 2.0], [3.0, 5.0]]]), jnp.array([[True, True]])
    assert target_score(logits, targets, uncertain=True).tolist() == target_score(logits, targets).tolist() == [7.0]


def test_saliency_does_not_depend_on_the_batch(labeler):
    texts = ["no effusion", "heart edema . pleural", "", "no edema"]
    targets = np.random.default_rng(0).random((4, 14)) < 0.4
    targets[3] = False
    together = token_saliency(labeler, texts, targets)
    for text, own, (values, spans) in zip(texts, targets, together, strict=True):
        alone, _ = token_saliency(labeler, [text], own[None])[0]
        np.testing.assert_allclose(values, alone, rtol=1e-4, atol=1e-7)
        assert [text[start:end] for start, end in spans[1:-1]] == text.replace("effusion", "eff usion").split()
    assert not together[3][0].any()


@pytest.mark.parametrize("on_all_devices", [False, True])
def test_labels_with_saliency_are_those_of_each_alone(labeler, on_all_devices):
    if on_all_devices:
        labeler = replicate(labeler)
        assert labeler.layout.row_shards > 1
    texts = ["no effusion", "heart edema . pleural", "", "edema " * 20, "no edema", "heart \N{LUNGS}"]
    targets = np.random.default_rng(0).random((6, 14)) < 0.4
    targets[[1, 4]] = False
    labels, found = label_with_saliency(labeler, texts, targets, batch_size=2)
    alone = label_texts(labeler, texts, batch_size=2)
    np.testing.assert_array_equal(labels.classes, alone.classes)
    np.testing.assert_allclose(labels.logits, alone.logits, rtol=1e-5, atol=1e-5)
    assert labels.finite.all()
    assert (labels.cut, labels.unknown) == (alone.cut, alone.unknown) == (1, 1)
    for (values, spans), (own, own_spans) in zip(found, token_saliency(labeler, texts, targets), strict=True):
        np.testing.assert_allclose(values, own, rtol=1e-5, atol=1e-7)
        np.testing.assert_array_equal(spans, own_spans)
    assert not found[1][0].any()
    assert found[0][0].all()


def test_a_judge_reads_each_rollout_once_for_labels_and_weights(labeler, monkeypatch):
    references = ["edema heart", "no edema"]
    groups = [group("no edema", "heart edema .", "edema").rollouts, group("", "no effusion", "heart").rollouts]
    scores = score_function("gradient", labeler, ())
    expected = np.array([[1] * 14, [0] * 14], np.int8)  # of the references
    judges = []
    for own in (scores, lambda groups: gradient_scores(groups, labeler)):
        monkeypatch.setattr(Labeler, "label", lambda *_: Labelled(expected))
        judges.append(make_judge(references, labeler, own, 1.0))
        monkeypatch.undo()
    read = []
    token_batches = labeling.token_batches

    def counted(*arguments):
        for batch in token_batches(*arguments):
            read.extend(set(batch[0]))
            yield batch

    monkeypatch.setattr(labeling, "token_batches", counted)
    monkeypatch.setattr(saliency, "token_batches", counted)
    together = judges[0](np.array([0, 1]), groups, 0)
    assert len(read) == 6
    apart = judges[1](np.array([0, 1]), groups, 0)
    assert len(read) == 6 + 6 + 3
    np.testing.assert_array_equal(together.rewards, apart.rewards)
    assert together.measured.keys() == apart.measured.keys()
    for name, values in together.measured.items():
        np.testing.assert_array_equal(values, apart.measured[name])
    for ours, others in zip(together.weights, apart.weights, strict=True):
        for values, own in zip(ours, others, strict=True):
            np.testing.assert_allclose(values, own, rtol=1e-5)
    assert together.weights[0][0].min() > 1


def test_no_positive_finding_in_the_reference_leaves_all_weights_at_1(labeler):
    normal = group("no edema", "heart", classes=[0] * 14)
    ill = group("no edema", "heart", classes=[1, *[2] * 13])
    zero, some = gradient_scores([normal, ill], labeler)
    assert not any(own.any() for own in zero)
    assert all(own.all() for own in some)
    assert all((own == 1).all() for own in weights_of([zero], 1.0)[0])


def test_words_beyond_the_labelers_window_have_no_score(labeler):
    ill = group("edema " * 20, classes=[1] * 14)
    ((own,),) = gradient_scores([ill], labeler)
    assert (own[:10] > 0).all()
    assert not own[10:].any()


def test_what_is_odd_for_the_labeler_is_counted(labeler):
    references = ["no edema", "heart"]
    judge = make_judge(references, labeler, uniform_scores, 0.0)
    texts = [["edema " * 20, "no edema"], ["", "heart \N{LUNGS} ."]]
    groups = [[Rollout((), text, np.zeros((0, 2), int)) for text in own] for own in texts]
    measured = {name: values.mean() for name, values in judge(np.array([0, 1]), groups, 0).measured.items()}
    assert measured["beyond_labeler_window"] == measured["unknown_to_labeler"] == 0.25
    positive = (label_texts(labeler, references).classes == 1).any(-1)
    assert measured["no_positive_reference"] == 1 - positive.mean()


def by_length(groups):
    return [[np.arange(len(rollout.tokens)) for rollout in group.rollouts] for group in groups]


@pytest.mark.parametrize(
    ("bad", "said"),
    [
        (lambda groups: [[np.zeros(99)]], "expected scores of 1 groups"),
        (lambda groups: [[np.zeros(9), np.zeros(1)]], "shape"),
        (lambda groups: [[np.zeros(2), np.zeros(3)]], "id 'r7', rollout 2: scores of shape"),
        (lambda groups: [[np.array([np.nan, 0]), np.zeros(1)]], "id 'r7', rollout 1: returned a score .* not finite"),
        (lambda groups: [[np.zeros(2), np.array([-np.inf])]], "id 'r7', rollout 2: returned a score .* not finite"),
        (lambda groups: "no", "did not return lists"),
        (lambda groups: [[["1", "2"], ["3"]]], "did not return lists .*found <U1"),
        (lambda groups: [[[1, None], [3]]], "did not return lists .*found object"),
        (lambda groups: [[[1, 10**400], [3]]], "did not return lists"),
        (lambda groups: None, "did not return lists"),
    ],
)
def test_scores_that_do_not_fit_are_refused(bad, said):
    groups = [group("no edema", "heart")._replace(id="r7")]
    with pytest.raises(UserError, match=f"mine:scores: .*{said}|mine:scores: {said}"):
        checked_scores(bad(groups), groups, "mine:scores")


def test_weights_that_float32_does_not_hold_are_refused():
    with pytest.raises(UserError, match=r"1 \+ 1e\+300 x score is too large"):
        weights_of([[np.array([0.0, 1.0])]], 1e300)
    with pytest.raises(UserError, match="too large"):
        weights_of([[np.array([1e300])]], 1e300)


def test_a_labeler_that_overflows_names_the_text(labeler):
    """One word's embedding is too large for its LayerNorm."""
    table = labeler.params["bert"]["embeddings"]["word_embeddings"].at[VOCABULARY.index("edema")].set(3e38)
    embeddings = {**labeler.params["bert"]["embeddings"], "word_embeddings": table}
    loud = labeler._replace(params={**labeler.params, "bert": {**labeler.params["bert"], "embeddings": embeddings}})
    texts, ids = ["heart", "no edema", "edema"], ["a", "b", 3]
    with pytest.raises(UserError, match=r"^id 'b' \(and 1 more\): the labeler's logits are not finite .* damaged"):
        label_texts(loud, texts, ids=ids)
    with pytest.raises(UserError, match=r"^id 2 .and 1 more.: the labeler's logits"):
        label_texts(loud, texts)
    assert np.isfinite(label_texts(loud, texts[:1]).logits[:, :13]).all()
    targets = np.ones((3, 14), bool)
    with pytest.raises(UserError, match=r"^id 'b' .and 1 more.: the gradients of the labeler are not finite"):
        token_saliency(loud, texts, targets, ids=ids)
    with pytest.raises(UserError, match=r"^id 'b' .and 1 more.: the labeler's logits are not finite"):
        label_with_saliency(loud, texts, targets, ids=ids)
    groups = [group("heart", classes=np.ones(14))._replace(id="a"), group("edema", classes=np.ones(14))._replace(id=9)]
    with pytest.raises(UserError, match=r"^id 9: the gradients of the labeler"):
        gradient_scores(groups, loud)


def test_the_command_takes_a_function_of_ones_own(tmp_path, capsys, monkeypatch):
    (tmp_path / "my_scores.py").write_text(
        "def late(groups):\n    return [[list(range(len(r.tokens))) for r in g.rollouts] for g in groups]\n"
    )
    monkeypatch.syspath_prepend(str(tmp_path))
    save_words(tmp_path / "words.json", WORDS)
    write_rows(tmp_path / "rows.jsonl", [{"id": 1, "reference": "", "rollouts": ["no edema .", ""]}])
    command = ["weights", str(tmp_path / "rows.jsonl"), "--tokenizer", str(tmp_path / "words.json")]
    dispatch([*command, "--method", "my_scores:late", "--strength", "0.5"])
    first, second = json.loads(capsys.readouterr().out)["rollouts"]
    assert first["tokens"] == ["no", " edema", " ."]
    assert first["weights"] == [1, 1.5, 2]
    assert second["weights"] == []
    dispatch([*command, "--method", "tfidf"])
    first = json.loads(capsys.readouterr().out)["rollouts"][0]
    np.testing.assert_allclose(first["weights"], 1 + 4 * np.log(2) / 3)


def test_characters_are_those_of_the_text_where_a_tokenizer_begins_with_a_space(tmp_path):
    bare = tokenizers.Tokenizer(tokenizers.models.BPE({c: n for n, c in enumerate(byte_of_character())}, []))
    bare.decoder = tokenizers.decoders.ByteLevel()
    bare.add_special_tokens(["</s>"])
    found = []
    for spaced in (False, True):
        bare.pre_tokenizer = tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=spaced)
        bare.save(str(tmp_path / "tokenizer.json"))
        found.append(rollout_reader(tmp_path)[0]("no œdema"))
    plain, spaced = found
    assert len(spaced.tokens) == len(plain.tokens) + 1
    assert spaced.text == plain.text == "no œdema"
    np.testing.assert_array_equal(spaced.spans, [[0, 0], *plain.spans])


def test_rows_are_continued_with_the_same_tokenizer_wherever_it_lies(tmp_path):
    rows, output, moved = tmp_path / "rows.jsonl", tmp_path / "out.jsonl", tmp_path / "there" / "words.json"
    write_rows(rows, [{"id": 1, "reference": "", "rollouts": ["no edema ."]}])
    moved.parent.mkdir()
    for file in (tmp_path / "words.json", moved):
        save_words(file, WORDS)
        dispatch(["weights", str(rows), "--method", "tfidf", "--tokenizer", str(file), "--output", str(output)])
    save_words(moved, WordTokenizer((*WORDS.words, "another")))
    with pytest.raises(UserError, match=r"made with other options or files .*tokenizer.tokenizer was"):
        dispatch(["weights", str(rows), "--method", "tfidf", "--tokenizer", str(moved), "--output", str(output)])


@pytest.mark.parametrize("files", [["vocab.txt"], ["tokenizer.json"], ["vocab.txt", "tokenizer.json"]])
def test_a_policy_with_bert_s_tokenizer_is_read_as_the_labeler_reads(labeler, tmp_path, files):
    save_vocabulary(tmp_path / "vocab.txt", labeler.tokenizer)
    labeler.tokenizer.save(str(tmp_path / "tokenizer.json"))
    for name in {"vocab.txt", "tokenizer.json"} - set(files):
        (tmp_path / name).unlink()
    read, stop_ids = rollout_reader(tmp_path)
    rollout = read("No  effusion")
    assert [rollout.text[start:end] for start, end in rollout.spans] == ["No", "eff", "usion"]
    assert stop_ids == ()


@pytest.mark.parametrize(
    ("files", "found"),
    [
        ({"vocab.txt": ""}, True),
        ({"vocab.txt": "", "vocab.json": "{}", "merges.txt": ""}, False),
        ({"vocab.txt": "", "tokenizer.model": ""}, False),
        ({"vocab.txt": "", "tokenizer.json": '{"model": {"type": "BPE"}}'}, False),
    ],
)
def test_the_labelers_vocabulary_beside_a_policys_tokenizer_is_not_taken_for_that(tmp_path, files, found):
    for name, content in files.items():
        (tmp_path / name).write_text(content)
    assert is_wordpiece(tmp_path) is found


def test_only_weights_that_read_the_labeler_load_it_and_what_it_cuts_is_told(labeler, tmp_path, capsys):
    save_classifier(tmp_path, labeler.config, labeler.params)
    save_vocabulary(tmp_path / "vocab.txt", labeler.tokenizer)
    save_words(tmp_path / "words.json", WORDS)
    rows = [{"id": number, "reference": "edema " * 20 * number, "rollouts": ["heart " * 11, "no"]} for number in (0, 1)]
    write_rows(tmp_path / "rows.jsonl", rows)
    command = ["weights", str(tmp_path / "rows.jsonl"), "--tokenizer", str(tmp_path / "words.json")]
    dispatch([*command, "--labeler", str(tmp_path)])
    assert "1 of 2 references and 2 of 4 rollouts were longer than the labeler's 12 tokens" in capsys.readouterr().err
    for method in ("tfidf", "uniform"):
        with pytest.raises(UserError, match="--labeler: not read with --method"):
            dispatch([*command, "--method", method, "--labeler", str(tmp_path)])
        dispatch([*command, "--method", method])
        assert capsys.readouterr().err == f"data: {tmp_path / 'rows.jsonl'} (rows): studies 2, rollouts 4\n"

    output = ["--method", "tfidf", "--output", str(tmp_path / "out.jsonl")]
    dispatch([*command, *output])
    written = (tmp_path / "out.jsonl").read_bytes()
    dispatch([*command, *output])
    assert (tmp_path / "out.jsonl").read_bytes() == written
    with pytest.raises(UserError, match=r"files \(strength was 4.0 and is now 2.0\)"):
        dispatch([*command, *output, "--strength", "2"])


@pytest.mark.parametrize(
    ("path", "said"),
    [
        ("wrong_syntax:f", "its module raises SyntaxError"),
        ("raises_at_import:f", "its module raises ZeroDivisionError: division by zero"),
        ("ends_at_import:f", "its module raises SystemExit"),
        ("..:f", "is not an import path"),
        (".scores:f", "is not an import path"),
        ("json:nosuch", "PYTHONPATH"),
        ("json:__name__", "is not a function"),
    ],
)
def test_a_function_that_cannot_be_imported_is_told_in_words(tmp_path, monkeypatch, path, said):
    (tmp_path / "wrong_syntax.py").write_text("def f(:\n")
    (tmp_path / "raises_at_import.py").write_text("1 / 0\n")
    (tmp_path / "ends_at_import.py").write_text("raise SystemExit(3)\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    with pytest.raises(UserError, match=f"^--mine: .*{said}"):
        load_function(path, "--mine")


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (["--method", "nosuch"], "uniform, tfidf, gradient"),
        (["--method", "nosuch:function"], "--method"),
        (["--method", "gradient"], "name one with --labeler"),
        (["--method", "gradient", "--labeler", __file__], "with --labeler-tokenizer"),
        (["--method", "tfidf", "--strength", "nan"], "finite"),
    ],
)
def test_wrong_options_are_told_in_one_line(tmp_path, options, said):
    save_words(tmp_path / "words.json", WORDS)
    write_rows(tmp_path / "rows.jsonl", [{"id": 1, "reference": "", "rollouts": ["no edema ."]}])
    with pytest.raises(UserError, match=said):
        dispatch(["weights", str(tmp_path / "rows.jsonl"), "--tokenizer", str(tmp_path / "words.json"), *options])
