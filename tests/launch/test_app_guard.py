"""Which requests the local pages answer, and what a browser may do with the answers."""

import pytest

pytest.importorskip("starlette", reason="the pages need the extra app: pip install 'medreport-jax[app]'")
from starlette.testclient import TestClient

from launch.app.models import Sources
from launch.app.pages import make_app

FORM = {"data": {"text": ""}, "files": {"none": (None, "")}}
ACCEPTED = 400  # the form is read, and has no report


@pytest.fixture(scope="module")
def client():
    with TestClient(make_app(Sources(), ["reading-room.local"]), base_url="http://127.0.0.1:8765") as client:
        yield client


@pytest.mark.parametrize(
    "host", ["127.0.0.1:8765", "localhost:9000", "LOCALHOST", "[::1]:8765", "192.168.1.5", "reading-room.local:8765"]
)
def test_its_own_names_and_numbers_are_answered(client, host):
    assert client.get("/", headers={"host": host}).status_code == 200


@pytest.mark.parametrize("host", ["evil.example", "127.0.0.1.evil.example", "localhost.evil.example:8765", "[", ""])
def test_a_foreign_host_is_refused(client, host):
    answer = client.get("/", headers={"host": host})
    assert answer.status_code == 403
    assert answer.text.startswith("Refused: the request names another host")


def test_its_own_form_is_taken(client):
    assert client.post("/", **FORM, headers={"origin": "http://127.0.0.1:8765"}).status_code == ACCEPTED
    # Through a tunnel the browser sees another port, and sends it in both headers.
    tunnel = {"host": "localhost:9000", "origin": "http://localhost:9000"}
    assert client.post("/", **FORM, headers=tunnel).status_code == ACCEPTED


@pytest.mark.parametrize(
    "origin", ["http://evil.example", "null", "", "http://127.0.0.1:8766", "http://127.0.0.1:8765.evil.example"]
)
def test_a_form_of_another_site_is_refused(client, origin):
    answer = client.post("/", **FORM, headers={"origin": origin})
    assert answer.status_code == 403
    assert answer.text == "Refused: the form was not sent by a page of this app.\n"


def test_a_form_without_an_origin_is_refused(client):
    assert client.post("/", **FORM).status_code == 403


@pytest.mark.parametrize("path", ["/", "/style.css", "/nothing"])
def test_every_answer_says_what_a_browser_may_do(client, path):
    headers = client.get(path).headers
    policy = dict(part.strip().split(" ", 1) for part in headers["content-security-policy"].split(";"))
    assert policy["default-src"] == "'none'"
    assert policy["script-src"] == policy["style-src"] == policy["form-action"] == "'self'"
    assert policy["frame-ancestors"] == "'none'"
    assert headers["x-content-type-options"] == "nosniff"
    assert headers["cache-control"] == "no-store"


def test_a_refusal_says_so_too(client):
    assert "content-security-policy" in client.get("/", headers={"host": "evil.example"}).headers
