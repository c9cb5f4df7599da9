"""The PyTorch peer of `medreport bench sft` and `medreport bench decode`: the same updates and generations by
transformers and peft, with SDPA and a cache.
"""

import time
from types import SimpleNamespace
from typing import Any

import peft
import torch
import transformers

from launch.bench.peer import Works, serve

PROJECTIONS = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]


def start(setup: dict[str, Any], device: str) -> tuple[dict[str, str], Works]:
    """The model of `setup["shape"]` with random weights, for `launch.bench.peer.serve`."""
    with torch.device(device):
        model = make_decoder(SimpleNamespace(**setup["shape"]))
    tuned = optimizer = None
    trained: list[Any] = []

    def sft(batches: list[dict[str, Any]]) -> float:
        nonlocal tuned, trained, optimizer
        if tuned is None:
            tuned = with_adapters(model, setup["lora"])
            trained = [parameter for parameter in tuned.parameters() if parameter.requires_grad]
            optimizer = torch.optim.AdamW(trained, lr=3e-5, weight_decay=0.0)
        return _updates(tuned, trained, optimizer, batches, device)

    def generate(**request: Any) -> float:
        return _generate(model.eval(), request, device)

    versions = {"transformers": transformers.__version__, "peft": peft.__version__}
    return versions, {"sft": sft, "generate": generate}


def make_decoder(shape: Any) -> Any:
    """Qwen2 with random weights; `shape` has the fields of `launch.bench.decoder.Shape` or `launch.bench.rl.Shape`."""
    config = transformers.Qwen2Config(
        vocab_size=shape.vocabulary,
        hidden_size=shape.hidden,
        intermediate_size=shape.intermediate,
        num_hidden_layers=shape.layers,
        num_attention_heads=shape.heads,
        num_key_value_heads=shape.kv_heads,
        max_position_embeddings=32_768,
        tie_word_embeddings=False,
        bos_token_id=None,
        eos_token_id=None,
        pad_token_id=0,
    )
    return transformers.AutoModelForCausalLM.from_config(
        config, attn_implementation="sdpa", dtype=getattr(torch, shape.dtype)
    )


def with_adapters(model: Any, lora: dict[str, Any]) -> Any:
    """The model with adapters on all its projections, to train them."""
    adapters = peft.LoraConfig(
        r=lora["rank"],
        lora_alpha=lora["alpha"],
        lora_dropout=lora["dropout"],
        target_modules=PROJECTIONS,
        task_type="CAUSAL_LM",
    )
    return peft.get_peft_model(model, adapters).train()


def _updates(model: Any, trained: list[Any], optimizer: Any, batches: list[dict[str, Any]], device: str) -> float:
    placed = [{name: torch.tensor(value, device=device) for name, value in batch.items()} for batch in batches]
    started = time.perf_counter()
    for batch in placed:
        full = bool(batch["mask"].all())  # without padding SDPA takes its causal path, which is faster
        mask = None if full else batch["mask"]
        loss = model(input_ids=batch["tokens"], attention_mask=mask, labels=batch["labels"]).loss
        loss.backward()
        torch.nn.utils.clip_grad_norm_(trained, 1.0)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        loss.item()
    return time.perf_counter() - started


def _generate(model: Any, request: dict[str, Any], device: str) -> float:
    tokens, mask = (torch.tensor(request[name], device=device) for name in ("tokens", "mask"))
    sampling = {"do_sample": False} if request["top_p"] is None else {
        "do_sample": True, "temperature": 1.0, "top_p": request["top_p"], "top_k": 0,
    }  # fmt: skip
    started = time.perf_counter()
    with torch.inference_mode():
        out = model.generate(
            tokens,
            attention_mask=mask,
            max_new_tokens=request["new_tokens"],
            num_return_sequences=request["samples"],
            use_cache=True,
            **sampling,
        )
    seconds = time.perf_counter() - started
    assert out.shape == (tokens.shape[0] * request["samples"], tokens.shape[1] + request["new_tokens"])
    return seconds


if __name__ == "__main__":
    serve(start)
