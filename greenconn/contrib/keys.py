"""A decorator for handlers: a rate limit for each key.

::

    from greenconn.contrib.keys import rate_limited

    @app.consumer("mail", concurrency=200)
    @rate_limited(5, per=1.0, key=lambda body, message: body["to"])
    def send(body, message):
        ...

A handler that must wait for its turn waits in its own greenlet, and its message stays unacknowledged.
``concurrency`` therefore limits the number of messages that wait or run, and should be far higher than
the number of handlers that run.  When the consumer stops, messages that still wait at the end of its
timeout are requeued.  When the connection is lost, waiting messages are dropped: the broker redelivers
them.  The limits apply to each process separately.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable
from functools import wraps
from heapq import heappop, heappush
from typing import Any, Final, TypeVar

from greenconn.checks import Seconds, in_seconds, is_number
from greenconn.clocks import CLOCK
from greenconn.green.hub import PerHub
from greenconn.message import Message
from greenconn.worker.dispatch import Parked

__all__ = ["rate_limited"]

H = TypeVar("H", bound=Callable[..., Any])
Key = Callable[[Any, Message], Hashable]

#: Keys after which those that are free again are forgotten.
SWEEP: Final = 1000


def rate_limited(
    limit: float, *, per: Seconds = 1.0, burst: int = 1, key: Key | None = None
) -> Callable[[H], H]:
    """Return a decorator that applies a rate limit to a handler, for each key.

    Messages that exceed the limit wait for their turn, in the order of their delivery.  The rate limit
    is a token bucket that holds *burst* tokens and is refilled with *limit* tokens in *per* seconds.

    Arguments:
        limit: the number of handlers that may start within *per* seconds.
        per: the period of the limit, in seconds.
        burst: the number of handlers that may start at once after a pause.
        key: a function that takes the decoded body and the message and returns the key.  None applies
            one limit to all messages.

    Raises:
        ValueError: an argument is out of range.
    """
    per = in_seconds(per)
    for name, value in (("limit", limit), ("per", per)):
        if not (is_number(value) and value > 0):
            raise ValueError(f"rate_limited.{name} must be a number above 0, got {value!r}")
    if not isinstance(burst, int) or burst < 1:
        raise ValueError(f"rate_limited.burst must be a positive integer, got {burst!r}")
    buckets = PerHub(lambda: Buckets(per / limit, burst))

    def decorate(handler: H) -> H:
        @wraps(handler)
        def handle(body: Any, message: Message) -> Any:
            _check_single(message, "rate_limited")
            own = None if key is None else key(body, message)
            own_buckets = buckets.get()
            if own_buckets.clock != CLOCK.monotonic:  # a test has begun, or is over
                buckets.pop()
                own_buckets = buckets.get()
            now = CLOCK.monotonic()
            begins_at = now + own_buckets.take(own, now)
            with Parked(message) as parked:
                try:
                    # The loop's own clock may be behind, and a timer early.
                    while (left := begins_at - CLOCK.monotonic()) > 0:
                        CLOCK.sleep(left)
                    parked.begin()
                except BaseException:
                    own_buckets.put_back(own, begins_at)
                    raise
                return handler(body, message)

        return handle  # type: ignore[return-value]

    return decorate


def _check_single(message: object, name: str) -> None:
    if isinstance(message, list):
        raise TypeError(f"{name} must not be used with batch_size: a batch has no key")


class Buckets:
    """Token buckets, one for each key.

    Arguments:
        interval: the seconds between two tokens.
        burst: the number of tokens that a bucket holds.

    Attributes:
        clock: that the times of this object are read from.
    """

    def __init__(self, interval: float, burst: int) -> None:
        self.clock = CLOCK.monotonic
        self._interval = interval
        self._burst = burst
        #: Key -> when its bucket is full again, had nothing more been taken.
        self._full_at: dict[Hashable, float] = {}
        #: Key -> times of tokens that were put back, as a heap.
        self._unused: dict[Hashable, list[float]] = {}
        self._sweep_at = SWEEP

    def take(self, key: Hashable, now: float) -> float:
        """Take a token and return the seconds until it is available.  Never switches."""
        while unused := self._unused.get(key):
            at = heappop(unused)
            if not unused:
                del self._unused[key]
            if at >= now:
                return at - now
        full_at = max(self._full_at.get(key, now), now)
        self._full_at[key] = full_at + self._interval
        if len(self._full_at) >= self._sweep_at:
            self._full_at = {each: at for each, at in self._full_at.items() if at > now}
            self._unused = {each: at for each, at in self._unused.items() if each in self._full_at}
            self._sweep_at = max(SWEEP, 2 * len(self._full_at))
        return max(0.0, full_at - now - (self._burst - 1) * self._interval)

    def put_back(self, key: Hashable, at: float) -> None:
        """Put back a token for the time *at*, which the next caller takes.  Never switches."""
        heappush(self._unused.setdefault(key, []), at)

    def __len__(self) -> int:
        return len(self._full_at)
