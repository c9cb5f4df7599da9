"""What a preset would use on this machine: the files that it needs, mesh, kernels, and memory of the parameters."""

import os
import re
from collections.abc import Iterator
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from common.data.source import REQUIRED
from common.errors import UserError
from common.models import qwen2_vl_weights, qwen2_weights
from common.models.attention_choice import Shape, Use, attention_lines
from common.models.quantized import WIDTH
from common.models.qwen2 import Qwen2Config
from common.training.parallel import DeviceLayout, check_heads, check_rows, make_device_layout
from common.types import PyTree
from deer_jax.config import RL_PRESETS, SFT_PRESETS
from deer_jax.config import RunConfig as DeerConfig
from deer_jax.vision_policy import split_params
from launch import plan_deer, plan_deer_sft, plan_unicross
from launch.chips import CHIPS
from launch.plan import base_sizes
from launch.plan_shapes import adapter_shapes
from retsta_jax.config import FILES, RetstaConfig
from retsta_jax.config import PRESETS as RETSTA_PRESETS
from unicross_jax.config import PRESETS as UNICROSS_PRESETS


class Preset(NamedTuple):
    """A preset by the name that `medreport plan` gives it."""

    command: str
    config: Any
    required: tuple[str, ...]  # options that the preset leaves to the user


def _presets() -> Iterator[tuple[str, Preset]]:
    for name, config in RETSTA_PRESETS.items():
        files = [f"--data.{file.replace('_', '-')}" for file in FILES.get(config.data.corpus, ())]
        required = files if config.model.base else ["--model.base", *files]
        yield name, Preset(f"retsta train --preset {name}", config, tuple(required))
    clip = ("--model.clip", "--model.clip-vocabulary")
    base, labeler = "--model.base", ("--reward.labeler", "--reward.labeler-tokenizer")

    def paths(config: Any) -> list[str]:
        return [f"--data.{field}" for field in REQUIRED[config.data.layout]]

    for name in plan_unicross.PLANNED:
        yield (
            name,
            Preset(f"unicross train --preset {name}", UNICROSS_PRESETS[name], (*clip, *paths(UNICROSS_PRESETS[name]))),
        )
    for name, own in plan_deer.PLANNED.items():
        yield name, Preset(f"deer rl --preset {own}", RL_PRESETS[own], (base, *paths(RL_PRESETS[own]), *labeler))
    for name, own in plan_deer_sft.PLANNED.items():
        yield name, Preset(f"deer sft --preset {own}", SFT_PRESETS[own], (base, *paths(SFT_PRESETS[own])))


PRESETS = dict(_presets())


def preset_lines(name: str) -> Iterator[tuple[Any, str, str]]:
    """Severity, topic and text of what `name` would use here."""
    command, config, required = PRESETS[name]
    yield "ok", "preset", " ".join([command, *(f"{option} PATH" for option in required), "--run-dir DIR"])
    try:
        layout = make_device_layout(config.parallel, config.mesh)
        check_rows(config.batch_size, 1, layout)
        sizes = sizes_of(config)
        if sizes is not None:
            check_heads(sizes.num_key_value_heads, layout)
    except UserError as error:
        yield "problem", "mesh", str(error)
        return
    shape = ", ".join(f"{axis} {size}" for axis, size in layout.mesh.shape.items())
    yield "ok", "mesh", f"{layout.mode}: {shape}; {config.batch_size} rows a step"
    if sizes is not None:
        length = getattr(config, "max_length", 1024)
        rows = Use("language", "rows", [Shape(length, length, sizes.head_dim, config.model.dtype)])
        line, warnings = attention_lines([rows], config.model.attention)
        yield ("note" if warnings else "ok"), "kernels", "; ".join([line, *warnings])
        yield memory_of(config, layout)
    yield "ok", "plan", f"whether a step fits: medreport plan --preset {name} --topology {topology_here()}"


def sizes_of(config: Any) -> Qwen2Config | None:
    """Sizes of the language model; None for UniCrossAdapter."""
    if isinstance(config, RetstaConfig):
        return base_sizes(config)
    return plan_deer.QWEN2_5_VL_3B.language if isinstance(config, DeerConfig) else None


def memory_of(config: Any, layout: DeviceLayout) -> tuple[str, str, str]:
    """What must fit before anything is computed: all parameters, and gradients and moments of the trained ones."""
    trainable, frozen = parameters_of(config)
    trained, stored = _count(trainable), _count(frozen)
    dtype = config.model.param_dtype
    width = WIDTH.get(dtype) or jnp.dtype(dtype).itemsize
    parts = layout.mesh.shape.get("fsdp", 1) * layout.mesh.shape.get("tensor", 1)
    needed = (16 * trained + width * stored) / parts  # in float32: parameter, gradient, two moments
    device = jax.local_devices()[0]
    there = (device.memory_stats() or {}).get("bytes_limit") or _machine_bytes() / jax.local_device_count()
    text = (
        f"{(trained + stored) / 1e9:.2f} billion parameters, {trained / 1e9:.3f} trained: needs "
        f"{needed / 1e9:.1f} GB on each device, which has {there / 1e9:.1f} GB"
    )
    if needed > there:
        split = "--mesh.fsdp -1 --mesh.data 1"
        if parts == layout.mesh.size:
            more = "more devices" if parts > 1 else f"more devices with {split}"
        else:
            more = f"{split}, or more devices"
        return "problem", "memory", f"{text}: use {more}"
    return "ok", "memory", text


def parameters_of(config: Any) -> tuple[PyTree, PyTree]:
    """Shapes of the trainable and of the frozen parameters."""
    if isinstance(config, RetstaConfig):
        base = qwen2_weights.param_shapes(base_sizes(config))
        if config.model.tuning == "full":
            return base, {}
        return adapter_shapes(config, base), base
    return split_params(qwen2_vl_weights.param_shapes(plan_deer.QWEN2_5_VL_3B), config.model.tuning)


def topology_here() -> str:
    """This machine as a topology of `medreport plan`; an example where it is not among the known ones."""
    kind = jax.local_devices()[0].device_kind
    for name, chip in CHIPS.items():
        if chip.gpu is not None and chip.gpu.name == kind:
            return f"{name}:{jax.local_device_count()}"
    named = re.search(r"v\d+[ep]?", kind.replace(" lite", "e"))
    return f"{named[0]}:2x4" if named and named[0] in CHIPS else "h100:8"


def _count(tree: PyTree) -> int:
    return sum(leaf.size for leaf in jax.tree.leaves(tree))


def _machine_bytes() -> int:
    return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
