"""Models for few-shot prompts: a local directory of any family, or an OpenAI-compatible endpoint."""

from collections.abc import Callable, Generator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import jax

from common.data.tokenizers import Tokenizer, check_vocabulary, load_tokenizer
from common.devices import say_devices
from common.endpoint import Answer, Endpoint, Message, Request, answering
from common.endpoint.cost import text_tokens
from common.endpoint.protocol import parameters
from common.errors import UserError
from common.generation.command import stop_ids
from common.generation.generate import BATCHES_AT_ONCE, generate_rows, qwen2_slots
from common.generation.memory import halved, slot_memory
from common.generation.settings import DecodeSettings
from common.io.fingerprints import model_record
from common.io.finite import check_finite, precision_remedy
from common.models.qwen2 import SHARDING_RULES
from common.models.qwen2_weights import config_from_directory, load_qwen2, max_positions, param_shapes
from common.training.parallel import MeshConfig, check_heads, generation_layout, shardings
from retsta_jax.readable import MOST_POSITIONS

BLANK_LINE = b"\n\n"


class Output(NamedTuple):
    """What a model wrote; `complete` is false where it ran into the limit, and `failed` says why it wrote nothing."""

    text: str
    complete: bool
    failed: str = ""


@dataclass(frozen=True)
class Peer:
    """A model to ask. `context` is how many tokens prompt and answer may have (None: not known), `count` counts those
    of a prompt; `completion`: prompts are texts to continue. `made_with` decides the answers, by content. `answer`
    takes prompts and their ids.
    """

    name: str
    made_with: dict[str, Any]
    context: int | None
    count: Callable[[str], int]
    completion: bool
    answer: Callable[[Sequence[str], Sequence[str]], Generator[Output]]


def local_peer(
    directory: Path, *, dtype: str | None, max_new_tokens: int, context: int, batch_size: int, mesh: MeshConfig
) -> Peer:
    """A model in the layout of the hub, asked by greedy decoding; its weights are read when it is asked.

    It is asked in its own chat format, and where it has none by a text to continue. `context`: at most so many of its
    positions; 0: all. Raises UserError for a family that is not supported.
    """
    config = config_from_directory(directory)
    tokenizer = load_tokenizer(directory)
    check_vocabulary(tokenizer, config)
    positions = max_positions(directory) or MOST_POSITIONS
    if context > positions:
        raise UserError(f"--context {context}: the model has {positions} positions; give at most that many")

    def tokens(prompt: str) -> list[int]:
        if tokenizer.has_chat:
            return tokenizer.chat([{"role": "user", "content": prompt}])
        return tokenizer.encode_prompt(prompt)

    stops = stop_ids(directory, tokenizer, config.vocab_size, chat=tokenizer.has_chat)
    blank_lines = set() if tokenizer.has_chat else blank_line_ids(tokenizer).difference(stops)
    settings = DecodeSettings(
        max_new_tokens=max_new_tokens,
        stop_ids=tuple(sorted({*stops, *blank_lines})),
        forbidden_ids=tuple(range(tokenizer.vocab_size, config.vocab_size)),
    )

    def answer(prompts: Sequence[str], ids: Sequence[str]) -> Generator[Output]:
        layout = generation_layout(mesh, devices=jax.local_devices())
        check_heads(config.num_key_value_heads, layout)
        where = shardings(param_shapes(config), layout, SHARDING_RULES)
        loaded, params = load_qwen2(directory, dtype=dtype, param_dtype=dtype, shardings=where)
        say_devices(layout.mesh.size)
        remedy = precision_remedy(loaded.dtype, "--dtype, and another --output if this one holds rows")
        count = min(batch_size, -(-len(prompts) // layout.row_shards))
        slots = qwen2_slots(loaded, settings, count, layout)
        rows = count * layout.row_shards
        for start in range(0, len(prompts), rows * BATCHES_AT_ONCE):
            part = slice(start, start + rows * BATCHES_AT_ONCE)
            encoded = [tokens(prompt) for prompt in prompts[part]]
            fewer = halved("--batch-size", batch_size, used=len(prompts))
            with slot_memory(fewer, halved("--max-new-tokens", max_new_tokens)):
                found = generate_rows(slots, {"params": params}, encoded, range(start, start + len(encoded)))
                for id_, (continuation,) in zip(ids[part], found, strict=True):
                    check_finite([continuation.finite], [id_], "the model's logits", remedy)
                    own, stopped = continuation.token_ids, continuation.stopped
                    # A token that writes a blank line may write the last letters of the answer before it.
                    text = tokenizer.decode(own[:-1] if stopped and own[-1] not in blank_lines else own)
                    yield Output(text, stopped)

    made_with = {
        "model": model_record(directory),
        "dtype": dtype,
        "max_new_tokens": max_new_tokens,
        "chat": tokenizer.has_chat,
    }
    name = directory.resolve().name
    return Peer(name, made_with, context or positions, lambda text: len(tokens(text)), not tokenizer.has_chat, answer)


def blank_line_ids(tokenizer: Tokenizer) -> set[int]:
    """Tokens that write a blank line, which ends an answer that is not in a chat."""
    return {id_ for id_ in range(tokenizer.vocab_size) if BLANK_LINE in tokenizer.token_bytes([id_])[0]}


def endpoint_peer(endpoint: Endpoint, *, context: int, expected_characters: int) -> Peer:
    """A model behind an endpoint. Tokens are estimated from characters, and without `context` (0) nothing is too long.

    What the endpoint refuses is an output without text. Raises UserError, when it is asked, as `answering` does.
    """

    def answer(prompts: Sequence[str], ids: Sequence[str]) -> Generator[Output]:
        requests = [Request((Message("user", prompt),), expected_characters) for prompt in prompts]
        with answering(requests, endpoint) as outcomes:
            for outcome in outcomes:
                if isinstance(outcome, Answer):
                    yield Output(outcome.text, not outcome.cut_off)
                else:
                    yield Output("", False, f"{outcome.kind}: {outcome.reason}")

    made_with = {"url": endpoint.url, "model": endpoint.model, **parameters(endpoint)}
    return Peer(endpoint.model, made_with, context or None, text_tokens, False, answer)
