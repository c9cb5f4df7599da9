"""Chat completions: the request, the answer, and when an answer is unusable."""

import hashlib
import json
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple

from common.endpoint.settings import Endpoint
from common.errors import UserError
from common.io.jsonl import SURROGATE
from common.io.text import parse_json

Kind = Literal["service", "unusable", "rejected", "too long", "filtered"]


class Message(NamedTuple):
    """One turn of a conversation. The role is system, user or assistant."""

    role: str
    content: str


@dataclass(frozen=True)
class Request:
    """A conversation whose next turn is asked for."""

    messages: tuple[Message, ...]
    answer_characters: int | None = None  # expected, for the estimate of cost alone; None: as long as allowed


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


def parameters(endpoint: Endpoint) -> dict[str, Any]:
    """What is sent beside model and messages: the most probable answer, as far as an endpoint repeats itself."""
    return {"temperature": 0, "seed": endpoint.seed, "max_tokens": endpoint.max_tokens}


def request_key(endpoint: Endpoint, request: Request) -> str:
    """SHA-256 of all that decides an answer: address, model, messages and parameters."""
    whole = [endpoint.url, endpoint.model, request.messages, parameters(endpoint)]
    return hashlib.sha256(json.dumps(whole, sort_keys=True).encode()).hexdigest()


def parse_answer(content: bytes) -> Answer:
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
    if not isinstance(text, str) or not text.strip():
        raise Trouble("the answer holds no text", "unusable")
    if SURROGATE.search(text):
        raise Trouble("the answer is not Unicode text", "unusable")
    usage = body.get("usage")
    usage = usage if isinstance(usage, dict) else {}
    return Answer(text, finish, _count(usage.get("prompt_tokens")), _count(usage.get("completion_tokens")))


def _first(choices: Any) -> dict[str, Any] | None:
    return choices[0] if isinstance(choices, list) and choices and isinstance(choices[0], dict) else None


def _count(value: Any) -> int | None:
    return value if isinstance(value, int) and not isinstance(value, bool) and 0 <= value < 1 << 31 else None
