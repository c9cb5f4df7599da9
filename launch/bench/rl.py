"""`python -m launch bench rl [--peer] [--trl]`: reinforcement learning on text, and the labeler that it asks.

- `step`: one step of DiTPO with uniform weights, which is GRPO, on LoRA adapters of a Qwen2: groups of samples, a
  reward of their texts, one update. Nothing stops a sample, so that all have the same length. `parts` are the seconds
  of rollout, host and update.
- `rollout`: `launch.bench.rollout`; `labels`, `saliency`: `launch.bench.labeler`.

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
from typing import Any, Literal

import jax
import numpy as np
from jaxtyping import Int

from common.generation.generate import DecodeSettings
from common.generation.sampling import Sampling
from common.models.bert import BertConfig, ClassifierConfig
from common.models.decoding import Prompts
from common.models.lora import LoraConfig, init_lora
from common.models.qwen2 import SHARDING_RULES, Qwen2Config, init_params
from common.training.flops import forward_flops, train_flops
from common.training.optim import OptimConfig, make_optimizer
from common.training.parallel import MeshConfig, check_rows, device_put_tree, make_device_layout, place_batch, shardings
from common.training.step import init_state
from launch.bench.labeler import labeler_cases
from launch.bench.rollout import rollout_case
from launch.bench.timing import Timed, about, against_goals, compared, in_turns, peak_bytes

GOALS = {"step": 3.0, "step_to_trl": 3.0, "labels": 1.0, "saliency": 1.0}
LORA = LoraConfig(rank=16, alpha=32.0, dropout=0.0)


@dataclasses.dataclass(frozen=True)
class Shape:
    """What is measured. Defaults are the decoder of Qwen2.5-3B and BERT base; the decoder of `CPU` fits a laptop."""

    hidden: int = 2048
    layers: int = 36
    heads: int = 16
    kv_heads: int = 2
    intermediate: int = 11_008
    vocabulary: int = 151_936
    dtype: Literal["float32", "bfloat16"] = "bfloat16"  # of the decoder
    remat: Literal["none", "dots", "full"] = "full"
    loss_chunk: int = 128  # positions of each row whose logits exist at one time
    accumulate: int = 8  # micro-batches of an update
    prompts: int = 64  # of a step
    group: int = 8  # samples of each prompt
    prompt: int = 320  # tokens
    new_tokens: int = 256
    peer_rows: int = 8  # samples of a micro-batch of the peer
    label_hidden: int = 768
    label_layers: int = 12
    label_heads: int = 12
    label_intermediate: int = 3072
    label_vocabulary: int = 30_522
    label_rows: int = 32  # reports that are read at a time
    reports: int = 512
    words: int = 62  # of the longest report; each is one token
    repetitions: int = 5

    def config(self) -> Qwen2Config:
        """The decoder of this shape."""
        return Qwen2Config(
            vocab_size=self.vocabulary,
            hidden_size=self.hidden,
            intermediate_size=self.intermediate,
            num_hidden_layers=self.layers,
            num_attention_heads=self.heads,
            num_key_value_heads=self.kv_heads,
            head_dim=self.hidden // self.heads,
            dtype=self.dtype,
            param_dtype=self.dtype,
            remat=self.remat,
        )

    def labeler_config(self) -> ClassifierConfig:
        """CheXbert's heads on the encoder of this shape."""
        return ClassifierConfig(
            BertConfig(
                vocab_size=self.label_vocabulary,
                hidden_size=self.label_hidden,
                num_hidden_layers=self.label_layers,
                num_attention_heads=self.label_heads,
                intermediate_size=self.label_intermediate,
            )
        )


CPU = Shape(
    hidden=512, layers=8, heads=8, kv_heads=2, intermediate=1408, dtype="float32", remat="dots", loss_chunk=512,
    prompts=8, new_tokens=64, reports=64, repetitions=2,
)  # fmt: skip


def measure(shape: Shape, with_peer: bool, with_trl: bool = False) -> dict[str, Any]:
    """Every case with its rates, and where a peer ran its rates and the ratio of the medians. TRL takes the peer."""
    result = about("rl", shape)
    if not (with_peer or with_trl):
        cases = _cases(shape, None, False)
    else:
        from launch.bench.peer import Peer

        labeler = shape.labeler_config()
        setup = {
            "shape": dataclasses.asdict(shape),
            "lora": dataclasses.asdict(LORA),
            "encoder": dataclasses.asdict(labeler.encoder),
            "classes": labeler.classes,
            "trl": with_trl,
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
    return {"step": _step_case(shape, peer, with_trl), "rollout": rollout_case(shape), **labeler_cases(shape, peer)}


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


def random_prompts(shape: Shape) -> Int[np.ndarray, "B P"]:
    """Tokens of prompts, all of full length."""
    return np.random.default_rng(0).integers(1, shape.vocabulary, (shape.prompts, shape.prompt), np.int32)


def make_step(shape: Shape, tokens: Int[np.ndarray, "B P"]) -> tuple[Timed, list[dict[str, float]]]:
    """A step on these prompts as a work, the state going from one call to the next; and the parts of each call."""
    from common.training.logs import SECONDS
    from deer_jax.ditpo import Objective
    from deer_jax.rl import StudyBatch, make_rl_step

    judge, tokenizer = make_host(shape)
    layout = make_device_layout("auto", MeshConfig(data=1, fsdp=-1))
    check_rows(shape.prompts, shape.accumulate, layout)
    tx = make_optimizer(OptimConfig(), 1000)
    init = functools.partial(init_params, dataclasses.replace(shape.config(), attention="xla"))
    key = jax.random.key(0)
    base = jax.jit(init, out_shardings=shardings(jax.eval_shape(init, key), layout, SHARDING_RULES))(key)
    state = device_put_tree(init_state(init_lora(base, LORA, jax.random.key(1)), tx), layout, SHARDING_RULES)
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


def make_policy(shape: Shape) -> Any:
    """The `deer_jax.ditpo.Policy` that is measured: temperature 1, no token that stops."""
    from deer_jax.policy import text_policy

    settings = DecodeSettings(max_new_tokens=shape.new_tokens, sampling=Sampling(temperature=1.0))
    return text_policy(shape.config(), settings, LORA, shape.loss_chunk)


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
