"""CLIP checkpoints with a ResNet image side -> ClipConfig and parameters.

OpenAI's archives (`RN101.pt`) and open_clip's safetensors use the same names. Each BatchNorm's four tensors become one
scale and one bias per channel; sizes are inferred from the shapes, as in OpenAI's code. Files do not say which
activation the text side has: QuickGELU, as in all of OpenAI's, is assumed.
"""

import dataclasses
import math
import re
from collections.abc import Iterable, Iterator, Mapping
from functools import partial
from pathlib import Path
from typing import Any

import jax
import numpy as np
from jax.sharding import Sharding

from common.errors import UserError
from common.io.exports import atomic_directory
from common.io.safetensors import (
    NameMap,
    Published,
    StoredTensor,
    load_tree,
    open_tensors,
    published_tensors,
    write_tensors,
)
from common.io.torch_archive import read_archive
from common.models.clip import TEXT_GROUPS, ClipConfig, init_params
from common.types import PyTree

BATCH_NORM_EPS = 1e-5
BATCH_NORM = ("weight", "bias", "running_mean", "running_var")
CONNECT = re.compile(r"(^|\.)attnpool\.connect\.")
# Buffers that say nothing about the weights.
IGNORED = r"input_resolution|context_length|vocab_size|(.+\.)?(attn_mask|num_batches_tracked)"


def load_clip(
    path: str | Path,
    *,
    dtype: str = "float32",
    param_dtype: str = "float32",
    shardings: PyTree | Sharding | None = None,
) -> tuple[ClipConfig, PyTree]:
    """Config and parameters of a published CLIP: a PyTorch archive, a safetensors file, or a directory with one.

    Computes in `dtype` and stores `param_dtype`. Raises UserError, naming tensor and file, for anything missing,
    surplus, misshapen or not finite, for a CLIP whose image side is no ResNet, and for the CLIP of UniCrossAdapter's
    authors.
    """
    stored = open_checkpoint(path)
    check_original(stored)
    config = dataclasses.replace(config_from_tensors(stored, path), dtype=dtype, param_dtype=param_dtype)
    shapes, names = param_shapes(config), name_map(config)
    return config, load_tree(
        folded(stored, config, path), shapes, names, where=path, shardings=shardings, ignored=IGNORED
    )


def save_clip(directory: str | Path, config: ClipConfig, params: PyTree) -> None:
    """Write `model.safetensors` in the published layout. Each BatchNorm has mean 0 and a deviation of 1.

    Raises UserError where the disk refuses.
    """
    with atomic_directory(directory) as aside:
        write_tensors(aside, _unfolded(published_tensors(params, name_map(config))))


def _unfolded(tensors: Iterable[tuple[str, np.ndarray]]) -> Iterator[tuple[str, np.ndarray]]:
    """The inverse of `folded`."""
    for name, tensor in tensors:
        if not re.search(r"(bn\d|downsample\.1)\.scale$", name):
            yield name, tensor
            continue
        norm = name.removesuffix(".scale")
        yield f"{norm}.weight", tensor
        yield f"{norm}.running_mean", np.zeros(tensor.shape, np.float32)
        yield f"{norm}.running_var", np.full(tensor.shape, 1 - BATCH_NORM_EPS, np.float32)


def open_checkpoint(path: str | Path) -> dict[str, StoredTensor]:
    """The published tensors at `path`. Raises UserError as `open_tensors` and `read_archive` do."""
    path = Path(path)
    if path.is_dir():
        stem = "open_clip_model"
        return open_tensors(path, stem if (path / f"{stem}.safetensors").is_file() else "model")
    if path.suffix == ".safetensors":
        return open_tensors(path.parent, path.stem)
    return read_archive(path)


def check_original(stored: Mapping[str, StoredTensor]) -> None:
    """Raise UserError for the CLIP of UniCrossAdapter's authors, whatever stands before the names of its tensors.

    Behind its attention pool, used densely, lie a convolution with a BatchNorm as a residual, and a ReLU; leaving them
    out would give other features without a word (docs/explanation/unicross.md).
    """
    if theirs := sorted(name for name in stored if CONNECT.search(name)):
        raise UserError(
            f"{stored[theirs[0]].file}: holds {theirs[0]}, the residual of the attention pool in the code of "
            "UniCrossAdapter's authors, which CLIP does not have and which is not supported; give CLIP as published by "
            "OpenAI, such as RN101.pt (docs/explanation/unicross.md)"
        )


def config_from_tensors(stored: Mapping[str, StoredTensor], where: str | Path) -> ClipConfig:
    """Sizes, from names and shapes. Heads are 64 wide, as in every published CLIP. Raises UserError."""

    def shape(name: str, axes: int) -> tuple[int, ...]:
        if name not in stored:
            hint = "; its image side is a ViT, expected a ResNet" if "visual.class_embedding" in stored else ""
            raise UserError(f"{where}: tensor {name} is missing; expected a CLIP with a ResNet image side{hint}")
        found = stored[name].shape
        if len(found) != axes or 0 in found:
            raise UserError(f"{stored[name].file}: tensor {name} has shape {list(found)}, expected {axes} axes")
        return found

    positions, _ = shape("visual.attnpool.positional_embedding", 2)
    grid = math.isqrt(positions - 1)
    if grid == 0 or grid**2 != positions - 1:
        raise UserError(
            f"{where}: tensor visual.attnpool.positional_embedding has {positions} rows, expected one more than a "
            "square"
        )
    vision_width = shape("visual.layer1.0.conv1.weight", 4)[0]
    context_length, text_width = shape("positional_embedding", 2)
    if text_width % 64:
        raise UserError(f"{where}: tensor positional_embedding is {text_width} wide, expected a multiple of 64")
    stages = [_count(stored, f"visual.layer{number}") for number in (1, 2, 3, 4)]
    if 0 in stages:
        raise UserError(f"{where}: no tensors under visual.layer{stages.index(0) + 1}; expected four stages")
    return _checked(
        where,
        image_size=grid * 32,
        vision_layers=(stages[0], stages[1], stages[2], stages[3]),
        vision_width=vision_width,
        embed_dim=shape("text_projection", 2)[1],
        context_length=context_length,
        vocab_size=shape("token_embedding.weight", 2)[0],
        text_width=text_width,
        text_heads=text_width // 64,
        text_layers=_count(stored, "transformer.resblocks"),
    )


def folded(stored: Mapping[str, StoredTensor], config: ClipConfig, where: str | Path) -> dict[str, StoredTensor]:
    """`stored` with `<norm>.scale` and `<norm>.bias` in the place of each BatchNorm's tensors, in float64.

    scale = weight / sqrt(running_var + 1e-5), bias = bias - running_mean * scale. Raises UserError.
    """
    folded = dict(stored)
    for _, _, norm in _convolutions(config):
        parts = []
        for part in BATCH_NORM:
            name = f"{norm}.{part}"
            if name not in stored:
                raise UserError(f"{where}: tensor {name} is missing")
            tensor = folded.pop(name)
            if len(tensor.shape) != 1 or tensor.shape != stored[f"{norm}.weight"].shape:
                raise UserError(
                    f"{tensor.file}: tensor {name} has shape {list(tensor.shape)}, expected one number per channel"
                )
            values = np.asarray(tensor.read((slice(None),)), np.float64)
            if not np.isfinite(values).all() or (part == "running_var" and (values < 0).any()):
                raise UserError(f"{tensor.file}: tensor {name} has impossible values; the checkpoint is damaged")
            parts.append(values)
        weight, bias, mean, variance = parts
        scale = weight / np.sqrt(variance + BATCH_NORM_EPS)
        file = stored[f"{norm}.weight"].file
        for name, values in ((f"{norm}.scale", scale), (f"{norm}.bias", bias - mean * scale)):
            folded[name] = StoredTensor(name, file, values.shape, "F64", values.__getitem__)
    return folded


def param_shapes(config: ClipConfig) -> PyTree:
    """Shapes and dtypes of the parameters, without making them."""
    return jax.eval_shape(partial(init_params, config), jax.random.key(0))


def name_map(config: ClipConfig) -> NameMap:
    """Our leaves -> published names, with BatchNorm as `folded` leaves it."""
    names = {
        "logit_scale": Published(("logit_scale",)),
        "text/token_embedding": Published(("token_embedding.weight",)),
        "text/positional_embedding": Published(("positional_embedding",)),
        "text/text_projection": Published(("text_projection",)),
        "text/ln_final/scale": Published(("ln_final.weight",)),
        "text/ln_final/bias": Published(("ln_final.bias",)),
        "visual/attnpool/positional_embedding": Published(("visual.attnpool.positional_embedding",)),
    }
    for name in ("q_proj", "k_proj", "v_proj", "c_proj"):
        names[f"visual/attnpool/{name}/kernel"] = Published((f"visual.attnpool.{name}.weight",), (1, 0))
        names[f"visual/attnpool/{name}/bias"] = Published((f"visual.attnpool.{name}.bias",))
    stacks: dict[str, list[tuple[str, str]]] = {}
    for path, convolution, norm in _convolutions(config):
        stacks.setdefault(path, []).append((convolution, norm))
    for path, blocks in stacks.items():
        many = "/rest/" in path
        names[f"{path}/kernel"] = Published(tuple(f"{name}.weight" for name, _ in blocks), (2, 3, 1, 0), many)
        names[f"{path}/scale"] = Published(tuple(f"{norm}.scale" for _, norm in blocks), stacked=many)
        names[f"{path}/bias"] = Published(tuple(f"{norm}.bias" for _, norm in blocks), stacked=many)
    each = config.text_layers // TEXT_GROUPS
    for group in range(TEXT_GROUPS):
        for ours, published, axes in TEXT_BLOCK:
            blocks_of_group = range(group * each, (group + 1) * each)
            published_names = tuple(f"transformer.resblocks.{number}.{published}" for number in blocks_of_group)
            names[f"text/blocks_{group}/{ours}"] = Published(published_names, axes, stacked=True)
    return names


TEXT_BLOCK: tuple[tuple[str, str, tuple[int, ...] | None], ...] = (
    ("ln_1/scale", "ln_1.weight", None),
    ("ln_1/bias", "ln_1.bias", None),
    ("in_proj/kernel", "attn.in_proj_weight", (1, 0)),
    ("in_proj/bias", "attn.in_proj_bias", None),
    ("out_proj/kernel", "attn.out_proj.weight", (1, 0)),
    ("out_proj/bias", "attn.out_proj.bias", None),
    ("ln_2/scale", "ln_2.weight", None),
    ("ln_2/bias", "ln_2.bias", None),
    ("c_fc/kernel", "mlp.c_fc.weight", (1, 0)),
    ("c_fc/bias", "mlp.c_fc.bias", None),
    ("c_proj/kernel", "mlp.c_proj.weight", (1, 0)),
    ("c_proj/bias", "mlp.c_proj.bias", None),
)


def _convolutions(config: ClipConfig) -> Iterator[tuple[str, str, str]]:
    """Our path, published convolution and published norm of every convolution, block by block."""
    for number in (1, 2, 3):
        yield f"visual/conv{number}", f"visual.conv{number}", f"visual.bn{number}"
    for stage, blocks in enumerate(config.vision_layers, start=1):
        for block in range(blocks):
            ours = f"visual/layer{stage}/{'rest' if block else 'first'}"
            published = f"visual.layer{stage}.{block}"
            for number in (1, 2, 3):
                yield f"{ours}/conv{number}", f"{published}.conv{number}", f"{published}.bn{number}"
            if block == 0:
                yield f"{ours}/downsample", f"{published}.downsample.0", f"{published}.downsample.1"


def _checked(where: str | Path, **sizes: Any) -> ClipConfig:
    try:
        return ClipConfig(**sizes)
    except UserError as error:
        raise UserError(f"{where}: {error}") from error


def _count(stored: Mapping[str, StoredTensor], prefix: str) -> int:
    """How many numbers follow `prefix` in the names of tensors."""
    dots = prefix.count(".") + 1
    return len({name.split(".")[dots] for name in stored if name.startswith(f"{prefix}.")})
