"""The options of an OpenAI-compatible endpoint, shared by all commands.

Report text and images are patient data: nothing is sent without --send-reports-to-endpoint. The key is read from the
environment when a connection is opened and is not stored in any field, so that no config, log, cache or page can
contain it.
"""

import argparse
import importlib.util
import ipaddress
import os
import re
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import urlsplit

from common.bounds import FEW, MOST, Within, bounded
from common.errors import UserError
from common.io.terminal import printable
from common.options import Needs

KEY_VARIABLE = "MEDREPORT_ENDPOINT_KEY"
CONSENT = "--send-reports-to-endpoint"
REQUESTS_PER_MINUTE, CONCURRENCY, TIMEOUT = 60, 4, 120.0
_PACKAGES = ("openai", "httpx2", "tenacity")  # of the extra `endpoint`
_OPTIONS = (  # which say nothing without --endpoint
    *("endpoint_model", "send_reports_to_endpoint", "requests_per_minute", "endpoint_concurrency", "endpoint_timeout"),
    *("endpoint_cache", "price_per_million_input", "price_per_million_output"),
)


@dataclass(frozen=True)
class Endpoint:
    """An endpoint, its model, and how it is asked. Made by `endpoint_settings`, which checks it."""

    url: str  # without "/chat/completions"
    model: str
    cache: Path  # a file of answers, which are patient data
    send_reports: bool = False  # the user's consent
    max_tokens: int = 1024  # of an answer
    seed: int = 0
    requests_per_minute: int = REQUESTS_PER_MINUTE
    concurrency: int = CONCURRENCY  # requests in flight
    timeout: float = TIMEOUT  # seconds without a byte, and seconds for all of an answer once it has begun
    input_price: float | None = None  # of a million tokens
    output_price: float | None = None


def local_needs(**reasons: str) -> tuple[Needs, ...]:
    """Options that have no effect where an endpoint writes: `mesh`, `draft`, and others with the reason of each."""
    known = {"mesh": "nothing is generated on this machine", "draft": "the endpoint drafts as it is set up to"}
    return tuple(Needs(name, give=f"{why}; leave it out") for name, why in (known | reasons).items())


def add_endpoint_options(parser: argparse.ArgumentParser) -> None:
    """Add the options of `endpoint_settings` to a command."""
    group = parser.add_argument_group(
        "endpoint", f"A model behind an OpenAI-compatible endpoint; the key is read from {KEY_VARIABLE} only."
    )
    price = bounded(Within(0, 1e6), float)
    group.add_argument("--endpoint", metavar="URL", help="base address, such as https://api.deepseek.com/v1")
    group.add_argument("--endpoint-model", metavar="NAME", help="the model's name there")
    group.add_argument(
        CONSENT,
        action="store_true",
        default=None,
        help="send patient data to the endpoint: report text, and the images of commands that read images; without "
        "this nothing leaves the machine",
    )
    group.add_argument(
        "--requests-per-minute",
        type=bounded(Within(1, MOST)),
        metavar="N",
        help=f"maximum number, including repeated requests; default: {REQUESTS_PER_MINUTE}",
    )
    group.add_argument(
        "--endpoint-concurrency",
        type=bounded(FEW),
        metavar="N",
        help=f"requests in flight at a time; default: {CONCURRENCY}",
    )
    group.add_argument(
        "--endpoint-timeout",
        type=bounded(Within(0, 3600, above=True), float),
        metavar="SECONDS",
        help=f"for one request; default: {TIMEOUT:.0f}",
    )
    group.add_argument(
        "--endpoint-cache",
        type=Path,
        metavar="FILE",
        help="SQLite file of answers, so that nothing is paid twice; contains patient data, readable by you only; "
        "default: in the run directory, or beside the output",
    )
    group.add_argument(
        "--price-per-million-input", type=price, metavar="PRICE", help="of input tokens, for the estimate"
    )
    group.add_argument(
        "--price-per-million-output", type=price, metavar="PRICE", help="of output tokens, for the estimate"
    )


def endpoint_settings(
    chosen: argparse.Namespace, cache: Path | None = None, max_tokens: int = Endpoint.max_tokens
) -> Endpoint | None:
    """The endpoint that the options name, or None where they name none.

    `cache` is the file of answers where --endpoint-cache names none, `max_tokens` the longest answer. Raises UserError
    for a bad address, a missing model, cache, key or package, and for options that have no effect.
    """
    given = [name for name in _OPTIONS if getattr(chosen, name) is not None]
    if chosen.endpoint is None:
        if given:
            flags = ", ".join("--" + name.replace("_", "-") for name in given)
            raise UserError(f"{flags}: not used without --endpoint; give --endpoint URL, or leave it out")
        return None
    url, model, file = checked_url(chosen.endpoint), chosen.endpoint_model, chosen.endpoint_cache or cache
    if model is None or not model.strip() or not model.isprintable():
        raise UserError("--endpoint: the model's name is missing; give --endpoint-model NAME")
    if file is None:
        raise UserError("--endpoint: no file for the answers; give --endpoint-cache FILE")
    prices = chosen.price_per_million_input, chosen.price_per_million_output
    if (prices[0] is None) != (prices[1] is None):
        raise UserError("--price-per-million-input and --price-per-million-output: give both, or neither")
    check_installed()
    if chosen.send_reports_to_endpoint:
        endpoint_key(url)
    return Endpoint(
        url,
        model.strip(),
        file,
        bool(chosen.send_reports_to_endpoint),
        max_tokens,
        requests_per_minute=chosen.requests_per_minute or REQUESTS_PER_MINUTE,
        concurrency=chosen.endpoint_concurrency or CONCURRENCY,
        timeout=chosen.endpoint_timeout or TIMEOUT,
        input_price=prices[0],
        output_price=prices[1],
    )


def check_installed() -> None:
    """Raise UserError where the packages of the extra are missing."""
    if missing := [name for name in _PACKAGES if importlib.util.find_spec(name) is None]:
        raise UserError(
            f"--endpoint: {', '.join(missing)} not installed: pip install 'medreport-jax[endpoint]', or leave "
            "--endpoint out"
        )


def checked_url(text: str) -> str:
    """An endpoint's base address in one form. Raises UserError, and shows no part that may hold a key."""
    expected = "expected the base address, such as https://api.deepseek.com/v1"
    try:
        parts = urlsplit(text.strip())
        port = parts.port
    except ValueError:
        raise UserError(f"--endpoint: not an address; {expected}") from None
    if "@" in parts.netloc or parts.query or parts.fragment:
        raise UserError(
            f"--endpoint: contains a user, a key or parameters; {expected}, and put the key into {KEY_VARIABLE}"
        )
    if parts.scheme not in ("http", "https") or not parts.hostname or not re.fullmatch(r"[!-~]+", text.strip()):
        raise UserError(f"--endpoint {printable(text)}: not an http or https address; {expected}")
    host = f"[{parts.hostname}]" if ":" in parts.hostname else parts.hostname
    path = parts.path.rstrip("/").removesuffix("/chat/completions")
    return f"{parts.scheme}://{host}{f':{port}' if port else ''}{path}"


def is_local(url: str) -> bool:
    """Whether an endpoint runs on this machine."""
    host = urlsplit(url).hostname or ""
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


def endpoint_key(url: str) -> str:
    """The key of an endpoint, "" where one on this machine needs none. Raises UserError, which never shows it."""
    key = os.environ.get(KEY_VARIABLE, "").strip()
    if not key and not is_local(url):
        raise UserError(f"{KEY_VARIABLE}: not set; put the key of {url} into this environment variable")
    if key and not re.fullmatch(r"[!-~]+", key):
        raise UserError(
            f"{KEY_VARIABLE}: contains spaces or characters that are not valid in a key; copy the key again"
        )
    return key
