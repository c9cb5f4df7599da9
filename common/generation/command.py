"""`medreport decode`: continuations, or scores of given ones, of the prompts in a JSONL file."""

import argparse
import dataclasses
import functools
import math
import operator
import sys
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import jax

from common.bounds import COUNT, FEW, NOT_NEGATIVE, SEED, SHARE, Within, bounded
from common.config_options import add_batch_size
from common.data.huggingface_tokenizer import end_ids, published_ends
from common.data.summary import already, data_line, say_data
from common.data.tokenizers import Tokenizer, check_vocabulary, load_tokenizer
from common.devices import say_devices
from common.errors import Parser, UserError
from common.generation.draft_sources import DRAFT_TOKENS
from common.generation.generate import (
    BATCHES_AT_ONCE,
    Continuation,
    bucket,
    generate_rows,
    make_scorer,
    qwen2_slots,
    score_rows,
)
from common.generation.memory import halved, slot_memory, without_drafts
from common.generation.processes import in_parts, of_first, over_processes, writer_of_first
from common.generation.sampling import Sampling
from common.generation.settings import DecodeSettings
from common.io.fingerprints import adapter_record, model_record
from common.io.finite import check_finite, precision_remedy
from common.io.locks import locked_by_first, locked_file
from common.io.resumable import claim_output, continue_rows
from common.io.rows import read_rows
from common.models.adapters import load_adapter
from common.models.attention_choice import announce_attention
from common.models.lora import scaled
from common.models.qwen2 import Qwen2Config, attention_uses
from common.models.qwen2_weights import config_from_directory, load_qwen2, max_positions
from common.options import Needs, check_options
from common.training.parallel import all_row_shards, device_put_tree, generation_layout
from common.types import PyTree

DESCRIPTION = """Continue the prompts of a JSONL file with a Qwen2, Llama 3, Yi, GLM-4 or Baichuan2 in the layout of
the Hugging Face hub (docs/reference/models.md says which, and what is not supported).

Rows {"id", "prompt"} become rows {"id", "text", "token_ids", "log_probs", "finish"} in input order; finish is "stop" or
"length", and token_ids includes the stop token. text is what token_ids say, white space included. Prompts are encoded
as tokenizer.json says, with what its post-processing adds, such as a beginning; a chat template writes its own, and
completions get none. log_probs are those of softmax(logits / temperature) before top-k and top-p, over all rows of the
embedding, also those beyond the tokenizer's last id, which write no text; a greedy or beam choice is scored at
temperature 1. With --score, rows {"id", "prompt", "completion"} become rows {"id", "token_ids", "log_probs", "total"}.
Of generation_config.json only what ends an answer is used: tokens are chosen by the options below alone, without a
repetition penalty. A row's result does not depend on the rows beside it. Where --output holds rows already, they are
kept and the rest is done; OUTPUT.config.json says with what they were begun, and they are not continued with anything
else."""


NEEDS = tuple(Needs(name, "score", operator.not_, "no --score") for name in ("top_k", "top_p", "beams", "draft"))


@dataclasses.dataclass(frozen=True)
class Row:
    """A prompt, with the completion to score."""

    id: str | int
    prompt: list[int]
    completion: list[int]


@dataclasses.dataclass(frozen=True)
class Model:
    """What runs: config, {"params"} with or without {"lora"}, tokenizer, and what ends an answer."""

    config: Qwen2Config
    variables: PyTree
    tokenizer: Tokenizer
    stop_ids: tuple[int, ...]


def main(argv: list[str]) -> None:
    """Run the command. Raises UserError for whatever is wrong with its input, before anything is written."""
    arguments = parse(argv)
    with locked_by_first(arguments.output, locked_file):
        decode_file(arguments)


def decode_file(arguments: argparse.Namespace) -> None:
    """Write, or go on writing, what the parsed command line asks for. Raises UserError.

    With several processes, each reads the whole file and does a share of its rows; the first one writes.
    """
    first = jax.process_index() == 0
    required: dict[str, Any] = {"id": str | int, "prompt": str} | ({"completion": str} if arguments.score else {})
    records = read_rows(arguments.prompts, required, optional=["completion"])
    config = config_from_directory(arguments.model)
    tokenizer = load_tokenizer(arguments.model)
    check_vocabulary(tokenizer, config)
    stops = stop_ids(arguments.model, tokenizer, config.vocab_size, arguments.chat)
    rows = [_tokenized(record, tokenizer, arguments) for record in records]
    _check_lengths(rows, arguments)
    if first and (ended := sum(row.prompt[-1] in stops for row in rows)):
        print(
            f"{ended} of {len(rows)} prompts end with a token that ends an answer, as written or by the tokenizer's "
            "post-processing; they are continued after it",
            file=sys.stderr,
        )
    written: dict[str, Any] = {"token_ids": list, "log_probs": list, "total" if arguments.score else "text": object}
    inputs = {record["id"]: (record["prompt"], record.get("completion")) for record in records}
    made_with = functools.cache(functools.partial(_made_with, arguments))
    output = arguments.output
    done = of_first(lambda: continue_rows(output, inputs, written, made_with) if output else 0)
    say_data(data_line([arguments.prompts], "rows", {"prompts": len(rows)}, notes=already(done)), rows_on_stdout=True)
    if done == len(rows):
        return
    config, params = load_qwen2(arguments.model, dtype=arguments.dtype, param_dtype=arguments.dtype)
    if first and arguments.score:
        say_devices()
    variables = {"params": params}
    if arguments.adapter:
        lora_config, lora, params = load_adapter(arguments.adapter, config, params)
        variables = {"params": params, "lora": scaled(lora, lora_config, params)}
    model = Model(config, variables, tokenizer, stops)
    from rich.console import Console
    from rich.progress import track

    results = _scores(model, rows, done, arguments) if arguments.score else _texts(model, rows, done, arguments)
    if output and not done:
        of_first(lambda: claim_output(output, made_with(), list(inputs.values())))
    hidden = not sys.stderr.isatty() or not first
    with writer_of_first(output) as write:
        for result in track(results, "decode", len(rows) - done, console=Console(stderr=True), disable=hidden):
            write(result)


def parse(argv: list[str]) -> argparse.Namespace:
    """The command line. Raises UserError for values out of their bounds."""
    parser = Parser(
        "medreport decode",
        description=DESCRIPTION,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--model", type=Path, required=True, metavar="DIR", help="config.json, weights, tokenizer")
    parser.add_argument("--adapter", type=Path, metavar="DIR", help="LoRA adapter in the layout of PEFT")
    parser.add_argument("--prompts", type=Path, required=True, metavar="FILE", help="JSONL rows")
    parser.add_argument("--output", type=Path, metavar="FILE", help="JSONL file to write or resume; default: stdout")
    parser.add_argument("--chat", action="store_true", help="treat a prompt as a user message in the chat template")
    parser.add_argument("--score", action="store_true", help="score the row's completion instead of generating one")
    parser.add_argument("--max-new-tokens", type=bounded(COUNT), default=256, metavar="N", help="default: %(default)s")
    parser.add_argument(
        "--temperature",
        type=bounded(NOT_NEGATIVE, float),
        help="0 takes the most probable token; default: 1 with top-k or top-p, otherwise 0",
    )
    parser.add_argument(
        "--top-k", type=bounded(Within(0, 1 << 24)), default=0, metavar="K", help="0, the default, keeps all tokens"
    )
    parser.add_argument(
        "--top-p", type=bounded(SHARE, float), default=1.0, metavar="P", help="1, the default, keeps all tokens"
    )
    parser.add_argument("--beams", type=bounded(FEW), default=1, metavar="K", help="more than 1: beam search")
    parser.add_argument("--seed", type=bounded(SEED), default=0, help="default: %(default)s")
    add_batch_size(parser, "rows", 16)
    parser.add_argument(
        "--draft", choices=("none", "prompt"), default="none",
        help="prompt: what follows the newest words in the prompt is tried, several tokens at a time, which is faster "
        "where answers copy from it on a GPU or TPU; what is written is the same; default: %(default)s",
    )  # fmt: skip
    parser.add_argument("--dtype", choices=("float32", "bfloat16", "float16"), help="default: that of the checkpoint")
    arguments = parser.parse_args(argv)
    truncated = arguments.top_k != 0 or arguments.top_p != 1
    sampled = truncated or arguments.temperature not in (None, 0)
    if arguments.temperature is None:
        arguments.temperature = 1.0 if truncated else 0.0
    if 0 < arguments.temperature < 1e-6:
        raise UserError(f"--temperature must be 0, or at least 0.000001, found {arguments.temperature}")
    if arguments.beams > 1 and sampled:
        raise UserError("--beams with --temperature, --top-k or --top-p: expected beams or sampling; leave one out")
    check_options(arguments, argv, NEEDS, "medreport decode")
    output, prompts = arguments.output, arguments.prompts
    if output and output.exists() and prompts.exists() and output.samefile(prompts):
        raise UserError(f"--output: {output} is the file of the prompts; choose another file")
    return arguments


def _made_with(arguments: argparse.Namespace) -> dict[str, Any]:
    """What decides a row beside its prompt, by content; the batch size does not."""
    left_out = ("prompts", "output", "batch_size", "draft")
    options = {name: value for name, value in vars(arguments).items() if name not in left_out}
    adapter = adapter_record(arguments.adapter) if arguments.adapter else None
    return {**options, "model": model_record(arguments.model), "adapter": adapter}


def stop_ids(directory: Path, tokenizer: Tokenizer, vocab_size: int, chat: bool = False) -> tuple[int, ...]:
    """What ends an answer: by generation_config.json, else config.json, else the tokenizer, as in transformers.

    In a `chat` what either file names does, and so does the end of the assistant's turn: chat models are published with
    one in the one and another in the other.
    """
    stops = end_ids(directory / "generation_config.json") or end_ids(directory / "config.json") or tokenizer.stop_ids
    more = (*published_ends(directory), tokenizer.chat_end_id) if chat else ()
    return tuple(sorted(stop for stop in {*stops, *more} if stop < vocab_size))


def _texts(model: Model, rows: Sequence[Row], done: int, arguments: argparse.Namespace) -> Iterator[dict[str, Any]]:
    from_prompt = arguments.beams == 1 and arguments.draft == "prompt"
    settings = DecodeSettings(
        max_new_tokens=arguments.max_new_tokens,
        sampling=Sampling(arguments.temperature, arguments.top_k, arguments.top_p),
        beams=arguments.beams,
        stop_ids=model.stop_ids,
        drafts=DRAFT_TOKENS if from_prompt else 0,
    )
    layout = generation_layout()
    variables = device_put_tree(model.variables, layout)
    rest = range(done, len(rows))
    count = min(arguments.batch_size, -(-len(rows) // all_row_shards(layout)))
    slots = qwen2_slots(model.config, settings, count, layout)
    at_once = count * layout.row_shards

    def written(numbers: Sequence[int]) -> Iterator[dict[str, Any] | None]:
        for part in in_parts(numbers, at_once * BATCHES_AT_ONCE):
            prompts = [rows[number].prompt for number in part]
            references = [[prompt] for prompt in prompts] if from_prompt else None
            found = generate_rows(slots, variables, prompts, part, seed=arguments.seed, references=references)
            for (continuation,) in found:
                yield _described(continuation, model.tokenizer) if continuation.finite else None

    tokens = halved("--max-new-tokens", arguments.max_new_tokens)
    with slot_memory(halved("--batch-size", arguments.batch_size, used=count), without_drafts(settings.drafts), tokens):
        for number, found in zip(rest, over_processes(rest, written, at_once, layout), strict=True):
            yield {"id": rows[number].id, **_finite(found, rows[number], model, "the model's logits")}


def _finite(found: dict[str, Any] | None, row: Row, model: Model, what: str) -> dict[str, Any]:
    """A row's result. Raises UserError where it is None, as it was not finite; those before it are written by then."""
    remedy = precision_remedy(model.config.dtype, "--dtype, and another --output if this one holds rows")
    check_finite([found is not None], [row.id], what, remedy)
    assert found is not None
    return found


def _described(continuation: Continuation, tokenizer: Tokenizer) -> dict[str, Any]:
    ids, stopped = continuation.token_ids, continuation.stopped
    return {
        "text": tokenizer.decode(ids[:-1] if stopped else ids),
        "token_ids": ids,
        "log_probs": continuation.log_probs,
        "finish": "stop" if stopped else "length",
    }


def _scores(model: Model, rows: Sequence[Row], done: int, arguments: argparse.Namespace) -> Iterator[dict[str, Any]]:
    """On one device of each process."""
    scorer = make_scorer(model.config, arguments.temperature or 1.0)
    batch_size = min(arguments.batch_size, len(rows))
    rest = range(done, len(rows))

    def written(numbers: Sequence[int]) -> Iterator[dict[str, Any] | None]:
        for part in in_parts(numbers, batch_size * BATCHES_AT_ONCE):
            prompts, completions = [rows[n].prompt for n in part], [rows[n].completion for n in part]
            lengths = {bucket(len(row)) + bucket(len(own)) for row, own in zip(prompts, completions, strict=True)}
            announce_attention(attention_uses(model.config, *sorted(lengths))[:1])
            for log_probs in score_rows(scorer, model.variables, prompts, completions, batch_size):
                finite = all(map(math.isfinite, log_probs))
                yield {"log_probs": log_probs, "total": sum(log_probs)} if finite else None

    results = over_processes(rest, written, batch_size, generation_layout(mode="jit"))
    for number, found in zip(rest, results, strict=True):
        row = rows[number]
        scores = _finite(found, row, model, "the completion's log-probabilities")
        yield {"id": row.id, "token_ids": row.completion, **scores}


def _tokenized(record: Mapping[str, Any], tokenizer: Tokenizer, arguments: argparse.Namespace) -> Row:
    if arguments.chat:
        prompt = tokenizer.chat([{"role": "user", "content": record["prompt"]}], add_generation_prompt=True)
    else:
        prompt = tokenizer.encode_prompt(record["prompt"])
    if not prompt:
        raise UserError(f"{arguments.prompts}: the prompt of id {record['id']!r} has no tokens; expected some text")
    return Row(record["id"], prompt, tokenizer.encode(record["completion"]) if arguments.score else [])


def _check_lengths(rows: Sequence[Row], arguments: argparse.Namespace) -> None:
    limit = max_positions(arguments.model)
    for row in rows:
        new = len(row.completion) if arguments.score else arguments.max_new_tokens
        if limit and len(row.prompt) + new > limit:
            raise UserError(
                f"{arguments.prompts}: id {row.id!r} needs {len(row.prompt)} prompt and {new} new tokens, but the "
                f"model has max_position_embeddings {limit}; shorten the prompt or lower --max-new-tokens"
            )
