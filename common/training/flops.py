"""Model FLOPs of a training step by formula, and utilisation: their rate as a share of what the device can do.

Model FLOPs are those required by the mathematics, whatever the program does: a product of [m, k] and [k, n] is 2 m k n;
causal attention counts half of its square, segment by segment; padding counts nothing; recomputation (remat, a loss
that visits the vocabulary again) is never counted. Norms, rotations and softmax are left out (about 1% at 7B).

Training with LoRA is the forward pass and the gradient with respect to activations: a frozen matrix is multiplied
with twice, an adapter's three times, and attention, where both factors depend on activations, three times. A frozen
head counts twice like every frozen matrix, although `common.training.losses` does both in the forward pass.
"""

import re

import jax
import numpy as np
from jaxtyping import Int

from common.models.lora import LoraConfig
from common.models.qwen2 import Qwen2Config
from common.types import TextBatch

# Dense bf16 FLOP/s of one JAX device by the vendors' data sheets; first match in the device kind wins.
PEAK_FLOPS: tuple[tuple[str, float], ...] = (
    (r"TPU v6 lite|TPU v6e", 918e12),
    (r"TPU v5 lite|TPU v5e", 197e12),
    (r"TPU v5p?$", 459e12),
    (r"TPU v4$", 275e12),
    (r"H100 NVL", 835e12),
    (r"H100 PCIe", 756e12),
    (r"H100|H200", 989e12),
    (r"A100", 312e12),
    (r"RTX 4090", 165e12),
)


def sft_flops(config: Qwen2Config, lora: LoraConfig | None, batch: TextBatch) -> float:
    """Model FLOPs of one update on this batch (numpy, on the host): LoRA, or all parameters where `lora` is None."""
    segments = np.asarray(batch.segments)
    return train_flops(config, lora, int((segments > 0).sum()), attended_pairs(segments))


def train_flops(config: Qwen2Config, lora: LoraConfig | None, tokens: float, pairs: float) -> float:
    """Model FLOPs of an update on `tokens` tokens that attend to `pairs` tokens in all (`attended_pairs`)."""
    matrices = 2.0 * tokens * matrix_parameters(config)
    attention = attention_flops(config, pairs)
    if lora is None:
        return 3 * (matrices + attention)
    return 2 * matrices + 3 * attention + 3 * 2.0 * tokens * adapter_parameters(config, lora)


def forward_flops(config: Qwen2Config, tokens: float, pairs: float) -> float:
    """Model FLOPs of a forward pass with logits for every token."""
    return 2.0 * tokens * matrix_parameters(config) + attention_flops(config, pairs)


def attention_flops(config: Qwen2Config, pairs: float) -> float:
    """Scores and weighted values of all layers: two products of 2 H dim FLOPs for each attended pair."""
    return 4.0 * pairs * config.num_attention_heads * config.head_dim * config.num_hidden_layers


def attended_pairs(segments: Int[np.ndarray, "B S"]) -> float:
    """Pairs of a token and one it attends to: n^2 / 2 for each segment of n tokens; segment 0 is padding."""
    rows = len(segments)
    highest = int(segments.max(initial=0)) + 1
    sizes = np.bincount((segments + np.arange(rows)[:, None] * highest).ravel(), minlength=rows * highest)
    sizes = sizes.reshape(rows, highest)[:, 1:].astype(np.float64)
    return float((sizes**2).sum() / 2)


def dense_shapes(config: Qwen2Config) -> dict[str, tuple[int, int]]:
    """(input, output) widths of the dense layers of one decoder layer, by name."""
    width, hidden = config.hidden_size, config.intermediate_size
    queries, shared = config.num_attention_heads * config.head_dim, config.num_key_value_heads * config.head_dim
    return {
        "q_proj": (width, queries),
        "k_proj": (width, shared),
        "v_proj": (width, shared),
        "o_proj": (queries, width),
        "gate_proj": (width, hidden),
        "up_proj": (width, hidden),
        "down_proj": (hidden, width),
    }


def matrix_parameters(config: Qwen2Config) -> int:
    """Parameters that every token is multiplied with: dense layers and head, not the embedding look-up."""
    layer = sum(inputs * outputs for inputs, outputs in dense_shapes(config).values())
    return config.num_hidden_layers * layer + config.vocab_size * config.hidden_size


def adapter_parameters(config: Qwen2Config, lora: LoraConfig) -> int:
    """Parameters of the LoRA adapters."""
    sizes = [sum(shape) for name, shape in dense_shapes(config).items() if re.fullmatch(lora.targets, name)]
    return config.num_hidden_layers * lora.rank * sum(sizes)


def peak_flops(device: jax.Device) -> float | None:
    """Dense bf16 FLOP/s of a device by its data sheet; None where it is not known, as on a CPU."""
    return next((peak for pattern, peak in PEAK_FLOPS if re.search(pattern, device.device_kind)), None)


def utilisation(flops: float, seconds: float, devices: list[jax.Device]) -> float | None:
    """Model FLOPs utilisation of all `devices`; None where their peak is not known."""
    peak = peak_flops(devices[0])
    return None if peak is None else flops / (seconds * peak * len(devices))
