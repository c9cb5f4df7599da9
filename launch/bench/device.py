"""`medreport bench device`: parity and speed of this project on a new accelerator, within minutes.

Each of `PARTS` runs with random weights of the published sizes: the towers and greedy decoding against references
(`launch.bench.device_parity`), a LoRA update of 7B on 4,096 packed tokens, the rollout of the 3B policy and one
whole step of DEER against its floor (`launch.bench.device_deer`). A part that fails becomes one line of the result, and
the next one runs; `--output` is written after each. On a CPU the sizes are toy sizes.
"""

import dataclasses
import gc
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal

import jax

from common.devices import is_out_of_memory, memory_shortage
from common.io.outputs import check_output, check_own_object, write_whole
from common.io.text import json_text
from common.models.bert import BertConfig, ClassifierConfig
from common.models.clip import RN101, ClipConfig
from common.models.qwen2 import Qwen2Config
from common.models.qwen2_vl import Qwen2VLConfig
from common.models.qwen2_vl_vision import VisionConfig
from launch.bench import decoder, device_deer, device_parity
from launch.bench.timing import against_goals, peak_bytes

Size = Literal["published", "toy"]
GOALS = {"lora_utilisation": 0.5, "rollout_tokens_per_second": 30_000.0}
LONGEST_LINE = 300  # characters of the message of a failure


@dataclasses.dataclass(frozen=True)
class Sizes:
    """What is measured: `published`, or `toy` for two CPU cores."""

    text: Qwen2Config  # of RetSTA
    policy: Qwen2VLConfig  # of DEER, as its preset computes
    clip: ClipConfig
    labeler: ClassifierConfig
    rl: Any  # the `deer_jax.config.RlConfig` of the step
    lora: dict[str, Any]  # of `launch.bench.decoder.Shape`, in place of its defaults
    length: int  # of the row, and of the text, that the towers read
    new_tokens: int  # of greedy decoding
    drafts: int  # verified in one of its passes, at most
    repetitions: int


def published() -> Sizes:
    """Qwen2.5-7B, Qwen2.5-VL-3B, RN101 and CheXbert, and the preset of DEER for MIMIC-CXR."""
    from common.generation.draft_sources import DRAFT_TOKENS
    from deer_jax.config import RL_PRESETS
    from launch.plan_deer import QWEN2_5_VL_3B, as_computed

    rl = RL_PRESETS["mimic-cxr"]
    return Sizes(
        Qwen2Config(), as_computed(rl, QWEN2_5_VL_3B), RN101, ClassifierConfig(), rl, {"repetitions": 3},
        length=512, new_tokens=64, drafts=DRAFT_TOKENS, repetitions=2,
    )  # fmt: skip


def toy() -> Sizes:
    """The same with a few small layers."""
    from deer_jax.config import RL_PRESETS
    from launch.plan_deer import as_computed

    preset = RL_PRESETS["mimic-cxr"]
    rl = dataclasses.replace(
        preset,
        data=dataclasses.replace(preset.data, side=56),
        rollout=dataclasses.replace(preset.rollout, group=2, max_new_tokens=8),
        batch_size=2,
        micro_batch=1,
    )
    text = Qwen2Config(
        vocab_size=512, hidden_size=64, intermediate_size=128, num_hidden_layers=2, num_attention_heads=4,
        num_key_value_heads=2, head_dim=16,
    )  # fmt: skip
    language = dataclasses.replace(text, tie_word_embeddings=True, mrope_section=(2, 3, 3))
    vision = VisionConfig(
        depth=2, hidden_size=64, intermediate_size=96, num_heads=4, out_hidden_size=64, fullatt_block_indexes=(1,)
    )
    lora = {
        "hidden": 64, "layers": 2, "heads": 4, "kv_heads": 2, "intermediate": 128, "vocabulary": 512,
        "dtype": "float32", "loss_chunk": 32, "rows": jax.device_count(), "length": 64, "segment": 32, "repetitions": 1,
    }  # fmt: skip
    clip = ClipConfig(
        image_size=64, vision_layers=(1, 1, 1, 1), vision_width=16, embed_dim=32, vocab_size=300, text_width=32,
        text_heads=4, text_layers=3,
    )  # fmt: skip
    bert = BertConfig(vocab_size=300, hidden_size=32, num_hidden_layers=2, num_attention_heads=4, intermediate_size=64)
    return Sizes(
        text, as_computed(rl, Qwen2VLConfig(language, vision, 500, 501, 502, 503, 504)), clip, ClassifierConfig(bert),
        rl, lora, length=32, new_tokens=8, drafts=1, repetitions=1,
    )  # fmt: skip


def lora_update(sizes: Sizes) -> dict[str, Any]:
    """The case `equal_shapes` of `medreport bench sft`: LoRA on packed rows, and its utilisation."""
    found = decoder.measure("sft", decoder.Shape(**sizes.lora), with_peer=False)
    return {"attention": found["attention"], **found["cases"]["equal_shapes"]}


PARTS: dict[str, Callable[[Sizes], dict[str, Any]]] = {
    "text": device_parity.text,
    "vision": device_parity.vision,
    "labels": device_parity.labels,
    "clip": device_parity.clip,
    "decoding": device_parity.decoding,
    "lora": lora_update,
    "rollout": device_deer.rollout,
    "deer_step": device_deer.whole_step,
}


def measure(size: Size, seconds: float, output: Path | None) -> dict[str, Any]:
    """The results of all parts, as printed. Those that fail have "failed" in place of figures, those not begun within
    `seconds` have "left_out". Raises UserError, before any part, where `output` cannot be written or is something else.
    """
    check_output(output)
    check_own_object(output, ["parts", "size"])
    started = time.perf_counter()
    sizes = published() if size == "published" else toy()
    device = jax.devices()[0]
    result: dict[str, Any] = {
        "work": "device",
        "device": device.device_kind,
        "devices": jax.device_count(),
        "jax": jax.__version__,
        "size": size,
        "parts": {},
    }
    for name, part in PARTS.items():
        spent = time.perf_counter() - started
        over = {"left_out": f"{spent:.0f} of {seconds:.0f} seconds had passed"}
        found = over if spent >= seconds else guarded(part, sizes)
        result["parts"][name] = found
        print(f"{name}: {_line(found)}", file=sys.stderr, flush=True)
        if size == "published":
            result |= _against_goals(result["parts"])
        result["peak_bytes"] = peak_bytes()
        result["seconds"] = round(time.perf_counter() - started, 1)
        if output is not None:
            write_whole(output, json_text(result, output, 2) + "\n")
    return result


def guarded(part: Callable[[Sizes], dict[str, Any]], sizes: Sizes) -> dict[str, Any]:
    """The result of a part, or one line that says how it failed, and its seconds. Frees its arrays and programs."""
    started = time.perf_counter()
    try:
        found = part(sizes)
    except Exception as error:  # whatever it is, the remaining parts are still useful
        out = isinstance(error, RuntimeError) and is_out_of_memory(error)
        said = memory_shortage(str(error)) if out else f"{type(error).__name__}: {error}"
        found = {"failed": " ".join(said.split())[:LONGEST_LINE]}
    jax.clear_caches()
    gc.collect()
    return found | {"part_seconds": round(time.perf_counter() - started, 1)}


def _against_goals(parts: dict[str, dict[str, Any]]) -> dict[str, Any]:
    reached = {
        "lora_utilisation": parts.get("lora", {}).get("utilisation"),
        "rollout_tokens_per_second": parts.get("rollout", {}).get("tokens_per_second"),
    }
    return against_goals({name: value for name, value in reached.items() if value is not None}, GOALS)


def _line(found: dict[str, Any]) -> str:
    """The figures of a part that are not nested."""
    return ", ".join(
        f"{name} {value:.4g}" if isinstance(value, float) else f"{name} {value}"
        for name, value in found.items()
        if isinstance(value, (str, int, float))
    )
