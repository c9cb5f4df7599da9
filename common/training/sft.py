"""Supervised fine-tuning of a text model: the loss function."""

from jaxtyping import Array

from common.models.lora import LoraConfig, scaled
from common.models.qwen2 import Qwen2, Qwen2Config, output_head
from common.training.token_loss import TokenLoss, report_loss
from common.types import LossSum, PyTree, TextBatch


def model_variables(trainable: PyTree, frozen: PyTree, lora: LoraConfig) -> dict[str, PyTree]:
    """What `Qwen2.apply` takes: with adapters, the frozen base and the scaled adapters; else what is trained."""
    if "params" in frozen:
        return {"params": frozen["params"], "lora": scaled(trainable, lora, frozen["params"])}
    return {"params": trainable}


def sft_loss(
    trainable: PyTree,
    frozen: PyTree,
    batch: TextBatch,
    rng: Array,
    *,
    config: Qwen2Config,
    lora: LoraConfig,
    chunk: int,
    loss: TokenLoss | None = None,
    packed: bool = True,
) -> tuple[LossSum, dict[str, LossSum]]:
    """Cross-entropy of the answer tokens, or `loss` of them.

    Adapters are trained where `frozen` holds a base, otherwise the whole model. Rows that are not `packed` hold one
    example each, which lets a fused kernel do without a mask.
    """
    variables = model_variables(trainable, frozen, lora)
    dropout = {"dropout": rng} if lora.dropout > 0 else {}
    model = Qwen2(config, lora.dropout)
    segments = batch.segments if packed else batch.segments > 0
    hidden, _ = model.apply(variables, batch.tokens, batch.positions, segments, rngs=dropout)
    head = output_head(variables["params"])
    return report_loss(
        hidden, head, batch.targets, batch.weights, chunk=chunk, head_trained="lora" not in variables, loss=loss
    )
