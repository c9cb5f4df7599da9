"""Qwen2.5-VL (arXiv:2502.13923): a Qwen2 with image features among its input tokens.

Pure functions over parameters {"visual": the tower of `common.models.qwen2_vl_vision`, "language": the tree of
`common.models.qwen2`}. `common.models.qwen2_vl_layout` prepares images and rows on the host.
"""

import dataclasses
from typing import Any

import flax.struct
import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from common.errors import UserError
from common.models import qwen2, qwen2_vl_vision
from common.models.attention import SharedPrompt
from common.models.decoding import Prefilled, heads_first
from common.models.qwen2 import Qwen2, Qwen2Config
from common.models.qwen2_vl_vision import VisionConfig, VisionLayout, VisionTower
from common.types import PyTree


@dataclasses.dataclass(frozen=True)
class Qwen2VLConfig:
    """Both parts, and the ids that mark images in the text."""

    language: Qwen2Config
    vision: VisionConfig
    vision_start_token_id: int = 151_652
    vision_end_token_id: int = 151_653
    vision_pad_token_id: int = 151_654
    image_token_id: int = 151_655
    video_token_id: int = 151_656

    def __post_init__(self):
        if 2 * sum(self.language.mrope_section) != self.language.head_dim:
            raise UserError(
                f"mrope_section is {list(self.language.mrope_section)}, expected numbers whose sum is half of head_dim "
                f"({self.language.head_dim})"
            )
        if self.vision.out_hidden_size != self.language.hidden_size:
            raise UserError(
                f"out_hidden_size of the vision tower is {self.vision.out_hidden_size}, expected the language model's "
                f"hidden_size ({self.language.hidden_size})"
            )

    @property
    def forbidden_ids(self) -> tuple[int, ...]:
        """The ids of images and videos, which a policy must not emit."""
        return (
            self.vision_start_token_id,
            self.vision_end_token_id,
            self.vision_pad_token_id,
            self.image_token_id,
            self.video_token_id,
        )


class StudyRows(flax.struct.PyTreeNode):
    """Rows of text with images in them, padded on one side; `mask` is true on tokens.

    The rows come first in every leaf, so that a batch can be split by rows.
    """

    tokens: Int[Array, "B S"]
    mask: Bool[Array, "B S"]
    positions: Int[Array, "B 3 S"]  # time, height, width
    image_index: Int[Array, "B S"]  # which of the row's image features stands here, -1 where a token does
    next_position: Int[Array, " B"]  # of a token after the row


def vision_features(
    config: Qwen2VLConfig, params: PyTree, patches: Float[Array, "... N C"], layout: VisionLayout
) -> Float[Array, "... T D"]:
    """Features of images of one size, any leading axes."""
    tower: Any = VisionTower(config.vision)
    features = tower.apply({"params": params["visual"]}, patches.reshape(-1, *patches.shape[-2:]), layout)
    return features.reshape(*patches.shape[:-2], *features.shape[1:])


def embed_study(
    config: Qwen2VLConfig, params: PyTree, rows: StudyRows, features: Float[Array, "B ... D"] | None
) -> Float[Array, "B S D"]:
    """The input of the language model: a row's image features at their positions, embedded tokens elsewhere."""
    words = params["language"]["embed_tokens"][rows.tokens].astype(config.language.dtype)
    if features is None:
        return words
    own = features.reshape(words.shape[0], -1, words.shape[-1]).astype(words.dtype)
    seen = jnp.take_along_axis(own, jnp.maximum(rows.image_index, 0)[..., None], axis=1)
    return jnp.where(rows.image_index[..., None] >= 0, seen, words)


def prefill_study(
    config: Qwen2VLConfig, params: PyTree, prompts: StudyRows, features: Float[Array, "B ... D"] | None, forward: Any
) -> Prefilled:
    """Left-padded prompts, read once, as `common.generation.loop.generate` continues them with `forward`.

    `forward` is `qwen2.bind(config.language, {"params": params["language"]})`, with a LoRA adapter or without.
    """
    hidden, keys_values = forward(
        prompts.tokens,
        jnp.moveaxis(prompts.positions, 1, 0),
        segments=prompts.mask.astype(jnp.int32),
        embeddings=embed_study(config, params, prompts, features),
    )
    return Prefilled(hidden[:, -1], heads_first(keys_values), prompts.mask, prompts.next_position)


def with_continuations(
    prompts: StudyRows, tokens: Int[Array, "B G T"], mask: Bool[Array, "B G T"]
) -> tuple[StudyRows, SharedPrompt]:
    """Rows that hold each prompt once and then its G continuations, and who attends to whom in them."""
    batch, group, length = tokens.shape
    extra = (batch, group * length)
    after = prompts.next_position[:, None, None, None] + jnp.arange(length)
    rows = StudyRows(
        tokens=jnp.concatenate([prompts.tokens, tokens.reshape(extra)], axis=1),
        mask=jnp.concatenate([prompts.mask, mask.reshape(extra)], axis=1),
        positions=jnp.concatenate(
            [prompts.positions, jnp.broadcast_to(after, (batch, 3, group, length)).reshape(batch, 3, -1)], axis=2
        ),
        image_index=jnp.concatenate([prompts.image_index, jnp.full(extra, -1, jnp.int32)], axis=1),
        next_position=prompts.next_position + length,
    )
    return rows, SharedPrompt(prompts.mask, mask)


def hidden_states(
    config: Qwen2VLConfig,
    params: PyTree,
    rows: StudyRows,
    features: Float[Array, "B ... D"] | None,
    segments: SharedPrompt | None = None,
    lora: PyTree | None = None,
) -> Float[Array, "B S D"]:
    """Final hidden states of whole rows, for `common.training.losses.token_logprobs`; a row is one sequence by default.

    `lora` is an adapter (scaled) of the language model.
    """
    variables = {"params": params["language"]} | ({} if lora is None else {"lora": lora})
    hidden, _ = Qwen2(config.language).apply(
        variables,
        rows.tokens,
        jnp.moveaxis(rows.positions, 1, 0),
        rows.mask if segments is None else segments,
        embeddings=embed_study(config, params, rows, features),
    )
    return hidden


def output_head(params: PyTree) -> Float[Array, "V D"]:
    """The matrix that turns hidden states into logits."""
    return qwen2.output_head(params["language"])


def init_params(config: Qwen2VLConfig, key: Array) -> PyTree:
    """Random parameters (normal, 0.02), for tests, benchmarks and training from scratch."""
    vision, language = jax.random.split(key)
    few_tokens = dataclasses.replace(config.language, attention="xla")
    return {
        "visual": qwen2_vl_vision.init_params(config.vision, vision),
        "language": qwen2.init_params(few_tokens, language),
    }


SHARDING_RULES: list[tuple[str, tuple[str | None, ...]]] = [
    *((f"visual/.*{pattern}", spec) for pattern, spec in qwen2_vl_vision.SHARDING_RULES),
    *qwen2.SHARDING_RULES,
]
