"""`medreport bench rl [--peer] [--trl]`: reinforcement learning on text, and the labeler that it asks.

- `step`: one step of DiTPO with uniform weights, which is GRPO, on LoRA adapters of a Qwen2: groups of samples, a
  reward of their texts, one update. Nothing stops a sample, so that all have the same length. `parts` are the seconds
  of rollout, host and update.
- `rollout`: `launch.bench.rollout`; the others: `launch.bench.labeler`.

The peer (`launch.bench.peer_rl`) is a plain loop of transformers and peft, and for the labeler BertModel on tokens.
`--trl` adds one step of TRL's GRPOTrainer (`launch.bench.peer_trl`), which takes minutes on a CPU. Weights are random.

Modules of `deer_jax` are imported where they are used: they bring Orbax and safetensors, which the other benchmarks do
without.
"""

import dataclasses
import functools
import statistics
import time
from collections.abc import Sequence
from typing import Any

import jax
import numpy as np
from jaxtyping import Int

from common.models.decoding import Prompts
from common.models.lora import init_lora
from common.models.qwen2 import SHARDING_RULES, init_params
from common.training.flops import forward_flops, train_flops
from common.training.optim import OptimConfig, make_optimizer
from common.training.parallel import MeshConfig, check_rows, device_put_tree, make_device_layout, place_batch, shardings
from common.training.step import init_state
from launch.bench import labeler as bench_labeler
from launch.bench.rl_policy import LORA, Shape, make_policy, random_prompts
from launch.bench.rollout import rollout_case
from launch.bench.timing import Timed, about, against_goals, compared, in_turns, peak_bytes

GOALS = {"step": 3.0, "step_to_trl": 3.0, **bench_labeler.GOALS}


def measure(shape: Shape, with_peer: bool, with_trl: bool = False) -> dict[str, Any]:
    """Every case with its rates, and where a peer ran its rates and the ratio of the medians. TRL takes the peer."""
    result = about("rl", shape)
    if not (with_peer or with_trl):
        cases = _cases(shape, None, False)
    else:
        from launch.bench.peer import Peer

        setup = {
            "shape": dataclasses.asdict(shape),
            "lora": dataclasses.asdict(LORA),
            "trl": with_trl,
            **bench_labeler.peer_setup(shape),
        }
        with Peer("launch.bench.peer_rl", setup) as peer:
            result["peer"] = peer.versions
            cases = _cases(shape, peer, with_trl)
    ratios = {name: case["ratio"] for name, case in cases.items() if "ratio" in case}
    ratios["shared_to_repeated"] = ratios.pop("rollout")
    if with_trl:
        ratios["step_to_trl"] = cases["step"]["peer"]["trl"]["seconds"] / cases["step"]["seconds"]
    return result | {"cases": cases} | against_goals(ratios, GOALS) | {"peak_bytes": peak_bytes()}


def _cases(shape: Shape, peer: Any, with_trl: bool) -> dict[str, Any]:
    return {
        "step": _step_case(shape, peer, with_trl),
        "rollout": rollout_case(shape),
        **bench_labeler.labeler_cases(shape, peer),
    }


def _step_case(shape: Shape, peer: Any, with_trl: bool) -> dict[str, Any]:
    tokens = random_prompts(shape)
    ours, parts = make_step(shape, tokens)
    works = {"ours": ours}
    their_parts: list[dict[str, float]] = []

    def plain() -> float:
        rollout = peer.call("rollout", prompts=tokens.tolist())
        their_parts.append({"rollout": rollout, "update": peer.call("update")})
        return sum(their_parts[-1].values())

    if peer:
        works["plain"] = plain
    in_turns(works, 1)
    parts.clear()
    their_parts.clear()
    seconds = in_turns(works, shape.repetitions)
    if with_trl:
        seconds["trl"] = [peer.call("trl", prompts=tokens.tolist())]
    case = compared(seconds.pop("ours"), seconds, 1, "steps", step_flops(shape), jax.devices())
    case["new_tokens"] = shape.prompts * shape.group * shape.new_tokens
    case["parts"] = _medians(parts)
    if peer:
        case["peer"]["plain"]["parts"] = _medians(their_parts)
    return case


def _medians(rows: Sequence[dict[str, float]]) -> dict[str, float]:
    return {name: statistics.median(row[name] for row in rows) for name in rows[0]}


def make_step(shape: Shape, tokens: Int[np.ndarray, "B P"]) -> tuple[Timed, list[dict[str, float]]]:
    """A step on these prompts as a work, the state going from one call to the next; and the parts of each call."""
    from common.training.logs import SECONDS
    from deer_jax.objective import Objective
    from deer_jax.rl import StudyBatch, make_rl_step

    judge, tokenizer = make_host(shape)
    layout = make_device_layout("auto", MeshConfig(data=1, fsdp=-1))
    check_rows(shape.prompts, shape.accumulate, layout)
    tx = make_optimizer(OptimConfig(), 1000)
    init = functools.partial(init_params, dataclasses.replace(shape.config(), attention="xla"))
    key = jax.random.key(0)
    base = jax.jit(init, out_shardings=shardings(jax.eval_shape(init, key), layout, SHARDING_RULES))(key)
    state = device_put_tree(init_state(init_lora(base, LORA, jax.random.key(1), base), tx), layout, SHARDING_RULES)
    frozen, rng = {"params": base}, device_put_tree(jax.random.key(2), layout)
    arrays: tuple[Any, ...] = tokens, np.ones(tokens.shape, bool), np.arange(shape.prompts, dtype=np.int32)
    batch = StudyBatch(Prompts(*arrays[:2]), arrays[2])
    step = make_rl_step(
        make_policy(shape), Objective(), tx, judge, tokenizer, layout, group=shape.group, accumulate=shape.accumulate
    )
    parts: list[dict[str, float]] = []

    def work() -> float:
        nonlocal state
        started = time.perf_counter()
        state, metrics = step(state, frozen, place_batch(batch, layout), rng)
        jax.block_until_ready(state)
        seconds = time.perf_counter() - started
        assert not state.skipped, "an update was skipped: its gradient was not finite"
        assert metrics["new_tokens"] == shape.new_tokens, "a sample has another length"
        parts.append({name.removeprefix(SECONDS): float(metrics[name]) for name in metrics if name.startswith(SECONDS)})
        return seconds

    return work, parts


def make_host(shape: Shape) -> tuple[Any, Any]:
    """A judge with uniform weights, and a tokenizer that writes each id as a number."""
    from common.data.tokenizers import WordTokenizer
    from deer_jax.rewarding import make_judge
    from deer_jax.token_weights import uniform_scores

    tokenizer = WordTokenizer(tuple(map(str, range(len(WordTokenizer.RESERVED), shape.vocabulary))))
    references = [tokenizer.decode(row.tolist()) for row in random_prompts(shape)[:, : shape.new_tokens]]
    return make_judge(references, None, uniform_scores, 0.0, reward=even_share), tokenizer


def even_share(texts: Sequence[str], references: Sequence[str]) -> list[float]:
    """The share of even numbers among the words of each text."""
    return [sum(word[-1] in "02468" for word in text.split()) / max(len(text.split()), 1) for text in texts]


def step_flops(shape: Shape) -> float:
    """Model FLOPs of a step: prompts are read once in the rollout and once in the update, and have no logits."""
    config, samples = shape.config(), shape.prompts * shape.group
    read, new = shape.prompts * shape.prompt, samples * shape.new_tokens
    pairs = shape.prompts * shape.prompt**2 / 2 + new * (shape.prompt + shape.new_tokens / 2)
    heads_of_prompts = 2.0 * read * config.vocab_size * config.hidden_size
    rollout = forward_flops(config, read + new, pairs) - heads_of_prompts
    return rollout + train_flops(config, LORA, read + new, pairs) - 2 * heads_of_prompts
