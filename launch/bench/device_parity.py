"""The numerical part of `medreport bench device`: each tower in float32 and bfloat16, with the attention of this
device, against float32 with plain XLA on the host's CPU; and greedy decoding with slots and drafts against decoding
without either.
"""

import dataclasses
import functools
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

import jax
import numpy as np
from jaxtyping import Array

from common.models import clip as clip_model
from common.models import qwen2, qwen2_vl_vision
from common.models.attention_choice import Implementation, Operation, Shape, choose
from common.models.bert import chexbert_logits, init_classifier, word_embeddings
from common.models.qwen2_vl_layout import vision_layout
from common.types import PyTree

if TYPE_CHECKING:
    from launch.bench.device import Sizes

# Relative to the root mean square. At the published depths, narrow towers on a CPU have errors of 0.011 (text) and
# 0.016 (vision) in bfloat16.
AT_MOST = {"float32": 1e-4, "bfloat16": 0.05}
SLOTS, PROMPTS = 4, 16


class Tower(NamedTuple):
    """A part of a model with fixed inputs."""

    init: Callable[[Array], PyTree]
    apply: Callable[[str, Implementation, PyTree], PyTree]  # dtype, attention and parameters to arrays


def text(sizes: "Sizes") -> dict[str, Any]:
    """Hidden states of a packed row of two texts."""
    config, length = sizes.text, sizes.length
    tokens = _tokens(config.vocab_size, (1, length))
    segments = np.repeat([[1, 2]], length // 2, axis=1)
    positions = np.tile(np.arange(length // 2), 2)[None]

    def apply(dtype: str, attention: Implementation, params: PyTree) -> PyTree:
        model: Any = qwen2.Qwen2(dataclasses.replace(config, dtype=dtype, attention=attention))
        return model.apply({"params": params}, tokens, positions, segments)[0]

    tower = Tower(functools.partial(qwen2.init_params, config), apply)
    return parity(tower) | {"attention": _attention("rows", length, config.head_dim)}


def vision(sizes: "Sizes") -> dict[str, Any]:
    """Features of an image of the policy's size."""
    config, side = sizes.policy.vision, sizes.rl.data.side
    grid = side // config.patch_size, side // config.patch_size
    layout = vision_layout(config, grid)
    patches = qwen2_vl_vision.grey_patches(config, _image(side)[None])

    def apply(dtype: str, attention: Implementation, params: PyTree) -> PyTree:
        own: Any = qwen2_vl_vision.VisionTower(dataclasses.replace(config, dtype=dtype, attention=attention))
        return own.apply({"params": params}, np.asarray(patches), layout)

    plain = dataclasses.replace(config, param_dtype="float32")
    tower = Tower(functools.partial(qwen2_vl_vision.init_params, plain), apply)
    return parity(tower) | {"attention": _attention("image", grid[0] * grid[1], config.hidden_size // config.num_heads)}


def labels(sizes: "Sizes") -> dict[str, Any]:
    """CheXbert's logits of four texts."""
    config = sizes.labeler
    ids = _tokens(config.encoder.vocab_size, (4, sizes.length))
    mask: Any = np.arange(sizes.length) < np.array([[sizes.length], [sizes.length // 2], [sizes.length // 3], [5]])

    def apply(dtype: str, attention: Implementation, params: PyTree) -> PyTree:
        own = dataclasses.replace(config, encoder=dataclasses.replace(config.encoder, dtype=dtype))
        return chexbert_logits(own, params, word_embeddings(params, ids), mask)

    return parity(Tower(functools.partial(init_classifier, config), apply))


def clip(sizes: "Sizes") -> dict[str, Any]:
    """Embeddings of an image and of a text."""
    config = sizes.clip
    images = np.asarray(clip_model.normalise(_image(config.image_size)[None]))
    ids = _tokens(config.vocab_size, (1, config.context_length))

    def apply(dtype: str, attention: Implementation, params: PyTree) -> PyTree:
        return clip_model.Clip(dataclasses.replace(config, dtype=dtype)).apply({"params": params}, images, ids)

    return parity(Tower(functools.partial(clip_model.init_params, config), apply))


def parity(tower: Tower) -> dict[str, Any]:
    """The error in each dtype relative to float32 on the host, with the same weights, which are exact in bfloat16."""

    @jax.jit
    def init(key: Array) -> PyTree:
        return jax.tree.map(lambda leaf: jax.lax.reduce_precision(leaf, 8, 7), tower.init(key))

    params = init(jax.random.key(0))
    host = jax.local_devices(backend="cpu")[0]
    with jax.default_device(host), jax.default_matmul_precision("float32"):
        expected = jax.device_get(
            jax.jit(functools.partial(tower.apply, "float32", "xla"))(jax.device_put(params, host))
        )
    found = {}
    for dtype, most in AT_MOST.items():
        own = jax.tree.map(lambda leaf, dtype=dtype: leaf.astype(dtype), params)
        with jax.default_matmul_precision("float32"):
            error = relative_error(
                jax.device_get(jax.jit(functools.partial(tower.apply, dtype, "auto"))(own)), expected
            )
        found[dtype] = {"relative_error": error, "at_most": most, "met": error <= most}
    return found | {"met": all(one["met"] for one in found.values())}


def relative_error(found: PyTree, expected: PyTree) -> float:
    """The root mean square of the difference over that of the expected values; the maximum over all arrays.

    Expected values that are not finite, such as the logit of a class that a label lacks, are not compared.
    """

    def one(found: np.ndarray, expected: np.ndarray) -> float:
        own, known = np.asarray(found, np.float64), np.asarray(expected, np.float64)
        compared = np.isfinite(known)
        difference = np.linalg.norm((own - np.where(compared, known, 0))[compared])
        return float(difference / np.linalg.norm(known[compared]))

    return max(jax.tree.leaves(jax.tree.map(one, found, expected)))


def decoding(sizes: "Sizes") -> dict[str, Any]:
    """The share of rows that slots and drafts write as plain decoding does, in both dtypes, by the policy's decoder.

    Drafts come from half of the expected rows. In bfloat16, rows may differ where two tokens are about equally likely.
    """
    found: dict[str, Any] = {}
    for dtype in AT_MOST:
        config = dataclasses.replace(sizes.policy.language, dtype=dtype, param_dtype=dtype, attention="auto")
        found[dtype] = _decoded(config, sizes)
    exact = found["float32"]["rows_alike"]
    return found | {"met": exact >= 0.9}


def _decoded(config: qwen2.Qwen2Config, sizes: "Sizes") -> dict[str, Any]:
    from common.generation.generate import generate_rows, make_generator, padded, qwen2_slots, row_keys
    from common.generation.ngrams import build_table
    from common.generation.settings import DecodeSettings
    from common.training.parallel import device_put_tree, make_device_layout

    random = np.random.default_rng(0)
    rows = [random.integers(5, config.vocab_size, n).tolist() for n in random.integers(8, sizes.length, PROMPTS)]
    settings = DecodeSettings(sizes.new_tokens)
    weights = {"params": jax.jit(functools.partial(qwen2.init_params, config))(jax.random.key(0))}
    inputs = padded(rows, max(map(len, rows)), left=True), row_keys(0, range(PROMPTS))
    expected = np.asarray(make_generator(config, settings)(weights, *inputs).tokens)[:, 0].tolist()
    layout = make_device_layout("jit")
    slots = qwen2_slots(config, dataclasses.replace(settings, drafts=sizes.drafts), SLOTS, layout)
    table = device_put_tree(build_table(expected[::2]), layout)
    written = list(generate_rows(slots, weights, rows, range(PROMPTS), table=table))
    alike = [_common(own.token_ids, plain) for (own,), plain in zip(written, expected, strict=True)]
    return {
        "rows": PROMPTS,
        "rows_alike": sum(count == sizes.new_tokens for count in alike) / PROMPTS,
        "tokens_before_a_difference": float(np.mean(alike)),
        "new_tokens": sizes.new_tokens,
        "drafted": float(np.mean([np.mean(own.drafted) for (own,) in written])),
    }


def _common(row: Sequence[int], other: Sequence[int]) -> int:
    """The length of the common prefix."""
    return next((at for at, (one, two) in enumerate(zip(row, other, strict=True)) if one != two), len(row))


def _attention(operation: Operation, length: int, head_dim: int) -> str:
    return choose(operation, Shape(length, length, head_dim, "bfloat16")).implementation


def _tokens(vocabulary: int, shape: tuple[int, ...]) -> Any:
    return np.random.default_rng(0).integers(5, vocabulary, shape, np.int32)


def _image(side: int) -> Any:
    return np.random.default_rng(0).integers(0, 256, (side, side), np.uint8)
