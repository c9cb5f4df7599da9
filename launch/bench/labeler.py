"""`medreport bench labeler [--peer]`: reports from text to classes (`labels`), to the length of the gradient at each
token (`saliency`), and to both by one pass (`labels_with_saliency`). `medreport bench rl` has the same cases.

The peer (`launch.bench.peer_labeler`) is given the same reports as tokens: it does no tokenising. It does `both` by one
pass, or `apart`.
"""

import dataclasses
import functools
import time
from typing import TYPE_CHECKING, Any

import jax
import numpy as np
from jaxtyping import Array, Bool

from common.models.bert import ClassifierConfig, chexbert_logits, init_classifier, unstack_layers, word_embeddings
from common.training.traced_flops import traced_flops, update_flops
from launch.bench.rl_policy import LabelerShape
from launch.bench.timing import Timed, about, against_goals, compared, in_turns, peak_bytes

if TYPE_CHECKING:
    from common.clinical.labeler import Labeler

PEERS = {"labels": ["labels"], "saliency": ["saliency"], "labels_with_saliency": ["apart", "both"]}  # works
GOALS = {"labels": 1.0, "saliency": 1.0, "labels_with_saliency": 1.3}


def measure(shape: LabelerShape, with_peer: bool) -> dict[str, Any]:
    """Every case with its rates, and where a peer ran its rates and the ratio of the medians."""
    result = about("labeler", shape)
    if not with_peer:
        result["cases"] = labeler_cases(shape, None)
    else:
        from launch.bench.peer import Peer

        with Peer("launch.bench.peer_labeler", peer_setup(shape)) as peer:
            result["peer"] = peer.versions
            result["cases"] = labeler_cases(shape, peer)
        result |= against_goals({name: case["ratio"] for name, case in result["cases"].items()}, GOALS)
    return result | {"peak_bytes": peak_bytes()}


def peer_setup(shape: LabelerShape) -> dict[str, Any]:
    """What the peer needs to make the labeler."""
    config = shape.labeler_config()
    return {"encoder": dataclasses.asdict(config.encoder), "classes": config.classes}


def labeler_cases(shape: LabelerShape, peer: Any) -> dict[str, Any]:
    """All cases, done in turns, with the peer's rates where there is one."""
    from common.clinical.labeler import encode, label_texts, token_batches
    from common.clinical.saliency import label_with_saliency, token_saliency

    labeler = make_labeler(shape)
    labeler = labeler._replace(params=unstack_layers(labeler.params))  # as in the commands
    texts, targets = random_reports(shape)
    encoded = encode(labeler, texts)
    read, grade = functools.partial(_logits, labeler.config), functools.partial(_score, labeler.config)
    flops = dict.fromkeys(PEERS, 0.0)
    for rows, ids, mask in token_batches(labeler, encoded, shape.label_rows):
        words = word_embeddings(labeler.params, ids)
        flops["labels"] += traced_flops(read, words, labeler.params, mask)
        flops["saliency"] += update_flops(grade, words, labeler.params, mask, targets[rows])
    flops["labels_with_saliency"] = flops["saliency"]  # whose pass forwards gives the labels
    count = shape.label_rows
    ours = {
        "labels": functools.partial(label_texts, labeler, texts, count),
        "saliency": functools.partial(token_saliency, labeler, texts, targets, batch_size=count),
        "labels_with_saliency": functools.partial(label_with_saliency, labeler, texts, targets, batch_size=count),
    }
    batches = peer_batches(shape, encoded.ids, targets)
    works: dict[str, Timed] = {}
    for name, work in ours.items():
        works[name] = functools.partial(_timed, work)
        for variant in PEERS[name] if peer else ():
            works[f"{name}/{variant}"] = functools.partial(peer.call, variant, batches=batches)
    in_turns(works, 1)
    seconds = in_turns(works, 2 * shape.repetitions)
    return {
        name: compared(
            seconds[name],
            {variant: seconds[f"{name}/{variant}"] for variant in variants} if peer else {},
            len(texts),
            "reports",
            flops[name],
            jax.devices()[:1],
        )
        for name, variants in PEERS.items()
    }


def _logits(config: ClassifierConfig, words: Array, params: Any, mask: Array) -> Array:
    return chexbert_logits(config, params, words, mask)


def _score(config: ClassifierConfig, words: Array, params: Any, mask: Array, targets: Array) -> Array:
    from common.clinical.saliency import target_score

    return target_score(_logits(config, words, params, mask), targets).sum()


def _timed(work: Any) -> float:
    started = time.perf_counter()
    work()
    return time.perf_counter() - started


def make_labeler(shape: LabelerShape) -> "Labeler":
    """A labeler with random weights, whose words are w0, w1, ..."""
    from common.clinical.labeler import SPECIAL, Labeler, make_tokenizer

    config = shape.labeler_config()
    words = [*SPECIAL, *(f"w{number}" for number in range(shape.label_vocabulary - len(SPECIAL)))]
    tokenizer = make_tokenizer({word: number for number, word in enumerate(words)})
    return Labeler(config, jax.jit(functools.partial(init_classifier, config))(jax.random.key(3)), tokenizer)


def random_reports(shape: LabelerShape) -> tuple[list[str], Bool[np.ndarray, "N 14"]]:
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


def peer_batches(shape: LabelerShape, ids: list[list[int]], targets: np.ndarray) -> list[dict[str, Any]]:
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
