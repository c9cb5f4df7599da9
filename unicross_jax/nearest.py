"""The baseline of the nearest training study: its report stands for that of a study whose images CLIP finds alike.

The embeddings of training images are kept on disk, a file for each block of studies, named by what they were made
from: they are made once, by all processes together, and a command that was killed goes on with the next block.
"""

import dataclasses
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, UInt8

from common.data.splits import Split, images_record
from common.generation.processes import over_processes
from common.io.files import atomic_file
from common.io.fingerprints import data_record, fingerprint
from common.io.finite import check_finite, precision_remedy
from common.io.progress import counted
from common.io.safetensors import disk_errors
from common.models.clip import ModifiedResNet, normalise
from common.training.parallel import compile_rows, device_put_tree, fetch_rows, generation_layout, place_batch
from unicross_jax.data import evaluation_crop
from unicross_jax.trained import Trained

EMBEDDINGS = "image_embeddings"  # in a run directory
BLOCK = 512  # studies in a file
AT_ONCE = 32  # images on each device
DECIMALS = 6  # of cosines: beyond them float32 cannot tell which is larger
SMALLEST = 1e-30  # length that a vector is divided by: one of zeros stays so, and is like no other

Embed = Callable[[Split, range], Float[np.ndarray, "N E"]]


def nearest_reports(trained: Trained, train: Split, held_out: Split, directory: Path) -> list[str]:
    """For each study the report of the training study with the largest cosine of CLIP's image embeddings.

    The first of equals. Training embeddings that `directory` has are read, the others are made and written there: 2 kB
    a study for RN101, a block in memory at a time. All processes must call it. Raises UserError.
    """
    embed = make_embed(trained)
    asked = np.concatenate([embed(held_out, block) for block in blocks(held_out)]).astype(np.float64)
    record, parts = embedding_record(trained), blocks(train)

    def found(rows: Sequence[int]) -> Iterator[list[Any]]:
        for block in (parts[row] for row in rows):
            cosines = (asked @ kept(directory, record, embed, train, block).T).round(DECIMALS)
            yield [(cosines.argmax(1) + block.start).tolist(), cosines.max(1).tolist()]

    best, largest = np.zeros(len(asked), int), np.full(len(asked), -np.inf)
    each = over_processes(range(len(parts)), found, 1, generation_layout())
    for indices, cosines in counted(each, len(parts), f"blocks of {BLOCK} training studies"):
        nearer = np.asarray(cosines) > largest
        best, largest = np.where(nearer, indices, best), np.where(nearer, cosines, largest)
    return [train.studies[index].report for index in best]


def blocks(split: Split) -> list[range]:
    """The indices of a split's studies, so many at a time."""
    count = len(split.studies)
    return [range(start, min(start + BLOCK, count)) for start in range(0, count, BLOCK)]


def embedding_record(trained: Trained) -> list[Any]:
    """What decides the embedding of an image, beside the image: CLIP and how images are read."""
    config = trained.config.data
    seen = [config.resize, config.colour, config.dicom_contrast]
    return [fingerprint(visual(trained)), dataclasses.asdict(trained.task.model.clip), seen]


def visual(trained: Trained) -> Any:
    """The frozen weights of CLIP's image encoder."""
    return trained.task.frozen["clip"]["visual"]


def kept(directory: Path, record: Sequence[Any], embed: Embed, split: Split, block: range) -> np.ndarray:
    """The embeddings of a block of studies [N, E], float32, from the disk where they are there, else written there."""
    with ThreadPoolExecutor() as pool:
        images = list(pool.map(lambda index: images_record(split.images, index), block))
    file = directory / f"{data_record([record, images])}.npy"
    try:
        known: np.ndarray = np.load(file, allow_pickle=False)
        if known.dtype == np.float32 and known.ndim == 2 and len(known) == len(block):
            return known
    except (OSError, ValueError, EOFError):  # not there, or damaged: made anew
        pass
    made = embed(split, block)
    with disk_errors(directory):
        directory.mkdir(parents=True, exist_ok=True)
        with atomic_file(file) as aside, aside.open("wb") as stream:
            np.save(stream, made, allow_pickle=False)
    return made


def make_embed(trained: Trained) -> Embed:
    """A function that embeds studies: the mean over their views of CLIP's image embeddings, each of length 1.

    It runs on the devices of this process and raises UserError naming a study whose embedding is not finite.
    """
    clip, layout = trained.task.model.clip, generation_layout()
    view, rows = evaluation_crop(trained.config.data, clip.image_size), AT_ONCE * layout.row_shards

    def directions(_: Any, params: Any, images: UInt8[Array, "B S S *channels"], step: Any) -> Float[Array, "B E"]:
        found: Any = ModifiedResNet(clip).apply({"params": params}, normalise(images))
        return unit(found.astype(jnp.float32), jnp)

    run, weights = compile_rows(directions, layout), device_put_tree(visual(trained), layout)

    def embed(split: Split, block: range) -> Float[np.ndarray, "N E"]:
        owners: list[int] = []
        waiting: list[np.ndarray] = []
        running: list[jax.Array] = []  # while devices embed these, the next images are decoded

        def start() -> None:
            stacked = np.zeros((rows, *waiting[0].shape), np.uint8)
            stacked[: len(waiting)] = waiting
            running.append(run({}, weights, place_batch(stacked, layout), 0))
            waiting.clear()

        with ThreadPoolExecutor() as pool:
            for place, views in enumerate(pool.map(lambda index: [view(one) for one in split.images[index]], block)):
                for image in views:
                    owners.append(place)
                    waiting.append(image)
                    if len(waiting) == rows:
                        start()
        if waiting:
            start()
        sums = np.zeros((len(block), clip.embed_dim), np.float32)
        np.add.at(sums, owners, np.concatenate([fetch_rows(own, layout) for own in running])[: len(owners)])
        ids = [split.studies[index].id for index in block]
        finite = np.asarray(np.isfinite(sums).all(-1))
        check_finite(finite, ids, "CLIP's embeddings of its images", precision_remedy(clip.dtype))
        return unit(sums, np)

    return embed


def unit(vectors: Any, module: Any) -> Any:
    """Vectors [N, E] scaled to length 1, by numpy or jax.numpy."""
    return vectors / module.maximum(module.linalg.norm(vectors, axis=-1, keepdims=True), SMALLEST)
