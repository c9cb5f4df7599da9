"""`medreport bench unicross [--peer]`: radiograph to report, trained and generated, with CLIP RN101 by default.

Training goes through the frozen CLIP to the adapters in it; a batch is always the same. Generation is beam search
without an end token, so that every report has its full length. Both are measured under both conditionings:

- `train`, `generate_published`: the published equations, against the same in PyTorch (`launch.bench.peer_unicross`).
- `train_causal`, `generate`: the product's default, against the same peer: what a user gains. Studies and tokens are
  equal, the model is not: the images do not see the report, so they are read once and the report runs on a cache.

The ratio `cached_to_recomputed` is between our own two generations and needs no peer. There is no dropout on any side.
"""

import dataclasses
import functools
import time
from collections.abc import Callable
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np

from common.errors import UserError
from common.generation.generate import row_keys
from common.generation.settings import DecodeSettings
from common.models.clip import ClipConfig, init_params
from common.training.optim import OptimConfig, make_optimizer
from common.training.parallel import check_rows, compile_step, device_put_tree, make_device_layout, place_batch
from common.training.step import init_state, make_train_step
from common.training.traced_flops import Runs, traced_flops
from common.types import PyTree
from launch.bench.timing import Timed, about, against_goals, compared, in_turns, peak_bytes
from unicross_jax.adapters import AdapterConfig
from unicross_jax.generate import make_generator
from unicross_jax.model import Conditioning, ReportBatch, Studies, UniCrossConfig, init_trainable, loss

GOALS = {"train": 1.0, "train_causal": 1.0, "generate": 10.0, "cached_to_recomputed": 20.0}
CONDITIONINGS: tuple[str, ...] = ("published", "causal")


@dataclasses.dataclass(frozen=True)
class Shape:
    """What is measured. Defaults are CLIP RN101 and IU X-ray; `CPU` has fewer studies at a time."""

    image_size: int = 224
    vision_layers: tuple[int, int, int, int] = (3, 4, 23, 3)
    vision_width: int = 64
    embed: int = 512  # of the space that CLIP's images and texts share
    text_width: int = 512  # of CLIP's text side, vision Transformer and decoder
    text_layers: int = 12
    vocabulary: int = 4348
    heads: int = 8
    encoder_layers: int = 3
    decoder_layers: int = 3
    dtype: Literal["float32", "bfloat16"] = "bfloat16"  # of CLIP
    views: int = 2
    rows: int = 16  # studies of a training batch
    length: int = 60  # tokens of a report in training
    condition: int = 16  # tokens known before the report, under causal
    reports: int = 16  # generated at a time
    new_tokens: int = 60
    beams: int = 3
    updates: int = 4  # of one measurement
    repetitions: int = 5

    def config(self, conditioning: Conditioning) -> UniCrossConfig:
        """The model of this shape."""
        return UniCrossConfig(
            clip=ClipConfig(
                image_size=self.image_size,
                vision_layers=self.vision_layers,
                vision_width=self.vision_width,
                embed_dim=self.embed,
                text_width=self.text_width,
                text_heads=self.text_width // 64,
                text_layers=self.text_layers,
                dtype=self.dtype,
                param_dtype=self.dtype,
            ),
            vocabulary=self.vocabulary,
            conditioning=conditioning,
            heads=self.heads,
            vision_layers=self.encoder_layers,
            decoder_layers=self.decoder_layers,
            dropout=0.0,
            adapters=AdapterConfig(dropout=0.0),
        )


CPU = Shape(dtype="float32", rows=2, reports=1, updates=2, repetitions=2)


def measure(shape: Shape, with_peer: bool) -> dict[str, Any]:
    """Every case with its rates, and where a peer ran its rates and the ratio of the medians."""
    result = about("unicross", shape)
    if not with_peer:
        cases = _cases(shape, None)
    else:
        from launch.bench.peer import Peer

        if shape.dtype != "float32":
            raise UserError(f"--peer: PyTorch computes in float32 here, and --dtype is {shape.dtype}; give float32")
        setup = {"shape": dataclasses.asdict(shape), "clip": dataclasses.asdict(shape.config("published").clip)}
        with Peer("launch.bench.peer_unicross", setup) as peer:
            result["peer"] = peer.versions
            cases = _cases(shape, peer)
    ratios = {name: case["ratio"] for name, case in cases.items() if "ratio" in case}
    ratios["cached_to_recomputed"] = cases["generate_published"]["seconds"] / cases["generate"]["seconds"]
    return result | {"cases": cases} | against_goals(ratios, GOALS) | {"peak_bytes": peak_bytes()}


def _cases(shape: Shape, peer: Any) -> dict[str, Any]:
    weights = random_weights(shape)
    names = {"published": "train", "causal": "train_causal"}
    works, flops = _made(make_training, shape, weights)
    if peer:
        works["peer"] = functools.partial(peer.call, "train", updates=shape.updates)
    in_turns(works, 1)
    seconds = in_turns(works, shape.repetitions)
    images = shape.rows * shape.views * shape.updates
    cases = _compared(names, seconds, images, "images", flops, jax.devices())

    names = {"causal": "generate", "published": "generate_published"}
    works, flops = _made(make_generation, shape, weights)
    if peer:
        works["peer"] = functools.partial(peer.call, "generate", new_tokens=shape.new_tokens)
        peer.call("generate", new_tokens=min(2, shape.new_tokens))
    works["causal"]()  # recomputing takes minutes and is compiled already: what a first run adds to it is nothing
    seconds = in_turns(works, shape.repetitions)
    return cases | _compared(names, seconds, shape.reports, "reports", flops, jax.devices()[:1])


def _made(
    make: Callable[..., tuple[Timed, float]], shape: Shape, weights: tuple[PyTree, PyTree]
) -> tuple[dict[str, Timed], dict[str, float]]:
    """A work and its FLOPs for each conditioning."""
    works, flops = {}, {}
    for conditioning in CONDITIONINGS:
        works[conditioning], flops[conditioning] = make(shape, conditioning, *weights)
    return works, flops


def _compared(
    names: dict[str, str],
    seconds: dict[str, list[float]],
    amount: int,
    unit: str,
    flops: dict[str, float],
    devices: list[jax.Device],
) -> dict[str, Any]:
    theirs = {"published": seconds["peer"]} if "peer" in seconds else {}
    return {
        name: compared(seconds[conditioning], theirs, amount, unit, flops[conditioning], devices)
        for conditioning, name in names.items()
    }


def make_training(shape: Shape, conditioning: Conditioning, trainable: PyTree, frozen: PyTree) -> tuple[Timed, float]:
    """`shape.updates` updates on one batch as a work, the state going from one call to the next; and their FLOPs."""
    config = shape.config(conditioning)
    layout = make_device_layout()
    check_rows(shape.rows, 1, layout)
    tx = make_optimizer(OptimConfig(), 1000)
    frozen, rng = device_put_tree(frozen, layout), device_put_tree(jax.random.key(2), layout)
    state = device_put_tree(
        init_state(jax.tree.map(jnp.copy, trainable), tx), layout
    )  # a copy: the step takes the state over
    batch = random_batch(shape)

    update = make_train_step(functools.partial(loss, config=config), tx)
    step = compile_step(lambda _: update, layout)

    def work() -> float:
        nonlocal state
        started = time.perf_counter()
        for _ in range(shape.updates):
            state, _ = step(state, frozen, place_batch(batch, layout), rng)
            jax.block_until_ready(state)
        seconds = time.perf_counter() - started
        assert not state.skipped, "an update was skipped: its gradient was not finite"
        return seconds

    return work, shape.updates * traced_flops(jax.jit(update), state, frozen, batch, rng)


def make_generation(shape: Shape, conditioning: Conditioning, trainable: PyTree, frozen: PyTree) -> tuple[Timed, float]:
    """The reports of a batch of studies as a work, compiled; and the FLOPs of it."""
    settings = DecodeSettings(max_new_tokens=shape.new_tokens, beams=shape.beams)
    generator: Any = make_generator(shape.config(conditioning), settings, start_id=0)
    inputs = trainable, frozen, random_studies(shape, shape.reports), row_keys(0, range(shape.reports))
    flops = traced_flops(generator, *inputs, runs=Runs(shape.new_tokens))
    program = generator.lower(*inputs).compile()

    def work() -> float:
        started = time.perf_counter()
        jax.block_until_ready(program(*inputs))
        return time.perf_counter() - started

    return work, flops


def random_weights(shape: Shape) -> tuple[PyTree, PyTree]:
    """Trainable and frozen tree of both conditionings; the report's tokens are embedded by CLIP's first ones."""
    config = shape.config("causal")

    @jax.jit
    def init(key: jax.Array) -> tuple[PyTree, PyTree]:
        clip = init_params(config.clip, key)
        embedding = clip["text"]["token_embedding"][: config.vocabulary]
        return init_trainable(config, key), {"clip": clip, "report_embedding": embedding}

    return init(jax.random.key(0))


def random_studies(shape: Shape, rows: int) -> Studies:
    """Noise in all views, and random tokens known before the report."""
    random = np.random.default_rng(0)
    arrays: tuple[Any, ...] = (
        random.integers(0, 256, (rows, shape.views, shape.image_size, shape.image_size), np.uint8),
        np.ones((rows, shape.views), bool),
        random.integers(1, shape.vocabulary, (rows, shape.condition), np.int32),
        np.full(rows, shape.condition - 1, np.int32),
    )
    return Studies(*arrays)


def random_batch(shape: Shape) -> ReportBatch:
    """Studies with reports of random tokens, all of full length."""
    random = np.random.default_rng(1)
    size = (shape.rows, shape.length)
    arrays: tuple[Any, ...] = (
        random.integers(1, shape.vocabulary, size, np.int32),
        random.integers(1, shape.vocabulary, size, np.int32),
        np.ones(size, np.float32),
    )
    return ReportBatch(random_studies(shape, shape.rows), *arrays)
