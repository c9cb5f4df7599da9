"""The PyTorch peer of `medreport bench rl`: a plain loop of GRPO with transformers and peft, and its labeler
(`launch.bench.peer_labeler`).

The loop does what is common: prompts repeated for each sample, a cache, SDPA, adapters beside the base, the vocabulary
at the new tokens only, and micro-batches as large as is fast. One update on what was just sampled takes its old
log-probabilities from its own forward pass, as TRL does.
"""

import importlib.metadata
import time
from types import SimpleNamespace
from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor

from launch.bench.peer import Works, serve
from launch.bench.peer_labeler import labeler_works
from launch.bench.peer_qwen2 import make_decoder, with_adapters


def start(setup: dict[str, Any], device: str) -> tuple[dict[str, str], Works]:
    """Models of `setup` with random weights, for `peer.serve`. `update` learns from the rollout before it."""
    torch.set_flush_denormal(True)  # as XLA does
    shape = SimpleNamespace(**setup["shape"])
    with torch.device(device):
        model = with_adapters(make_decoder(shape), setup["lora"])
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    optimizer = torch.optim.AdamW(trained, lr=3e-5, weight_decay=0.0, fused=True)
    sampled: list[Tensor] = []

    def rollout(prompts: list[list[int]]) -> float:
        tokens = torch.tensor(prompts, device=device)
        started = time.perf_counter()
        sampled[:] = [sample(model, tokens, shape.group, shape.new_tokens)]
        return time.perf_counter() - started

    def update() -> float:
        started = time.perf_counter()
        (rows,) = sampled
        rewards = (rows[:, -shape.new_tokens :] % 2 == 0).float().mean(-1)
        advantages = group_advantages(rewards.view(-1, shape.group)).flatten()
        policy_gradient(model, rows, shape.new_tokens, advantages, shape.peer_rows)
        torch.nn.utils.clip_grad_norm_(trained, 1.0)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        return time.perf_counter() - started

    def trl(prompts: list[list[int]]) -> float:
        from launch.bench.peer_trl import step

        return step(model, shape, prompts, device)

    packages = ["transformers", "peft", *(["trl"] if setup["trl"] else [])]
    versions = {name: importlib.metadata.version(name) for name in packages}
    works: Works = {"rollout": rollout, "update": update, "trl": trl, **labeler_works(setup, device)}
    return versions, works


def sample(model: Any, prompts: Int[Tensor, "B P"], group: int, new_tokens: int) -> Int[Tensor, "N P+T"]:
    """Rows of a prompt and one of its samples at temperature 1, group by group."""
    with torch.inference_mode():
        rows = model.generate(
            input_ids=prompts,
            attention_mask=torch.ones_like(prompts),
            max_new_tokens=new_tokens,
            num_return_sequences=group,
            do_sample=True,
            temperature=1.0,
            top_k=0,
            top_p=1.0,
            use_cache=True,
        )
    assert rows.shape == (len(prompts) * group, prompts.shape[1] + new_tokens)
    return rows.clone()  # a tensor of inference mode cannot be saved for a backward pass


def group_advantages(rewards: Float[Tensor, "B G"]) -> Float[Tensor, "B G"]:
    """Rewards relative to their group, in standard deviations."""
    centred = rewards - rewards.mean(-1, keepdim=True)
    return centred / (rewards.std(-1, keepdim=True, correction=0) + 1e-6)


def policy_gradient(
    model: Any,
    rows: Int[Tensor, "N P+T"],
    new_tokens: int,
    advantages: Float[Tensor, " N"],
    micro_batch: int,
    old_log_probs: Float[Tensor, "N T"] | None = None,
) -> float:
    """The loss of GRPO, whose gradient is left in the parameters: mean of each sample, then of all."""
    total = 0.0
    for first in range(0, len(rows), micro_batch):
        part = slice(first, first + micro_batch)
        logp = completion_logprobs(model, rows[part], new_tokens)
        old = logp.detach() if old_log_probs is None else old_log_probs[part]
        loss = grpo_loss(logp, old, advantages[part]).sum() / len(rows)
        loss.backward()
        total += loss.item()
    return total


def completion_logprobs(model: Any, rows: Int[Tensor, "N P+T"], new_tokens: int) -> Float[Tensor, "N T"]:
    """Log-probabilities of the last `new_tokens` tokens; logits exist for these only."""
    length = rows.shape[1]
    before = torch.arange(length - new_tokens - 1, length - 1, device=rows.device)
    logits = model(input_ids=rows, logits_to_keep=before, use_cache=False).logits
    targets = rows[:, -new_tokens:]
    return -F.cross_entropy(logits.flatten(0, 1).float(), targets.flatten(), reduction="none").view(targets.shape)


def grpo_loss(
    logp: Float[Tensor, "N T"], old_logp: Float[Tensor, "N T"], advantages: Float[Tensor, " N"], clip: float = 0.2
) -> Float[Tensor, " N"]:
    """Loss of each sample."""
    ratio, gain = (logp - old_logp).exp(), advantages[:, None]
    return -torch.minimum(ratio * gain, ratio.clamp(1 - clip, 1 + clip) * gain).mean(-1)


if __name__ == "__main__":
    serve(start)
