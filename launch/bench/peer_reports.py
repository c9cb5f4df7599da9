"""The PyTorch peer of `medreport bench slots`: transformers' `generate`, with SDPA, and the weights of
`launch.bench.report_model`.
"""

import time
from typing import Any

import torch
import transformers

from launch.bench.peer import Works, serve


def start(setup: dict[str, Any], device: str) -> tuple[dict[str, str], Works]:
    """The model in `setup["directory"]`, for `launch.bench.peer.serve`; and whether its static cache works here."""
    model = transformers.AutoModelForCausalLM.from_pretrained(
        setup["directory"], attn_implementation="sdpa", local_files_only=True
    )
    model = model.to(device).eval()

    def generate(**request: Any) -> dict[str, Any]:
        return _generate(model, request, device)

    versions = {"transformers": transformers.__version__, "static_cache": _static_cache(model, device)}
    return versions, {"generate": generate}


def _static_cache(model: Any, device: str) -> str:
    """ "works", or why it does not."""
    request = {"prompts": [[1, 2], [3]], "batch": 2, "cache": "static", "lookup": 0}
    try:
        _generate(model, {**request, "stop_id": 1, "pad_id": 0, "new_tokens": 2}, device)
    except Exception as error:  # whatever it is, it is the measured result: why the peer cannot do this
        return f"{type(error).__name__}: {error}".partition("\n")[0]
    return "works"


def _generate(model: Any, request: dict[str, Any], device: str) -> dict[str, Any]:
    """The continuations of all prompts, greedy, in batches padded to their longest, and the seconds they took."""
    options: dict[str, Any] = {"eos_token_id": request["stop_id"], "pad_token_id": request["pad_id"]}
    options |= {"max_new_tokens": request["new_tokens"], "do_sample": False, "use_cache": True}
    if request["cache"] == "static":
        options["cache_implementation"] = "static"
    if request["lookup"]:
        options["prompt_lookup_num_tokens"] = request["lookup"]
    batches = []
    for start in range(0, len(request["prompts"]), request["batch"]):
        rows = request["prompts"][start : start + request["batch"]]
        longest = max(map(len, rows))
        tokens = [[request["pad_id"]] * (longest - len(row)) + row for row in rows]
        mask = [[0] * (longest - len(row)) + [1] * len(row) for row in rows]
        batches.append([torch.tensor(values, device=device) for values in (tokens, mask)])
    written: list[list[int]] = []
    started = time.perf_counter()
    with torch.inference_mode():
        for tokens, mask in batches:
            out = model.generate(tokens, attention_mask=mask, **options)
            written += out[:, tokens.shape[1] :].tolist()
    seconds = time.perf_counter() - started
    stop = request["stop_id"]
    return {"seconds": seconds, "tokens": [row[: row.index(stop) + 1] if stop in row else row for row in written]}


if __name__ == "__main__":
    serve(start)
