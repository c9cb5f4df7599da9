"""A tiny Qwen2 with a LoRA adapter, and the loss that trains it: what many tests share."""

import jax
import jax.numpy as jnp
import numpy as np
import tokenizers

from common.data.pieces import CHAT_MARKS
from common.models.lora import LoraConfig, init_lora, scaled
from common.models.qwen2 import Qwen2, Qwen2Config, init_params, output_head
from common.training.losses import answer_loss, token_logprobs
from common.types import LossSum, TextBatch

CONFIG = Qwen2Config(
    vocab_size=96,
    hidden_size=32,
    intermediate_size=48,
    num_hidden_layers=2,
    num_attention_heads=4,
    num_key_value_heads=2,
    head_dim=8,
)
LORA = LoraConfig(rank=4, alpha=8.0, dropout=0.0)


def params(config: Qwen2Config = CONFIG, seed: int = 0):
    return init_params(config, jax.random.key(seed))


def lora(base, config: LoraConfig = LORA, seed: int = 1):
    """An adapter with a random, non-zero B, so that its gradients are general."""
    return moved(init_lora(base, config, jax.random.key(seed), base), 0.05, seed + 1)


def moved(tree, scale: float = 0.1, seed: int = 1):
    """A tree with noise on each leaf."""
    leaves, structure = jax.tree.flatten(tree)
    keys = jax.random.split(jax.random.key(seed), len(leaves))
    noise = [scale * jax.random.normal(key, leaf.shape) for leaf, key in zip(leaves, keys, strict=True)]
    return jax.tree.unflatten(structure, map(jnp.add, leaves, noise))


def byte_level_bpe(texts, vocab_size: int, special=("<|endoftext|>", *CHAT_MARKS)) -> tokenizers.Tokenizer:
    """A byte-level BPE of these texts, as Qwen2's."""
    bpe = tokenizers.Tokenizer(tokenizers.models.BPE())
    bpe.pre_tokenizer = tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=False)
    bpe.decoder = tokenizers.decoders.ByteLevel()
    trainer = tokenizers.trainers.BpeTrainer(
        vocab_size=vocab_size, special_tokens=list(special), show_progress=False,
        initial_alphabet=tokenizers.pre_tokenizers.ByteLevel.alphabet(),
    )  # fmt: skip
    bpe.train_from_iterator(texts, trainer)
    return bpe


def lora_loss(trainable, frozen, batch: TextBatch, rng, config: Qwen2Config = CONFIG, lora_config: LoraConfig = LORA):
    variables = {"params": frozen, "lora": scaled(trainable, lora_config, frozen)}
    hidden, _ = Qwen2(config).apply(variables, batch.tokens, batch.positions, batch.segments)
    logp = token_logprobs(
        hidden, output_head(frozen), batch.targets, wanted=batch.weights != 0, chunk=8, head_trained=False
    )
    return answer_loss(logp, batch.weights), {
        "perplexity": LossSum((jnp.exp(-logp) * batch.weights).sum(), batch.weights.sum())
    }


def batch(rows: int = 16, length: int = 12, seed: int = 0, vocab: int = CONFIG.vocab_size) -> TextBatch:
    """Rows of one example each, of unequal length and with very unequal numbers of answer tokens."""
    random = np.random.default_rng(seed)
    tokens = random.integers(1, vocab, (rows, length)).astype(np.int32)
    lengths = random.integers(2, length + 1, rows)
    answers = [random.integers(1, n) if n > 1 else 1 for n in lengths]
    column = np.arange(length)
    segments = (column < lengths[:, None]).astype(np.int32)
    weights = ((column < lengths[:, None] - 1) & (column >= (lengths - 1 - answers)[:, None])).astype(np.float32)
    return TextBatch(
        tokens=tokens * segments,
        targets=np.roll(tokens * segments, -1, axis=1) * segments,
        weights=weights,
        segments=segments,
        positions=np.broadcast_to(column, (rows, length)).astype(np.int32) * segments,
    )
