"""Endpoints of tests: a clock that needs no time, and what an endpoint answers to some texts."""

import threading
from pathlib import Path

from common.endpoint import Answer, Endpoint, Message, Request, answering
from common.endpoint.limits import Clock
from common.errors import UserError
from tests.chat_server import ChatServer

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


def endpoint_of(server: ChatServer | str, folder: Path, **changed) -> Endpoint:
    url = server if isinstance(server, str) else server.url
    options = {"send_reports": True, "requests_per_minute": 1000, "concurrency": 1, "timeout": 5.0, **changed}
    return Endpoint(url, "m", folder / "answers.sqlite", **options)


def user_request(text: str, answer_characters: int | None = None) -> Request:
    return Request((Message("user", text),), answer_characters)


def ask(texts, endpoint, follow_up=None, time=None):
    """All outcomes, and what is said of the UserError that ended them, if one did."""
    outcomes = []
    try:
        with answering(
            [user_request(text, len(text)) for text in texts],
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
