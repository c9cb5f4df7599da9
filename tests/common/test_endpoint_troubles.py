"""What an endpoint does wrong is tried again, told of one request, or one line that ends the run; nothing is lost."""

import datetime
import email.utils
import socket
import threading

import pytest

from common.endpoint import Failure, asking, transport
from tests.chat_server import Reply, answered, chat_server, refused
from tests.endpoints import KEY, REPORT, FakeTime, ask, endpoint_of, texts_of

pytestmark = pytest.mark.usefixtures("endpoint_key")


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
