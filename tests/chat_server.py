"""A real server on this machine that speaks chat completions, well or badly, as a test's script says."""

import contextlib
import json
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any


@dataclass(frozen=True)
class Reply:
    """What the server sends. `promised` is a Content-Length that differs from what comes."""

    body: bytes
    status: int = 200
    headers: dict[str, str] = field(default_factory=dict)
    promised: int | None = None


def answered(text: str, finish: str = "stop") -> Reply:
    """A whole answer."""
    message = {"role": "assistant", "content": text}
    usage = {"prompt_tokens": 10, "completion_tokens": 5, "total_tokens": 15}
    choices = [{"index": 0, "message": message, "finish_reason": finish}]
    whole = {"id": "1", "object": "chat.completion", "created": 1, "model": "m", "choices": choices, "usage": usage}
    return Reply(json.dumps(whole).encode())


def refused(status: int, code: str | None = None, message: str = "no", **more: Any) -> Reply:
    """An error as OpenAI words it; `headers` are the response's, all else is in the error."""
    headers = more.pop("headers", {})
    return Reply(json.dumps({"error": {"message": message, "code": code, **more}}).encode(), status, headers)


Script = Callable[[str, int], Reply]  # of the last message and the number of the request, from 1


@dataclass
class ChatServer:
    """A running server, and what it has seen."""

    url: str
    script: Script
    bodies: list[dict[str, Any]] = field(default_factory=list)
    headers: list[dict[str, str]] = field(default_factory=list)
    connections: int = 0
    in_flight: int = 0
    most_in_flight: int = 0
    lock: threading.Lock = field(default_factory=threading.Lock)

    @property
    def asked(self) -> list[str]:
        """The last message of each request, in the order of their coming."""
        return [body["messages"][-1]["content"] for body in self.bodies]


@contextlib.contextmanager
def chat_server(script: Script = lambda text, number: answered(text.upper())) -> Iterator[ChatServer]:
    """A server that answers as `script` says; by default with the last message in capitals."""

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"
        disable_nagle_algorithm = True  # which would wait 40 ms between headers and body

        def do_POST(self) -> None:
            body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            with seen.lock:
                seen.bodies.append(body)
                seen.headers.append({name.lower(): value for name, value in self.headers.items()})
                number = len(seen.bodies)
                seen.in_flight += 1
                seen.most_in_flight = max(seen.most_in_flight, seen.in_flight)
            try:
                known = self.path == "/v1/chat/completions"
                reply = seen.script(body["messages"][-1]["content"], number) if known else refused(404)
            finally:
                with seen.lock:
                    seen.in_flight -= 1
            with contextlib.suppress(OSError):  # the client has gone
                self.send_response(reply.status)
                for name, value in {"Content-Type": "application/json", **reply.headers}.items():
                    self.send_header(name, value)
                length = len(reply.body) if reply.promised is None else reply.promised
                self.send_header("Content-Length", str(length))
                self.end_headers()
                self.wfile.write(reply.body)
            self.close_connection = reply.promised is not None

        def log_message(self, *args: object) -> None:
            pass

    class Server(ThreadingHTTPServer):
        daemon_threads, block_on_close = True, False

        def verify_request(self, *args: object) -> bool:
            seen.connections += 1
            return True

        def handle_error(self, *args: object) -> None:
            pass

    with Server(("127.0.0.1", 0), Handler) as server:
        seen = ChatServer(f"http://127.0.0.1:{server.server_port}/v1", script)
        thread = threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True)
        thread.start()
        try:
            yield seen
        finally:
            server.shutdown()
            thread.join()
