"""What stands before every page: the names it answers to, whose forms it takes, and what a browser may do with it.

A page of another site cannot read the app through a name of its own that points here (DNS rebinding: `Host` is
checked), cannot send it a form (`Origin` must be the app's own), cannot frame it, and no page of the app loads or runs
anything that the app itself has not sent.
"""

import ipaddress
import socket
from collections.abc import Collection
from urllib.parse import urlsplit

from starlette.datastructures import Headers, MutableHeaders
from starlette.responses import PlainTextResponse
from starlette.types import ASGIApp, Message, Receive, Scope, Send

SAFE_METHODS = ("GET", "HEAD")
HEADERS = {
    "Content-Security-Policy": (
        "default-src 'none'; style-src 'self'; script-src 'self'; img-src data:; form-action 'self'; "
        "base-uri 'none'; frame-ancestors 'none'"
    ),
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Referrer-Policy": "same-origin",  # with "no-referrer" browsers would send forms without their origin
    "X-Content-Type-Options": "nosniff",
    "X-Frame-Options": "DENY",
    "Cache-Control": "no-store",  # pages hold reports
}


class Guard:
    """An ASGI application around another, which sees only requests that it may answer."""

    def __init__(self, app: ASGIApp, names: Collection[str] = ()):
        self.app = app
        self.names = {"localhost", socket.gethostname().lower(), *(name.lower() for name in names)}

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer a request, or refuse it."""
        if scope["type"] != "http":
            if scope["type"] == "lifespan":
                await self.app(scope, receive, send)
            return

        async def send_guarded(message: Message) -> None:
            if message["type"] == "http.response.start":
                MutableHeaders(scope=message).update(HEADERS)
            await send(message)

        refused = self._refusal(Headers(scope=scope), scope["method"])
        app = PlainTextResponse(f"{refused}\n", 403) if refused else self.app
        await app(scope, receive, send_guarded)

    def _refusal(self, headers: Headers, method: str) -> str:
        """Why a request is refused, or nothing."""
        hosts = headers.getlist("host")
        if len(hosts) != 1 or not self._is_own(hosts[0]):
            return "Refused: the request names another host than this app. Open the address that the app printed."
        origin = headers.get("origin", "")
        if method not in SAFE_METHODS and urlsplit(origin).netloc.lower() != hosts[0].lower():
            return "Refused: the form was not sent by a page of this app."
        return ""

    def _is_own(self, host: str) -> bool:
        """Whether a Host header names this machine; a number cannot be pointed elsewhere, as a name can."""
        try:
            name = (urlsplit(f"//{host}").hostname or "").lower()
        except ValueError:
            return False
        if name in self.names:
            return True
        try:
            ipaddress.ip_address(name)
        except ValueError:
            return False
        return True
