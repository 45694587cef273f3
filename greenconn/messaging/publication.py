"""One publish with a deadline, with several attempts, or with listeners."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING, Any, TypeAlias

from gevent import Timeout

from greenconn.delays import delayed_route
from greenconn.exceptions import NotFound, PublishTimeout
from greenconn.green.deadline import Deadline
from greenconn.listeners import LISTENERS, Observation, Observers, PublishEvent, size_of

if TYPE_CHECKING:
    from greenconn.abc import Channel
    from greenconn.messaging.producer import Producer

__all__ = ["Publication"]

#: The first arguments of ``Producer._publish``: body, priority, content type and encoding, headers,
#: properties, routing key, mandatory, immediate, exchange.
Outgoing: TypeAlias = tuple[
    Any, int, str, str, dict[str, Any], dict[str, Any], str, bool, bool, str
]

#: What of a retry policy concerns the opening of the connection.
_CONNECTING = ("errback", "max_retries", "interval_start", "interval_step", "interval_max")


class Publication:
    """One call of ``Producer.publish`` that may take more than one attempt, has a deadline or listeners.

    The first attempt is made at once.  Only if it fails ``Connection.ensure`` is asked, and told of
    that failure as if it had made the attempt itself: it counts the retries and decides which errors
    are worth one.

    The deadline is the channel's business while a message is handed over (only the channel knows
    what has left); before and between the attempts it is a ``gevent.Timeout``.

    Arguments:
        producer: whose channel is used.
        declare: entities that must exist before.
        timeout: seconds for all of it, or None.
        policy: for ``Connection.ensure``; None: one attempt.
        delay: seconds until the message reaches its queue, above 0; None: at once.
    """

    _message: Outgoing
    #: ``ensure`` names its wrapper after this.
    __name__ = "publish"

    def __init__(
        self,
        producer: Producer,
        declare: Iterable[Any] | None,
        timeout: float | None,
        policy: dict[str, Any] | None,
        delay: float | None = None,
    ) -> None:
        self._producer = producer
        self._declare = None if declare is None else list(declare)
        self._timeout = timeout
        self._deadline = Deadline(timeout)
        self._policy = policy
        self._delay = delay
        self._confirm_timeout: float | None = None
        self._failure: Exception | None = None
        self._maybe_delivered = False
        self._timer: Timeout | None = None

    def run(self, confirm_timeout: float | None, message: Outgoing) -> Any:
        """Publish.  May switch.

        Arguments:
            confirm_timeout, message: arguments of ``Producer._publish``.

        Raises:
            PublishTimeout: the deadline ended first.
        """
        self._confirm_timeout = confirm_timeout
        self._message = message
        if (observers := LISTENERS.publishing) is not None:
            return self._observe(observers).run(self._run)
        return self._run()

    def _observe(self, observers: Observers[PublishEvent]) -> Observation[PublishEvent]:
        """Notify the listeners that the message is about to be published.  Never switches."""
        (
            body, priority, content_type, content_encoding, headers, properties,
            routing_key, mandatory, immediate, exchange,
        ) = self._message  # fmt: skip
        connection = self._producer.connection
        event = PublishEvent(
            "" if connection is None else connection.as_uri(),
            exchange,
            routing_key,
            dict(headers),  # the caller may use its own for the next message
            properties,
            size_of(body),
        )
        self._message = (
            body, priority, content_type, content_encoding, event.headers, properties,
            routing_key, mandatory, immediate, exchange,
        )  # fmt: skip
        return observers.begin(event)

    def _run(self) -> Any:
        try:
            if self._policy is None:
                return self._attempt(self._timeout)
            try:
                return self._attempt(self._timeout)
            except Exception as exc:
                self._failure = exc
            if isinstance(self._failure, NotFound):
                try:
                    # What others have deleted is forgotten by now, and declared again.
                    return self._attempt(self._deadline.left())
                except Exception as exc:
                    self._failure = exc
            return self._retry()
        except Timeout as exc:
            if exc is not self._timer:
                raise
            raise self._too_late() from None
        finally:
            self._stop_timer()

    def _retry(self) -> Any:
        connection = self._producer.connection
        if connection is None:
            assert self._failure is not None
            raise self._failure
        self._start_timer()
        return connection.ensure(self, self, **(self._policy or {}))()

    def __call__(self) -> Any:
        """Make an attempt, for ``ensure``; the first call reports the one that was made."""
        failure, self._failure = self._failure, None
        if failure is not None:
            raise failure
        return self._attempt(self._deadline.left())

    def revive(self, channel: Channel) -> None:
        """Take note that there is a connection again, for ``ensure``.

        A producer finds its channel by itself; only one whose channel cannot be replaced, since it
        was closed by an error or cannot tell, or there is no session, goes on with the connection's own.
        """
        own = self._producer.channel
        if own is None or not getattr(own, "is_open", False):
            self._producer.revive(channel)

    def _attempt(self, timeout: float | None) -> Any:
        producer = self._producer
        channel = producer._channel
        if self._declare or not producer._is_ready(channel, producer._exchange):
            self._start_timer()
            channel = self._ready_channel()
            timeout = self._deadline.left()
        message = self._message
        if self._delay is not None:
            self._start_timer()
            message = self._delayed(channel, self._delay)
            timeout = self._deadline.left()
        self._stop_timer()
        try:
            return producer._publish(
                *message,
                None,
                timeout,
                self._confirm_timeout,
                channel,
                self._policy is not None,
            )
        except Exception:
            self._maybe_delivered = True
            self._start_timer()
            raise

    def _delayed(self, channel: Channel, delay: float) -> Outgoing:
        """Return the message as it is published to arrive later.  May switch."""
        (
            body, priority, content_type, content_encoding, headers, properties,
            routing_key, mandatory, immediate, exchange,
        ) = self._message  # fmt: skip
        route = delayed_route(channel, exchange, routing_key, delay, headers, properties)
        return (
            body, priority, content_type, content_encoding, route.headers, properties,
            route.routing_key, mandatory, immediate, route.exchange,
        )  # fmt: skip

    def _ready_channel(self) -> Any:
        producer = self._producer
        if self._policy is not None:
            connection = producer.connection
            if connection is not None and not connection.connected:
                # The policy counts for this too, not the connection's own, which may be to wait.
                options = {name: self._policy[name] for name in _CONNECTING if name in self._policy}
                connection.ensure_connection(**options)
            if not getattr(producer.channel, "is_open", True):
                producer.revive(producer.connection.default_channel)
        return producer._ready_channel(self._declare)

    def _start_timer(self) -> None:
        self._stop_timer()
        left = self._deadline.left()
        if left is not None:
            self._timer = Timeout.start_new(left)

    def _stop_timer(self) -> None:
        if self._timer is not None:
            self._timer.close()

    def _too_late(self) -> PublishTimeout:
        fate = (
            "the broker may have the message"
            if self._maybe_delivered
            else "the message was not sent"
        )
        routing_key, exchange = self._message[6], self._message[9]
        return PublishTimeout(
            f"publish to exchange {exchange!r} with routing key {routing_key!r} took longer than "
            f"{self._timeout:g} s; {fate}",
            maybe_delivered=self._maybe_delivered,
        )
