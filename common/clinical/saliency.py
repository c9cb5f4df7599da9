"""How strongly each token of a report moves the labeler towards the findings of the reference (DEER Eq. 9-11)."""

import functools
from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int

from common.clinical.alignment import Spans
from common.clinical.labeler import Labeler, encode, token_batches
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


def saliency(
    config: ClassifierConfig,
    params: PyTree,
    ids: Int[Array, "N J"],
    mask: Bool[Array, "N J"],
    targets: Bool[Array, "N C"],
    uncertain: bool = False,
) -> Float[Array, "N J"]:
    """Length of the gradient of S_target with respect to each input embedding (Eq. 10 and 11); 0 at padding.

    Rows do not see each other, so one gradient of the sum over rows holds the gradients of all.
    """

    def total(words: Float[Array, "N J D"]) -> Float[Array, ""]:
        return target_score(chexbert_logits(config, params, words, mask), targets, uncertain).sum()

    gradient = jax.grad(total)(word_embeddings(params, ids).astype(jnp.float32))
    return jnp.linalg.norm(gradient, axis=-1)


def token_saliency(
    labeler: Labeler,
    texts: Sequence[str],
    targets: Bool[np.ndarray, "N C"],
    uncertain: bool = False,
    batch_size: int = 32,
    ids: Sequence[object] | None = None,
) -> list[tuple[Float[np.ndarray, " J"], Spans]]:
    """Of each text the saliency of the labeler's tokens, [CLS] and [SEP] among them, and their characters in it.

    Texts without a target are not read: their saliency is 0. Raises UserError for a saliency that is not finite, naming
    the text by its entry in `ids`, or by its number from 1.
    """
    encoded = encode(labeler, texts)
    found = [np.zeros(len(ids)) for ids in encoded.ids]
    wanted = [row for row, own in enumerate(targets) if own.any()]
    of_wanted = encoded._replace(ids=[encoded.ids[row] for row in wanted])
    for indices, tokens, mask in token_batches(labeler, of_wanted, batch_size):
        rows = [wanted[index] for index in indices]
        values = np.asarray(_jitted(labeler.config, labeler.params, tokens, mask, targets[rows], uncertain))
        for row, own in zip(rows, values, strict=True):
            found[row] = own[: len(encoded.ids[row])]
    check_finite(
        (np.isfinite(values).all() for values in found),
        range(1, len(texts) + 1) if ids is None else ids,
        "the gradients of the labeler",
        precision_remedy(labeler.config.encoder.dtype),
    )
    return [(values, np.array(spans).reshape(-1, 2)) for values, spans in zip(found, encoded.spans, strict=True)]


_jitted = functools.partial(jax.jit, static_argnums=(0, 5))(saliency)
