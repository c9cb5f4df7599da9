"""An endpoint is asked in order, within limits, with consent alone, and never twice; whatever it answers is told."""

import datetime
import email.utils
import logging
import os
import signal
import socket
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from common.endpoint import Answer, Endpoint, Failure, Message, Request, answering, asking, transport
from common.endpoint.limits import Clock, RateLimit
from common.endpoint.protocol import user_request
from common.endpoint.settings import KEY_VARIABLE
from common.errors import UserError, run_cli
from tests.chat_server import ChatServer, Reply, answered, chat_server, refused

ROOT = Path(__file__).parents[2]
KEY = "sk-0123456789-secret"
REPORT = "Patient A. Blot haemorrhage of the left eye"


class FakeTime:
    """A clock that sleeping moves on, at once."""

    def __init__(self):
        self.time, self.slept, self.lock = 0.0, [], threading.Lock()

    def now(self):
        return self.time

    def sleep(self, seconds, stop):
        with self.lock:
            self.time += seconds
            self.slept.append(seconds)

    @property
    def clock(self):
        return Clock(self.now, self.sleep)


@pytest.fixture(autouse=True)
def _key(monkeypatch):
    monkeypatch.setenv(KEY_VARIABLE, KEY)


@pytest.fixture
def server():
    with chat_server() as running:
        yield running


def endpoint_of(server: ChatServer | str, folder: Path, **changed) -> Endpoint:
    url = server if isinstance(server, str) else server.url
    options = {"send_reports": True, "requests_per_minute": 1000, "concurrency": 1, "timeout": 5.0, **changed}
    return Endpoint(url, "m", folder / "answers.sqlite", **options)


def ask(texts, endpoint, follow_up=None, time=None):
    """All outcomes, and what is said of the UserError that ended them, if one did."""
    outcomes = []
    try:
        with answering(
            [user_request(text, answer_characters=len(text)) for text in texts],
            endpoint,
            follow_up,
            (time or FakeTime()).clock,
        ) as results:
            for outcome in results:
                outcomes.append(outcome)
    except UserError as error:
        return outcomes, str(error)
    return outcomes, ""


def texts_of(outcomes):
    return [outcome.text if isinstance(outcome, Answer) else outcome.kind for outcome in outcomes]


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
from common.endpoint import Endpoint, answering
from common.endpoint.protocol import user_request
endpoint = Endpoint(sys.argv[1], "m", Path(sys.argv[2]), send_reports=True, requests_per_minute=1000, concurrency=2)
with answering([user_request(text) for text in "abcdef"], endpoint) as outcomes:
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


# What goes wrong and may go right the next time.

GOOD = answered("A")
PASSING = {
    "too many requests": refused(429, "rate_limit_exceeded", headers={"Retry-After": "7"}),
    "too many requests, by a date": refused(429, headers={"Retry-After": "Wed, 21 Oct 2015 07:28:00 GMT"}),
    "timeout": refused(408),
    "conflict": refused(409),
    "server error": refused(500),
    "overloaded": Reply(b"<html>Bad gateway</html>", 502),
    "cut off": Reply(GOOD.body[:20], promised=len(GOOD.body)),
    "nothing": Reply(b""),
    "HTML": Reply(b"<html>Please log in</html>", headers={"Content-Type": "text/html"}),
    "half of JSON": Reply(GOOD.body[:-20]),
    "not a number": Reply(GOOD.body.replace(b'"created": 1', b'"created": NaN')),
    "not UTF-8": Reply(GOOD.body.replace(b'"A"', b'"\xff"')),
    "too deep": Reply(b"[" * 5000 + b"]" * 5000),
    "a list": Reply(b"[]"),
    "an error with status 200": Reply(b'{"error": {"message": "busy"}}'),
    "no choices": Reply(b'{"choices": []}'),
    "choices of another kind": Reply(b'{"choices": [[1]]}'),
    "no message": Reply(b'{"choices": [{"finish_reason": "stop"}]}'),
    "no text": Reply(b'{"choices": [{"message": {"content": null}}]}'),
    "blank text": answered("  \n"),
    "half a character": Reply(GOOD.body.replace(b'"A"', b'"\\ud800"')),
    "compressed": Reply(GOOD.body, headers={"Content-Encoding": "gzip"}),
}


@pytest.mark.parametrize("reply", PASSING.values(), ids=PASSING)
def test_a_passing_trouble_is_tried_again(reply, server, tmp_path):
    server.script = lambda text, number: reply if number == 1 else answered(text.upper())
    time = FakeTime()
    outcomes, error = ask("ab", endpoint_of(server, tmp_path), time=time)
    assert (texts_of(outcomes), error, len(server.bodies)) == (["A", "B"], "", 3)
    backoff = [seconds for seconds in time.slept if seconds >= 1]
    wanted = float(reply.headers.get("Retry-After", "0").partition(",")[0].removeprefix("Wed") or 0)
    assert len(backoff) == 1
    assert max(1.0, wanted) <= backoff[0] <= max(2.0, wanted)


class Restless(FakeTime):
    """A clock on which the first long sleep is none: who was told to wait does not."""

    def sleep(self, seconds, stop):
        if seconds < 50 or self.slept:
            super().sleep(seconds, stop)
        else:
            self.slept.append(seconds)


def test_nobody_sends_before_the_endpoint_said(server, tmp_path):
    time, came = Restless(), []

    def script(text, number):
        came.append(time.now())
        return refused(429, headers={"Retry-After": "50"}) if number == 1 else answered(text)

    server.script = script
    ask("a", endpoint_of(server, tmp_path), time=time)
    assert came[1] - came[0] >= 50


def test_waits_grow_and_attempts_are_bounded(server, tmp_path):
    server.script = lambda text, number: refused(503) if text == "a" else answered(text)
    time = FakeTime()
    outcomes, error = ask("ab", endpoint_of(server, tmp_path), time=time)
    assert (texts_of(outcomes), error) == (["service", "b"], "")
    assert server.asked == ["a"] * asking.ATTEMPTS + ["b"]
    backoff = [seconds for seconds in time.slept if seconds >= 1]
    assert all(2**n <= seconds <= 2**n + 1 for n, seconds in enumerate(backoff))
    assert texts_of(ask("ca", endpoint_of(server, tmp_path))[0]) == ["c", "service"]


def test_a_slow_endpoint_is_given_up_and_tried_again(server, tmp_path):
    release = threading.Event()

    def script(text, number):
        if number == 1:
            release.wait(10)
        return answered(text.upper())

    server.script = script
    outcomes, _ = ask("a", endpoint_of(server, tmp_path, timeout=0.2))
    release.set()
    assert (texts_of(outcomes), len(server.bodies)) == (["A"], 2)


def test_an_answer_may_not_take_for_ever(monkeypatch):
    """Each byte comes in time, all of them do not."""
    now = iter(range(100))
    monkeypatch.setattr(transport.time, "monotonic", lambda: next(now))
    with pytest.raises(transport.httpx2.ReadTimeout):
        list(transport._Bounded([b"x"] * 50, until=20))


def test_a_long_answer_is_not_read_to_its_end(server, tmp_path, monkeypatch):
    monkeypatch.setattr(transport, "MOST_ANSWER_BYTES", 5000)
    server.script = lambda text, number: answered(text * 5000 if text == "b" else text)
    outcomes, _ = ask("abc", endpoint_of(server, tmp_path))
    assert texts_of(outcomes) == ["a", "unusable", "c"]
    assert "5,000 bytes" in outcomes[1].reason


# What will not go right.

FINAL = {
    "wrong key": (refused(401, "invalid_api_key", f"Incorrect key: {KEY}"), "the key is not accepted"),
    "no access": (refused(403, KEY, REPORT), "access is refused"),
    "unknown model": (refused(404, "model_not_found"), "status 404, model_not_found"),
    "no credit": (refused(402), "no credit or quota left"),
    "over quota": (refused(429, "insufficient_quota", headers={"Retry-After": "1"}), "no credit or quota left"),
    "a longer wait than any": (refused(429, headers={"Retry-After": "86400"}), "asks to wait for 86,400 s"),
}


@pytest.mark.parametrize(("reply", "said"), FINAL.values(), ids=FINAL)
def test_what_holds_for_all_requests_ends_the_run_in_one_line(reply, said, server, tmp_path):
    server.script = lambda text, number: reply if number == 3 else answered(text.upper())
    outcomes, error = ask("abcdef", endpoint_of(server, tmp_path))
    assert texts_of(outcomes) == ["A", "B"]
    assert said in error
    assert not any(secret in error for secret in (KEY, REPORT))
    assert len(server.bodies) == 3
    server.script = lambda text, number: answered(text.upper())
    assert texts_of(ask("abcdef", endpoint_of(server, tmp_path))[0]) == list("ABCDEF")
    assert server.asked == list("abccdef")


def test_a_redirect_is_not_followed(server, tmp_path):
    with chat_server() as elsewhere:
        server.script = lambda text, number: Reply(b"", 307, {"Location": f"{elsewhere.url}/chat/completions"})
        assert "status 307" in ask("a", endpoint_of(server, tmp_path))[1]
    assert elsewhere.connections == 0


def test_one_refused_request_stops_no_other(server, tmp_path):
    replies = {
        "b": refused(400, "invalid_request_error", REPORT),
        "c": refused(400, None, "This model's maximum context length is 10 tokens"),
        "d": refused(400, "content_filter"),
        "e": answered("x", "content_filter"),
        "f": refused(413),
    }
    server.script = lambda text, number: replies.get(text, answered(text.upper()))
    outcomes, error = ask("abcdefg", endpoint_of(server, tmp_path))
    assert texts_of(outcomes) == ["A", "rejected", "too long", "filtered", "filtered", "too long", "G"]
    assert (error, len(server.bodies)) == ("", 7)
    assert outcomes[1] == Failure("the endpoint rejects the request (status 400, invalid_request_error)", "rejected")


def test_where_every_request_is_refused_the_run_ends(server, tmp_path):
    server.script = lambda text, number: refused(400, None, param="temperature", type="invalid_request_error")
    outcomes, error = ask("abcdefghijkl", endpoint_of(server, tmp_path))
    assert outcomes == []
    assert "5 requests in a row" in error
    assert "status 400, invalid_request_error, temperature" in error


def test_parameters_that_an_endpoint_does_not_take_are_left_out(server, tmp_path):
    def script(text, number):
        body = server.bodies[number - 1]
        if "seed" in body:
            return refused(422, None, "Extra inputs are not permitted: seed")
        return answered(text.upper())

    server.script = script
    assert texts_of(ask("abc", endpoint_of(server, tmp_path))[0]) == list("ABC")
    assert server.asked == list("aabc")


def test_the_newer_name_of_the_longest_answer_is_used_where_it_is_asked_for(server, tmp_path):
    def script(text, number):
        if "max_tokens" in server.bodies[number - 1]:
            return refused(400, "unsupported_parameter", "Use 'max_completion_tokens' instead.", param="max_tokens")
        return answered(text.upper())

    server.script = script
    assert texts_of(ask("ab", endpoint_of(server, tmp_path, max_tokens=7))[0]) == list("AB")
    assert [body.get("max_completion_tokens") for body in server.bodies] == [None, 7, 7]


def test_an_endpoint_that_is_down_is_one_line(tmp_path):
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        url = f"http://127.0.0.1:{taken.getsockname()[1]}/v1"  # where nobody listens
        time = FakeTime()
        outcomes, error = ask("abcdefghijklmnop", endpoint_of(url, tmp_path), time=time)
        assert outcomes == []
        assert "5 requests in a row got no usable answer" in error
        assert "Connection refused" in error
        assert "the only request" in ask("a", endpoint_of(url, tmp_path))[1]


def test_an_endpoint_that_goes_down_makes_no_failures(server, tmp_path):
    up = threading.Event()
    server.script = lambda text, number: answered(text.upper()) if text in "abc" or up.is_set() else refused(500)
    outcomes, error = ask("abcdefghijklmnop", endpoint_of(server, tmp_path))
    assert texts_of(outcomes) == list("ABC")
    assert "status 500" in error
    up.set()
    server.bodies.clear()
    # Also where so few are left that they are not five.
    assert texts_of(ask("abcdefghijklmnop", endpoint_of(server, tmp_path))[0]) == list("ABCDEFGHIJKLMNOP")
    up.clear()
    outcomes, error = ask("aybz", endpoint_of(server, tmp_path))
    assert texts_of(outcomes) == ["A"]
    assert "2 requests in a row" in error
    assert server.asked.count("d") == 1


class Patient(FakeTime):
    """A clock on which who waits to try again waits until the run ends."""

    def sleep(self, seconds, stop):
        super().sleep(seconds, stop)
        if seconds >= 1:
            assert stop.wait(10)


def test_what_waits_to_be_tried_again_is_given_up_where_the_run_ends(server, tmp_path):
    """Six requests wait after a server error when the seventh is told that the key is wrong."""
    together = threading.Barrier(7)

    def script(text, number):
        together.wait(5)
        return refused(401) if text == "g" else refused(500)

    server.script = script
    endpoint = endpoint_of(server, tmp_path, concurrency=7)
    outcomes, error = ask("abcdefg", endpoint, time=Patient())
    assert (outcomes, len(server.bodies)) == ([], 7)
    assert "the key is not accepted" in error


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


@pytest.mark.parametrize(
    ("value", "seconds"),
    [("0", 0.0), ("2.5", 2.5), ("-1", None), ("soon", None), ("", None), ("1e9", None), ("9" * 40, None)],
)
def test_retry_after_is_a_number_or_a_date(value, seconds):
    assert transport._retry_after(value) == seconds


def test_retry_after_counts_from_now():
    then = datetime.datetime.now(datetime.UTC) + datetime.timedelta(seconds=100)
    assert 90 < transport._retry_after(email.utils.format_datetime(then, usegmt=True)) <= 100
    assert transport._retry_after("Wed, 21 Oct 2015 07:28:00 GMT") == 0.0
