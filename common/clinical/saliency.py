"""How strongly each token of a report moves the labeler towards the findings of the reference (DEER Eq. 9-11)."""

import functools
from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int

from common.clinical.alignment import Spans
from common.clinical.labeler import (
    Encoded,
    Labeler,
    Labels,
    check_labels,
    encode,
    labels_of,
    read_tokens,
    token_batches,
)
from common.io.finite import check_finite, precision_remedy
from common.metrics.clinical import POSITIVE, UNCERTAIN
from common.models.bert import ClassifierConfig, chexbert_logits, word_embeddings
from common.types import PyTree


def target_score(
    logits: Float[Array, "N L C"], targets: Bool[Array, "N L"], uncertain: bool = False
) -> Float[Array, " N"]:
    """S_target: the sum of the positive logits of the target findings (Eq. 9).

    The paper's text also names the uncertain class, which its equation leaves out; `uncertain` adds it, where a
    finding has one.
    """
    score = jnp.where(targets, logits[..., POSITIVE], 0).sum(-1)
    if uncertain and logits.shape[-1] > UNCERTAIN:  # JAX takes the last class for one that is not there
        maybe = logits[..., UNCERTAIN]
        score += jnp.where(targets & jnp.isfinite(maybe), maybe, 0).sum(-1)
    return score


def saliency_and_logits(
    config: ClassifierConfig,
    params: PyTree,
    ids: Int[Array, "N J"],
    mask: Bool[Array, "N J"],
    targets: Bool[Array, "N L"],
    uncertain: bool = False,
) -> tuple[Float[Array, "N J"], Float[Array, "N L C"]]:
    """Length of the gradient of S_target with respect to each input embedding (Eq. 10 and 11), which is 0 at padding;
    and the logits of the pass forwards that the gradient takes.

    Rows do not see each other, so one gradient of the sum over rows holds the gradients of all.
    """

    def total(words: Float[Array, "N J D"]) -> tuple[Float[Array, ""], Float[Array, "N L C"]]:
        logits = chexbert_logits(config, params, words, mask)
        return target_score(logits, targets, uncertain).sum(), logits

    gradient, logits = jax.grad(total, has_aux=True)(word_embeddings(params, ids).astype(jnp.float32))
    return jnp.linalg.norm(gradient, axis=-1), logits


TokenSaliency = tuple[Float[np.ndarray, " J"], Spans]  # of a text, and the characters in it of its tokens


def token_saliency(
    labeler: Labeler,
    texts: Sequence[str],
    targets: Bool[np.ndarray, "N L"],
    uncertain: bool = False,
    batch_size: int = 32,
    ids: Sequence[object] | None = None,
) -> list[TokenSaliency]:
    """Of each text the saliency of the labeler's tokens, [CLS] and [SEP] among them, and their characters in it.

    Texts without a target are not read: their saliency is 0. Raises UserError for a saliency that is not finite, naming
    the text by its entry in `ids`, or by its number from 1.
    """
    encoded = encode(labeler, texts)
    found, _ = _read_targets(labeler, encoded, targets, uncertain, batch_size)
    return _checked(labeler, encoded, found, ids)


def label_with_saliency(
    labeler: Labeler,
    texts: Sequence[str],
    targets: Bool[np.ndarray, "N L"],
    uncertain: bool = False,
    batch_size: int = 32,
    ids: Sequence[object] | None = None,
) -> tuple[Labels, list[TokenSaliency]]:
    """`label_texts` and `token_saliency`, where each text is read once."""
    encoded = encode(labeler, texts)
    found, logits = _read_targets(labeler, encoded, targets, uncertain, batch_size)
    others = np.flatnonzero(~targets.any(-1)).tolist()
    logits[others] = read_tokens(labeler, encoded, batch_size, others)[others]
    labels = labels_of(labeler, encoded, logits)
    check_labels(labeler, labels.finite, range(1, len(texts) + 1) if ids is None else ids)
    return labels, _checked(labeler, encoded, found, ids)


def _read_targets(
    labeler: Labeler, encoded: Encoded, targets: Bool[np.ndarray, "N L"], uncertain: bool, batch_size: int
) -> tuple[list[Float[np.ndarray, " J"]], Float[np.ndarray, "N L C"]]:
    """Saliency and logits of the texts with a target; of others 0 and -inf."""
    config = labeler.config
    found = [np.zeros(len(ids)) for ids in encoded.ids]
    logits = np.full((len(found), len(config.labels), max(config.classes)), -np.inf, np.float32)
    wanted = np.flatnonzero(targets.any(-1)).tolist()
    for rows, tokens, mask in token_batches(labeler, encoded, batch_size, wanted):
        values, own_logits = _jitted(config, labeler.params, tokens, mask, targets[rows], uncertain)
        logits[rows] = own_logits
        for row, own in zip(rows, np.asarray(values), strict=True):
            found[row] = own[: len(encoded.ids[row])]
    return found, logits


def _checked(
    labeler: Labeler, encoded: Encoded, found: list[Float[np.ndarray, " J"]], ids: Sequence[object] | None
) -> list[TokenSaliency]:
    check_finite(
        (np.isfinite(values).all() for values in found),
        range(1, len(found) + 1) if ids is None else ids,
        "the gradients of the labeler",
        precision_remedy(labeler.config.encoder.dtype),
    )
    return [(values, np.array(spans).reshape(-1, 2)) for values, spans in zip(found, encoded.spans, strict=True)]


_jitted = functools.partial(jax.jit, static_argnums=(0, 5))(saliency_and_logits)
