"""The labeler benchmarks of `medreport bench rl`: reports from text to classes (`labels`) and to the length
of the gradient at each token (`saliency`).

The peer (`launch.bench.peer_rl`) is given the same reports as tokens: it does no tokenising.
"""

import functools
import time
from typing import TYPE_CHECKING, Any

import jax
import numpy as np
from jaxtyping import Bool

from common.models.bert import ClassifierConfig, chexbert_logits, init_classifier, unstack_layers, word_embeddings
from common.training.traced_flops import traced_flops
from launch.bench.rl_policy import Shape
from launch.bench.timing import Timed, compared, in_turns

if TYPE_CHECKING:
    from common.clinical.labeler import Labeler


def labeler_cases(shape: Shape, peer: Any) -> dict[str, Any]:
    """Both cases, with the peer's rates where there is one."""
    from common.clinical.labeler import encode, label_texts, token_batches
    from common.clinical.saliency import saliency, token_saliency

    labeler = make_labeler(shape)
    labeler = labeler._replace(params=unstack_layers(labeler.params))  # as in the commands
    texts, targets = random_reports(shape)
    encoded = encode(labeler, texts)
    batches = [(ids, mask, targets[rows]) for rows, ids, mask in token_batches(labeler, encoded, shape.label_rows)]
    read, grade = functools.partial(_logits, labeler.config), functools.partial(saliency, labeler.config)
    flops = {
        "labels": sum(traced_flops(read, labeler.params, ids, mask) for ids, mask, _ in batches),
        "saliency": sum(traced_flops(grade, labeler.params, *batch) for batch in batches),
    }
    works = {
        "labels": functools.partial(label_texts, labeler, texts, shape.label_rows),
        "saliency": functools.partial(token_saliency, labeler, texts, targets, batch_size=shape.label_rows),
    }
    cases = {}
    for name, work in works.items():
        both: dict[str, Timed] = {"ours": functools.partial(_timed, work)}
        if peer:
            both["torch"] = functools.partial(peer.call, name, batches=peer_batches(shape, encoded.ids, targets))
        in_turns(both, 1)
        seconds = in_turns(both, 2 * shape.repetitions)
        cases[name] = compared(seconds.pop("ours"), seconds, len(texts), "reports", flops[name], jax.devices()[:1])
    return cases


def _logits(config: ClassifierConfig, params: Any, ids: jax.Array, mask: jax.Array) -> jax.Array:
    return chexbert_logits(config, params, word_embeddings(params, ids), mask)


def _timed(work: Any) -> float:
    started = time.perf_counter()
    work()
    return time.perf_counter() - started


def make_labeler(shape: Shape) -> "Labeler":
    """A labeler with random weights, whose words are w0, w1, ..."""
    from common.clinical.labeler import SPECIAL, Labeler, make_tokenizer

    config = shape.labeler_config()
    words = [*SPECIAL, *(f"w{number}" for number in range(shape.label_vocabulary - len(SPECIAL)))]
    tokenizer = make_tokenizer({word: number for number, word in enumerate(words)})
    return Labeler(config, jax.jit(functools.partial(init_classifier, config))(jax.random.key(3)), tokenizer)


def random_reports(shape: Shape) -> tuple[list[str], Bool[np.ndarray, "N 14"]]:
    """Reports of four fifths of `words` to all of them, which keeps them in one length bucket; and their targets, at
    least one each.
    """
    from common.clinical.labeler import SPECIAL

    random = np.random.default_rng(1)
    lengths = random.integers(shape.words * 4 // 5, shape.words + 1, shape.reports)
    known = shape.label_vocabulary - len(SPECIAL)
    texts = [" ".join(f"w{number}" for number in random.integers(known, size=length)) for length in lengths]
    targets = random.random((shape.reports, len(shape.labeler_config().labels))) < 0.2
    targets[:, 0] |= ~targets.any(-1)
    return texts, targets


def peer_batches(shape: Shape, ids: list[list[int]], targets: np.ndarray) -> list[dict[str, Any]]:
    """The same reports as tokens, padded to the longest of a batch."""
    found = []
    for start in range(0, len(ids), shape.label_rows):
        rows = ids[start : start + shape.label_rows]
        longest = max(map(len, rows))
        found.append(
            {
                "ids": [row + [0] * (longest - len(row)) for row in rows],
                "mask": [[1] * len(row) + [0] * (longest - len(row)) for row in rows],
                "targets": targets[start : start + len(rows)].tolist(),
            }
        )
    return found
