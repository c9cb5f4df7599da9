"""An endpoint is asked in order, within limits, with consent alone, and never twice; whatever it answers is told."""

import logging
import os
import signal
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from common.command import run_cli
from common.endpoint import Answer, Endpoint, Message, Request, answering, asking, transport
from common.endpoint.limits import RateLimit
from common.endpoint.settings import KEY_VARIABLE
from common.errors import UserError
from tests.chat_server import Reply, answered, refused
from tests.endpoints import KEY, REPORT, FakeTime, ask, endpoint_of, texts_of, user_request

ROOT = Path(__file__).parents[2]


pytestmark = pytest.mark.usefixtures("endpoint_key")


# What is sent, and in which order the answers come.


def test_answers_come_in_order_from_so_many_requests_at_a_time(server, tmp_path):
    """Three must be in flight together before one is answered, the first last."""
    together, rest = threading.Barrier(3), threading.Event()

    def script(text, number):
        if number <= 3:
            together.wait(5)
        if text == "a":
            rest.wait(5)
        elif number == 9:
            rest.set()
        return answered(text.upper())

    server.script = script
    outcomes, error = ask("abcdefghi", endpoint_of(server, tmp_path, concurrency=3))
    assert (texts_of(outcomes), error, server.most_in_flight) == (list("ABCDEFGHI"), "", 3)


def test_a_request_asks_for_the_most_probable_answer(server, tmp_path):
    request = Request((Message("system", "Translate."), Message("user", "a")))
    with answering([request], endpoint_of(server, tmp_path, max_tokens=9)) as outcomes:
        assert list(outcomes) == [Answer("A", "stop", 10, 5)]
    assert server.bodies == [
        {
            "model": "m",
            "messages": [{"role": "system", "content": "Translate."}, {"role": "user", "content": "a"}],
            "temperature": 0,
            "seed": 0,
            "max_tokens": 9,
        }
    ]


class Taken(list):
    """Requests that know how many of them have been taken."""

    taken = 0

    def __iter__(self):
        self.taken = 0
        for request in super().__iter__():
            self.taken += 1
            yield request


def test_requests_are_taken_as_their_outcomes_are(server, tmp_path):
    requests = Taken(user_request(str(number)) for number in range(100))
    with answering(requests, endpoint_of(server, tmp_path)) as outcomes:
        assert next(outcomes).text == "0"
        assert requests.taken == asking.AHEAD
        assert next(outcomes).text == "1"
        assert requests.taken == asking.AHEAD + 1


def test_an_answer_that_reached_the_limit_is_told_also_from_the_cache(server, tmp_path):
    server.script = lambda text, number: answered("half", "length")
    for _ in range(2):
        (outcome,), _ = ask("a", endpoint_of(server, tmp_path))
        assert outcome.cut_off
    assert len(server.bodies) == 1


def test_an_answer_that_will_not_do_is_followed_up(server, tmp_path):
    def follow_up(request, answer):
        return user_request(answer.text + "!") if answer.text.count("!") < 2 else None

    for cached in (False, True):
        outcomes, _ = ask("ab", endpoint_of(server, tmp_path, concurrency=2), follow_up)
        assert outcomes == [Answer(letter + "!!", "stop", 10, 5, 3, cached) for letter in "AB"]
    assert len(server.bodies) == 6


# Consent.


def test_nothing_is_sent_without_consent(server, tmp_path):
    outcomes, error = ask([REPORT, "b"], endpoint_of(server, tmp_path, send_reports=False))
    assert (outcomes, server.connections) == ([], 0)
    assert "2 of 2 requests" in error
    assert server.url in error
    assert "--send-reports-to-endpoint" in error
    assert "Patient" not in error
    assert list(tmp_path.iterdir()) == []


def test_what_is_cached_needs_no_consent_and_what_follows_it_up_does(server, tmp_path):
    ask("ab", endpoint_of(server, tmp_path))
    before = server.connections
    silent = endpoint_of(server, tmp_path, send_reports=False)
    assert texts_of(ask("ab", silent)[0]) == ["A", "B"]
    outcomes, error = ask("ab", silent, lambda request, answer: user_request("more"))
    assert (outcomes, server.connections) == ([], before)
    assert "--send-reports-to-endpoint" in error


def test_the_sender_itself_refuses_without_consent(server, tmp_path):
    with (
        pytest.raises(UserError, match="consent"),
        transport.open_sender(endpoint_of(server, tmp_path, send_reports=False)),
    ):
        pass


def test_the_estimate_is_said_before_anything_is_sent(server, tmp_path, monkeypatch):
    said, sent_when_said = [], []

    def say(text, error):
        said.append(text)
        sent_when_said.append(len(server.bodies))

    monkeypatch.setattr(asking, "say", say)
    texts = ["a" * 1000, "高血压" * 100, "a" * 1000]
    ask(texts, endpoint_of(server, tmp_path, input_price=2.0, output_price=1e4))
    # 0.3 tokens for each of 1,000 characters, and 0.6 for each of 300; the answers are expected to be as long
    assert "2 of 3 requests" in said[0]
    assert "about 480 input and 480 output tokens, estimated from characters" in said[0]
    assert "about 4.80 at the prices given" in said[0]
    assert said[1] == (
        "endpoint: 2 requests sent, 2 answered; 20 input and 10 output tokens by the endpoint's count, 0.10 at the "
        "prices given"
    )
    assert sent_when_said == [0, 2]


# Nothing is paid twice.


def test_the_same_is_sent_once(server, tmp_path):
    endpoint = endpoint_of(server, tmp_path, concurrency=3)
    assert texts_of(ask("aabab", endpoint)[0]) == list("AABAB")
    assert texts_of(ask("abc", endpoint)[0]) == list("ABC")
    assert sorted(server.asked) == ["a", "b", "c"]


@pytest.mark.parametrize("changed", [{"seed": 1}, {"max_tokens": 7}, {"model": "other"}])
def test_what_decides_an_answer_is_asked_anew(changed, server, tmp_path):
    ask("a", endpoint_of(server, tmp_path))
    options = {"send_reports": True, "concurrency": 1, "requests_per_minute": 1000, "model": "m", **changed}
    ask("a", Endpoint(server.url, cache=tmp_path / "answers.sqlite", **options))
    assert len(server.bodies) == 2


ASKS = """
import sys
from pathlib import Path
from common.endpoint import Endpoint, Message, Request, answering
endpoint = Endpoint(sys.argv[1], "m", Path(sys.argv[2]), send_reports=True, requests_per_minute=1000, concurrency=2)
with answering([Request((Message("user", text),)) for text in "abcdef"], endpoint) as outcomes:
    for outcome in outcomes:
        print(outcome.text, flush=True)
"""


def test_after_a_kill_only_what_is_missing_is_sent(server, tmp_path):
    held, release = threading.Semaphore(0), threading.Event()

    def script(text, number):
        if number > 3:
            held.release()
            release.wait(10)
        return answered(text.upper())

    server.script = script
    endpoint = endpoint_of(server, tmp_path)
    command = [sys.executable, "-c", ASKS, server.url, str(endpoint.cache)]
    with subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as process:
        for _ in range(2):  # both are in flight, so the three before are in the cache
            assert held.acquire(timeout=60)
        process.kill()
    release.set()
    known = set(server.asked[:3])
    server.bodies.clear()
    assert texts_of(ask("abcdef", endpoint)[0]) == list("ABCDEF")
    assert set(server.asked) == set("abcdef") - known


@pytest.mark.parametrize(("number", "code"), [(signal.SIGTERM, 75), (signal.SIGINT, 130)])
def test_a_signal_ends_orderly_and_keeps_what_is_in_flight(number, code, server, tmp_path, capsys):
    def script(text, count):
        if count == 3:
            os.kill(os.getpid(), number)
        return answered(text.upper())

    server.script = script
    endpoint = endpoint_of(server, tmp_path)
    with pytest.raises(SystemExit) as stop:
        run_cli(lambda arguments: ask("abcdef", endpoint) and None, [])
    assert stop.value.code == code
    assert capsys.readouterr().err.splitlines()[-1] in ("error: terminated", "error: interrupted")
    assert server.asked == list("abc")
    assert texts_of(ask("abc", endpoint_of(server, tmp_path, send_reports=False))[0]) == list("ABC")


def test_a_signal_is_not_held_up_by_an_endpoint_that_is_silent(server, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(asking, "END_SECONDS", 0.1)
    release = threading.Event()

    def script(text, number):
        if number == 2:
            os.kill(os.getpid(), signal.SIGTERM)
            release.wait(10)
        return answered(text.upper())

    server.script = script
    endpoint = endpoint_of(server, tmp_path)
    with pytest.raises(SystemExit) as stop:
        run_cli(lambda arguments: ask("abc", endpoint) and None, [])
    assert not release.is_set()
    release.set()
    assert stop.value.code == 75
    assert capsys.readouterr().err.splitlines()[-1] == "error: terminated"
    assert texts_of(ask("a", endpoint_of(server, tmp_path, send_reports=False))[0]) == ["A"]


# How fast.


def test_no_minute_has_more_requests_than_allowed(server, tmp_path):
    time, came = FakeTime(), []

    def script(text, number):
        came.append(time.now())
        return refused(500) if number in (5, 6) else answered(text)

    server.script = script
    ask("abcdefghijklmnopqrst", endpoint_of(server, tmp_path, requests_per_minute=6), time=time)
    assert len(came) == 22
    assert all(sum(first <= when < first + 60 for when in came) <= 6 for first in came)


def test_turns_of_many_threads_are_spaced():
    time, stop, turns = FakeTime(), threading.Event(), []
    limit = RateLimit(30, time.clock)

    def work():
        for _ in range(10):
            limit.wait(stop)
            turns.append(limit._next)

    threads = [threading.Thread(target=work) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert time.now() >= 39 * 2.0


# The key.


def test_the_key_and_the_report_appear_nowhere(server, tmp_path, capsys, caplog, monkeypatch):
    caplog.set_level(logging.DEBUG)
    for name in ("OPENAI_API_KEY", "OPENAI_ORG_ID", "OPENAI_PROJECT_ID"):
        monkeypatch.setenv(name, "other")
    monkeypatch.setenv("OPENAI_CUSTOM_HEADERS", "Authorization: Bearer other")
    replies = [
        refused(400, KEY, f"{KEY} {REPORT}", type=f"x{KEY}", param=KEY),
        Reply(f"{KEY} {REPORT}".encode()),
        refused(500, KEY, REPORT),
        answered("fine"),
        refused(401, KEY, REPORT),
    ]
    server.script = lambda text, number: replies[number - 1]
    endpoint = endpoint_of(server, tmp_path)
    outcomes, error = ask([REPORT, "b", "c"], endpoint)
    assert {headers["authorization"] for headers in server.headers} == {f"Bearer {KEY}"}
    assert not any(name.startswith("openai-") for headers in server.headers for name in headers)
    shown = [repr(endpoint), repr(outcomes), error, *capsys.readouterr(), caplog.text]
    shown += [file.read_bytes().decode("latin-1") for file in tmp_path.rglob("*")]
    assert not any(secret in text for text in shown for secret in (KEY, REPORT, "Patient"))


def test_an_endpoint_on_this_machine_needs_no_key(server, tmp_path, monkeypatch):
    monkeypatch.delenv(KEY_VARIABLE)
    monkeypatch.setenv("OPENAI_API_KEY", "other")
    monkeypatch.setenv("HTTP_PROXY", "http://127.0.0.1:9")  # which would be another machine
    assert texts_of(ask("a", endpoint_of(server, tmp_path))[0]) == ["A"]
    assert "authorization" not in server.headers[0]


def test_identifiers_are_counted_before_anything_is_sent(server, tmp_path, capsys):
    pytest.importorskip("presidio_analyzer", reason="needs the extra deid")
    ask(["Discussed with Dr. Roe.", "Discussed with Dr. Roe.", "No effusion."], endpoint_of(server, tmp_path))
    error = capsys.readouterr().err
    assert "warning: 1 of 2 different texts to be sent seem to hold identifiers (name: 1)\n" in error
    assert "Roe" not in error
