"""What a run will send and cost, before anything is sent. Tokens are estimated from characters."""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from common.endpoint.protocol import Image, Request
from common.endpoint.settings import Endpoint, is_local

# Of an ASCII character and of any other: DeepSeek's rule of thumb (its API documentation, "Token & Token Usage").
ASCII_TOKENS, OTHER_TOKENS = 0.3, 0.6


@dataclass(frozen=True)
class Estimate:
    """Requests in all, those that are not in the cache, and the tokens of these."""

    requests: int
    unsent: int
    input_tokens: int
    output_tokens: int
    images: int = 0  # in the requests that are not in the cache


def estimate(requests: Sequence[Request], is_known: Callable[[Request], bool], max_tokens: int) -> Estimate:
    """What is to be sent. `is_known` says of a request whether the cache holds its answer."""
    unsent = [request for request in dict.fromkeys(requests) if not is_known(request)]
    parts = [part for request in unsent for message in request.messages for part in message.parts]
    images = sum(isinstance(part, Image) for part in parts)
    inputs = sum(part.tokens if isinstance(part, Image) else text_tokens(part) for part in parts)
    outputs = sum(_answer_tokens(request, max_tokens) for request in unsent)
    return Estimate(len(requests), len(unsent), inputs, outputs, images)


def contents(plan: Estimate) -> str:
    """What of patients is sent."""
    return f"{plan.images:,} images" if plan.images else "report text"


def text_tokens(text: str) -> int:
    """About how many tokens a text has, from its characters alone."""
    plain = sum(map(str.isascii, text))
    return math.ceil(ASCII_TOKENS * plain + OTHER_TOKENS * (len(text) - plain))


def _answer_tokens(request: Request, max_tokens: int) -> int:
    """Of the expected answer: its characters count as those of the last message do on average."""
    if request.answer_characters is None:
        return max_tokens
    last = " ".join(part for part in request.messages[-1].parts if isinstance(part, str))
    rate = text_tokens(last) / len(last) if last else ASCII_TOKENS
    return min(max_tokens, math.ceil(rate * request.answer_characters))


def price_of(endpoint: Endpoint, input_tokens: int, output_tokens: int) -> float | None:
    """Of so many tokens, in the currency of the prices; None where none are given."""
    if endpoint.input_price is None or endpoint.output_price is None:
        return None
    return (input_tokens * endpoint.input_price + output_tokens * endpoint.output_price) / 1e6


def estimate_text(endpoint: Endpoint, plan: Estimate) -> str:
    """The estimate in one line."""
    price = price_of(endpoint, plan.input_tokens, plan.output_tokens)
    parts = [
        f"{plan.unsent:,} of {plan.requests:,} requests are to be sent to {endpoint.url} (model {endpoint.model})"
        + (", the others repeat one or are in the cache" if plan.unsent < plan.requests else ""),
        f"about {plan.input_tokens:,} input and {plan.output_tokens:,} output tokens, estimated from characters "
        f"({ASCII_TOKENS} tokens for an ASCII one, {OTHER_TOKENS} for any other)"
        + (", and of images from their size" if plan.images else ""),
    ]
    if price is not None:
        parts.append(f"about {price:,.2f} at the prices given")
    if endpoint.url.startswith("http:") and not is_local(endpoint.url):
        parts.append("the connection is not encrypted (http)")
    return "; ".join(parts)
