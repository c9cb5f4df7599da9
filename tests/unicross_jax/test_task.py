"""A run's model before training, what it begins with, and where it looks, on a small CLIP of random weights."""

import dataclasses
from pathlib import Path

import numpy as np
import pytest

from common.config import from_json, to_json
from common.config_options import parse
from common.data.readers import ImageStudy
from common.data.tokenizers import build_word_tokenizer
from common.errors import UserError
from common.models.clip_weights import load_clip
from common.phantoms.phantom import make_phantom
from tests.unicross_jax.runs import arguments, make_clip
from unicross_jax import report
from unicross_jax.backbone import load_backbone
from unicross_jax.config import NEEDS, PRESETS, RunConfig
from unicross_jax.data import encode_studies
from unicross_jax.model import decoder_inputs
from unicross_jax.report import Written, attention_of
from unicross_jax.task import check_sizes, encode, first_weights, make_task
from unicross_jax.trained import Trained


@pytest.fixture(scope="module")
def clip(tmp_path_factory) -> Path:
    return make_clip(tmp_path_factory.mktemp("clip") / "clip")


def test_an_embedded_layout_of_clip_is_read_back_as_it_was_written(clip, tmp_path):
    config, params = load_clip(clip)
    from common.models.clip_weights import save_clip

    save_clip(tmp_path / "again", config, params)
    again = load_clip(tmp_path / "again")[1]
    np.testing.assert_allclose(again["visual"]["conv1"]["scale"], params["visual"]["conv1"]["scale"], rtol=1e-6)
    np.testing.assert_array_equal(again["text"]["token_embedding"], params["text"]["token_embedding"])


def test_logits_begin_with_the_words_that_clip_reads_where_asked(clip):
    config = parse(RunConfig, PRESETS["small"], arguments(Path("run"), clip, model__logit_init_scale=3.0)[5:], "test")
    backbone = load_backbone(config.model, seed=0)
    task = make_task(config, backbone, backbone.tokenizer)
    begun = first_weights(config, task)["logits"]["kernel"]
    np.testing.assert_allclose(begun, 3 * backbone.params["text"]["token_embedding"], rtol=1e-6)
    config = dataclasses.replace(config, model=dataclasses.replace(config.model, logit_init_scale=0.0))
    drawn = first_weights(config, task)["logits"]["kernel"]
    assert np.std(drawn) == pytest.approx(len(drawn) ** -0.5, rel=0.05)


@pytest.mark.parametrize("conditioning", ["causal", "published"])
def test_attention_to_a_word_depends_on_nothing_after_it_and_on_no_other_study(clip, conditioning):
    words = arguments(Path("run"), clip, model__conditioning=conditioning)[5:]
    config = parse(RunConfig, PRESETS["small"], words, "test")
    backbone = load_backbone(config.model, seed=0)
    task = make_task(config, backbone, backbone.tokenizer)
    trained = Trained(config, task, first_weights(config, task), None)
    studies = [ImageStudy(str(number), (), "", "") for number in range(2)]
    examples, _ = encode(config, task, studies)
    pictures = [(make_phantom(9, number, 48).frontal,) for number in range(2)]
    ids = backbone.tokenizer.encode("the heart is normal in size . the lungs are clear .")
    first, second = (Written(backbone.tokenizer.decode(own), own, True) for own in (ids[:3], ids))
    together = attention_of(trained, examples, pictures, [first, second])[0]
    for other in (first, second):
        alone = attention_of(trained, examples[:1], pictures[:1], [other])[0]
        for (word, weights), (same, expected) in zip(alone[:3], together, strict=True):
            assert word == same
            np.testing.assert_allclose(weights, expected, rtol=0, atol=1e-6)


def test_attention_to_reports_one_after_the_other_takes_one_program(clip, monkeypatch):
    config = parse(RunConfig, PRESETS["small"], arguments(Path("run"), clip, seed=3)[5:], "test")
    backbone = load_backbone(config.model, seed=0)
    task = make_task(config, backbone, backbone.tokenizer)
    trained = Trained(config, task, first_weights(config, task), None)
    examples, _ = encode(config, task, [ImageStudy("1", (), "", "")])
    pictures = [(make_phantom(9, 0, 48).frontal,)]
    traced = []
    monkeypatch.setattr(report, "decoder_inputs", lambda *inputs: traced.append(1) or decoder_inputs(*inputs))
    report._memory_attention.cache_clear()
    for text in ("the heart .", "the lungs are clear ."):
        ids = backbone.tokenizer.encode(text)
        attention_of(trained, examples, pictures, [Written(text, ids, True)])
    assert traced == [1]


def test_an_indication_is_read_as_the_words_that_clip_knows():
    words = build_word_tokenizer(["shortness of breath"], 1)

    def condition(indication):
        study = ImageStudy("1", (), "clear .", indication)
        (example,), _ = encode_studies([study], words, words, prompt="", max_length=9, condition_length=8)
        return example.condition.tolist()

    assert condition("Shortness of breath.") == condition("shortness of breath")
    assert words.unk_id not in condition("Shortness of breath.")


def test_a_trained_model_that_sees_little_of_each_image_says_so_once(clip, capsys):
    config = parse(RunConfig, PRESETS["small"], arguments(Path("run"), clip, data__resize=256)[5:], "test")
    backbone = load_backbone(config.model, config.seed)
    with pytest.raises(UserError, match="of 256 pixels this CLIP sees a square of 32, 2% of a square image; give 32"):
        check_sizes(config, backbone)
    check_sizes(config, backbone, trained=True)
    assert "a model trained with --data.resize 32 to 36 sees more" in capsys.readouterr().err
    check_sizes(dataclasses.replace(config, data=dataclasses.replace(config.data, resize=36)), backbone)
    assert not capsys.readouterr().err


def test_options_by_their_former_names_are_taken_with_a_warning(capsys):
    words = ["--visual-rate", "0.5", "--model.words-begin=2"]
    config = parse(RunConfig, PRESETS["small"], words, "unicross train", NEEDS, PRESETS)
    assert (config.vision_lr_multiplier, config.model.logit_init_scale) == (0.5, 2.0)
    said = capsys.readouterr().err.splitlines()
    assert said[0] == "warning: --visual-rate is now --vision-lr-multiplier"
    assert said[1] == "warning: --model.words-begin is now --model.logit-init-scale"
    recorded = to_json(config)
    recorded["visual_rate"] = recorded.pop("vision_lr_multiplier")
    recorded["model"]["words_begin"] = recorded["model"].pop("logit_init_scale")
    assert from_json(RunConfig, recorded, "config.json of an earlier run") == config
