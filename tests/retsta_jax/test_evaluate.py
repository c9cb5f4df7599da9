"""What an evaluation counts: statements of reports, scores of perfect, empty and shuffled systems, baselines."""

import json
from types import SimpleNamespace
from typing import Any

import pytest

import retsta_jax.standardize as module
from common.clinical.score_command import main as metrics_command
from common.data.records import Quarantine, ReportPair
from common.errors import UserError
from common.io.jsonl import write_rows
from common.io.numbers import rounded
from common.metrics.tokenize import language_of
from common.training.parallel import make_device_layout
from retsta_jax.config import ModelConfig, RetstaConfig
from retsta_jax.corpus.pairs import make_splits
from retsta_jax.evaluate import CONSTANT, NEAREST, baselines, prediction_rows, score, statements
from retsta_jax.pairs import read_pairs
from retsta_jax.standardize import Trained, standardize
from retsta_jax.stated import recognised
from retsta_jax.terminology.check import load_terminology
from retsta_jax.train import load_base

TERMS = load_terminology()
FUNDUS, OPENI, OWN = ("fundus", TERMS), ("openi", TERMS), ("jsonl", TERMS)
ZH = ReportPair("zh", "右眼NPDR", "右眼：轻度非增生型糖尿病视网膜病变；未见黄斑水肿。", "zh")
EN = ReportPair("en", "OD: DR", "Right eye: diabetic retinopathy; no drusen.", "en")
CODES = ReportPair("c", "FINDINGS: Clear.", "Opacity/lung/base/left\nCardiomegaly/mild", "en")


@pytest.fixture(scope="module")
def splits():
    return make_splits(200, 0, 30, seed=3, language="both")


def test_a_model_that_overflows_names_the_report(material):
    config = RetstaConfig(
        model=ModelConfig(base=str(material.base), dtype="float32", param_dtype="float32"), max_new_tokens=2
    )
    base = load_base(config, make_device_layout("jit"))
    params = base.params | {"norm": {"scale": base.params["norm"]["scale"] * 3e38}}
    trained = Trained(config, base._replace(params=params), {}, {}, 0, make_device_layout("jit"))
    with pytest.raises(UserError, match=r"^id 'x': the model's logits are not finite .* computed in float32"):
        list(standardize(trained, trained.untrained, ["OD: few drusen.", "no"], ids=["x", "y"]))


def test_statements_tell_eye_status_and_severity_apart():
    target = statements(ZH.target, "zh", *FUNDUS)
    assert len(target) == 2
    for changed in (ZH.target.replace("右", "左"), ZH.target.replace("轻", "中"), ZH.target.replace("未见", "可疑")):
        assert len(statements(changed, "zh", *FUNDUS) & target) < 2


def test_both_languages_state_the_same():
    english = EN.target.replace("diabetic", "mild non-proliferative diabetic").replace("drusen", "macular oedema")
    assert statements(english, "en", *FUNDUS) == statements(ZH.target, "zh", *FUNDUS)


def test_text_that_does_not_parse_counts_as_wrong_statements():
    assert statements("Lorem ipsum. " + EN.target, "en", *FUNDUS) > statements(EN.target, "en", *FUNDUS)


def test_a_standard_report_has_the_white_space_of_training_targets_wherever_it_is_written(monkeypatch):
    written = SimpleNamespace(token_ids=[1], stopped=False, finite=True, drafted=[False])
    monkeypatch.setattr(module, "generate_rows", lambda *given, **_: [[written] for _ in given[2]])
    monkeypatch.setattr(module, "qwen2_slots", lambda *_: None)
    monkeypatch.setattr(module, "prompt_tokens", lambda *_: [1])
    tokenizer = SimpleNamespace(stop_ids=(), vocab_size=2, decode=lambda ids: "\n\n Opacity/lung \n\nEdema 2.5\n")
    base: Any = SimpleNamespace(tokenizer=tokenizer, config=SimpleNamespace(vocab_size=2, dtype="float32"))
    trained = module.Trained(RetstaConfig(), base, {}, {}, 0, make_device_layout("jit"))
    (result,) = module.standardize(trained, {}, ["x"])
    assert result.text == "Opacity/lung\nEdema 2.5"
    (row,) = prediction_rows([result.text], [CODES], codes=True)
    assert row["prediction"] == "Opacity/lung Edema 2.5"


def test_own_reports_are_read_by_a_terminology_and_it_is_said_how_far():
    assert statements("OD: drusen. No haemorrhage", "en", *OWN) == {
        "drusen/right/present",
        "retinal_haemorrhage/right/absent",
    }
    swapped = score(["OS: drusen"], [ReportPair("1", "x", "OD: drusen")], *OWN)
    assert swapped["findings/F1"]["value"] == 0
    assert swapped["terms/F1"]["value"] == 1
    texts = ["OD: drusen. Pupils equal. Lids normal, lashes fine", "双眼玻璃膜疣；睑板腺开口阻塞"]
    found = recognised(texts, ["en", "zh"], TERMS)
    assert found == (2, 6)
    assert found.note().startswith("The terminology recognised 2 of 6 statements of the references (33.3%)")


def test_codes_are_lines():
    assert statements(CODES.target, "en", *OPENI) == {"Opacity/lung/base/left", "Cardiomegaly/mild"}


def test_a_perfect_system_scores_one_and_an_empty_one_zero(splits):
    pairs = splits["test"]
    perfect = score([pair.target for pair in pairs], pairs, *FUNDUS)
    empty = score(["" for _ in pairs], pairs, *FUNDUS)
    for name in (
        "findings/F1",
        "findings/exact-match",
        "terms/F1",
        "en/coco/BLEU-4",
        "zh/coco/BLEU-4",
        "zh/coco/ROUGE-L",
    ):
        assert perfect[name]["value"] == pytest.approx(1, abs=1e-6)
        assert empty[name]["value"] == pytest.approx(0, abs=1e-6)


def test_metrics_do_not_reward_the_right_words_in_another_report(splits):
    pairs = splits["test"]
    shifted = [pair.target for pair in pairs[2:] + pairs[:2]]  # of the same language
    assert score(shifted, pairs, *FUNDUS)["findings/F1"]["value"] < 0.3


def test_baselines_answer_in_the_language_of_the_report(splits):
    found = baselines(splits["train"], splits["test"])
    for texts in (found[NEAREST], found[CONSTANT]):
        assert [language_of(text) for text in texts] == [pair.language for pair in splits["test"]]
    assert len(set(found[CONSTANT])) == 2


def test_an_exact_training_source_is_its_own_nearest(splits):
    train = splits["train"]
    assert baselines(train, train[:20])[NEAREST] == [pair.target for pair in train[:20]]


@pytest.mark.parametrize("codes", [False, True])
def test_the_metrics_command_gives_the_text_metrics_of_an_evaluation(codes, tmp_path, capsys):
    pairs = [CODES, ReportPair("d", "x", "Right  eye:\tno drusen.\nLeft eye: few drusen.", "en")]
    texts = ["Opacity/lung/base/left\nCardiomegaly/severe", "Right eye:  no\ndrusen."]
    write_rows(tmp_path / "predictions.jsonl", prediction_rows(texts, pairs, codes))
    metrics_command([str(tmp_path / "predictions.jsonl")])
    found, expected = json.loads(capsys.readouterr().out), score(texts, pairs, *(OPENI if codes else OWN))
    for name in ("coco/BLEU-4", "coco/ROUGE-L", "nltk/BLEU-4"):
        assert found[name] == rounded(expected[name]["value"])


def test_pairs_of_ones_own_are_read_with_their_language(tmp_path):
    file = tmp_path / "pairs.jsonl"
    rows = [
        {"id": "1", "source": "右眼 出血。", "target": "右眼：视网膜出血。"},
        {"id": "2", "source": "OD: CNV 0.6 mm", "target": "x", "language": "zh"},
    ]
    file.write_text("\n".join(json.dumps(row, ensure_ascii=False) for row in rows), encoding="utf-8")
    assert [pair.language for pair in read_pairs(file, Quarantine())] == ["zh", "zh"]
    file.write_text(json.dumps({"id": 12, "source": "OD: scar", "target": "x"}), encoding="utf-8")
    assert [pair.id for pair in read_pairs(file, Quarantine())] == ["12"]
    file.write_text(json.dumps({"id": "3", "source": "a", "target": "b", "language": "fr"}), encoding="utf-8")
    with pytest.raises(UserError, match=r"row 3.*'fr'.*en or zh"):
        read_pairs(file, Quarantine())
