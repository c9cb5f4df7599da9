"""The options of an endpoint: what is missing, wrong or without effect is one line, which shows no key."""

import importlib.util
from pathlib import Path

import pytest

from common.command import run_cli
from common.endpoint import Endpoint, add_endpoint_options, answering, endpoint_settings, settings
from common.endpoint.settings import CONSENT, KEY_VARIABLE, checked_url, is_local
from common.errors import Parser, UserError
from tests.endpoints import user_request

URL = "https://api.example.org/v1"


pytestmark = pytest.mark.usefixtures("endpoint_key")


def parsed(*words, cache=Path("answers.sqlite"), **more):
    options = Parser("command")
    add_endpoint_options(options)
    return endpoint_settings(options.parse_args(words), cache, **more)


def refusal(*words, **more):
    with pytest.raises(UserError) as error:
        parsed(*words, **more)
    assert "secret" not in str(error.value)
    return str(error.value)


def test_options_become_settings():
    assert parsed() is None
    assert parsed("--endpoint", URL, "--endpoint-model", "m") == Endpoint(URL, "m", Path("answers.sqlite"))
    words = (
        f"--endpoint {URL} --endpoint-model m {CONSENT} --requests-per-minute 5 --endpoint-concurrency 2 "
        "--endpoint-timeout 7.5 --endpoint-cache c --price-per-million-input 0 --price-per-million-output 2"
    )
    assert parsed(*words.split(), max_tokens=9) == Endpoint(URL, "m", Path("c"), True, 9, 0, 5, 2, 7.5, 0.0, 2.0)


@pytest.mark.parametrize(
    ("words", "said"),
    [
        ("--endpoint-model m --requests-per-minute 3", "--endpoint-model, --requests-per-minute: not used without"),
        (CONSENT, f"{CONSENT}: not used without --endpoint"),
        (f"--endpoint {URL}", "give --endpoint-model NAME"),
        (f"--endpoint {URL} --endpoint-model=", "give --endpoint-model NAME"),
        (f"--endpoint {URL} --endpoint-model m --price-per-million-input 1", "give both, or neither"),
        (f"--endpoint {URL} --endpoint-model m --requests-per-minute 0", "must be at least 1"),
        (f"--endpoint {URL} --endpoint-model m --endpoint-timeout nan", "must be above 0"),
    ],
)
def test_what_is_missing_or_has_no_effect_is_said(words, said):
    assert said in refusal(*words.split())


def test_a_place_for_the_answers_is_needed():
    assert "give --endpoint-cache" in refusal("--endpoint", URL, "--endpoint-model", "m", cache=None)


@pytest.mark.parametrize(
    ("address", "url"),
    [
        ("https://api.example.org/v1/", URL),
        ("https://API.example.org/v1/chat/completions", URL),
        ("http://localhost:8000/v1", "http://localhost:8000/v1"),
        ("http://[::1]:8000", "http://[::1]:8000"),
    ],
)
def test_an_address_has_one_form(address, url):
    assert checked_url(address) == url


@pytest.mark.parametrize(
    "address",
    [
        *("api.example.org/v1", "ftp://api.example.org", "https://", "https://host:port/v1", "https://[::1/v1", ""),
        *("https://user:secret@host/v1", "https://host/v1?key=secret", "https://host/v1#secret", "https://a b/v1"),
        "https://host/\u202ev1",
    ],
)
def test_a_bad_address_is_refused_without_its_secrets(address):
    assert "--endpoint" in refusal("--endpoint", address, "--endpoint-model", "m")


@pytest.mark.parametrize(
    ("url", "local"),
    [
        ("http://127.0.0.1:1/v1", True),
        ("http://127.8.0.1/v1", True),
        ("http://[::1]/v1", True),
        ("http://localhost/v1", True),
        ("http://10.0.0.1/v1", False),
        ("http://localhost.example.org/v1", False),
        ("http://127.0.0.1.example.org/v1", False),
    ],
)
def test_this_machine_is_told_from_others(url, local):
    assert is_local(url) is local


@pytest.mark.parametrize("key", ["", "  ", "secret\nHeader: x", "secret key", "secrét"])
def test_a_missing_or_broken_key_is_one_line(key, monkeypatch):
    monkeypatch.setenv(KEY_VARIABLE, key)
    assert KEY_VARIABLE in refusal("--endpoint", URL, "--endpoint-model", "m", CONSENT)


def test_without_consent_no_key_is_asked_for(monkeypatch):
    monkeypatch.delenv(KEY_VARIABLE)
    assert parsed("--endpoint", URL, "--endpoint-model", "m")


def test_a_missing_package_is_one_line(monkeypatch):
    found = importlib.util.find_spec
    monkeypatch.setattr(settings.importlib.util, "find_spec", lambda name: found(name) if name != "openai" else None)
    said = refusal("--endpoint", URL, "--endpoint-model", "m")
    assert said.startswith("--endpoint: openai not installed: pip install 'medreport-jax[endpoint]'")


@pytest.mark.parametrize("consent", [False, True])
def test_a_command_without_consent_ends_in_one_line(consent, server, tmp_path, capsys):
    def main(arguments):
        endpoint = parsed(*arguments, cache=tmp_path / "answers.sqlite")
        with answering([user_request("Patient A")] * 3 + [user_request("Patient B")], endpoint) as outcomes:
            print(*(outcome.text for outcome in outcomes), sep="\n")

    words = ["--endpoint", server.url, "--endpoint-model", "m", *[CONSENT] * consent]
    with pytest.raises(SystemExit) as stop:
        run_cli(main, words)
    out, err = capsys.readouterr()
    if consent:
        assert (stop.value.code, out, len(server.bodies)) == (0, "PATIENT A\n" * 3 + "PATIENT B\n", 2)
    else:
        assert (stop.value.code, out, server.connections) == (2, "", 0)
        assert err.count("\n") == 1
        assert f"give {CONSENT}" in err
