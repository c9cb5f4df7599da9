"""One request to an endpoint with the `openai` client, and the errors of a failed one.

Of an endpoint's error only short identifiers are shown: its sentences may repeat the report or
the key. Retries are in `asking`; the client's own are off, and so are its variables of the environment.
"""

import contextlib
import email.utils
import re
import ssl
import time
from collections.abc import Callable, Iterator
from datetime import UTC, datetime
from typing import Any

import httpx2
import openai

from common.endpoint.protocol import Answer, Request, Trouble, parameters, parse_answer
from common.endpoint.settings import KEY_VARIABLE, Endpoint, endpoint_key, is_local
from common.errors import UserError

MOST_ANSWER_BYTES = 8 << 20
CONNECT_SECONDS = 10.0
LONGEST_WAIT = 300.0  # seconds that an endpoint may ask to wait
QUOTA = ("insufficient_quota", "billing_hard_limit_reached", "billing_not_active")
FILTERED = ("content_filter", "content_policy_violation", "data_inspection_failed")
_TOO_LONG = re.compile(r"context.?length|maximum.{0,20}(length|tokens)|too (long|large|many tokens)", re.IGNORECASE)
_IDENTIFIER = re.compile(r"[A-Za-z0-9_.\[\]-]{1,60}")
_AGAIN = (408, 409, 425, 429)
KEPT = "what was answered is kept, and the same command goes on from there"

Send = Callable[[Request], Answer]


@contextlib.contextmanager
def open_sender(endpoint: Endpoint) -> Iterator[Send]:
    """A function, for any number of threads, that sends a request and returns the answer.

    It raises Trouble where another attempt may help or where the endpoint refuses this request, and UserError where it
    would refuse any. Raises UserError without the user's consent.
    """
    if not endpoint.send_reports:
        raise UserError("reports and images are sent to no endpoint without the user's consent")
    key = endpoint_key(endpoint.url)
    client = openai.OpenAI(
        api_key=key or "none",
        base_url=endpoint.url,
        max_retries=0,
        http_client=_http_client(endpoint, key),
    )
    names = [dict[str, str | None]()]  # under which the endpoint takes a parameter; None: it takes it under none

    def post(request: Request, turns: Any, options: dict[str, Any]) -> Answer:
        raw = client.chat.completions.with_raw_response.create(model=endpoint.model, messages=turns, **options)
        return parse_answer(raw.content, request.may_be_empty)

    def send(request: Request) -> Answer:
        turns = [message.body() for message in request.messages]
        known = names[0]
        own = parameters(endpoint, request.sampled)
        options = {name: own[wanted] for wanted in own if (name := known.get(wanted, wanted)) is not None}
        try:
            try:
                return post(request, turns, options)
            except (openai.BadRequestError, openai.UnprocessableEntityError) as error:
                other = supported(options, error)
                if other is None:
                    raise
                answer = post(request, turns, other)
                lost = options.keys() - other.keys()
                names[0] = known | {name: "max_completion_tokens" if name == "max_tokens" else None for name in lost}
                return answer
        except openai.APIError as error:
            raise problem_of(error, endpoint, key) from None

    with contextlib.closing(client):
        yield send


def supported(options: dict[str, Any], error: openai.APIStatusError) -> dict[str, Any] | None:
    """The parameters in the form that an endpoint asks for that takes no `seed` or `max_tokens`; None: it does not."""
    said = f"{error.param} {error.message}"
    if "max_tokens" in options and "max_completion_tokens" in said:
        renamed = {name: value for name, value in options.items() if name != "max_tokens"}
        return {**renamed, "max_completion_tokens": options["max_tokens"]}
    if "seed" in options and re.search(r"\bseed\b", said):
        return {name: value for name, value in options.items() if name != "seed"}
    return None


def problem_of(error: openai.APIError, endpoint: Endpoint, key: str) -> Trouble | UserError:
    """What an error of the client means: Trouble of one request, or UserError that ends the run."""
    where = f"{endpoint.url} (model {endpoint.model})"
    if isinstance(error, openai.APITimeoutError):
        return Trouble(f"no whole answer within {endpoint.timeout:g} s")
    if not isinstance(error, openai.APIStatusError):
        return Trouble(f"no connection, or one that broke off ({_cause(error)})")
    status, names = error.status_code, _identifiers(error, key)
    said = f"status {status}" + "".join(f", {name}" for name in names)
    if status == 402 or set(names) & set(QUOTA):
        return UserError(f"{where}: the account has no credit or quota left ({said}); top it up; {KEPT}")
    if status == 401:
        remedy = f"put the right key into {KEY_VARIABLE}" if key else f"put a key into {KEY_VARIABLE}"
        return UserError(f"{where}: the key is not accepted ({said}); {remedy}; {KEPT}")
    if status == 403:
        return UserError(f"{where}: access is refused to this key or this model ({said}); check the account; {KEPT}")
    if status in (404, 405) or 300 <= status < 400:
        return UserError(
            f"{where}: no such model, or no chat completions at this address ({said}); check the model's name and "
            f"the address, which often ends in /v1; {KEPT}"
        )
    if status in _AGAIN or status >= 500:
        after = _retry_after(error.response.headers.get("retry-after", ""))
        if after is not None and after > LONGEST_WAIT:
            return UserError(f"{where}: asks to wait for {after:,.0f} s ({said}); start again then; {KEPT}")
        return Trouble(f"the endpoint answers {said}", after=after)
    if set(names) & set(FILTERED):
        return Trouble(f"the endpoint's filter refuses this content ({said})", "filtered")
    if status == 413 or _TOO_LONG.search(f"{' '.join(names)} {error.message}"):
        return Trouble(f"the request is too long for the model ({said})", "too long")
    return Trouble(f"the endpoint rejects the request ({said})", "rejected")


def _identifiers(error: openai.APIStatusError, key: str) -> list[str]:
    """Code, type and parameter of an error, where they look like identifiers."""
    values = [value for value in (error.code, error.type, error.param) if isinstance(value, str)]
    known = [value for value in values if _IDENTIFIER.fullmatch(value) and not (key and key in value)]
    return [name for name in dict.fromkeys(known) if name != str(error.status_code)]


def _cause(error: BaseException) -> str:
    """Why there was no connection, in the words of the system or of this module."""
    name, cause = "", error.__cause__
    while cause is not None:
        name = name or type(cause).__name__
        if isinstance(cause, ssl.SSLCertVerificationError):
            return f"certificate: {cause.verify_message}"
        if isinstance(cause, OSError) and cause.strerror:
            return cause.strerror
        cause = cause.__cause__ or cause.__context__
    return name or type(error).__name__


def _retry_after(value: str) -> float | None:
    """Seconds in a Retry-After header, which holds a number or a date; None where it says neither."""
    value = value.strip()
    if re.fullmatch(r"\d{1,9}(\.\d{1,9})?", value):
        return float(value)
    with contextlib.suppress(ValueError, TypeError):
        then = email.utils.parsedate_to_datetime(value)
        return max(0.0, (then.replace(tzinfo=then.tzinfo or UTC) - datetime.now(UTC)).total_seconds())
    return None


def _http_client(endpoint: Endpoint, key: str) -> httpx2.Client:
    """A client that sends to this address alone (no redirects), and reads no answer without end."""

    def before(request: httpx2.Request) -> None:
        for name in list(request.headers):
            if name.lower().startswith("openai-") or name.lower() == "authorization":
                del request.headers[name]
        if key:
            request.headers["Authorization"] = f"Bearer {key}"
        request.headers["Accept-Encoding"] = "identity"  # so that a small answer cannot become a large one

    def after(response: httpx2.Response) -> None:
        if response.headers.get("content-encoding", "identity").lower() != "identity":
            raise Trouble("the answer is compressed, though that was declined", "unusable")
        response.stream = _Bounded(response.stream, time.monotonic() + endpoint.timeout)

    return httpx2.Client(
        timeout=httpx2.Timeout(endpoint.timeout, connect=min(CONNECT_SECONDS, endpoint.timeout)),
        follow_redirects=False,
        trust_env=not is_local(endpoint.url),  # a proxy would send what is for this machine elsewhere
        event_hooks={"request": [before], "response": [after]},
    )


class _Bounded(httpx2.SyncByteStream):
    """The body of a response as far as it comes in time and is not too long."""

    def __init__(self, stream: Any, until: float) -> None:
        self._stream, self._until = stream, until

    def __iter__(self) -> Iterator[bytes]:
        size = 0
        for chunk in self._stream:
            size += len(chunk)
            if size > MOST_ANSWER_BYTES:
                raise Trouble(f"the answer is longer than {MOST_ANSWER_BYTES:,} bytes", "unusable")
            if time.monotonic() > self._until:
                raise httpx2.ReadTimeout("the answer takes too long")
            yield chunk

    def close(self) -> None:
        self._stream.close()
