"""Programs that consume until they are stopped (kombu 5.7, ``kombu.mixins``)."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager
from functools import cached_property, partial
from itertools import count
from time import monotonic
from typing import TYPE_CHECKING, Any

from gevent import sleep

from greenconn.checks import Seconds, in_seconds
from greenconn.common import ignore_errors
from greenconn.encoding import safe_repr
from greenconn.exceptions import BodyTooLarge
from greenconn.green.deadline import Deadline, is_thrown
from greenconn.log import get_logger
from greenconn.messaging import Consumer, Producer

if TYPE_CHECKING:
    from greenconn.abc import Channel
    from greenconn.connection import Connection
    from greenconn.message import Message

__all__ = ["ConsumerMixin", "ConsumerProducerMixin"]

logger = get_logger(__name__)
warn, error = logger.warning, logger.error

#: Connection, channel and the consumers that run on it.
_Context = tuple[Any, Any, list[Any]]


class ConsumerMixin:
    """A program that consumes, and starts again on a new connection when the old one is lost.

    A subclass has an attribute ``connection`` and returns its consumers from :meth:`get_consumers`;
    ``run()`` is the program.  Each round runs on a clone of ``connection`` that is closed at its end,
    so that there is never a consumer of a former round at the broker.

    Example::

        class Worker(ConsumerMixin):
            def __init__(self, connection):
                self.connection = connection

            def get_consumers(self, Consumer, channel):
                return [Consumer(queues=[Queue("jobs")], callbacks=[self.on_job])]

            def on_job(self, body, message):
                print(body)
                message.ack()

        gevent.spawn(Worker(Connection("amqp://")).run)

    Attributes:
        connect_max_retries: attempts to connect after the first; None never gives up.
        should_stop: set to True it ends :meth:`run`, after a second at most.
    """

    connection: Any

    connect_max_retries: int | None = None
    should_stop: bool = False

    # Hooks for subclasses

    def get_consumers(self, Consumer: Callable[..., Any], channel: Channel) -> Any:  # noqa: N803
        """Return the consumers, made with ``Consumer(queues=..., callbacks=...)``.

        Arguments:
            Consumer: makes one on *channel*.
            channel: the connection's default one; others may be used, too.
        """
        raise NotImplementedError("get_consumers() must be defined and return the consumers")

    def on_connection_revived(self) -> None:
        """Called when the connection is established, first or again."""

    def on_consume_ready(
        self, connection: Connection, channel: Channel, consumers: list[Any], **kwargs: Any
    ) -> None:
        """Called when the consumers run; *kwargs* are those of :meth:`run` or :meth:`consume`."""

    def on_consume_end(self, connection: Connection, channel: Channel) -> None:
        """Called when the consumers were cancelled at a graceful end."""

    def on_iteration(self) -> None:
        """Called before each wait for an event."""

    def on_decode_error(self, message: Message, exc: Exception) -> None:
        """Called for a body that cannot be decoded; log and acknowledge the message."""
        error(
            "cannot decode a message body: %r (type %r, encoding %r, raw %s)",
            exc,
            message.content_type,
            message.content_encoding,
            "not received" if isinstance(exc, BodyTooLarge) else safe_repr(message.body),
        )
        message.ack()

    def on_connection_error(self, exc: Exception, interval: float) -> None:
        """Called when connecting failed; the next attempt is in *interval* seconds."""
        warn("broker connection error: %r; trying again in %s s", exc, interval, exc_info=exc)

    @contextmanager
    def extra_context(self, connection: Connection, channel: Channel) -> Iterator[None]:
        """Provide a context around the consumption."""
        yield

    # The program

    def run(self, _tokens: float = 1, **kwargs: Any) -> None:
        """Consume until ``should_stop``.  May switch.

        Arguments:
            _tokens: of ``restart_limit``, for each round.
            kwargs: of :meth:`consume`.

        Raises:
            OperationalError: the broker cannot be reached, or refuses the login.
            Exception: what a callback raised, unless it is an error of connection or channel.
        """
        restart_limit = self.restart_limit
        while not self.should_stop:
            try:
                if restart_limit.can_consume(_tokens):
                    for _ in self.consume(limit=None, **kwargs):
                        pass
                else:
                    sleep(restart_limit.expected_time(_tokens))
            except (*self.connection_errors, *self.channel_errors) as exc:
                if is_thrown(exc):
                    raise
                warn("connection to the broker lost, reconnecting", exc_info=True)

    def consume(
        self,
        limit: int | None = None,
        timeout: Seconds | None = None,
        safety_interval: Seconds | None = 1,
        **kwargs: Any,
    ) -> Iterator[None]:
        """Run the consumers for one life of a connection; yields after each event.  May switch.

        Arguments:
            limit: events, or intervals without one; None or 0 has no end.
            timeout: seconds without an event after which it ends; None or 0 has no end.
            safety_interval: seconds between looks at ``should_stop``.
            kwargs: of :meth:`on_consume_ready`.

        Raises:
            socket.timeout: no event came within *timeout*.
            ConnectionError, ChannelError: what ended the connection or a consumer.
            Exception: what a callback raised.
        """
        with self.consumer_context(**kwargs) as (connection, _, _):
            timeout, safety_interval = in_seconds(timeout), in_seconds(safety_interval)
            silence = Deadline(timeout or None)
            for _ in range(limit) if limit else count():
                if self.should_stop:
                    break
                self.on_iteration()
                pause = silence.within(safety_interval)
                try:
                    # The same object where nothing else limits it: stand-ins in tests compare it.
                    left = pause.left() if timeout else safety_interval
                    connection.drain_events(timeout=left)
                except TimeoutError:
                    connection.heartbeat_check()
                    if silence.has_ended:
                        raise
                    # Before the end of the pause it came from a callback.
                    if not pause.has_ended and (timeout or not self.should_stop):
                        raise
                except OSError:
                    if not self.should_stop:
                        raise
                except connection.connection_errors:
                    if not self.should_stop:
                        raise
                else:
                    yield
                    silence = Deadline(timeout or None)
        logger.debug("consuming ended")

    @contextmanager
    def consumer_context(self, **kwargs: Any) -> Iterator[_Context]:
        """Run the consumers within :meth:`extra_context` and yield them.  May switch."""
        with (
            self.Consumer() as (connection, channel, consumers),
            self.extra_context(connection, channel),
        ):
            self.on_consume_ready(connection, channel, consumers, **kwargs)
            yield connection, channel, consumers

    @contextmanager
    def Consumer(self) -> Iterator[_Context]:  # noqa: N802
        """Run the consumers on a connection of their own and yield them.  May switch."""
        with self.establish_connection() as connection:
            self.on_connection_revived()
            channel = connection.default_channel
            make = partial(Consumer, channel, on_decode_error=self.on_decode_error)
            with self._consume_from(*self.get_consumers(make, channel)) as consumers:
                yield connection, channel, consumers
            logger.debug("consumers cancelled")
            self.on_consume_end(connection, channel)
        logger.debug("connection closed")

    @contextmanager
    def _consume_from(self, *consumers: AbstractContextManager[Any]) -> Iterator[list[Any]]:
        with ExitStack() as stack:
            entered = []
            for each in consumers:  # not by the class: tests of programs have stand-ins
                entered.append(each.__enter__())
                stack.push(each)
            yield entered

    @contextmanager
    def establish_connection(self) -> Iterator[Any]:
        """Yield an open connection, and close it at the end.  May switch."""
        with self.create_connection() as connection:
            connection.ensure_connection(self.on_connection_error, self.connect_max_retries)
            yield connection

    def create_connection(self) -> Any:
        """Return the connection for one round."""
        return self.connection.clone()

    def maybe_conn_error(self, fun: Callable[[], Any]) -> Any:
        """Call *fun*, and ignore errors of connection and channel."""
        return ignore_errors(self, fun)

    @cached_property
    def restart_limit(self) -> TokenBucket:
        """Limit of the rounds: one may begin each second."""
        return TokenBucket(1)

    @cached_property
    def connection_errors(self) -> tuple[type[BaseException], ...]:
        """Errors by which a connection is lost."""
        return tuple(self.connection.connection_errors)

    @cached_property
    def channel_errors(self) -> tuple[type[BaseException], ...]:
        """Errors by which a channel is lost."""
        return tuple(self.connection.channel_errors)


class ConsumerProducerMixin(ConsumerMixin):
    """A program that also publishes, over a connection apart from that of its consumers.

    RabbitMQ stops reading a connection that it blocks, so acks must not stand behind messages.
    The connection is opened when something is first published, and closed when consuming ends.
    """

    _producer_connection: Any = None

    def run(self, _tokens: float = 1, **kwargs: Any) -> None:
        """Consume until ``should_stop``; see :meth:`ConsumerMixin.run`.  May switch."""
        try:
            super().run(_tokens, **kwargs)
        finally:
            self._close_producer_connection()

    def on_consume_end(self, connection: Connection, channel: Channel) -> None:
        """Close the connection for publishing."""
        self._close_producer_connection()

    def _close_producer_connection(self) -> None:
        connection, self._producer_connection = self._producer_connection, None
        if connection is not None:
            connection.close()

    @property
    def producer(self) -> Producer:
        """A new producer on :attr:`producer_connection`.  May switch."""
        return Producer(self.producer_connection)

    @property
    def producer_connection(self) -> Any:
        """The connection for publishing, opened if it never was.  May switch."""
        connection = self._producer_connection
        if connection is None:
            # Kept before it is open, or another greenlet would make a second one meanwhile.
            connection = self._producer_connection = self.connection.clone()
        if not connection.session.generation:
            connection.ensure_connection(self.on_connection_error, self.connect_max_retries)
        return connection


class TokenBucket:
    """Allows bursts up to *capacity*, and *fill_rate* a second in the long run.

    No step here switches greenlets; between threads it needs a lock.

    Arguments:
        fill_rate: tokens a second.
        capacity: tokens that are kept at most; it begins full.

    Attributes:
        contents: items that wait for tokens; the user's own (:meth:`add`, :meth:`pop`).
        timestamp: when the tokens were last counted (``time.monotonic``).
    """

    def __init__(self, fill_rate: float, capacity: float = 1) -> None:
        self.capacity = float(capacity)
        self.fill_rate: float = float(fill_rate)
        self.timestamp: float = self._now()
        self.contents: deque[Any] = deque()
        self._tokens = self.capacity

    def add(self, item: Any) -> None:
        """Append an item that waits."""
        self.contents.append(item)

    def pop(self) -> Any:
        """Remove and return the item that has waited longest.

        Raises:
            IndexError: nothing waits.
        """
        return self.contents.popleft()

    def clear_pending(self) -> None:
        """Remove all items that wait."""
        self.contents.clear()

    def can_consume(self, tokens: float = 1) -> bool:
        """Take *tokens* and return True; or take none and return False if there are fewer."""
        if tokens > self._count():
            return False
        self._tokens -= tokens
        return True

    def expected_time(self, tokens: float = 1) -> float:
        """Return the seconds until there will be *tokens*."""
        return max(0.0, tokens - self._count()) / self.fill_rate

    def _now(self) -> float:
        return monotonic()

    def _count(self) -> float:
        # Also for a full bucket, or the time while it was full would count once it is drained.
        now = self._now()
        filled = self._tokens + self.fill_rate * (now - self.timestamp)
        self._tokens = min(self.capacity, filled)
        self.timestamp = now
        return self._tokens
