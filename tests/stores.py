"""Servers on this machine that speak the protocols of S3 and of Cloud Storage, and what tells clients of them."""

import contextlib
import logging
import socket
import threading
import uuid
from collections.abc import Iterator
from http import HTTPStatus
from http.server import ThreadingHTTPServer
from types import SimpleNamespace
from typing import Any, NamedTuple

import fsspec
import pytest
from gcp_storage_emulator import server
from gcp_storage_emulator.exceptions import NotFound
from gcp_storage_emulator.handlers import objects
from gcp_storage_emulator.server import Router, create_server
from moto.server import ThreadedMotoServer

from common.io.mirror import VARIABLE
from common.io.store_objects import file_system

SCHEMES = ("s3", "gs")


class Store(NamedTuple):
    """A bucket of its own for a test: `address` is `s3://BUCKET`; `system` is fsspec's."""

    address: str
    system: fsspec.AbstractFileSystem

    def names(self) -> list[str]:
        """The keys in the bucket."""
        self.system.invalidate_cache()
        return sorted(name.partition("/")[2] for name in self.system.find(self.address.partition("//")[2]))

    def write(self, key: str, content: bytes) -> None:
        """Put an object, as another machine would."""
        self.system.pipe_file(f"{self.address}/{key}", content)

    def read(self, key: str) -> bytes:
        """The content of an object."""
        return bytes(self.system.cat_file(f"{self.address}/{key}"))

    def remove(self, key: str) -> None:
        """Remove an object, or all below it."""
        self.system.invalidate_cache()
        self.system.rm(f"{self.address}/{key}", recursive=True)


@contextlib.contextmanager
def store_servers(environment: pytest.MonkeyPatch) -> Iterator[None]:
    """Both servers, named by the environment."""
    logging.getLogger("werkzeug").setLevel(logging.ERROR)
    environment.setattr(objects, "_multipart_upload", _only_if_absent(objects._multipart_upload))
    download = objects.download
    known = _with_generation(download)
    environment.setattr(objects, "download", known)
    routes = tuple(
        (path, {method: known if does is download else does for method, does in handlers.items()})
        for path, handlers in server.HANDLERS
    )
    environment.setattr(server, "HANDLERS", routes)
    environment.setattr(Router, "handle", _one_at_a_time(Router.handle))
    environment.setattr("gcp_storage_emulator.server.server", SimpleNamespace(HTTPServer=_Threads))
    moto = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    moto.start()
    host, port = moto.get_host_and_port()
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        gcs_port = free.getsockname()[1]
    gcs = create_server("127.0.0.1", gcs_port, in_memory=True)
    gcs.start()
    for name, value in {
        "AWS_ENDPOINT_URL": f"http://{host}:{port}",
        "AWS_ACCESS_KEY_ID": "nobody",
        "AWS_SECRET_ACCESS_KEY": "nothing",
        "AWS_DEFAULT_REGION": "us-east-1",
        "STORAGE_EMULATOR_HOST": f"http://127.0.0.1:{gcs_port}",
        "TENSORSTORE_GCS_HTTP_URL": f"http://127.0.0.1:{gcs_port}",
    }.items():
        environment.setenv(name, value)
    _forget_clients()
    try:
        yield
    finally:
        gcs.stop()
        moto.stop()
        _forget_clients()


def new_bucket(scheme: str) -> Store:
    """An empty bucket."""
    name = f"bucket-{uuid.uuid4().hex[:12]}"
    system = file_system(scheme)
    system.mkdir(name)
    return Store(f"{scheme}://{name}", system)


@contextlib.contextmanager
def machine(folder: object) -> Iterator[None]:
    """As on a machine whose copies are in this folder."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv(VARIABLE, str(folder))
        yield


def _forget_clients() -> None:
    """fsspec keeps them, with the addresses of servers that have ended."""
    for scheme in SCHEMES:
        fsspec.get_filesystem_class(scheme).clear_instance_cache()
    file_system.cache_clear()


class _Threads(ThreadingHTTPServer):
    """The emulator has one thread, which a connection that asks for nothing yet would hold."""

    daemon_threads = True

    def handle_error(self, *_: object) -> None:
        """Say nothing of clients that have ended."""


def _one_at_a_time(handle: Any) -> Any:
    lock = threading.Lock()

    def locked(*words: Any) -> None:
        with lock:
            handle(*words)

    return locked


def _with_generation(download: Any) -> Any:
    """The emulator's download of a generation, and with the header by which TensorStore knows what it has read."""

    def known(request: Any, response: Any, storage: Any, *words: Any) -> None:
        with contextlib.suppress(NotFound):
            found = storage.get_file_obj(request.params["bucket_name"], request.params["object_id"])
            if request.query.get("generation", [found["generation"]]) != [found["generation"]]:
                response.status = HTTPStatus.NOT_FOUND
                return
            response["x-goog-generation"] = found["generation"]
        download(request, response, storage, *words)

    return known


def _only_if_absent(upload: Any) -> Any:
    """The emulator's upload with the precondition `ifGenerationMatch=0`, which it does not know."""

    def checked(request: Any, response: Any, storage: Any) -> None:
        name = request.data["meta"]["name"]
        if request.query.get("ifGenerationMatch") == ["0"]:
            with contextlib.suppress(NotFound):
                storage.get_file_obj(request.params["bucket_name"], name)
                response.status = HTTPStatus.PRECONDITION_FAILED
                return
        upload(request, response, storage)

    return checked
