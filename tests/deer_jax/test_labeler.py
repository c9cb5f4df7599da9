"""The labeler: text to tokens with spans of the original, loading of what is published and of ours, bad input."""

import json
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from safetensors.numpy import load_file

from common.clinical.labeler import (
    PHANTOM,
    SPECIAL,
    Labeler,
    clean_text,
    encode,
    label_texts,
    load_labeler,
    replicate,
    save_vocabulary,
    train_tokenizer,
)
from common.clinical.labelled_reports import damage
from common.errors import UserError
from common.metrics.clinical import FINDINGS, POSITIVE
from common.models.bert import (
    Bert,
    BertConfig,
    ClassifierConfig,
    chexbert_logits,
    first_hidden,
    init_classifier,
    word_embeddings,
)
from common.models.bert_weights import save_classifier
from common.phantoms.labels import label_report
from common.phantoms.study import sample_study
from common.phantoms.text import render_report

TEXTS = ["No pleural effusion. The heart is enlarged.", "Mild pulmonary edema. No pneumothorax or effusion."]
ODD = " \n Effusión\tof  2.5 cm —\u2009naïve\x85XXXX/right [SEP] \u00ad🙂 ﬁbrosis\x1c心 "


@pytest.fixture(scope="module")
def labeler() -> Labeler:
    tokenizer = train_tokenizer(TEXTS, 160)
    encoder = BertConfig(tokenizer.get_vocab_size(), 32, 2, 4, 48, max_position_embeddings=40)
    config = ClassifierConfig(encoder)
    return Labeler(config, init_classifier(config, jax.random.key(0)), tokenizer)


@pytest.fixture
def saved(labeler, tmp_path):
    save_classifier(tmp_path, labeler.config, labeler.params)
    save_vocabulary(tmp_path / "vocab.txt", labeler.tokenizer)
    return tmp_path


def test_cleaning_is_that_of_chexbert_and_keeps_places():
    cleaned, indices = clean_text(ODD)
    assert cleaned == " ".join(ODD.split())  # strip, \s+ to one space
    assert len(indices) == len(cleaned)
    for character, index in zip(cleaned, indices, strict=True):
        assert ODD[index] == character or (character == " " and ODD[index].isspace())


def test_spans_are_the_characters_that_each_token_was_made_from(labeler):
    for text in (*TEXTS, ODD, ODD + ODD):
        encoded = encode(labeler, [text])
        names = [labeler.tokenizer.id_to_token(number) for number in encoded.ids[0]]
        assert names[0] == "[CLS]"
        assert names[-1] == "[SEP]"
        assert encoded.spans[0][0] == encoded.spans[0][-1] == (0, 0)
        inner = list(zip(names, encoded.spans[0], strict=True))[1:-1]
        for name, (start, end) in inner:
            assert start < end
            piece = name.removeprefix("##")
            plain = text[start:end].lower().translate(str.maketrans("óï", "oi"))
            assert name in ("[UNK]", "[SEP]") or plain == piece
        starts = [start for _, (start, _) in inner]
        assert starts == sorted(starts)
    whole = encode(labeler, [TEXTS[0]])
    joined = "".join(TEXTS[0][start:end] for start, end in whole.spans[0])
    assert joined == TEXTS[0].replace(" ", "")


def test_the_window_keeps_the_end_mark_and_counts_what_it_cuts(labeler):
    texts = ["", " \n ", "x " * 38, "x " * 39, "x " * 500]
    encoded = encode(labeler, texts)
    assert [len(ids) for ids in encoded.ids] == [2, 2, 40, 40, 40]
    assert encoded.cut == [False, False, False, True, True]
    start, end = encoded.ids[0]
    assert all((ids[0], ids[-1]) == (start, end) for ids in encoded.ids)
    assert [len(spans) for spans in encoded.spans] == [len(ids) for ids in encoded.ids]
    labels = label_texts(labeler, texts, batch_size=2)
    assert labels.cut == 2
    np.testing.assert_array_equal(labels.classes[0], labels.classes[1])
    np.testing.assert_array_equal(labels.logits[3], labels.logits[4])


def test_no_finding_is_never_of_a_class_that_it_does_not_have(labeler):
    logits = label_texts(labeler, TEXTS).logits
    assert np.isneginf(logits[:, 13, 2:]).all()
    assert np.isfinite(logits[:, :13]).all()

    def loss(params):
        words = word_embeddings(params, jnp.array([[3, 4, 5]]))
        return jax.nn.log_softmax(chexbert_logits(labeler.config, params, words, jnp.ones((1, 3), bool)))[0, 13, 1]

    gradients = jax.jit(jax.grad(loss))(labeler.params)
    assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(gradients))


@pytest.mark.parametrize("layers", [1, 3])
def test_the_first_token_read_alone_is_that_of_the_whole(layers):
    config = BertConfig(30, 32, layers, 4, 48, max_position_embeddings=40)
    params = init_classifier(ClassifierConfig(config), jax.random.key(1))
    words, mask = word_embeddings(params, jnp.array([[3, 4, 5, 6], [3, 7, 0, 0]])), jnp.array([[1] * 4, [1, 1, 0, 0]])
    whole = jax.jit(Bert(config).apply)({"params": params["bert"]}, words, mask > 0)[:, 0]
    alone = jax.jit(first_hidden, static_argnums=0)(config, params["bert"], words, mask > 0)
    assert jnp.ptp(whole, axis=1).min() > 1
    np.testing.assert_allclose(alone, whole, atol=2e-6)


def test_a_text_is_labelled_the_same_alone_in_any_batch_and_over_several_devices(labeler):
    texts = [*TEXTS, "", "x " * 33, *reversed(TEXTS), "heart"]
    whole = label_texts(labeler, texts, batch_size=4)
    for row, text in enumerate(texts):
        alone = label_texts(labeler, [text], batch_size=1)
        np.testing.assert_allclose(whole.logits[row], alone.logits[0], atol=1e-5)
    several = replicate(labeler)
    assert len(jax.tree.leaves(several.params)[0].sharding.device_set) == 8
    np.testing.assert_allclose(label_texts(several, texts, 5).logits, whole.logits, atol=1e-5)
    empty = label_texts(labeler, [])
    assert empty.classes.shape == (0, 14)


def test_dropout_is_active_only_with_a_key(labeler):
    ids, mask = jnp.array([[3, 4, 5, 6]]), jnp.ones((1, 4), bool)
    words = word_embeddings(labeler.params, ids)

    @jax.jit
    def logits(key=None):
        return chexbert_logits(labeler.config, labeler.params, words, mask, key)

    np.testing.assert_array_equal(logits(), logits())
    np.testing.assert_array_equal(logits(jax.random.key(1)), logits(jax.random.key(1)))
    assert not np.array_equal(logits(), logits(jax.random.key(1)))
    assert not np.array_equal(logits(jax.random.key(2)), logits(jax.random.key(1)))


def test_a_directory_of_ours_is_loaded_as_it_was_and_from_a_run_directory_too(labeler, saved, tmp_path_factory):
    again = load_labeler(saved)
    assert again.config == labeler.config
    np.testing.assert_array_equal(label_texts(again, TEXTS).logits, label_texts(labeler, TEXTS).logits)
    assert again.tokenizer.get_vocab() == labeler.tokenizer.get_vocab()
    run = tmp_path_factory.mktemp("run")
    (run / "labeler").symlink_to(saved)
    assert load_labeler(run).config == labeler.config


def test_the_vocabulary_of_a_text_is_always_the_same_and_knows_every_ascii_word():
    texts = [render_report(sample_study(3, index))[0] for index in range(40)]
    tokenizer = train_tokenizer(texts, 400)
    assert tokenizer.get_vocab() == train_tokenizer(texts, 400).get_vocab()
    assert [tokenizer.id_to_token(number) for number in range(5)] == list(SPECIAL)
    assert "[UNK]" not in tokenizer.encode("Qwerty?! zx-99 'Hjkl'").tokens


@pytest.mark.parametrize(
    ("files", "message"),
    [
        ({}, "no such labeler"),
        (
            {"chexbert.pth": b"PK"},
            "put the vocab.txt of bert-base-uncased next to it, or name its directory with --mine",
        ),
        ({"config.json": b"{}", "vocab.txt": b"[CLS]\n[SEP]\n[UNK]\n"}, "is not a labeler"),
        (
            {"config.json": b'{"labels": ["Edema"], "label_classes": [1]}', "vocab.txt": b"[CLS]\n[SEP]\n[UNK]"},
            "each from 2",
        ),
        ({"vocab.txt": b"[CLS]\n[SEP]\n"}, "[UNK] is missing"),
        ({"vocab.txt": b"\xff\xfe"}, "vocab.txt"),
        ({"tokenizer.json": b"{}"}, "is not a tokenizer"),
    ],
)
def test_what_is_no_labeler_is_refused_in_words(tmp_path, files, message):
    for name, content in files.items():
        (tmp_path / name).write_bytes(content)
    path = tmp_path / next(iter(files), "missing") if not files or "chexbert.pth" in files else tmp_path
    with pytest.raises(UserError, match=message.replace("[", r"\[")):
        load_labeler(path, option="--mine")


@pytest.mark.parametrize("change", [1, -1])
def test_a_tokenizer_with_more_words_than_the_labeler_is_refused_and_one_with_fewer_is_told(saved, change, capsys):
    words = (saved / "vocab.txt").read_text().splitlines()
    (saved / "vocab.txt").write_text("\n".join([*words, "anotherword"][: len(words) + change]) + "\n")
    said = f"has {len(words) + change} words, but {saved} has embeddings for {len(words)}"
    if change > 0:
        with pytest.raises(UserError, match=re.escape(said)):
            load_labeler(saved)
    else:
        load_labeler(saved)
        assert said in capsys.readouterr().err


@pytest.mark.parametrize("heads", ["x", 0, 2.5, [4]])
def test_a_config_beside_a_single_file_must_make_sense(labeler, saved, heads):
    state = {name: torch.from_numpy(values) for name, values in load_file(saved / "model.safetensors").items()}
    torch.save(state, saved / "chexbert.pth")
    config = json.loads((saved / "config.json").read_text())
    (saved / "config.json").write_text(json.dumps(config | {"num_attention_heads": heads}))
    with pytest.raises(
        UserError, match=r"config\.json: num_attention_heads is .*, expected a whole number, at least 1"
    ):
        load_labeler(saved / "chexbert.pth")


@pytest.mark.parametrize("kind", ["vocab.txt", "tokenizer.json", "with the policy", "of the policy"])
def test_the_vocabulary_of_a_single_file_lies_beside_it_or_with_the_policys_tokenizer(labeler, saved, tmp_path, kind):
    state = {name: torch.from_numpy(values) for name, values in load_file(saved / "model.safetensors").items()}
    torch.save({"model_state_dict": state}, saved / "chexbert.pth")
    policy = tmp_path / "policy"
    policy.mkdir()
    if kind == "tokenizer.json":
        (saved / "vocab.txt").unlink()
        labeler.tokenizer.save(str(saved / "tokenizer.json"))
    if kind == "of the policy":
        (saved / "vocab.txt").unlink()
        labeler.tokenizer.save(str(policy / "tokenizer.json"))
    if kind == "with the policy":
        (saved / "vocab.txt").rename(policy / "vocab.txt")
        with pytest.raises(UserError, match=r"contains no vocabulary.* --mine"):
            load_labeler(saved / "chexbert.pth", option="--mine")
    again = load_labeler(saved / "chexbert.pth", policy=policy)
    assert again.config == labeler.config
    assert encode(again, TEXTS) == encode(labeler, TEXTS)


@pytest.mark.parametrize(
    ("change", "message"),
    [({"model_type": "roberta"}, "'bert'"), ({"hidden_act": "relu"}, "'gelu'"), ({"hidden_size": 30}, "multiple of")],
)
def test_another_architecture_is_refused(saved, change, message):
    config = json.loads((saved / "config.json").read_text())
    (saved / "config.json").write_text(json.dumps(config | change))
    with pytest.raises(UserError, match=message):
        load_labeler(saved)


def test_the_shipped_labeler_reads_phantom_reports_whole_and_damaged():
    """Reports of a seed that it was not trained on; the truth is the grammar's, or for damaged text the rules'."""
    labeler = load_labeler("phantom")
    reports = [render_report(sample_study(99, index)) for index in range(120)]
    random = np.random.default_rng(0)
    broken = [damage(text, reports[row - 1][0], random) for row, (text, _) in enumerate(reports)]
    for texts, truth, least in (
        ([text for text, _ in reports], np.array([labels for _, labels in reports]), 0.95),
        (broken, np.array([label_report(text) for text in broken]), 0.85),
    ):
        found = label_texts(labeler, texts).classes
        right = ((found == POSITIVE) & (truth == POSITIVE)).sum()
        assert 2 * right / ((found == POSITIVE).sum() + (truth == POSITIVE).sum()) > least
    assert labeler.config.labels == FINDINGS
    assert label_texts(labeler, [""]).classes[0, 13] == POSITIVE


def test_what_is_shipped_is_small():
    assert sum(file.stat().st_size for file in PHANTOM.iterdir()) < 4_000_000
