"""Requests for up to ten messages at a time, each with its own outcome."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any, Final, TypeVar

from gevent import joinall
from gevent.event import Event

from greenconn.green.retry import attempts
from greenconn.green.supervisor import spawn
from greenconn.transport.SQS.exceptions import ServiceBusy, as_error
from greenconn.transport.SQS.service import BUSY

__all__ = [
    "SQS_MAX_MESSAGES",
    "InOrderLock",
    "InOrderTurn",
    "batches_of_ten",
    "in_batches",
    "together",
]

T = TypeVar("T")

#: Messages of one request (kombu's name).
SQS_MAX_MESSAGES: Final = 10
#: Bytes of one request: the limit before August 2025, which queues and stand-ins may still have.
MAX_BYTES: Final = 256 * 1024


def batches_of_ten(
    things: Sequence[T], size_of: Callable[[T], int] | None = None
) -> Iterator[list[T]]:
    """Cut into what one request may hold, in order; what is too big for any comes alone."""
    batch: list[T] = []
    total = 0
    for thing in things:
        size = 0 if size_of is None else size_of(thing)
        if batch and (len(batch) == SQS_MAX_MESSAGES or total + size > MAX_BYTES):
            yield batch
            batch, total = [], 0
        batch.append(thing)
        total += size
    if batch:
        yield batch


def in_batches(
    ask: Callable[[list[dict[str, Any]]], Mapping[str, Any]],
    where: str,
    action: str,
    fields: Sequence[Mapping[str, Any]],
    *,
    retries: int,
) -> list[Exception | None]:
    """Send one request for up to ten messages; return for each why it failed.  May switch.

    What failed for no fault of ours is sent again, by itself.

    Arguments:
        ask: sends the request with these entries and returns the response.
        where, action: for messages.
        fields: of each entry, without its ``Id``; at least one.
        retries: repetitions at most; 0: their order counts, so none.

    Raises:
        Exception: what *ask* raises.
    """
    outcomes: list[Exception | None] = [None] * len(fields)
    left: list[int] = list(range(len(fields)))
    for _ in attempts(BUSY.replace(tries=retries + 1)):
        response = ask([{"Id": str(number), **fields[number]} for number in left])
        done = {each.get("Id") for each in response.get("Successful") or ()}
        failed = {each.get("Id"): each for each in response.get("Failed") or ()}
        again = []
        for number in left:
            failure = failed.get(str(number))
            if failure is None and str(number) in done:
                outcomes[number] = None
                continue
            outcomes[number] = _failure(where, action, failure)
            if isinstance(outcomes[number], ServiceBusy):
                again.append(number)
        left = again
        if not left:
            break
    return outcomes


def _failure(where: str, action: str, failure: Mapping[str, Any] | None) -> Exception:
    if failure is None:
        return ServiceBusy(f"{where}: {action}: the response has no result for this message")
    code, message = str(failure.get("Code") or ""), str(failure.get("Message") or "")
    if not failure.get("SenderFault"):
        return ServiceBusy(f"{where}: {action}: {code}: {message[:200]}")
    return as_error(where, action, code, message)


def together(jobs: Iterable[Callable[[], object]]) -> None:
    """Do all at the same time and return when all are done.  May switch.

    Raises:
        BaseException: the first that one of them raised.
    """
    todo = list(jobs)
    if len(todo) < 2:
        for job in todo:
            job()
        return
    errors: list[BaseException] = []

    def run(job: Callable[[], object]) -> None:
        try:
            job()
        except Exception as exc:
            errors.append(exc)

    greenlets = [spawn("sqs", run, job) for job in todo]
    try:
        joinall(greenlets)
    finally:
        for greenlet in greenlets:
            greenlet.kill(block=False)
    if errors:
        raise errors[0]


class InOrderTurn:
    """A place in a lane."""

    def __init__(self, ahead: Event | None, done: Event) -> None:
        self._ahead = ahead
        self._done = done

    def wait(self) -> None:
        """Wait until all who came before are done.  May switch."""
        if self._ahead is not None:
            self._ahead.wait()

    def end(self) -> None:
        """Let the next one go.  Never switches."""
        self._done.set()


class InOrderLock:
    """A lock whose waiters get it in the order in which they came."""

    def __init__(self) -> None:
        self._last: Event | None = None

    def enter(self) -> InOrderTurn:
        """Take the last place.  Never switches."""
        ahead, self._last = self._last, Event()
        return InOrderTurn(ahead, self._last)
