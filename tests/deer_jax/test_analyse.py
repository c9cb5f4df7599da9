"""Masking, reward tables and the token page, on a labeler that is known to look for two words."""

import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from common.clinical.labeler import Labeler, label_texts, make_tokenizer
from common.clinical.report_labeler import classes_of_groups
from common.data.readers import ImageStudy
from common.data.splits import Split
from common.data.tokenizers import WordTokenizer
from common.errors import UserError
from common.models.bert import BertConfig, ClassifierConfig, init_classifier
from deer_jax.analyse import masked, masking, rewards, sentences, token_page, tokens_of, top
from deer_jax.cli import dispatch
from deer_jax.sample import rows_of
from deer_jax.token_weights import Group, Rollout, read_rollout

VOCABULARY = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "no", "effusion", "edema", "heart", "is", "seen", "."]
ENCODER = BertConfig(
    vocab_size=len(VOCABULARY), hidden_size=16, num_hidden_layers=1, num_attention_heads=1, intermediate_size=4,
    max_position_embeddings=24,
)  # fmt: skip
CONFIG = ClassifierConfig(ENCODER)
EFFUSION, EDEMA = 9, 4


@pytest.fixture(scope="module")
def labeler() -> Labeler:
    """Attention from [CLS] brings the words' first two features to it; a head is positive where one is large."""
    params = jax.tree.map(jnp.zeros_like, init_classifier(CONFIG, jax.random.key(0)))
    bert = params["bert"]
    words = np.zeros((len(VOCABULARY), 16), np.float32)
    words[:, 14], words[:, 15] = 40, -40  # LayerNorm divides gradients by the size of a word: the two are the smallest
    for word, index in (("effusion", 0), ("edema", 1)):
        words[VOCABULARY.index(word), [index, 14, 15]] = 6, 6, -6
    bert["embeddings"]["word_embeddings"] = jnp.asarray(words)
    norms = [bert["embeddings"]["LayerNorm"]]
    norms += [bert["layer"][part]["LayerNorm"] for part in ("attention",) if "LayerNorm" in bert["layer"][part]]
    norms += [bert["layer"]["attention"]["output"]["LayerNorm"], bert["layer"]["output"]["LayerNorm"]]
    for norm in norms:
        norm["scale"] = jnp.ones_like(norm["scale"])
    eye = jnp.eye(16)
    bert["layer"]["attention"]["value"]["kernel"] = eye[None] * 8
    bert["layer"]["attention"]["output"]["dense"]["kernel"] = eye[None]
    for finding, index in ((EFFUSION, 0), (EDEMA, 1)):
        head = params[f"linear_heads_{finding}"]
        head["kernel"] = jnp.zeros((16, 4)).at[index, 1].set(5.0)
        head["bias"] = jnp.array([0.0, -0.5, -9.0, -9.0])
    return Labeler(CONFIG, params, make_tokenizer({word: index for index, word in enumerate(VOCABULARY)}))


WORDS = WordTokenizer(tuple(VOCABULARY[5:]))


def group(reference_classes, *texts: str) -> Group:
    return Group("edema is seen .", [read_rollout(WORDS.encode(text), WORDS) for text in texts], reference_classes)


def classes(*positive: int) -> list[int]:
    return [int(index in positive) for index in range(14)]


def test_gradient_masking_finds_the_words_that_decide(labeler):
    texts = ["heart is seen . edema is seen . no heart .", "no heart is seen . is seen edema . no heart"]
    groups = [group(classes(EDEMA), *texts)] * 20
    table = masking(groups, labeler, (), 0.05, seed=0)
    assert table["gradient"]["label_modification"]["value"] == 1
    assert table["gradient"]["F1_after"]["value"] == 0
    assert table["random"]["label_modification"]["value"] < 0.5
    assert table["reports"] == 40


def test_masking_replaces_words_and_keeps_the_rest():
    rollout = read_rollout(WORDS.encode("heart is seen ."), WORDS)
    assert masked(rollout, np.array([False, True, False, True])) == "heart [MASK] seen [MASK]"


def test_a_character_of_several_tokens_is_masked_and_shown_once():
    rollout = Rollout([0, 1, 2, 3], "é x", np.array([[0, 1], [0, 1], [1, 3], [3, 3]]))
    assert masked(rollout, np.array([True, True, False, False])) == "[MASK] x"
    assert masked(rollout, np.array([False, True, True, True])) == "[MASK] [MASK]"
    shown = tokens_of(rollout, np.array([1.0, 3.0, 2.0, 9.0]), 3.0)
    assert [(token["text"], token["weight"], token["red"]) for token in shown] == [("é", 3.0, 1.0), (" x", 2.0, 0.5)]


def test_the_top_share_is_rounded_up_and_ties_are_broken_by_chance():
    rng = np.random.default_rng(0)
    assert top(np.array([0.1, 0.9, 0.5, 0.2]), 0.3, rng).tolist() == [False, True, True, False]
    drawn = sum(top(np.zeros(5), 0.2, rng) for _ in range(500))
    assert drawn.sum() == 500
    assert drawn.min() > 60
    assert top(np.zeros(0), 0.1, rng).tolist() == []


def test_rewards_are_those_of_the_groups_and_of_the_selected_ones(labeler):
    rows = [
        {"id": 1, "reference": "edema is seen .", "rollouts": ["edema .", "no heart .", "edema effusion ."]},
        {"id": 2, "reference": "heart .", "rollouts": ["heart ."] * 3},
    ]
    table = rewards(rows, labeler, 0.0, {"1"})
    assert table["all"]["zero_variance_share"] == 0.5
    assert table["selected"]["unique_rewards"] == 3
    np.testing.assert_allclose(table["selected"]["mean_std"], np.std([1, 0, 2 / 3]))


def test_selected_ids_that_no_rollout_has_are_told_before_the_labeler_is_read(tmp_path):
    (tmp_path / "rows.jsonl").write_text('{"id": 1, "reference": "heart .", "rollouts": ["heart ."]}')
    (tmp_path / "chosen.json").write_text('{"ids": ["7"]}')
    selected = ["--labeler", "nowhere", "--selected", str(tmp_path / "chosen.json")]
    with pytest.raises(UserError, match="none of the selected ids is in the rollouts"):
        dispatch(["analyse", "rewards", str(tmp_path / "rows.jsonl"), *selected])


@pytest.mark.parametrize("rollouts", ["[1, null]", "[]", '["\\ud800"]', '[["text"]]', '"text"'])
@pytest.mark.parametrize("command", ["weights", "analyse rewards"])
def test_rollouts_that_are_no_texts_are_refused(tmp_path, command, rollouts):
    (tmp_path / "rows.jsonl").write_text(f'{{"id": 1, "reference": "", "rollouts": {rollouts}}}')
    options = ["--labeler", "nowhere", "--tokenizer", str(tmp_path)]
    with pytest.raises(UserError, match=r"rows\.jsonl.*'rollouts'"):
        dispatch([*command.split(), str(tmp_path / "rows.jsonl"), *options])


@pytest.mark.parametrize(
    ("command", "said"),
    [
        ("rewards --gamma nan", "--gamma: must be a finite number, found nan"),
        ("masking --seed -1", "--seed: must be at least 0"),
        ("page --output nowhere/page.html", "its folder does not exist"),
    ],
)
def test_options_that_make_no_sense_are_refused_first(tmp_path, command, said):
    what, *options = command.split()
    with pytest.raises(UserError, match=said):
        dispatch(["analyse", what, "rows.jsonl", "--labeler", "phantom", "--tokenizer", str(tmp_path), *options])


def test_texts_of_all_groups_are_labelled_together(labeler, monkeypatch):
    groups = [["edema .", "no heart ."], [], ["effusion edema .", "heart", "edema"]]
    calls = []

    def counting(labeler, texts, *more, **named):
        calls.append(len(texts))
        return label_texts(labeler, texts, *more, **named)

    monkeypatch.setattr("common.clinical.labeler.label_texts", counting)
    for texts, own in zip(groups, classes_of_groups(labeler, groups), strict=True):
        np.testing.assert_array_equal(own, label_texts(labeler, texts).classes)
    assert classes_of_groups(labeler, []) == []
    split = Split([ImageStudy(str(number), (), "edema .") for number in range(3)], [()] * 3)
    rows = rows_of(split, [(1, groups[0]), (2, groups[2][:1])], labeler)
    assert [row["id"] for row in rows] == ["1", "2"]
    assert (rows[0]["rollouts"], rows[1]["prediction"]) == (groups[0], "effusion edema .")
    assert [[sum(labels) for labels in row["labels"]] for row in rows] == [[1, 0], [2]]
    assert "labels" not in rows_of(split, [(0, ["a", "b"])], None)[0]
    rewards([{"id": row["id"], "reference": "", "rollouts": ["edema"] * 3} for row in rows], labeler, 0.0, None)
    assert calls == [5, 0, 3, 2, 6]


@pytest.mark.parametrize(
    "parts",
    [
        ["Effusion of 2.5 cm.", " Heart is seen?!", " No edema"],
        ["... edema.", " is seen .", " . no heart.  \n"],
        ["edema\n", "heart is seen .", "\n no edema."],
        ["\n\n1.", " edema"],
        ["..."],
        [],
    ],
)
def test_sentences_end_at_marks_before_white_space_and_lose_no_character(labeler, parts):
    first, second = sentences(["".join(parts), "edema . heart ."], labeler)
    assert [part["text"] for part in first] == parts
    assert ["".join(parts)[part["start"] : part["end"]] for part in first] == parts
    assert [part["findings"] for part in second] == [["Edema"], []]


def test_the_page_marks_weights_and_findings_and_escapes_text(labeler):
    words = WordTokenizer(("<b>", *VOCABULARY[5:]))
    rollouts = [read_rollout(words.encode("edema is seen . <b> heart ."), words)]
    page = token_page([Group("edema .", rollouts, classes(EDEMA))], ["study <1>"], labeler, (), "gradient")
    assert "study &lt;1&gt;" in page
    assert "<b>" not in page
    assert page.count("border-image: linear-gradient(90deg, hsl(0 65% 45%) 0% 100%)") == 3  # key, reference, report
    assert 'rgb(214 40 40 / 0.750)" title="' in page  # the heaviest token
    assert json.dumps("Edema")[1:-1] in page


def test_the_page_shows_marks_that_reorder_text_and_runs_no_script(labeler):
    words = WordTokenizer(("a\u202eb", *VOCABULARY[5:]))
    rollouts = [read_rollout(words.encode("edema a\u202eb ."), words)]
    page = token_page([Group("edema\u2066 .", rollouts, classes(EDEMA))], ["s\x1b\u200b1"], labeler, (), "gradient")
    assert not [mark for mark in page if mark != "\n" and not mark.isprintable()]
    for shown in ("a[U+202E]b", "edema[U+2066] .", "s[U+001B][U+200B]1"):
        assert shown in page
    assert "Content-Security-Policy\" content=\"default-src 'none';" in page
