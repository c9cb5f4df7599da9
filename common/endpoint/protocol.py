"""Chat completions: the request, the answer, and when an answer is unusable."""

import base64
import hashlib
import json
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, Literal, NamedTuple

from common.endpoint.settings import Endpoint
from common.errors import UserError
from common.io.jsonl import SURROGATE
from common.io.text import parse_json

Kind = Literal["service", "unusable", "rejected", "too long", "filtered"]


@dataclass(frozen=True)
class Image:
    """An image in a message. It is made when it is sent, so that many requests hold none; `digest` stands for it."""

    digest: str
    png: Callable[[], bytes] = field(compare=False)  # called in a worker thread
    tokens: int = 0  # that the model makes of it, for the estimate of cost alone


class Message(NamedTuple):
    """One turn of a conversation, a text or texts and images. The role is system, user or assistant."""

    role: str
    content: str | tuple[str | Image, ...]

    @property
    def parts(self) -> tuple[str | Image, ...]:
        """Its texts and images."""
        return (self.content,) if isinstance(self.content, str) else self.content

    def body(self) -> dict[str, Any]:
        """The message as chat completions take it; images are data URLs."""
        if isinstance(self.content, str):
            return self._asdict()
        return {"role": self.role, "content": [_part(part) for part in self.content]}


class Sampled(NamedTuple):
    """How an answer is drawn, where it is not the most probable one."""

    temperature: float
    top_p: float
    seed: int


@dataclass(frozen=True)
class Request:
    """A conversation whose next turn is asked for."""

    messages: tuple[Message, ...]
    answer_characters: int | None = None  # expected, for the estimate of cost alone; None: as long as allowed
    sampled: Sampled | None = None
    may_be_empty: bool = False  # whether an answer that ends at once, or has marks alone that are not shown, is one

    @property
    def has_images(self) -> bool:
        """Whether a message has an image."""
        return any(isinstance(part, Image) for message in self.messages for part in message.parts)


@dataclass(frozen=True)
class Answer:
    """What a model answered, and the tokens that the endpoint counted (None: it did not say)."""

    text: str
    finish: str = "stop"  # its finish_reason
    input_tokens: int | None = None
    output_tokens: int | None = None
    requests: int = 1  # until this answer, those of a follow-up included
    cached: bool = False  # it was in the cache, and so was what came before it

    @property
    def cut_off(self) -> bool:
        """Whether the answer had reached the longest allowed and may lack its end."""
        return self.finish == "length"


@dataclass(frozen=True)
class Failure:
    """Why there is no answer. `reason` holds nothing of the report and nothing that the endpoint wrote freely.

    After several attempts: "service", no answer; "unusable", none that follows the protocol. The endpoint refuses this
    request and would do so again: "rejected", "too long", "filtered".
    """

    reason: str
    kind: Kind


Outcome = Answer | Failure


class Trouble(Exception):
    """One attempt without an answer. `after`: seconds that the endpoint asks to wait; `kind` as in `Failure`."""

    def __init__(self, reason: str, kind: Kind = "service", after: float | None = None):
        super().__init__(reason)
        self.reason, self.kind, self.after = reason, kind, after


def parameters(endpoint: Endpoint, sampled: Sampled | None = None) -> dict[str, Any]:
    """What is sent beside model and messages: the most probable answer, as far as an endpoint repeats itself, or one
    that is drawn.
    """
    how = {"temperature": 0, "seed": endpoint.seed} if sampled is None else sampled._asdict()
    return {**how, "max_tokens": endpoint.max_tokens}


def request_key(endpoint: Endpoint, request: Request) -> str:
    """SHA-256 of all that decides an answer: address, model, messages and parameters."""
    whole = [endpoint.url, endpoint.model, request.messages, parameters(endpoint, request.sampled)]
    text = json.dumps(whole, sort_keys=True, default=lambda image: {"image": image.digest})
    return hashlib.sha256(text.encode()).hexdigest()


def parse_answer(content: bytes, may_be_empty: bool = False) -> Answer:
    """The answer in the body of a response. Raises Trouble where it does not follow the protocol."""
    try:
        body = parse_json(content, "answer")
    except UserError:
        raise Trouble("the answer is not JSON", "unusable") from None
    choice = _first(body.get("choices")) if isinstance(body, dict) else None
    message = choice.get("message") if choice else None
    if choice is None or not isinstance(message, dict):
        raise Trouble("the answer has no choices, as chat completions have", "unusable")
    text, finish = message.get("content"), choice.get("finish_reason")
    finish = finish if isinstance(finish, str) else "unknown"
    if finish == "content_filter":
        raise Trouble("the endpoint's filter refuses this content", "filtered")
    if may_be_empty and finish == "stop" and text is None:
        text = ""
    if not isinstance(text, str) or not (text.strip() or (may_be_empty and finish in ("stop", "length"))):
        raise Trouble("the answer holds no text", "unusable")
    if SURROGATE.search(text):
        raise Trouble("the answer is not Unicode text", "unusable")
    usage = body.get("usage")
    usage = usage if isinstance(usage, dict) else {}
    return Answer(text, finish, _count(usage.get("prompt_tokens")), _count(usage.get("completion_tokens")))


def _part(part: str | Image) -> dict[str, Any]:
    if isinstance(part, str):
        return {"type": "text", "text": part}
    url = "data:image/png;base64," + base64.b64encode(part.png()).decode()
    return {"type": "image_url", "image_url": {"url": url}}


def _first(choices: Any) -> dict[str, Any] | None:
    return choices[0] if isinstance(choices, list) and choices and isinstance(choices[0], dict) else None


def _count(value: Any) -> int | None:
    return value if isinstance(value, int) and not isinstance(value, bool) and 0 <= value < 1 << 31 else None
