"""Reports of studies by an engine behind an OpenAI-compatible endpoint, such as vLLM or SGLang with a `model/`.

A message has the images of a study, each as large as `data.side` says, and then the instruction: the chat template of
Qwen2.5-VL makes of it what `deer_jax.prompts.prompt_tokens` makes. Images are read and resized here and sent as PNG
without metadata, so nothing leaves the machine but their pixels and the instruction: no header, id or report.

An endpoint gives text without log-probabilities, and the rows of `deer sample` have none: `deer rl` draws its own
rollouts from the weights that it trains.
"""

import functools
import hashlib
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np

from common.data.images import GreyImage, encode_png
from common.data.splits import Split
from common.endpoint import Answer, Endpoint, Image, Message, Request, Sampled, answering
from common.endpoint.settings import local_needs
from common.errors import UserError
from deer_jax.config import SampleConfig
from deer_jax.prompts import TOKEN_SIZE, image_count

SEEDS = 2**31  # engines take no larger ones
IMAGES_AT_HAND = 64  # PNG files, so that those of a study are made once for all its reports
ENDPOINT_NEEDS = local_needs(
    model="the endpoint has a model of its own", parallel="nothing is generated on this machine"
)


def endpoint_texts(
    config: SampleConfig, endpoint: Endpoint, split: Split, studies: range, records: Sequence[str]
) -> Iterator[tuple[int, list[str]]]:
    """Of each study its number and its reports, in order, as `deer_jax.sample.sampled_texts`.

    `records` are the digests of the images of these studies (`common.data.splits.images_record`). Each report is a
    request with a seed that depends on the study's number, the report's and `config.seed` alone.

    Raises UserError as `answering` does, and where the endpoint refuses a study.
    """
    group = config.rollout.group
    with answering(study_requests(config, split, studies, records), endpoint) as outcomes:
        for study in studies:
            texts = []
            for _ in range(group):
                outcome = next(outcomes)
                if not isinstance(outcome, Answer):
                    raise UserError(
                        f"id {split.studies[study].id!r}: no report, {outcome.kind} ({outcome.reason}); reports so far "
                        "are kept; take the study out of the data, or choose another endpoint and output"
                    )
                texts.append(outcome.text)
            yield study, texts


def study_requests(config: SampleConfig, split: Split, studies: range, records: Sequence[str]) -> list[Request]:
    """The requests for the reports of studies, those of a study one after the other."""
    rollout, tokens = config.rollout, (config.data.side // TOKEN_SIZE) ** 2
    png = functools.lru_cache(IMAGES_AT_HAND)(functools.partial(_png, split.images))
    requests = []
    for study, record in zip(studies, records, strict=True):
        # What decides the pixels, so that no image need be resized before it is sent.
        known = f"{record} {config.data.side} {config.data.dicom_contrast}"
        images = [
            Image(hashlib.sha256(f"{known} {view}".encode()).hexdigest(), functools.partial(png, study, view), tokens)
            for view in range(min(image_count(split.images, study), config.data.views))
        ]
        messages = (Message("user", (*images, config.instruction)),)
        for sample in range(rollout.group):
            sampled = Sampled(rollout.temperature, rollout.top_p, sample_seed(config.seed, study, sample))
            requests.append(Request(messages, sampled=sampled, may_be_empty=True))
    return requests


def sample_seed(seed: int, study: int, sample: int) -> int:
    """The seed of a report of a study."""
    return int(np.random.SeedSequence([seed, study, sample]).generate_state(1)[0]) % SEEDS


def endpoint_record(endpoint: Endpoint) -> dict[str, Any]:
    """What decides the reports of an endpoint; never a key."""
    return {"url": endpoint.url, "model": endpoint.model}


def _png(images: Sequence[tuple[GreyImage, ...]], study: int, view: int) -> bytes:
    return encode_png(images[study][view])
