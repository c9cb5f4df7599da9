"""Standard reports by an engine that serves a run's export, such as vLLM or SGLang, in place of its weights here.

A report is sent as the turn of the user that `retsta_jax.prompts.prompt_tokens` encodes, at temperature 0: the chat
template of the export makes the same tokens of it. Whether an answer is complete is its `finish_reason`; no rule of
`retsta label` reads a probability, so none is asked for.
"""

import argparse
import contextlib
import os
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from common.config import read_config
from common.data.cleaning import clean_report
from common.endpoint import Answer, Endpoint, Failure, Message, Outcome, Request, answering, endpoint_settings
from common.endpoint.protocol import parameters
from common.endpoint.settings import local_needs
from common.errors import UserError
from common.io.fingerprints import tokenizer_record
from common.options import check_options
from retsta_jax.config import RetstaConfig
from retsta_jax.prompts import prompt_text
from retsta_jax.readable import PromptEncoder
from retsta_jax.standardize import Standardized, Trained, made_with

ENDPOINT_NEEDS = local_needs(batch_size="an endpoint is asked by --endpoint-concurrency")


def run_endpoint(
    chosen: argparse.Namespace, arguments: Sequence[str], program: str, cache: Path | None
) -> Endpoint | None:
    """The endpoint that serves the run `chosen.run_dir`, or None where the options name none.

    `cache` is as in `endpoint_settings`. Raises UserError as that does, and for options that only a model on this
    machine reads.
    """
    if chosen.endpoint is None:
        return endpoint_settings(chosen)
    check_options(chosen, arguments, ENDPOINT_NEEDS, f"{program} with an endpoint")
    # JAX would take most of the accelerator's memory for nothing, and leave none for an engine beside it.
    os.environ.setdefault("XLA_PYTHON_CLIENT_PREALLOCATE", "false")
    return endpoint_settings(chosen, cache, read_config(RetstaConfig, chosen.run_dir).max_new_tokens)


@contextlib.contextmanager
def standardizing(encoder: PromptEncoder, endpoint: Endpoint, reports: Sequence[str]) -> Iterator[Iterator[Outcome]]:
    """What the endpoint answers to each report, in order (`answer_of`). Raises UserError as `answering` does."""
    texts = [clean_report(report) for report in reports]
    instruction = encoder.config.instruction
    requests = [
        Request((Message("user", prompt_text(instruction, text)),), len(text), may_be_empty=True) for text in texts
    ]
    with answering(requests, endpoint) as outcomes:
        yield outcomes


def answer_of(outcome: Outcome, id_: str | int) -> Standardized:
    """The standard form in an answer. Raises UserError, naming the report, where there is none."""
    if isinstance(outcome, Failure):
        raise UserError(
            f"report {id_!r}: no standard form, {outcome.kind} ({outcome.reason}); answers so far are kept; leave the "
            "report out, or choose another endpoint and output"
        )
    return Standardized(clean_report(outcome.text), outcome.finish == "stop", outcome.output_tokens or 0)


def is_refused(outcome: Outcome) -> bool:
    """Whether an endpoint refuses this report and would do so again, as a model does one that is too long for it."""
    return not isinstance(outcome, Answer) and outcome.kind in ("rejected", "too long", "filtered")


def record_of(model: Trained | Endpoint, encoder: PromptEncoder) -> dict[str, Any]:
    """What decides the standard form of a report; of an endpoint as far as that is known here, and never a key."""
    if not isinstance(model, Endpoint):
        return made_with(model)
    return {
        "endpoint": {"url": model.url, "model": model.model, **parameters(model)},
        "tokenizer": tokenizer_record(encoder.directory),
        "instruction": encoder.config.instruction,
    }
