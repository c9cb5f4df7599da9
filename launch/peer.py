"""The PyTorch peer of `launch bench`: the same updates and generations by transformers and peft, in a child process.

`Peer` is the parent's side and imports no PyTorch. The child (`python -m launch.peer`) reads one JSON request a line
from standard input and answers with the seconds its work took; between requests it waits and uses no CPU.

The peer runs at its best: all threads, SDPA, a cache, and a malloc that keeps the pages of the logits (on two cores
an update is nearly twice as fast with it).
"""

import json
import os
import subprocess
import sys
import time
from types import TracebackType
from typing import Any

from common.errors import UserError

TUNABLES = (
    "glibc.malloc.hugetlb=1:glibc.malloc.mmap_max=0:"
    "glibc.malloc.trim_threshold=100000000000:glibc.malloc.top_pad=67108864"
)


class Peer:
    """The child process as a context; `call` sends it work and returns the seconds. Raises UserError if it dies."""

    def __init__(self, shape: dict[str, Any], lora: dict[str, Any]) -> None:
        environment = {**os.environ, "GLIBC_TUNABLES": TUNABLES, "TRANSFORMERS_VERBOSITY": "error"}
        self._process = subprocess.Popen(
            [sys.executable, "-m", "launch.peer"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env=environment,
        )
        self.versions: dict[str, Any] = self._ask({"shape": shape, "lora": lora})

    def call(self, work: str, **arguments: Any) -> float:
        """Do `work` ("sft" or "generate") once; its seconds, without the transfer of the arguments."""
        return self._ask({"work": work, **arguments})["seconds"]

    def _ask(self, request: dict[str, Any]) -> dict[str, Any]:
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        try:
            self._process.stdin.write(json.dumps(request) + "\n")
            self._process.stdin.flush()
        except BrokenPipeError:
            line = ""
        else:
            line = self._process.stdout.readline()
        if not line:
            raise UserError(
                f"--peer: the PyTorch process ended with code {self._process.wait()} (its message is above); "
                "it needs torch, transformers and peft: pip install -r requirements-parity.txt"
            )
        return json.loads(line)

    def __enter__(self) -> "Peer":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._process.stdin:
            self._process.stdin.close()
        self._process.wait()


def main() -> None:
    """Serve requests until standard input ends."""
    import peft
    import torch
    import transformers

    answers = os.fdopen(os.dup(sys.stdout.fileno()), "w")
    os.dup2(sys.stderr.fileno(), sys.stdout.fileno())  # whatever a library prints must not be taken for an answer
    torch.set_num_threads(len(os.sched_getaffinity(0)))
    setup = json.loads(sys.stdin.readline())
    shape, lora = setup["shape"], setup["lora"]
    device = "cuda" if torch.cuda.is_available() else "cpu"
    config = transformers.Qwen2Config(
        vocab_size=shape["vocabulary"],
        hidden_size=shape["hidden"],
        intermediate_size=shape["intermediate"],
        num_hidden_layers=shape["layers"],
        num_attention_heads=shape["heads"],
        num_key_value_heads=shape["kv_heads"],
        max_position_embeddings=32_768,
        tie_word_embeddings=False,
        bos_token_id=None,
        eos_token_id=None,
        pad_token_id=0,
    )
    with torch.device(device):
        model = transformers.AutoModelForCausalLM.from_config(
            config, attn_implementation="sdpa", dtype=getattr(torch, shape["dtype"])
        )
    tuned = optimizer = None
    versions = {"torch": torch.__version__, "transformers": transformers.__version__, "peft": peft.__version__}
    print(json.dumps(versions), file=answers, flush=True)
    for line in sys.stdin:
        request = json.loads(line)
        if request["work"] == "sft":
            if tuned is None:
                tuned = peft.get_peft_model(
                    model,
                    peft.LoraConfig(
                        r=lora["rank"],
                        lora_alpha=lora["alpha"],
                        lora_dropout=lora["dropout"],
                        target_modules=["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"],
                        task_type="CAUSAL_LM",
                    ),
                ).train()
                trained = [parameter for parameter in tuned.parameters() if parameter.requires_grad]
                optimizer = torch.optim.AdamW(trained, lr=3e-5, weight_decay=0.0)
            seconds = _updates(tuned, trained, optimizer, request["batches"], device)
        else:
            seconds = _generate(model.eval(), request, device)
        print(json.dumps({"seconds": seconds}), file=answers, flush=True)


def _updates(model: Any, trained: list[Any], optimizer: Any, batches: list[dict[str, Any]], device: str) -> float:
    import torch

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
    import torch

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
    main()
