"""A tiny Qwen2.5-VL on disk, and the options of the commands that train it on a few phantoms."""

import dataclasses
from pathlib import Path

import jax

from common.data.huggingface_tokenizer import QWEN2_SPECIAL
from common.data.tokenizers import load_tokenizer
from common.models.qwen2_vl import init_params
from common.models.qwen2_vl_weights import save_qwen2_vl
from deer_jax import make_assets
from deer_jax.config import INSTRUCTION

DEMO = ["--preset", "demo"]
DATA = ["--data.train-size", "12", "--data.validation-size", "4", "--data.test-size", "4", "--data.side", "56"]
DATA += ["--parallel", "jit"]
SMALL = ["--tensorboard", "False", "--batch-size", "4", "--micro-batch", "2"]


def make_base(folder: Path, dtype: str = "float32", layers: int = 1) -> Path:
    """The directory of a model with random weights, stored in `dtype`, and a tokenizer of its own."""
    make_assets.train_tokenizer(
        folder / "tokenizer", [INSTRUCTION, "no pleural effusion . the heart is enlarged ."] * 9
    )
    tokenizer = load_tokenizer(folder / "tokenizer")
    ids = {mark: tokenizer.encode(mark)[0] for mark in QWEN2_SPECIAL}
    config = make_assets.sizes(tokenizer.vocab_size, ids)
    vision = dataclasses.replace(config.vision, depth=2, fullatt_block_indexes=(1,))
    language = dataclasses.replace(config.language, num_hidden_layers=layers)
    config = dataclasses.replace(config, vision=vision, language=language)
    params = jax.tree.map(lambda leaf: leaf.astype(dtype), init_params(config, jax.random.key(0)))
    save_qwen2_vl(folder / "base", config, params)
    for name in ("tokenizer.json", "tokenizer_config.json"):
        (folder / "base" / name).write_bytes((folder / "tokenizer" / name).read_bytes())
    return folder / "base"
