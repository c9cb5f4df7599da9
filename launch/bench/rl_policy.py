"""What the cases of `medreport bench rl` have in common: its sizes, prompts, and the policy that is measured."""

import dataclasses
from typing import Any, Literal

import numpy as np
from jaxtyping import Int

from common.generation.sampling import Sampling
from common.generation.settings import DecodeSettings
from common.models.bert import BertConfig, ClassifierConfig
from common.models.lora import LoraConfig
from common.models.qwen2 import Qwen2Config

LORA = LoraConfig(rank=16, alpha=32.0, dropout=0.0)


@dataclasses.dataclass(frozen=True)
class LabelerShape:
    """A labeler and what it reads. Default: BERT base."""

    label_hidden: int = 768
    label_layers: int = 12
    label_heads: int = 12
    label_intermediate: int = 3072
    label_vocabulary: int = 30_522
    label_rows: int = 32  # reports that are read at a time
    reports: int = 512
    words: int = 62  # of the longest report; each is one token
    repetitions: int = 5

    def labeler_config(self) -> ClassifierConfig:
        """CheXbert's heads on the encoder of this shape."""
        return ClassifierConfig(
            BertConfig(
                vocab_size=self.label_vocabulary,
                hidden_size=self.label_hidden,
                num_hidden_layers=self.label_layers,
                num_attention_heads=self.label_heads,
                intermediate_size=self.label_intermediate,
            )
        )


@dataclasses.dataclass(frozen=True)
class Shape(LabelerShape):
    """What is measured. Defaults are the decoder of Qwen2.5-3B and BERT base; the decoder of `CPU` fits a laptop."""

    hidden: int = 2048
    layers: int = 36
    heads: int = 16
    kv_heads: int = 2
    intermediate: int = 11_008
    vocabulary: int = 151_936
    dtype: Literal["float32", "bfloat16"] = "bfloat16"  # of the decoder
    remat: Literal["none", "dots", "full"] = "full"
    loss_chunk: int = 128  # positions of each row whose logits exist at one time
    accumulate: int = 8  # micro-batches of an update
    prompts: int = 64  # of a step
    group: int = 8  # samples of each prompt
    prompt: int = 320  # tokens
    new_tokens: int = 256
    peer_rows: int = 8  # samples of a micro-batch of the peer

    def config(self) -> Qwen2Config:
        """The decoder of this shape."""
        return decoder_config(self)


LABELER_CPU = LabelerShape(reports=64, repetitions=2)
CPU = Shape(
    hidden=512, layers=8, heads=8, kv_heads=2, intermediate=1408, dtype="float32", remat="dots", loss_chunk=512,
    prompts=8, new_tokens=64, reports=64, repetitions=2,
)  # fmt: skip


def decoder_config(shape: Any) -> Qwen2Config:
    """The Qwen2 of a shape, of this benchmark or another."""
    return Qwen2Config(
        vocab_size=shape.vocabulary,
        hidden_size=shape.hidden,
        intermediate_size=shape.intermediate,
        num_hidden_layers=shape.layers,
        num_attention_heads=shape.heads,
        num_key_value_heads=shape.kv_heads,
        head_dim=shape.hidden // shape.heads,
        dtype=shape.dtype,
        param_dtype=shape.dtype,
        remat=shape.remat,
    )


def random_prompts(shape: Shape) -> Int[np.ndarray, "B P"]:
    """Tokens of prompts, all of full length."""
    return np.random.default_rng(0).integers(1, shape.vocabulary, (shape.prompts, shape.prompt), np.int32)


def make_policy(shape: Shape) -> Any:
    """The `deer_jax.ditpo.Policy` that is measured: temperature 1, no token that stops."""
    from deer_jax.policy import text_policy

    settings = DecodeSettings(max_new_tokens=shape.new_tokens, sampling=Sampling(temperature=1.0))
    return text_policy(shape.config(), settings, LORA, shape.loss_chunk)
