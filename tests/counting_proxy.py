"""A proxy in front of a server on this machine that counts what the server sends, and may cut it off or stall."""

import contextlib
import socket
import threading
from collections.abc import Iterator


class CountingProxy:
    """`sent` bytes of the server's have passed; after `most` of them connections are cut, or say nothing more."""

    def __init__(self, port: int):
        self.sent = 0
        self.most: int | None = None
        self.stalls = False
        self._server_port, self._lock = port, threading.Lock()
        self._listening = socket.create_server(("127.0.0.1", 0))
        self.port: int = self._listening.getsockname()[1]
        self._open: list[socket.socket] = [self._listening]
        threading.Thread(target=self._take, daemon=True).start()

    def close(self) -> None:
        """End all connections."""
        for one in self._open:
            with contextlib.suppress(OSError):
                one.shutdown(socket.SHUT_RDWR)
            one.close()

    def _take(self) -> None:
        with contextlib.suppress(OSError):
            while True:
                client = self._listening.accept()[0]
                server = socket.create_connection(("127.0.0.1", self._server_port))
                self._open += [client, server]
                threading.Thread(target=self._pass, args=(client, server, False), daemon=True).start()
                threading.Thread(target=self._pass, args=(server, client, True), daemon=True).start()

    def _pass(self, source: socket.socket, target: socket.socket, counted: bool) -> None:
        with contextlib.suppress(OSError):
            while content := source.recv(1 << 14):
                if counted:
                    with self._lock:
                        allowed = len(content) if self.most is None else max(0, self.most - self.sent)
                        self.sent += len(content)
                    content, cut = content[:allowed], allowed < len(content)
                    if cut and self.stalls:
                        target.sendall(content)
                        continue
                    if cut:
                        target.sendall(content)
                        break
                target.sendall(content)
        for one in (source, target):
            with contextlib.suppress(OSError):
                one.shutdown(socket.SHUT_RDWR)


@contextlib.contextmanager
def counting_proxy(port: int) -> Iterator[CountingProxy]:
    """A proxy while the block lasts."""
    proxy = CountingProxy(port)
    try:
        yield proxy
    finally:
        proxy.close()
