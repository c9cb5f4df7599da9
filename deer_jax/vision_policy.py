"""Qwen2.5-VL as a policy, and the supervised loss of its first stage.

The trees: `frozen` and `trainable` are parts of {"visual", "language"}; together they are complete. Adapters of the
language model are under "lora". The images of a study are encoded once for its whole group of reports.
"""

import dataclasses
import functools
from typing import Literal

from jaxtyping import Array, Float, Key

from common.generation.drafts import NO_DRAFTS, Drafts
from common.generation.loop import Generated
from common.generation.settings import DecodeSettings
from common.generation.slots import decode
from common.models import qwen2
from common.models.attention_choice import Operation, Shape, Use
from common.models.decoding import Decoder, Prefilled
from common.models.lora import LoraConfig, scaled
from common.models.qwen2_vl import (
    Qwen2VLConfig,
    hidden_states,
    output_head,
    prefill_study,
    vision_features,
    with_continuations,
)
from common.models.qwen2_vl_vision import VisionLayout, grey_patches
from common.training.parallel import gathered
from common.training.token_loss import TokenLoss, report_loss
from common.types import LossSum, PyTree
from deer_jax.ditpo import Policy, PolicyParams
from deer_jax.policy import Scored, hidden_before, make_policy
from deer_jax.prompts import ReportRows, StudyPrompts

Tuning = Literal["vision", "full", "lora"]


def split_params(params: PyTree, tuning: Tuning) -> tuple[PyTree, PyTree]:
    """(trainable, frozen) of a model's parameters; under "lora" the adapters are added by the caller."""
    trained = {"vision": ("visual",), "full": ("visual", "language"), "lora": ()}[tuning]
    return (
        {part: params[part] for part in trained},
        {part: tree for part, tree in params.items() if part not in trained},
    )


def model_params(params: PolicyParams, lora: LoraConfig) -> tuple[PyTree, PyTree | None]:
    """The whole model's parameters, and its scaled adapters where it has some."""
    whole = {**params.frozen, **params.trainable}
    adapters = whole.pop("lora", None)
    return whole, None if adapters is None else scaled(adapters, lora, whole["language"])


def image_features(
    config: Qwen2VLConfig, params: PyTree, prompts: StudyPrompts, layout: VisionLayout
) -> Float[Array, "B M T D"]:
    """Features of the images, all of one size (`layout` is that of one of them)."""
    return vision_features(config, params, grey_patches(config.vision, prompts.images), layout)


def study_decoder(config: Qwen2VLConfig, layout: VisionLayout, lora: LoraConfig) -> Decoder:
    """A Qwen2.5-VL for generation. Weights are `PolicyParams`, prompts `StudyPrompts`."""

    def gather(params: PolicyParams) -> tuple[PyTree, PyTree]:
        """The parameters, what the decode loop reads of them gathered; and the language model's variables."""
        own, adapter = model_params(params, lora)
        own["language"] = gathered(own["language"], config.language.dtype, qwen2.SHARDING_RULES)
        return own, {"params": own["language"]} | ({} if adapter is None else {"lora": adapter})

    def read(weights: tuple[PyTree, PyTree], prompts: StudyPrompts) -> Prefilled:
        own, variables = weights
        features = image_features(config, own, prompts, layout)
        return prefill_study(config, own, prompts.rows, features, qwen2.bind(config.language, variables))

    return Decoder(
        read,
        bind=functools.partial(qwen2.bind, config.language),
        head=lambda variables: qwen2.output_head(variables["params"]),
        prepare=lambda weights: qwen2.for_decoding(weights[1]),
        gather=gather,
        attention=lambda prompt: [
            *attention_uses(config, layout, prompt.rows.mask.shape[-1]),
            *qwen2.attention_uses(config.language, prompt.rows.mask.shape[-1])[1:],
        ],
    )


def attention_uses(config: Qwen2VLConfig, layout: VisionLayout, length: int, continuation: int = 0) -> list[Use]:
    """Where the model attends: the decoder over `length` tokens, continuations of such prompts, the vision tower."""
    decoder, vision = config.language, config.vision
    patches, head_dim = len(layout.mask), vision.hidden_size // vision.num_heads

    def of(tower: str, operation: Operation, queries: int, keys: int) -> Use:
        own = (decoder.head_dim, decoder.dtype) if operation in ("rows", "continuations") else (head_dim, vision.dtype)
        return Use(tower, operation, [Shape(queries, keys, *own)], decoder.attention)

    continued = [of("continuations", "continuations", continuation, length + continuation)] if continuation else []
    return [
        of("language", "rows", length, length),
        *continued,
        of("vision", "image", patches, patches),
        of("vision windows", "windows", vision.window_patches, vision.window_patches),
    ]


def without_images(settings: DecodeSettings, config: Qwen2VLConfig) -> DecodeSettings:
    """Settings under which the ids of images and videos are never emitted."""
    return dataclasses.replace(settings, forbidden_ids=(*settings.forbidden_ids, *config.forbidden_ids))


def vision_policy(
    config: Qwen2VLConfig,
    layout: VisionLayout,
    settings: DecodeSettings,
    lora: LoraConfig | None = None,
    chunk: int = 128,
) -> Policy:
    """A Qwen2.5-VL that reports studies (`StudyPrompts`). It never emits the ids of images.

    `settings` gives temperature, stop ids and forbidden ids, for sampling and scoring alike; its `group` is not used.
    """
    adapters = lora or LoraConfig()
    settings = without_images(settings, config)

    decoder = study_decoder(config, layout, adapters)

    def sample(
        params: PolicyParams, prompts: StudyPrompts, keys: Key[Array, " B"], group: int, drafts: Drafts = NO_DRAFTS
    ) -> Generated:
        return decode(decoder, params, prompts, keys, dataclasses.replace(settings, group=group), drafts)

    def scored(params: PolicyParams, prompts: StudyPrompts, tokens: Array, mask: Array) -> Scored:
        own, adapter = model_params(params, adapters)
        features = image_features(config, own, prompts, layout)
        rows, segments = with_continuations(prompts.rows, tokens, mask)
        read = hidden_states(config, own, rows, features, segments, adapter)
        before = hidden_before(read, prompts.rows.tokens.shape[1], tokens.shape)
        return Scored(before, output_head(own), "language" in params.trainable)

    return make_policy(sample, scored, settings, chunk)


def sft_loss(
    trainable: PyTree,
    frozen: PyTree,
    batch: ReportRows,
    rng: Array,
    *,
    config: Qwen2VLConfig,
    layout: VisionLayout,
    lora: LoraConfig,
    chunk: int,
    loss: TokenLoss | None = None,
) -> tuple[LossSum, dict[str, LossSum]]:
    """Cross-entropy of the reports' tokens, or `loss` of them. No dropout."""
    own, adapter = model_params(PolicyParams(trainable, frozen), lora)
    features = image_features(config, own, batch.prompts, layout)
    hidden = hidden_states(config, own, batch.prompts.rows, features, lora=adapter)
    return report_loss(
        hidden,
        output_head(own),
        batch.targets,
        batch.weights,
        chunk=chunk,
        head_trained="language" in trainable,
        loss=loss,
    )
