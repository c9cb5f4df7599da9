"""What DEER exports, opened as users open it: by transformers and PEFT, without a warning, with our reports."""

import functools
import json
import warnings
from typing import NamedTuple

import jax
import numpy as np
import pytest
from PIL import Image

from common.data.exported_tokenizer import CHATML
from common.data.huggingface_tokenizer import QWEN2_SPECIAL
from common.data.tokenizers import load_tokenizer
from common.errors import UserError
from common.io.safetensors import open_tensors
from common.models.lora import LoraConfig, merge
from common.models.peft import VISION_LANGUAGE, load_peft, save_peft
from common.training.parallel import make_device_layout
from common.types import PyTree
from deer_jax import make_assets
from deer_jax.config import INSTRUCTION, ModelConfig, RolloutConfig, SftConfig
from deer_jax.ditpo import PolicyParams
from deer_jax.prompts import IMAGE_MARKS, prompt_length, study_prompts
from deer_jax.setup import Base, decode_settings, export, initial_trees, load_base
from deer_jax.vision_policy import vision_policy
from tests import tiny

torch = pytest.importorskip("torch")
peft = pytest.importorskip("peft")
transformers = pytest.importorskip("transformers")
from safetensors.torch import load_file, save_file
from transformers.models.qwen2_vl.image_processing_pil_qwen2_vl import Qwen2VLImageProcessorPil

TOLERANCE = 1e-4
SIDE, NEW = 56, 6
VL = transformers.Qwen2_5_VLForConditionalGeneration
IMAGE = np.random.default_rng(0).integers(0, 256, (SIDE, SIDE), dtype=np.uint8)
TARGETS = (LoraConfig().targets, "(q|v)_proj", "(gate|down)_proj")
LORA = LoraConfig(rank=3, alpha=5.0)
# How the base stands on disk, whether its embedding is its head, and the dtype of its weights.
BASES = {"hub, tied": ("hub", True, "float32"), "memory, untied, bfloat16": ("memory", False, "bfloat16")}
ENDS = {"memory": [9], "hub": None}  # eos_token_id of its generation_config.json, which then lacks an end of ours


@pytest.fixture(scope="module", params=BASES)
def base(request, tmp_path_factory):
    """The directory of a small Qwen2.5-VL with everything that a published one has, saved by transformers."""
    naming, tied, dtype = BASES[request.param]
    directory = tmp_path_factory.mktemp("base") / "model"
    make_assets.train_tokenizer(directory, [INSTRUCTION, "no pleural effusion . the heart is enlarged ."] * 9)
    tokenizer = load_tokenizer(directory)
    ids = {mark: tokenizer.encode(mark)[0] for mark in QWEN2_SPECIAL}
    config = transformers.Qwen2_5_VLConfig(
        vision_config={
            "hidden_size": 32, "intermediate_size": 48, "num_heads": 2, "out_hidden_size": 64, "depth": 2,
            "fullatt_block_indexes": [1], "window_size": 56,
        },
        text_config={
            "vocab_size": tokenizer.vocab_size + 3, "hidden_size": 64, "intermediate_size": 112,
            "num_hidden_layers": 2, "num_attention_heads": 4, "num_key_value_heads": 2, "bos_token_id": 0,
            "eos_token_id": 2,
            "rope_parameters": {"rope_type": "default", "rope_theta": 1e6, "mrope_section": [2, 3, 3]},
        },
        tie_word_embeddings=tied, vision_start_token_id=ids["<|vision_start|>"], vision_token_id=ids["<|vision_pad|>"],
        vision_end_token_id=ids["<|vision_end|>"], image_token_id=ids["<|image_pad|>"],
        video_token_id=ids["<|video_pad|>"],
    )  # fmt: skip
    torch.manual_seed(0)
    model = VL(config).to(getattr(torch, dtype))
    for name, parameter in model.named_parameters():
        torch.nn.init.normal_(parameter, mean=1.0 if "norm" in name or "ln_q" in name else 0.0, std=0.2)
    if naming == "memory":
        state = {name: tensor.clone() for name, tensor in model.state_dict().items()}
        save_file(state, directory / "model.safetensors", metadata={"format": "pt"})
        model.config.save_pretrained(directory)
    else:
        model.save_pretrained(directory)
        (directory / "generation_config.json").unlink()
    if ENDS[naming]:
        (directory / "generation_config.json").write_text(json.dumps({"eos_token_id": 9, "temperature": 0.1}))
    Qwen2VLImageProcessorPil(min_pixels=SIDE**2, max_pixels=SIDE**2).save_pretrained(directory)
    return directory


class Run(NamedTuple):
    """A run's config, base and trees."""

    config: SftConfig
    base: Base
    trainable: PyTree
    frozen: PyTree

    @property
    def whole(self) -> PyTree:
        """All parameters, and adapters under "lora"."""
        return {**self.frozen, **self.trainable}


def exported(directory, run_dir, tuning, targets=TARGETS[0]) -> Run:
    """A base with what `tuning` trains moved at random, as a run exports it."""
    stored = {"BF16": "bfloat16", "F32": "float32"}[next(iter(open_tensors(directory).values())).dtype]
    model = ModelConfig(base=str(directory), tuning=tuning, param_dtype=stored)
    config = SftConfig(model=model, lora=LoraConfig(rank=3, alpha=5.0, targets=targets))
    layout = make_device_layout("jit")
    base = load_base(model, SIDE, INSTRUCTION, layout)
    trainable, frozen = initial_trees(config, base, layout)
    trainable = tiny.moved(trainable)
    export(config, base, trainable, frozen, run_dir)
    return Run(config, base, trainable, frozen)


@functools.cache
def sampler(directory):
    """The likeliest tokens of a report of IMAGE, and their log-probabilities, by a model of the base's sizes."""
    base = load_base(ModelConfig(base=str(directory)), SIDE, INSTRUCTION, make_device_layout("jit"))
    settings = decode_settings(base, RolloutConfig(max_new_tokens=NEW, temperature=0))
    sample = jax.jit(vision_policy(base.config, base.layout, settings, LORA).sample, static_argnums=3)
    prompts = study_prompts([0], [(IMAGE,)], base.encoder, 1, prompt_length(base.encoder, 1))

    def report(params):
        params = jax.tree.map(lambda leaf: leaf.astype(np.float32), params)
        drawn = sample(PolicyParams({}, params), prompts, jax.random.split(jax.random.key(0), 1), 1)
        length = int(drawn.lengths[0, 0])
        return np.asarray(drawn.tokens[0, 0, :length]), np.asarray(drawn.log_probs[0, 0, :length])

    return report


def opened(path):
    """A whole model, as float32 where its config.json does not say so; every tensor found, and none left over."""
    model, report = VL.from_pretrained(path, output_loading_info=True)
    assert not any(report.values()), report
    return model.eval()


def silently(load):
    """What `load` returns; a warning, such as PEFT's about an adapter that it ignores, is an error."""
    with warnings.catch_warnings():
        warnings.simplefilter("error", UserWarning)
        return load().eval()


def their_report(model, directory, forbidden):
    """The same report by transformers: its image processor, its chat template, `generate`; log-probabilities too."""
    processor = Qwen2VLImageProcessorPil.from_pretrained(directory)
    images = processor([Image.fromarray(IMAGE).convert("RGB")], return_tensors="pt")
    tokenizer = transformers.AutoTokenizer.from_pretrained(directory)
    turn = {"role": "user", "content": IMAGE_MARKS + INSTRUCTION}
    template = tokenizer.chat_template or CHATML  # a base may have none
    text = tokenizer.apply_chat_template([turn], chat_template=template, add_generation_prompt=True, tokenize=False)
    count = int(images["image_grid_thw"].prod()) // processor.merge_size**2
    ids = tokenizer(text.replace("<|image_pad|>", "<|image_pad|>" * count), return_tensors="pt")["input_ids"]
    image_id = tokenizer.convert_tokens_to_ids("<|image_pad|>")
    forbidden = [*forbidden, *range(len(tokenizer), model.config.text_config.vocab_size)]
    drawn = model.generate(
        input_ids=ids, attention_mask=torch.ones_like(ids), mm_token_type_ids=(ids == image_id).int(), **images,
        max_new_tokens=NEW, do_sample=False, temperature=None, suppress_tokens=forbidden,
        return_dict_in_generate=True, output_scores=True,
    )  # fmt: skip
    tokens = drawn.sequences[0, ids.shape[1] :]
    scores = torch.stack(drawn.scores)[:, 0].float().log_softmax(-1)
    return tokens.numpy(), scores[range(len(tokens)), tokens].detach().numpy()


def assert_same_report(model, directory, expected, run):
    tokens, log_probs = expected
    found, scores = their_report(model, directory, run.base.config.forbidden_ids)
    np.testing.assert_array_equal(found, tokens)
    np.testing.assert_allclose(scores, log_probs, atol=TOLERANCE)


@pytest.mark.parametrize("tuning", ["vision", "full"])
def test_a_whole_model_reports_alike_in_transformers(base, tmp_path, tuning):
    run = exported(base, tmp_path, tuning)
    model = opened(tmp_path / "model")
    assert model.dtype == torch.float32  # as what was trained is stored, whatever the base was
    tokens, log_probs = sampler(base)(run.whole)
    assert_same_report(model, tmp_path / "model", (tokens, log_probs), run)
    before = sampler(base)(run.base.params)
    assert len(before[0]) != len(tokens) or np.abs(before[1] - log_probs).max() > 0.1


def test_a_merged_model_and_its_adapter_report_alike_in_transformers_and_peft(base, tmp_path):
    """PEFT onto the base, PEFT's and transformers' automatic classes, transformers alone, and the merged model."""
    run = exported(base, tmp_path, "lora")
    adapter, expected = tmp_path / "adapter", sampler(base)(run.whole)
    ways = {
        "PeftModel": lambda: peft.PeftModel.from_pretrained(VL.from_pretrained(base, dtype="float32"), adapter),
        "AutoPeftModel": lambda: peft.AutoPeftModel.from_pretrained(adapter, dtype="float32"),
        "transformers": lambda: VL.from_pretrained(adapter, dtype="float32"),
    }
    for load in ways.values():
        assert_same_report(silently(load), tmp_path / "model", expected, run)
    model = VL.from_pretrained(base, dtype="float32")
    assert not any(vars(model.load_adapter(adapter)).values())
    assert_same_report(model.eval(), tmp_path / "model", expected, run)
    merged = {**run.frozen, "language": merge(run.frozen["language"], run.trainable["lora"], run.config.lora)}
    assert opened(tmp_path / "model").dtype == VL.from_pretrained(base).dtype
    whole = silently(lambda: VL.from_pretrained(tmp_path / "model", dtype="float32"))
    assert_same_report(whole, tmp_path / "model", sampler(base)(merged), run)


@pytest.mark.parametrize("targets", TARGETS)
def test_an_adapter_adapts_the_language_model_alone(base, tmp_path, targets):
    run = exported(base, tmp_path, "lora", targets)
    adapted = silently(lambda: peft.PeftModel.from_pretrained(VL.from_pretrained(base), tmp_path / "adapter"))
    names = {name for name, _ in adapted.named_parameters() if "lora_" in name}
    stored = load_file(tmp_path / "adapter" / "adapter_model.safetensors")
    assert len(names) == len(stored) == 2 * 2 * len(jax.tree.leaves(run.trainable)) // 2
    assert all(name.startswith("base_model.model.model.language_model.layers.") for name in names)
    for name, parameter in adapted.named_parameters():
        if "lora_" in name:
            torch.testing.assert_close(parameter.float(), stored[name.replace(".default", "")])


def test_an_adapter_named_as_before_transformers_4_52_is_ignored_by_peft_and_read_here(base, tmp_path):
    """The check of this file notices such an adapter, and both ways of naming give the same tree."""
    run = exported(base, tmp_path, "lora")
    save_peft(tmp_path / "old", run.trainable["lora"], run.config.lora, str(base))
    with pytest.raises(UserWarning, match="missing adapter keys"):
        silently(lambda: peft.PeftModel.from_pretrained(VL.from_pretrained(base), tmp_path / "old"))
    for name in ("adapter", "old"):
        config, lora, _ = load_peft(tmp_path / name, run.base.params["language"], VISION_LANGUAGE)
        assert (config.rank, config.alpha, config.dropout) == (3, 5.0, run.config.lora.dropout)
        jax.tree.map(np.testing.assert_array_equal, lora, run.trainable["lora"])
    with pytest.raises(UserError, match=r"is an adapter of Qwen2\.5-VL, but the model is not"):
        load_peft(tmp_path / "adapter", run.base.params["language"])


def test_an_adapter_of_peft_is_read_here(base, tmp_path):
    """Trained on the language model, as by a pattern of PEFT's user; one on the image side too is refused by name."""
    models = {}
    for name, targets in (("language", r".*language_model.*\.(q|down)_proj"), ("both", ["gate_proj", "q_proj"])):
        config = peft.LoraConfig(r=4, lora_alpha=6, target_modules=targets)
        models[name] = peft.get_peft_model(VL.from_pretrained(base, dtype="float32"), config)
        for key, parameter in models[name].named_parameters():
            if "lora_" in key:
                torch.nn.init.normal_(parameter, std=0.1)
        models[name].save_pretrained(tmp_path / name)
    loaded = load_base(ModelConfig(base=str(base)), SIDE, INSTRUCTION, make_device_layout("jit"))
    config, lora, language = load_peft(tmp_path / "language", loaded.params["language"], VISION_LANGUAGE)
    run = Run(SftConfig(), loaded, {}, {**loaded.params, "language": merge(language, lora, config)})
    assert_same_report(models["language"].eval(), base, sampler(base)(run.whole), run)
    with pytest.raises(UserError, match=r"holds .*visual.*; expected an adapter of the language model alone"):
        load_peft(tmp_path / "both", loaded.params["language"], VISION_LANGUAGE)


def test_what_stands_beside_the_weights_goes_along(base, tmp_path):
    """Config, tokenizer, chat template, image processor; and every end of a report ends `generate` too."""
    run = exported(base, tmp_path, "vision")
    directory, tokenizer = tmp_path / "model", run.base.tokenizer
    found, expected = (transformers.AutoConfig.from_pretrained(path).to_dict() for path in (directory, base))
    assert {name: found[name] for name in expected if name.endswith("token_id")}.items() <= expected.items()
    for part in ("text_config", "vision_config"):
        (found[part].get("rope_parameters") or {}).pop("type", None)  # of the hub's layout, beside rope_type
        other = {name for name in expected[part] if found[part].get(name) != expected[part][name]}
        assert other <= {"dtype"}, [(found[part].get(name), expected[part][name]) for name in other]
    generation = transformers.GenerationConfig.from_pretrained(directory)
    assert set(generation.eos_token_id) == set(tokenizer.stop_ids)
    if (base / "generation_config.json").is_file():
        assert 9 in generation.eos_token_id
        assert generation.temperature == 0.1
    theirs = transformers.AutoTokenizer.from_pretrained(directory)
    text = "No pleural effusion.\n  2.5 cm 左 <|im_end|>"
    assert theirs(text)["input_ids"] == tokenizer.encode(text)
    turns = [{"role": "user", "content": text}]
    chat = theirs.apply_chat_template(turns, add_generation_prompt=True, tokenize=True, return_dict=False)
    assert chat == tokenizer.chat(turns)
    processor = Qwen2VLImageProcessorPil.from_pretrained(directory)
    assert processor.to_dict() == Qwen2VLImageProcessorPil.from_pretrained(base).to_dict()
