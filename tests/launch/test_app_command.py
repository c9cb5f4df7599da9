"""`medreport app`: its address, its options, and how it ends."""

import os
import re
import signal
import socket
import subprocess
import sys
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager

import pytest

from common.errors import UserError
from launch.app import command

pytest.importorskip("uvicorn", reason="the pages need the extra app: pip install 'medreport-jax[app]'")
SECONDS = 60


@contextmanager
def running() -> Iterator[tuple[subprocess.Popen, str]]:
    """The app in a process of its own, and its address."""
    program = [sys.executable, "-m", "launch.cli", "app", "--port", "0"]
    environment = {**os.environ, "XLA_FLAGS": ""}
    with subprocess.Popen(
        program, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=environment
    ) as process:
        try:
            assert process.stdout is not None
            address = re.search(r"http://127\.0\.0\.1:\d+/", process.stdout.readline())
            assert address
            yield process, address[0]
        finally:
            process.kill()


@pytest.mark.parametrize(("number", "code", "word"), [("SIGINT", 130, "interrupted"), ("SIGTERM", 75, "terminated")])
def test_a_signal_ends_it_and_no_request_was_logged(number, code, word):
    with running() as (process, address):
        with urllib.request.urlopen(f"{address}?report=secret", timeout=SECONDS) as answer:
            assert answer.status == 200
        with pytest.raises(urllib.error.HTTPError):
            urllib.request.urlopen(f"{address}secret", timeout=SECONDS)
        process.send_signal(getattr(signal, number))
        out, error = process.communicate(timeout=SECONDS)
        assert process.returncode == code
        assert out == ""
        assert error == f"error: {word}\n"


def test_a_signal_ends_it_while_it_computes():
    with running() as (process, address):
        host, port = address.removeprefix("http://").rstrip("/").split(":")
        with socket.create_connection((host, int(port)), timeout=SECONDS) as browser:
            form = b'--x\r\nContent-Disposition: form-data; name="text"\r\n\r\nOD: secret drusen\r\n--x--\r\n'
            lines = [
                "POST / HTTP/1.1", f"Host: {host}:{port}", f"Origin: {address[:-1]}", f"Content-Length: {len(form)}",
                "Content-Type: multipart/form-data; boundary=x", "", "",
            ]  # fmt: skip
            browser.sendall("\r\n".join(lines).encode() + form)
            with urllib.request.urlopen(f"{address}style.css", timeout=SECONDS):
                pass  # by now the form, which came before, is worked on: its model takes seconds to load
            process.send_signal(signal.SIGINT)
            _, error = process.communicate(timeout=SECONDS)
    assert process.returncode == 130
    assert error == "error: interrupted\n"


def test_a_port_that_is_taken_is_one_line():
    with socket.socket() as other:
        other.bind(("127.0.0.1", 0))
        other.listen()
        port = other.getsockname()[1]
        with pytest.raises(
            UserError, match=rf"cannot listen at 127.0.0.1, port {port} \(Address already in use\); give"
        ):
            command.main(["--port", str(port)])


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--retsta", "nowhere"], "--retsta nowhere: no such directory"),
        (["--labeler-tokenizer", "nowhere"], "--labeler-tokenizer nowhere: no such directory"),
        (["--labeler", "nowhere"], "nowhere: no such labeler"),
        (["--port", "70000"], "argument --port"),
        (["--host", "256.1.1.1"], "--host 256.1.1.1: not an address of this machine"),
        (["--host", "203.0.113.1", "--port", "0"], "cannot listen at 203.0.113.1"),
    ],
)
def test_what_cannot_be_used_is_one_line(words, said):
    with pytest.raises(UserError, match=re.escape(said)):
        command.main(words)


def test_a_package_that_is_missing_is_named(monkeypatch):
    monkeypatch.setattr(command, "PACKAGES", ("starlette", "a_package_that_is_not_there"))
    with pytest.raises(
        UserError, match=r"a_package_that_is_not_there not installed: pip install 'medreport-jax\[app\]'"
    ):
        command.main([])


def test_an_address_that_others_reach_is_told_apart():
    assert [command.is_loopback(host) for host in ("127.0.0.1", "::1", "localhost", "0.0.0.0", "192.168.1.5")] == [
        True, True, True, False, False,
    ]  # fmt: skip
