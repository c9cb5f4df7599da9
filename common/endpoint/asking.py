"""Many requests to an endpoint: a few at a time, each answer stored before it is used, all in the order of the input.

Worker threads send; the main thread hands out the answers. All retries are here (`_Asking.fetch`).
"""

import contextlib
import dataclasses
import itertools
import queue
import threading
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future
from typing import TYPE_CHECKING, Any

from common.data.identifiers import warn_of_identifiers
from common.endpoint.cache import AnswerCache, open_cache
from common.endpoint.cost import Estimate, contents, estimate, estimate_text, price_of
from common.endpoint.limits import Clock, RateLimit
from common.endpoint.protocol import Answer, Failure, Outcome, Request, Trouble, request_key
from common.endpoint.settings import CONSENT, Endpoint, check_installed
from common.errors import UserError
from common.io.terminal import say

if TYPE_CHECKING:
    from common.endpoint.transport import Send

ATTEMPTS = 6  # for one request
FIRST_BACKOFF, LONGEST_BACKOFF = 1.0, 60.0  # seconds; doubled each time, with up to a second of jitter
FAILURES_IN_A_ROW = 5  # after which an endpoint is taken to be down
MOST_FOLLOW_UPS = 10  # for one request
AHEAD = 4  # requests under way for each in flight, so that a slow one holds up no other
END_SECONDS = 5.0  # for what is in flight when a command ends, and is paid for

FollowUp = Callable[[Request, Answer], Request | None]


@contextlib.contextmanager
def answering(
    requests: Sequence[Request],
    endpoint: Endpoint,
    follow_up: FollowUp | None = None,
    clock: Clock | None = None,
) -> Iterator[Iterator[Outcome]]:
    """The outcomes of requests, in their order, as they are taken; what is in the cache is not sent.

    First one line on standard error says what will be sent and about what it costs, and one what identifiers of people
    seem to be in it; the last line says what was sent.
    `follow_up` looks at a request and its answer, in a worker thread, and returns another request to be sent in its
    place (such as one that names what the answer lacks), or None where the answer will do.

    A request that the endpoint refuses is a Failure and stops no other. Raises UserError, before anything is sent,
    without the user's consent; while the outcomes are taken, where the endpoint refuses all requests (key, model,
    quota) or is down. The cache then has all that was answered: no outcome is lost, and none is a Failure because the
    endpoint was down for longer than the retries take.
    """
    check_installed()
    clock = clock or Clock()
    if not endpoint.send_reports and not endpoint.cache.exists():  # a refused command leaves no file
        _check_consent(endpoint, estimate(requests, lambda request: False, endpoint.max_tokens))
    with open_cache(endpoint.cache) as cache:

        def is_known(request: Request) -> bool:
            return cache.get(request_key(endpoint, request)) is not None

        plan = estimate(requests, is_known, endpoint.max_tokens)
        _check_consent(endpoint, plan)
        if plan.unsent:
            say("endpoint: " + estimate_text(endpoint, plan), error=True)
            texts = dict.fromkeys(_last_text(request) for request in requests if not is_known(request))
            warn_of_identifiers(texts, "different texts to be sent")
        with contextlib.ExitStack() as stack:
            send = None
            if endpoint.send_reports and (
                plan.unsent or follow_up
            ):  # the one place where something is opened that could send
                from common.endpoint.transport import open_sender

                send = stack.enter_context(open_sender(endpoint))
            asking = _Asking(endpoint, cache, send, follow_up, clock)
            try:
                yield asking.outcomes(requests)
            finally:
                asking.end()
                if asking.sent:
                    say("endpoint: " + asking.summary(), error=True)


def _last_text(request: Request) -> str:
    """What a request says last: a report, after instructions. Of images nothing is known here."""
    return "\n".join(part for part in request.messages[-1].parts if isinstance(part, str))


def _check_consent(endpoint: Endpoint, plan: Estimate) -> None:
    """Raise UserError where something is to be sent and the user did not say that it may be."""
    if plan.unsent and not endpoint.send_reports:
        raise UserError(
            f"{estimate_text(endpoint, plan)}; they contain {contents(plan)} and so patient data: nothing was sent; "
            f"give {CONSENT} if it may be sent"
        )


class _Asking:
    """What the threads of one call of `answering` share."""

    def __init__(
        self, endpoint: Endpoint, cache: AnswerCache, send: "Send | None", follow_up: FollowUp | None, clock: Clock
    ) -> None:
        self.endpoint, self.cache, self.send, self.follow_up, self.clock = endpoint, cache, send, follow_up, clock
        self.limit = RateLimit(endpoint.requests_per_minute, clock)
        self.stop = threading.Event()
        self.error: BaseException | None = None  # that ends the run
        self.sent = self.answered = self.input_tokens = self.output_tokens = 0
        self._jobs: queue.SimpleQueue[tuple[Request, Future[Outcome]] | None] = queue.SimpleQueue()
        self._lock, self._in_flight = threading.Lock(), dict[str, threading.Lock]()
        # Daemons: a command that ends waits for no endpoint.
        self._threads = [
            threading.Thread(target=self._work, name="endpoint", daemon=True) for _ in range(endpoint.concurrency)
        ]
        for thread in self._threads:
            thread.start()

    def outcomes(self, requests: Iterable[Request]) -> Iterator[Outcome]:
        """See `answering`. What follows a failure waits until the endpoint has shown that it is not down."""
        waiting: list[Outcome] = []
        failures: list[Failure] = []  # those that wait
        answered = answered_now = False  # ever, the cache included; in this run
        for outcome in self._in_order(requests):
            waiting.append(outcome)
            if isinstance(outcome, Answer):
                answered, answered_now = True, answered_now or not outcome.cached
                if failures and outcome.cached:
                    continue
            elif outcome.kind in ("service", "unusable") or (outcome.kind == "rejected" and not answered):
                failures.append(outcome)
                if len(failures) >= FAILURES_IN_A_ROW:
                    raise self._is_down(failures)
                continue
            yield from waiting
            waiting.clear()
            failures.clear()
        kinds = {failure.kind for failure in failures}
        if failures and not answered_now and ("service" in kinds or not answered):
            raise self._is_down(failures)
        yield from waiting

    def _is_down(self, failures: Sequence[Failure]) -> UserError:
        count = f"{len(failures)} requests in a row" if len(failures) > 1 else "the only request"
        return UserError(
            f"{self.endpoint.url} (model {self.endpoint.model}): {count} got no usable answer, the last because "
            f"{failures[-1].reason}; answers so far are kept: start the same command again once that is fixed"
        )

    def _in_order(self, requests: Iterable[Request]) -> Iterator[Outcome]:
        pending: deque[Future[Outcome]] = deque()
        rest = iter(requests)
        while True:
            for request in itertools.islice(rest, AHEAD * self.endpoint.concurrency - len(pending)):
                future: Future[Outcome] = Future()
                pending.append(future)
                self._jobs.put((request, future))
            if not pending:
                return
            future = pending.popleft()
            if (error := future.exception()) is not None:
                raise self.error or error
            yield future.result()

    def _work(self) -> None:
        while (job := self._jobs.get()) is not None:
            request, future = job
            try:
                future.set_result(self._converse(request))
            except BaseException as error:
                with self._lock:
                    self.error = self.error or error  # others are given up because of the first
                self.stop.set()
                future.set_exception(error)

    def _converse(self, request: Request) -> Outcome:
        """The outcome of a request and of those that follow it up."""
        outcome, asked = self.fetch(request), 1
        while self.follow_up is not None and isinstance(outcome, Answer) and asked <= MOST_FOLLOW_UPS:
            following = self.follow_up(request, outcome)
            if following is None:
                break
            before, request, asked = outcome, following, asked + 1
            outcome = self.fetch(request)
            if isinstance(outcome, Answer):
                outcome = dataclasses.replace(outcome, requests=asked, cached=before.cached and outcome.cached)
        return outcome

    def fetch(self, request: Request) -> Outcome:
        """The answer from the cache, or from the endpoint by way of the cache."""
        key = request_key(self.endpoint, request)
        with self._lock:
            own = self._in_flight.setdefault(key, threading.Lock())
        with own:  # the same request of another thread is answered by one
            return self.cache.get(key) or self._ask(key, request)

    def _ask(self, key: str, request: Request) -> Outcome:
        import tenacity

        if self.send is None:
            raise UserError(f"a request with patient data is not in the cache and was not sent; give {CONSENT}")
        retrying = tenacity.Retrying(
            retry=tenacity.retry_if_exception(_may_help),
            stop=tenacity.stop_after_attempt(ATTEMPTS) | tenacity.stop_when_event_set(self.stop),
            wait=_backoff,
            before_sleep=self._pause_all,
            sleep=lambda seconds: self.clock.sleep(seconds, self.stop),
            reraise=True,
        )
        try:
            answer = retrying(self._attempt, self.send, request)
        except Trouble as trouble:
            if self.stop.is_set():
                raise
            return Failure(trouble.reason, trouble.kind)
        with self._lock:
            self.answered += 1
            self.input_tokens += answer.input_tokens or 0
            self.output_tokens += answer.output_tokens or 0
        return self.cache.put(key, answer)

    def _attempt(self, send: "Send", request: Request) -> Answer:
        self.limit.wait(self.stop)
        if self.stop.is_set():
            raise Trouble("the command ends")
        with self._lock:
            self.sent += 1
        return send(request)

    def _pause_all(self, state: Any) -> None:
        after = state.outcome.exception().after
        if after is not None:
            self.limit.pause(after)

    def end(self) -> None:
        """Send nothing more, and give what is in flight a little time to reach the cache."""
        self.stop.set()
        for _ in self._threads:
            self._jobs.put(None)
        until = time.monotonic() + END_SECONDS
        for thread in self._threads:
            thread.join(max(0.0, until - time.monotonic()))

    def summary(self) -> str:
        """What was sent, in one line."""
        price = price_of(self.endpoint, self.input_tokens, self.output_tokens)
        cost = "" if price is None else f", {price:,.2f} at the prices given"
        return (
            f"{self.sent:,} requests sent, {self.answered:,} answered; {self.input_tokens:,} input and "
            f"{self.output_tokens:,} output tokens by the endpoint's count{cost}"
        )


def _may_help(error: BaseException) -> bool:
    return isinstance(error, Trouble) and error.kind in ("service", "unusable")


def _backoff(state: Any) -> float:
    import tenacity

    own = tenacity.wait_exponential_jitter(multiplier=FIRST_BACKOFF, max=LONGEST_BACKOFF, jitter=1.0)(state)
    return max(own, state.outcome.exception().after or 0.0)
