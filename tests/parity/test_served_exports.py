"""What engines such as vLLM and SGLang read of an export is there, and their prompt is that of our commands.

An engine takes the architecture from `config.json`, tensors from safetensors, the tokenizer by `AutoTokenizer`, the
image processor by `preprocessor_config.json`, and makes a prompt by the chat template from messages whose content is a
text or a list of parts.
"""

import dataclasses
import json
import shutil

import jax
import numpy as np
import pytest
from PIL import Image

from common.config import to_json
from common.data.exported_tokenizer import exported_files
from common.data.qwen_images import resize
from common.data.tokenizers import load_tokenizer
from common.endpoint.settings import CONSENT
from common.models.lora import merge
from common.models.qwen2 import init_params as init_language
from common.models.qwen2_vl_vision import grey_patches
from common.models.qwen2_weights import save_qwen2
from common.training.parallel import make_device_layout
from deer_jax.config import EMBEDDED_BASE, INSTRUCTION, ModelConfig, SftConfig
from deer_jax.prompts import prompt_tokens
from deer_jax.setup import export, initial_trees, load_base
from retsta_jax.cli import dispatch
from retsta_jax.exported import load_embedded
from retsta_jax.prompts import prompt_tokens as retsta_prompt
from retsta_jax.standardize import standardize
from tests import tiny
from tests.chat_server import answered
from tests.corpus import make_pairs
from tests.parity.exported_run import export_moved

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")
from transformers.models.qwen2_vl.image_processing_pil_qwen2_vl import Qwen2VLImageProcessorPil

SIDE = 112
PARTS = {
    "transformers, vLLM and SGLang": {"type": "image"},
    "chat completions": {"type": "image_url", "image_url": {"url": "data:,"}},
    "qwen-vl-utils": {"image": "data:,"},
}


@pytest.fixture(scope="module")
def deer(tmp_path_factory):
    """The export of a run on the shipped base, which has weights and tokenizer alone; and the run's base."""
    config = SftConfig(model=ModelConfig(base="embedded", tuning="vision"))
    layout = make_device_layout("jit")
    base = load_base(config.model, SIDE, INSTRUCTION, layout)
    trainable, frozen = initial_trees(config, base, layout)
    run_dir = tmp_path_factory.mktemp("deer")
    export(config, base, trainable, frozen, run_dir)
    return run_dir / "model", base


def test_a_model_of_deer_has_all_that_an_engine_reads(deer):
    directory, _ = deer
    config = transformers.AutoConfig.from_pretrained(directory)
    assert config.architectures == ["Qwen2_5_VLForConditionalGeneration"]
    model, report = transformers.AutoModelForImageTextToText.from_pretrained(directory, output_loading_info=True)
    assert (type(model).__name__, any(report.values())) == (config.architectures[0], False)
    generation = transformers.GenerationConfig.from_pretrained(directory)
    assert set(generation.eos_token_id) == set(load_tokenizer(directory).stop_ids)
    settings = json.loads((directory / "preprocessor_config.json").read_text())
    assert settings["processor_class"] == "Qwen2_5_VLProcessor"


@pytest.mark.parametrize("form", PARTS)
@pytest.mark.parametrize("images", [1, 2])
def test_the_template_makes_our_prompt_of_images_and_text(deer, form, images):
    directory, base = deer
    tokenizer = transformers.AutoTokenizer.from_pretrained(directory)
    content = [*[PARTS[form]] * images, {"type": "text", "text": INSTRUCTION}]
    turns = [{"role": "user", "content": content}]
    text = tokenizer.apply_chat_template(turns, add_generation_prompt=True, tokenize=False)
    text = text.replace("<|image_pad|>", "<|image_pad|>" * (SIDE // 28) ** 2)
    assert tokenizer(text)["input_ids"] == prompt_tokens(base.encoder, images)


def test_the_image_processor_makes_our_patches(deer):
    directory, base = deer
    image = resize(np.random.default_rng(0).integers(0, 256, (200, 150), dtype=np.uint8), SIDE)
    processor = Qwen2VLImageProcessorPil.from_pretrained(directory)
    theirs = processor([Image.fromarray(image).convert("RGB")], return_tensors="np")
    assert theirs["image_grid_thw"].tolist() == [[1, SIDE // 14, SIDE // 14]]
    ours = np.asarray(grey_patches(base.config.vision, image[None]))
    found = theirs["pixel_values"].reshape(len(theirs["pixel_values"]), 3, -1)
    np.testing.assert_allclose(ours.reshape(found.shape), found, atol=2e-6)


@pytest.mark.parametrize("form", ["text", "parts"])
def test_the_template_of_a_model_of_retsta_makes_our_prompt(form, tmp_path):
    """With a byte-level tokenizer, as Qwen2.5 has. The weights: `test_exported_retsta`."""
    base = tmp_path / "base"
    sizes = dataclasses.replace(tiny.CONFIG, vocab_size=load_tokenizer(EMBEDDED_BASE).vocab_size)
    save_qwen2(base, sizes, init_language(sizes, jax.random.key(0)))
    entries = json.loads((base / "config.json").read_text())
    (base / "config.json").write_text(json.dumps(entries | {"dtype": "float32"}))
    for name in ("tokenizer.json", "tokenizer_config.json"):
        shutil.copy(EMBEDDED_BASE / name, base)
    loaded, _ = export_moved(base, tmp_path, "full", "q_proj")
    directory = tmp_path / "model"
    assert transformers.AutoConfig.from_pretrained(directory).architectures == ["Qwen2ForCausalLM"]
    theirs = transformers.AutoTokenizer.from_pretrained(directory)
    text = "Rewrite.\n\nOD: few drusen"
    turns = [{"role": "user", "content": text if form == "text" else [{"type": "text", "text": text}]}]
    ids = theirs.apply_chat_template(turns, add_generation_prompt=True, tokenize=True, return_dict=False)
    assert ids == retsta_prompt(loaded.tokenizer, "Rewrite.", "OD: few drusen")


def test_transformers_behind_an_endpoint_write_our_standard_reports(server, tmp_path):
    """`retsta standardize --endpoint` with PyTorch on the shipped model, and our own program: the same rows."""
    trained, new = load_embedded(), 16
    trained = trained._replace(config=dataclasses.replace(trained.config, max_new_tokens=new))
    (tmp_path / "config.json").write_text(json.dumps(to_json(trained.config)))
    directory, base = tmp_path / "model", trained.base
    files = exported_files(base.directory, base.tokenizer)
    whole = merge(base.params, trained.trainable, trained.config.lora)
    save_qwen2(directory, base.config, whole, source=base.directory, files=files)
    theirs = transformers.PreTrainedTokenizerFast.from_pretrained(directory)
    model = transformers.AutoModelForCausalLM.from_pretrained(directory)

    def generated(text, number):
        turns = [{"role": "user", "content": text}]
        ids = theirs.apply_chat_template(turns, add_generation_prompt=True, return_tensors="pt", return_dict=True)
        written = model.generate(**ids, do_sample=False, max_new_tokens=new)[0, ids["input_ids"].shape[1] :]
        ends = int(written[-1]) in model.generation_config.eos_token_id
        return answered(theirs.decode(written, skip_special_tokens=True), "stop" if ends else "length")

    server.script = generated
    sources = [pair.source for pair in make_pairs(12, seed=5, language="both")]
    rows = [json.dumps({"id": number, "report": source}) + "\n" for number, source in enumerate(sources)]
    (tmp_path / "reports.jsonl").write_text("".join(rows), "utf-8")
    served = tmp_path / "served.jsonl"
    options = ["--endpoint", server.url, "--endpoint-model", "m", "--requests-per-minute", "100000", CONSENT]
    options += ["--endpoint-concurrency", "1", "--output", str(served)]
    dispatch(["standardize", "--run-dir", str(tmp_path), str(tmp_path / "reports.jsonl"), *options])
    own = [(found.text, found.complete) for found in standardize(trained, trained.variables, sources)]
    written = [json.loads(line) for line in served.read_text("utf-8").splitlines()]
    assert [(row["standard"], row["complete"]) for row in written] == own
    assert {complete for _, complete in own} == {True, False}
    assert len({text for text, _ in own}) > 10
