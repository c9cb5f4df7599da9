"""Which attention runs where, and why: operation x platform x shape -> implementation.

`xla` runs everywhere and forms the scores. `cudnn`, the fused kernel of NVIDIA GPUs, and `splash`, the Pallas kernel of
TPUs, never do.

| operation | what | GPU | TPU |
|---|---|---|---|
| rows | causal rows of a decoder | cudnn as causal; a mask only of packed segments | splash with segment ids |
| continuations | of a shared prompt | cudnn, the prompt's keys before each one's own | splash, likewise |
| image | patches to all of their image | cudnn under a mask | splash, heads padded to 128 channels |
| windows | patches within windows | cudnn under a mask | xla |
| labels | BERT | xla | xla |
| clip | CLIP, and the decoder of UniCrossAdapter | xla | xla |
| decode | new tokens to a cache (`attend_cached`) | xla | xla |

Continuations are one call and not two (to the prompt, to themselves) joined by their log-sum-exp:
`jax.nn.dot_product_attention` of JAX 0.10 and 0.11 rounds that of cuDNN to the dtype of the output and drops its
gradient. The attention pool of 64 images at 224 pixels, with its gradient, takes 88 MB by XLA for an H100 and 27 fused.
Why the last four rows are as they are stands in `NEVER_FUSED`; other shapes that a kernel does not take in `refusal`.
"""

import functools
from collections.abc import Sequence
from typing import Literal, NamedTuple

import jax.numpy as jnp

from common.errors import UserError
from common.io.terminal import say
from common.models import cpu_ops
from common.process.first import is_first_process

Implementation = Literal["auto", "xla", "cudnn", "splash"]
Operation = Literal["rows", "continuations", "image", "windows", "labels", "clip", "decode"]

KERNELS: dict[str, Implementation] = {"gpu": "cudnn", "tpu": "splash"}  # the fused one of a platform
SPLASH_BLOCK = 128  # positions and channels that splash takes at a time
NEVER_FUSED: dict[tuple[Operation, str], str] = {
    ("windows", "splash"): "a window has 64 patches and splash takes 128; scores grow with the image, not its square",
    ("labels", "cudnn"): "labels are computed in float32, which cuDNN does not take",
    ("labels", "splash"): "heads of 64 channels would be padded to 128, and the labels' float32 products are whole",
    **dict.fromkeys(
        [("clip", "cudnn"), ("clip", "splash")],
        "rows of at most some 100 positions, whose scores take little beside the maps of the images",
    ),
    **dict.fromkeys(
        [("decode", "cudnn"), ("decode", "splash")], "few queries a row: the cache is read once in any form"
    ),
}


class Shape(NamedTuple):
    """What the choice depends on: numbers of queries and keys, channels of a head, and the dtype of all of them."""

    queries: int
    keys: int
    head_dim: int
    dtype: str


class Choice(NamedTuple):
    """The implementation that runs; why it is not the platform's kernel, and what would change that ("": nothing)."""

    implementation: Implementation
    reason: str = ""
    remedy: str = ""


class Use(NamedTuple):
    """An operation of a tower as a run has it, on rows of these shapes."""

    tower: str
    operation: Operation
    shapes: Sequence[Shape]
    implementation: Implementation = "auto"  # the one that the config names


def choose(
    operation: Operation, shape: Shape, implementation: Implementation = "auto", platform: str | None = None
) -> Choice:
    """The implementation of an operation: of a kernel, named or the platform's, `xla` where it does not take that."""
    if implementation == "xla":
        return Choice("xla", "model.attention is xla")
    kernel = KERNELS.get(platform or cpu_ops.platform()) if implementation == "auto" else implementation
    if kernel is None:
        return Choice("xla", "the platform has no fused kernel")
    if reason := NEVER_FUSED.get((operation, kernel)):
        return Choice("xla", reason)
    reason, remedy = refusal(kernel, operation, shape)
    return Choice("xla", reason, remedy) if reason else Choice(kernel)


def refusal(kernel: Implementation, operation: Operation, shape: Shape) -> tuple[str, str]:
    """Why the kernel does not take this shape, and what to change; ("", "") where it does.

    Odd lengths, which cuDNN does not take in training, are no reason: they are padded by one.
    """
    if kernel == "cudnn":
        if jnp.dtype(shape.dtype) not in (jnp.bfloat16, jnp.float16):
            return f"cudnn takes bfloat16, not {shape.dtype}", "choose --model.dtype bfloat16"
        if shape.head_dim % 8 or shape.head_dim > 128:
            return f"cudnn takes heads of 8, 16, ... 128 channels, not {shape.head_dim}", "choose another base model"
        return "", ""
    own = [shape.queries] if operation != "continuations" else [shape.keys - shape.queries, shape.queries]
    if any(length % SPLASH_BLOCK for length in (*own, shape.keys)):
        words = " and ".join(map(str, own))
        return (
            f"splash takes multiples of {SPLASH_BLOCK} positions, not {words}",
            f"choose lengths that are multiples of {SPLASH_BLOCK}",
        )
    if operation != "image" and shape.head_dim % SPLASH_BLOCK:
        return (
            f"splash takes heads of multiples of {SPLASH_BLOCK} channels, not {shape.head_dim}",
            "choose another base model",
        )
    return "", ""


def choose_implementation(
    implementation: Implementation,
    sequence: int,
    head_dim: int,
    dtype: jnp.dtype,
    platform: str | None = None,
) -> Implementation:
    """The implementation of causal rows of this length (`choose`)."""
    shape = Shape(sequence, sequence, head_dim, jnp.dtype(dtype).name)
    return choose("rows", shape, implementation, platform).implementation


def check_implementation(implementation: Implementation) -> None:
    """Raise UserError where the platform has no such implementation."""
    needed = {kernel: platform for platform, kernel in KERNELS.items()}.get(implementation)
    if needed and (found := cpu_ops.platform()) != needed:
        raise UserError(
            f"model.attention: {implementation} runs on a {needed.upper()}, but JAX found {found}; use "
            "model.attention auto, which takes the fastest one available"
        )


def attention_lines(uses: Sequence[Use], implementation: Implementation = "auto") -> tuple[str, list[str]]:
    """In words: which implementation runs where, and a warning for each kernel that a shape forgoes.

    Raises UserError where the kernel that `implementation` names does not take a shape.
    """
    where: dict[Implementation, list[str]] = {}
    refused: dict[tuple[str, str], list[str]] = {}
    for use in uses:
        choices = {shape: choose(use.operation, shape, implementation) for shape in sorted({*use.shapes})}
        found = {choice.implementation for choice in choices.values()}
        for shape, choice in choices.items():
            name = use.tower if len(found) == 1 else f"{use.tower} rows of {shape.keys}"
            if name not in (names := where.setdefault(choice.implementation, [])):
                names.append(name)
            if choice.remedy and implementation != "auto":
                raise UserError(f"model.attention: {implementation}: {name}: {choice.reason}; {choice.remedy}, or auto")
            if choice.remedy and name not in (names := refused.setdefault((choice.reason, choice.remedy), [])):
                names.append(name)
    alone = len(where) == 1 and len(uses) == 1
    parts = [name if alone else f"{name} ({', '.join(towers)})" for name, towers in where.items()]
    warnings = [
        f"warning: attention without the fused kernel ({', '.join(names)}): {reason}; {remedy}"
        for (reason, remedy), names in refused.items()
    ]
    return "attention: " + "; ".join(parts), warnings


def announce_attention(uses: Sequence[Use]) -> None:
    """Report on standard error, once per tower, which attention it uses, where the platform has a fused kernel.

    For commands that run a trained model, whose shapes and dtypes the user does not choose.
    """
    if cpu_ops.platform() not in KERNELS or not is_first_process():
        return
    for tower, operation, shapes, implementation in uses:
        for shape in shapes:
            found = choose(operation, shape, implementation)
            reason = f": {found.reason}" if found.remedy else ""
            _say_once(f"{'warning: ' if reason else ''}attention: {found.implementation} ({tower}){reason}")


@functools.cache
def _say_once(line: str) -> None:
    say(line, error=True)


def say_attention(lines: tuple[str, list[str]]) -> None:
    """Print `attention_lines`."""
    line, warnings = lines
    say(line)
    for warning in warnings:
        say(warning, error=True)
