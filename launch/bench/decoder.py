"""`medreport bench sft` and `medreport bench decode`: LoRA updates and decoding of a Qwen2 with random weights.

The peer (`launch.bench.peer_qwen2`) is transformers and peft.
"""

import dataclasses
import functools
import math
import time
from collections.abc import Callable, Sequence
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np

from common.data.encode import Example
from common.data.packing import assemble, first_fit
from common.errors import UserError
from common.generation.generate import make_generator, padded, row_keys
from common.generation.sampling import GREEDY, Sampling
from common.generation.settings import DecodeSettings
from common.models.attention_choice import choose_implementation
from common.models.lora import LoraConfig, init_lora
from common.models.qwen2 import SHARDING_RULES, Qwen2Config, init_params
from common.training.flops import attended_pairs, forward_flops, sft_flops
from common.training.optim import OptimConfig, make_optimizer
from common.training.parallel import (
    MeshConfig,
    check_rows,
    compile_step,
    device_put_tree,
    make_device_layout,
    place_batch,
    shardings,
)
from common.training.sft import sft_loss
from common.training.step import init_state, make_train_step
from common.types import PyTree, TextBatch
from launch.bench import rl_policy
from launch.bench.timing import Timed, about, against_goals, compared, in_turns, peak_bytes

GOALS = {"equal_shapes": 1.2, "mixed_lengths": 2.0, "greedy": 3.0, "top_p": 8.0, "samples": 4.0}


@dataclasses.dataclass(frozen=True)
class Shape:
    """What is measured. Defaults are Qwen2.5-7B and 4,096 packed tokens; `CPU` fits a laptop."""

    hidden: int = 3584
    layers: int = 28
    heads: int = 28
    kv_heads: int = 4
    intermediate: int = 18_944
    vocabulary: int = 151_936
    dtype: Literal["float32", "bfloat16"] = "bfloat16"
    attention: Literal["auto", "xla", "cudnn", "splash"] = "auto"
    remat: Literal["none", "dots", "full"] = "none"
    loss_chunk: int = 512  # positions of each row whose logits exist at one time
    rows: int = 1  # of a training batch
    length: int = 4096  # of a row
    segment: int = 2048  # of the examples that fill a row at equal shapes
    examples: int = 0  # of mixed length, packed; 0: not measured
    prompts: int = 8  # decoded at a time
    prompt: int = 512
    new_tokens: int = 128
    shared_prompt: int = 1024  # of the 8 samples of one prompt
    repetitions: int = 5

    def config(self) -> Qwen2Config:
        """The model of this shape."""
        return dataclasses.replace(rl_policy.decoder_config(self), attention=self.attention)


CPU = Shape(
    hidden=512, layers=8, heads=8, kv_heads=2, intermediate=1408, dtype="float32", remat="dots", loss_chunk=128,
    rows=4, length=256, segment=256, examples=32, prompt=64, new_tokens=64, shared_prompt=320, repetitions=2,
)  # fmt: skip
LORA = LoraConfig(rank=16, alpha=32.0, dropout=0.0)


def measure(work: str, shape: Shape, with_peer: bool) -> dict[str, Any]:
    """What `main` prints: every case with its rates, and where a peer ran its rates and the ratio of the medians."""
    check(shape)
    config = shape.config()
    result = about(work, shape)
    result["attention"] = choose_implementation(shape.attention, shape.length, config.head_dim, jnp.dtype(shape.dtype))
    if not with_peer:
        result["cases"] = _cases(work, shape, None)
    else:
        from launch.bench.peer import Peer

        with Peer(
            "launch.bench.peer_qwen2", {"shape": dataclasses.asdict(shape), "lora": dataclasses.asdict(LORA)}
        ) as peer:
            result["peer"] = peer.versions
            result["cases"] = _cases(work, shape, peer)
        result |= against_goals({name: case["ratio"] for name, case in result["cases"].items()}, GOALS)
    result["peak_bytes"] = peak_bytes()
    return result


def check(shape: Shape) -> None:
    """Raises UserError for a shape that cannot be measured."""
    for name, value in dataclasses.asdict(shape).items():
        if isinstance(value, int) and value < (name != "examples"):
            raise UserError(f"--{name.replace('_', '-')}: found {value}, expected a positive integer")
    fits = {
        "--hidden": (shape.hidden % (2 * shape.heads) == 0, f"an even multiple of --heads {shape.heads}"),
        "--heads": (shape.heads % shape.kv_heads == 0, f"a multiple of --kv-heads {shape.kv_heads}"),
        "--length": (shape.length >= shape.segment > 1, f"at least --segment {shape.segment}, which is at least 2"),
    }
    for name, (holds, expected) in fits.items():
        if not holds:
            raise UserError(f"{name}: expected {expected}")


def _cases(work: str, shape: Shape, peer: Any) -> dict[str, Any]:
    return _sft_cases(shape, peer) if work == "sft" else _decode_cases(shape, peer)


def _sft_cases(shape: Shape, peer: Any) -> dict[str, Any]:
    """LoRA updates at equal shapes, and on examples of mixed length: packed here, padded by the peer."""
    update = make_update(shape)
    random = np.random.default_rng(0)
    equal = _examples([shape.segment] * (shape.rows * (shape.length // shape.segment)), shape.vocabulary, random)
    cases = {"equal_shapes": _sft_case(shape, update, equal, peer, {"padded": list(range(len(equal)))})}
    if shape.examples:
        lengths = mixed_lengths(shape.examples, shape.length, random)
        by_length = sorted(range(len(lengths)), key=lambda i: lengths[i])
        orders = {"random": list(range(len(lengths))), "sorted": by_length}
        mixed = _examples(lengths, shape.vocabulary, random)
        cases["mixed_lengths"] = _sft_case(shape, update, mixed, peer, orders)
    return cases


def _sft_case(
    shape: Shape, update: Callable[[TextBatch], None], examples: list[Example], peer: Any, orders: dict[str, list[int]]
) -> dict[str, Any]:
    lengths = np.array([len(example.tokens) for example in examples])
    rows = first_fit(lengths, np.arange(len(examples)), shape.length)
    rows += [[] for _ in range(-len(rows) % shape.rows)]
    batches = [
        assemble(rows[i : i + shape.rows], examples, shape.length, pad_id=0) for i in range(0, len(rows), shape.rows)
    ]

    def ours() -> float:
        started = time.perf_counter()
        for batch in batches:
            update(batch)
        return time.perf_counter() - started

    theirs: dict[str, Timed] = {}
    for name, order in orders.items() if peer else ():
        padded_batches = _padded_batches([examples[i] for i in order], shape.rows)
        theirs[name] = functools.partial(peer.call, "sft", batches=padded_batches)
    flops = sum(sft_flops(shape.config(), LORA, batch) for batch in batches)
    return {
        "tokens": int(lengths.sum()),
        "updates": len(batches),
        "fill": float(lengths.sum()) / (len(rows) * shape.length),
        **_in_turns(ours, theirs, int(lengths.sum()), flops, shape.repetitions),
    }


def _decode_cases(shape: Shape, peer: Any) -> dict[str, Any]:
    """Greedy and top-p over a batch of prompts of mixed length, and 8 samples of one prompt."""
    config = shape.config()
    variables = {"params": _random_params(config)}
    random = np.random.default_rng(0)
    lengths = np.linspace(shape.prompt // 2, shape.prompt, shape.prompts).astype(int)
    batch = [random.integers(1, shape.vocabulary, n).tolist() for n in lengths]
    long = [random.integers(1, shape.vocabulary, shape.shared_prompt).tolist()]
    nucleus = Sampling(temperature=1.0, top_p=0.9)

    def case(prompts: list[list[int]], sampling: Sampling, group: int) -> dict[str, Any]:
        settings = DecodeSettings(max_new_tokens=shape.new_tokens, sampling=sampling, group=group)
        generator = make_generator(config, settings)
        inputs = padded(prompts, max(map(len, prompts)), left=True)
        keys = row_keys(0, range(len(prompts)))

        def ours() -> float:
            started = time.perf_counter()
            jax.block_until_ready(generator(variables, inputs, keys))
            return time.perf_counter() - started

        theirs: dict[str, Timed] = {}
        if peer:
            request = {
                "tokens": inputs.tokens.tolist(),
                "mask": inputs.mask.astype(int).tolist(),
                "new_tokens": shape.new_tokens,
                "top_p": sampling.top_p if sampling.temperature else None,
                "samples": group,
            }
            theirs["generate"] = lambda: peer.call("generate", **request)
        produced = len(prompts) * group * shape.new_tokens
        flops = _decode_flops(config, [len(prompt) for prompt in prompts], group, shape.new_tokens)
        return {"tokens": produced, **_in_turns(ours, theirs, produced, flops, shape.repetitions)}

    return {
        "greedy": case(batch, GREEDY, 1),
        "top_p": case(batch, nucleus, 1),
        "samples": case(long, nucleus, 8),
    }


def _decode_flops(config: Qwen2Config, lengths: list[int], group: int, new: int) -> float:
    """Model FLOPs of reading each prompt once and then `new` tokens of each continuation; logits for those only."""
    read = attended_pairs(np.repeat(np.arange(1, len(lengths) + 1), lengths)[None])
    pairs = read + sum(group * (n * new + new * new / 2) for n in lengths)
    head_of_prompts = 2.0 * sum(lengths) * config.vocab_size * config.hidden_size
    return forward_flops(config, sum(lengths) + len(lengths) * group * new, pairs) - head_of_prompts


def _in_turns(ours: Timed, theirs: dict[str, Timed], tokens: int, flops: float, repetitions: int) -> dict[str, Any]:
    """Rates of ours and of the peer's variants, each run once to compile and then in turns."""
    works = {"ours": ours, **theirs}
    in_turns(works, 1)
    seconds = in_turns(works, repetitions)
    return compared(seconds.pop("ours"), seconds, tokens, "tokens", flops, jax.devices())


def make_update(shape: Shape) -> Callable[[TextBatch], None]:
    """A LoRA update on a batch of this shape, waiting until it is done; the state goes from one call to the next."""
    config = shape.config()
    layout = make_device_layout("auto", MeshConfig(data=1, fsdp=-1))
    check_rows(shape.rows, 1, layout)

    loss = functools.partial(sft_loss, config=config, lora=LORA, chunk=shape.loss_chunk)
    tx = make_optimizer(OptimConfig(), 1000)
    frozen = {"params": _random_params(config, layout)}
    state = device_put_tree(
        init_state(init_lora(frozen["params"], LORA, jax.random.key(1), frozen["params"]), tx), layout, SHARDING_RULES
    )
    rng = device_put_tree(jax.random.key(2), layout)
    step = compile_step(lambda axis: make_train_step(loss, tx, 1, axis), layout)

    def update(batch: TextBatch) -> None:
        nonlocal state
        state, _ = step(state, frozen, place_batch(batch, layout), rng)
        jax.block_until_ready(state)

    return update


def _random_params(config: Qwen2Config, layout: Any = None) -> PyTree:
    def init(key: jax.Array) -> PyTree:
        return init_params(dataclasses.replace(config, attention="xla"), key)

    key = jax.random.key(0)
    layout = layout or make_device_layout("jit")
    return jax.jit(init, out_shardings=shardings(jax.eval_shape(init, key), layout, SHARDING_RULES))(key)


def mixed_lengths(examples: int, longest: int, random: np.random.Generator) -> list[int]:
    """Log-normal lengths around a quarter of `longest`, as report corpora have, the longest one included."""
    draws = np.exp(random.normal(math.log(longest / 4), 0.6, examples)).astype(int)
    return [longest, *np.clip(draws[1:], 8, longest).tolist()]


def _examples(lengths: Sequence[int], vocabulary: int, random: np.random.Generator) -> list[Example]:
    """Random tokens whose second half is the answer."""
    return [
        Example(str(i), random.integers(1, vocabulary, n).astype(np.int32), answer_start=max(n // 2, 1))
        for i, n in enumerate(lengths)
    ]


def _padded_batches(examples: list[Example], rows: int) -> list[dict[str, list[list[int]]]]:
    """Batches of `rows` examples, padded on the right to their longest: the arguments of a PyTorch causal model."""
    batches = []
    for start in range(0, len(examples), rows):
        group = examples[start : start + rows]
        shape = (len(group), max(len(example.tokens) for example in group))
        tokens, labels, mask = np.zeros(shape, int), np.full(shape, -100), np.zeros(shape, int)
        for i, example in enumerate(group):
            n = len(example.tokens)
            tokens[i, :n], mask[i, :n] = example.tokens, 1
            labels[i, example.answer_start : n] = example.tokens[example.answer_start :]
        batches.append({"tokens": tokens.tolist(), "labels": labels.tolist(), "mask": mask.tolist()})
    return batches
