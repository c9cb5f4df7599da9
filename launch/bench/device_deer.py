"""The part of `medreport bench device` for DEER: the rollout of its policy, and one whole step.

Weights, images, the words of prompts and the labeler are random. No token ends a report, so all have full length, as
the floor of `medreport plan` assumes.
"""

import statistics
import time
from typing import TYPE_CHECKING, Any

import jax
import numpy as np

from common.generation.sampling import Sampling
from common.generation.settings import DecodeSettings
from common.models.qwen2_vl import SHARDING_RULES, init_params
from common.models.qwen2_vl_layout import expand_images, study_rows, vision_layout
from common.training.optim import make_optimizer
from common.training.parallel import device_put_tree, make_device_layout, place_batch, shardings
from common.training.step import init_state
from common.types import PyTree
from launch.bench.rl_policy import LabelerShape

if TYPE_CHECKING:
    from launch.bench.device import Sizes


def rollout(sizes: "Sizes") -> dict[str, Any]:
    """New tokens per second of all reports of a batch of studies, including the time to read images and prompts."""
    from deer_jax.ditpo import PolicyParams

    config, work = sizes.rl.rollout, _policy(sizes)
    layout = make_device_layout("auto", sizes.rl.mesh)
    prompts = place_batch(study_prompts(sizes), layout)
    params = PolicyParams(random_params(sizes, layout), {})
    keys = jax.random.split(jax.random.key(1), sizes.rl.batch_size)
    run = jax.jit(work.sample, static_argnames="group")

    def sample() -> float:
        started = time.perf_counter()
        with layout.context():
            jax.block_until_ready(run(params, prompts, keys, group=config.group))
        return time.perf_counter() - started

    sample()
    seconds = statistics.median(sample() for _ in range(sizes.repetitions))
    tokens = sizes.rl.batch_size * config.group * config.max_new_tokens
    return {"tokens": tokens, "seconds": seconds, "tokens_per_second": tokens / seconds}


def whole_step(sizes: "Sizes") -> dict[str, Any]:
    """Seconds of a step with DEER's gradient weights and of its parts, beside its floor where the device is known."""
    from common.training.logs import SECONDS
    from deer_jax.rl import StudyBatch, make_rl_step

    config = sizes.rl
    layout = make_device_layout("auto", config.mesh)
    accumulate = max(config.batch_size // (layout.row_shards * config.micro_batch), 1)
    tx = make_optimizer(config.optim, 1000)
    state = device_put_tree(init_state(random_params(sizes, layout), tx), layout, SHARDING_RULES)
    judge, tokenizer = _host(sizes)
    step = make_rl_step(
        _policy(sizes), config.objective, tx, judge, tokenizer, layout, group=config.rollout.group,
        accumulate=accumulate,
    )  # fmt: skip
    numbers: Any = np.arange(config.batch_size, dtype=np.int32)
    batch = StudyBatch(study_prompts(sizes), numbers)
    rng = device_put_tree(jax.random.key(2), layout)
    seconds: list[float] = []
    parts: dict[str, float] = {}
    for _ in range(1 + sizes.repetitions):  # the first one compiles
        started = time.perf_counter()
        state, metrics = step(state, {}, place_batch(batch, layout), rng)
        jax.block_until_ready(state)
        seconds.append(time.perf_counter() - started)
        parts = {name.removeprefix(SECONDS): float(metrics[name]) for name in metrics if name.startswith(SECONDS)}
    median = statistics.median(seconds[1:])
    return {"seconds": median, "first_seconds": seconds[0], "parts": parts} | _against_floor(sizes, median)


def _against_floor(sizes: "Sizes", seconds: float) -> dict[str, Any]:
    from launch.chips import CHIPS
    from launch.plan_deer import time_bounds
    from launch.slices import Slice

    devices = jax.devices()
    chip = next((chip for chip in CHIPS.values() if chip.gpu and chip.gpu.name == devices[0].device_kind), None)
    if chip is None:
        return {"floor": None}
    layout = make_device_layout("mesh", sizes.rl.mesh, devices)
    bounds = time_bounds(sizes.rl, sizes.policy, layout, sizes.rl.batch_size, Slice(chip, devices))
    return {"floor": bounds, "times_the_floor": seconds / bounds["seconds_at_least"]}


def _policy(sizes: "Sizes") -> Any:
    from deer_jax.vision_policy import vision_policy
    from launch.plan_deer import patches_of

    config = sizes.rl
    sampling = Sampling(temperature=config.rollout.temperature, top_p=config.rollout.top_p)
    images = vision_layout(sizes.policy.vision, patches_of(config, sizes.policy))
    settings = DecodeSettings(config.rollout.max_new_tokens, sampling)
    return vision_policy(sizes.policy, images, settings, config.lora, config.model.loss_chunk)


def random_params(sizes: "Sizes", layout: Any) -> PyTree:
    """All parameters of the policy in float32, as they are trained, made in their shardings."""

    def init(key: jax.Array) -> PyTree:
        return init_params(sizes.policy, key)

    key = jax.random.key(0)
    return jax.jit(init, out_shardings=shardings(jax.eval_shape(init, key), layout, SHARDING_RULES))(key)


def study_prompts(sizes: "Sizes") -> Any:
    """A batch of studies as `deer_jax.prompts.study_prompts` makes it, of random images and words."""
    from deer_jax.prompts import StudyPrompts
    from launch.plan_deer import WORDS, patches_of, prompt_tokens

    config, model, random = sizes.rl, sizes.policy, np.random.default_rng(0)
    grids = [patches_of(config, model)] * config.data.views
    marks = [model.vision_start_token_id, model.image_token_id, model.vision_end_token_id] * config.data.views
    words = random.integers(5, model.vision_start_token_id, (config.batch_size, WORDS))
    rows = [expand_images(model, [*marks, *own.tolist()], grids) for own in words]
    shape = config.batch_size, config.data.views, config.data.side, config.data.side
    length = prompt_tokens(config, model)
    images: Any = random.integers(0, 256, shape, np.uint8)
    return StudyPrompts(study_rows(model, rows, [grids] * len(rows), length=length, left=True), images)


def _host(sizes: "Sizes") -> tuple[Any, Any]:
    """A judge with label rewards and gradient weights from a labeler with random parameters, and a tokenizer of the
    words that this labeler knows.
    """
    from common.clinical.labeler import replicate
    from common.data.tokenizers import WordTokenizer
    from deer_jax.rewarding import make_judge
    from deer_jax.token_weights import STRENGTH, GradientScores
    from launch.bench.labeler import make_labeler

    encoder = sizes.labeler.encoder
    labeler = replicate(
        make_labeler(
            LabelerShape(
                label_hidden=encoder.hidden_size,
                label_layers=encoder.num_hidden_layers,
                label_heads=encoder.num_attention_heads,
                label_intermediate=encoder.intermediate_size,
                label_vocabulary=encoder.vocab_size,
            )
        )
    )
    known = encoder.vocab_size // 2
    count = sizes.policy.language.vocab_size - len(WordTokenizer.RESERVED)
    tokenizer = WordTokenizer(tuple(f"w{number % known}" for number in range(count)))
    words = np.random.default_rng(3).integers(known, size=(sizes.rl.batch_size, sizes.rl.rollout.max_new_tokens))
    references = [" ".join(f"w{number}" for number in row) for row in words]
    return make_judge(references, labeler, GradientScores(labeler), STRENGTH["gradient"]), tokenizer
