"""Batches of labelled reports, and CheXbert's loss on them."""

from collections.abc import Sequence
from typing import Any

import flax.struct
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int

from common.data.packing import GlobalBatch
from common.models.bert import ClassifierConfig, chexbert_logits, word_embeddings
from common.types import LossSum, PyTree


class LabelBatch(flax.struct.PyTreeNode):
    """Reports of a batch; `weights` is 0 on rows that only fill it up."""

    ids: Int[Array, "B S"]
    mask: Bool[Array, "B S"]
    labels: Int[Array, "B N"]
    weights: Float[Array, " B"]

    @property
    def real_tokens(self) -> Int[Array, ""]:
        """Tokens that are no padding."""
        return self.mask.sum()


def labeler_loss(
    trainable: PyTree, frozen: PyTree, batch: LabelBatch, rng: Array, *, config: ClassifierConfig, dropout: bool
) -> tuple[LossSum, dict[str, LossSum]]:
    """Cross-entropy summed over labels, and the share of right classes. A report weighs 1."""
    words = word_embeddings(trainable, batch.ids)
    logits = chexbert_logits(config, trainable, words, batch.mask, rng if dropout else None)
    chosen = jnp.take_along_axis(jax.nn.log_softmax(logits), batch.labels[..., None], axis=-1)[..., 0].sum(-1)
    right = (logits.argmax(-1) == batch.labels).mean(-1)
    weight = batch.weights.sum()
    return LossSum(-(chosen * batch.weights).sum(), weight), {"right": LossSum((right * batch.weights).sum(), weight)}


def label_batch(
    planned: GlobalBatch, ids: Sequence[Sequence[int]], labels: Int[np.ndarray, "N K"], stop: int | None, seed: int
) -> LabelBatch:
    """The arrays of a planned batch; with the id of the full stop, sentences stand in the order of their epoch."""
    rows = planned.rows
    arrays: dict[str, Any] = {
        "ids": np.zeros((len(rows), planned.length), np.int32),
        "mask": np.zeros((len(rows), planned.length), bool),
        "labels": np.zeros((len(rows), labels.shape[1]), np.int32),
        "weights": np.zeros(len(rows), np.float32),
    }
    for index, row in enumerate(rows):
        for number in row:  # one, or none
            own = np.array(ids[number])
            if stop is not None:
                own = shuffled_sentences(own, stop, np.random.default_rng([seed, planned.epoch, number]))
            arrays["ids"][index, : len(own)] = own
            arrays["mask"][index, : len(own)] = True
            arrays["labels"][index] = labels[number]
            arrays["weights"][index] = 1
    return LabelBatch(**arrays)


def shuffled_sentences(ids: Int[np.ndarray, " S"], stop: int, random: np.random.Generator) -> Int[np.ndarray, " S"]:
    """The same tokens between [CLS] and [SEP], with the runs that a full stop ends in another order."""
    inner = ids[1:-1]
    parts = np.split(inner, np.flatnonzero(inner == stop) + 1)
    return np.concatenate([ids[:1], *(parts[index] for index in random.permutation(len(parts))), ids[-1:]])
