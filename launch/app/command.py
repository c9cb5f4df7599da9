"""`medreport app`: the three systems on one local page, without a network."""

import contextlib
import importlib.util
import ipaddress
import socket
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from common.bounds import Within, bounded
from common.errors import MissingPackage, Parser, UserError
from common.io.terminal import say
from launch.app.models import Sources

INSTALL = "pip install 'medreport-jax[app]'"
PACKAGES = ("starlette", "uvicorn", "python_multipart")
PORT = Within(0, 65535)
MOST_CONNECTIONS = 32  # each may hold a form
SECONDS_TO_END = 2  # for answers under way

DESCRIPTION = """Standardize fundus reports, report radiographs, compare predictions and look at token weights in a
browser, with models that ship with the package or your own. Nothing is sent to a network, and nothing that is pasted
or uploaded is kept. For research: not a medical device, and not for diagnosis."""


def main(argv: list[str]) -> None:
    """Serve the pages until a signal comes. Raises UserError for options, models or an address that cannot be used."""
    parser = Parser("medreport app", description=DESCRIPTION)
    model = "{}; default: the small one that ships with the package"
    parser.add_argument(
        "--retsta", type=Path, metavar="DIR", help=model.format("a run of retsta train, its adapter/, or a model")
    )
    parser.add_argument(
        "--unicross", type=Path, metavar="DIR", help=model.format("a run of unicross train, or its model/")
    )
    parser.add_argument(
        "--labeler", default="phantom", metavar="PATH",
        help="chexbert.pth, a trained labeler, or 'phantom' (default), which knows phantom reports alone",
    )  # fmt: skip
    parser.add_argument("--labeler-tokenizer", type=Path, metavar="DIR", help="with the labeler's vocab.txt")
    parser.add_argument(
        "--tokenizer", type=Path, metavar="DIR", help="of the policy whose token weights are shown; default: shipped"
    )
    parser.add_argument("--host", default="127.0.0.1", metavar="ADDRESS", help="address to listen at (%(default)s)")
    parser.add_argument(
        "--port", type=bounded(PORT), default=8765, metavar="N", help="port to listen at; 0: any free one (%(default)s)"
    )
    chosen = parser.parse_args(argv)
    if missing := [name for name in PACKAGES if importlib.util.find_spec(name) is None]:
        raise MissingPackage(f"medreport app: {', '.join(missing)} not installed: {INSTALL}")
    sources = Sources(
        chosen.retsta, chosen.unicross, chosen.labeler, chosen.labeler_tokenizer, chosen.tokenizer
    )  # fmt: skip
    sources.check()
    with listening(chosen.host, chosen.port) as listener:
        serve(sources, listener, chosen.host)


def serve(sources: Sources, listener: socket.socket, host: str) -> None:
    """Answer requests that come to a socket until a signal comes."""
    import uvicorn

    from launch.app.pages import make_app

    port = listener.getsockname()[1]
    if not is_loopback(host):
        say(f"warning: {host} can be reached from other machines, and there is no password", error=True)
    config: Any = uvicorn.Config(
        make_app(sources, [host]),
        access_log=False,
        log_level="critical",  # `say_fault` reports errors, without what requests hold
        log_config=None,
        proxy_headers=False,
        server_header=False,
        ws="none",
        limit_concurrency=MOST_CONNECTIONS,
        timeout_graceful_shutdown=SECONDS_TO_END,
    )
    shown = f"[{host}]" if ":" in host else host
    say(f"medreport app: http://{shown}:{port}/ (Ctrl-C ends it). For research, not for diagnosis.")
    uvicorn.Server(config).run([listener])


@contextlib.contextmanager
def listening(host: str, port: int) -> Iterator[socket.socket]:
    """A socket at an address. Raises UserError where the address is not this machine's, or its port is taken."""
    try:
        family, *_, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
    except (OSError, UnicodeError) as error:
        raise UserError(f"--host {host}: not an address of this machine; expected one such as 127.0.0.1") from error
    with socket.socket(family, socket.SOCK_STREAM) as listener:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            listener.bind(address)
            listener.listen()
        except OSError as error:
            raise UserError(
                f"medreport app: cannot listen at {host}, port {port} ({error.strerror}); give another --port, or "
                "--port 0 for any free one"
            ) from error
        yield listener


def is_loopback(host: str) -> bool:
    """Whether only this machine reaches an address."""
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"
