"""Generators of events and of messages."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Generator, Iterator
from contextlib import suppress
from itertools import count
from typing import TYPE_CHECKING, Any

from greenconn.green.deadline import Deadline
from greenconn.messaging import Consumer
from greenconn.messaging.arrivals import Arrivals
from greenconn.transport.base import Link

if TYPE_CHECKING:
    from greenconn.abc import Channel
    from greenconn.session.session import Session

__all__ = ["drain_consumer", "eventloop", "itermessages"]


def eventloop(
    conn: Any, limit: int | None = None, timeout: float | None = None, ignore_timeouts: bool = False
) -> Iterator[Any]:
    """Drain *conn*, once each time the generator is asked.  May switch.

    Arguments:
        limit: how often; None or 0 has no end.
        timeout: seconds to wait for one event; None waits.
        ignore_timeouts: go on when none came in time.

    Raises:
        socket.timeout: no event came in time.
        ConnectionError, OSError: the connection was lost.
        Exception: what a callback raised.
    """
    for _ in range(limit) if limit else count():
        deadline = Deadline(timeout)
        try:
            result = conn.drain_events(timeout=timeout)
        except TimeoutError:
            if not deadline.has_ended or (timeout and not ignore_timeouts):
                raise  # that of a callback is no business of ours
            continue
        yield result


def itermessages(
    conn: Any,
    channel: Channel | None,
    queue: Any,
    limit: int | None = 1,
    timeout: float | None = None,
    callbacks: list[Callable[..., Any]] | None = None,
    **kwargs: Any,
) -> Generator[tuple[Any, Any], None, None]:
    """Consume from *queue*; see :func:`drain_consumer`.  May switch.

    Arguments:
        conn: the connection.
        channel: a channel of it; None is its default channel.
        kwargs: of the ``Consumer``.
    """
    consumer = conn.Consumer(queues=[queue], channel=channel, **kwargs)
    return drain_consumer(consumer, limit=limit, timeout=timeout, callbacks=callbacks)


def drain_consumer(
    consumer: Consumer,
    limit: int | None = 1,
    timeout: float | None = None,
    callbacks: list[Callable[..., Any]] | None = None,
) -> Generator[tuple[Any, Any], None, None]:
    """Consume, and yield each message as ``(body, message)``.  May switch.

    Other greenlets that drain the same connection take none of them.  At the end the consumer is
    cancelled, and what was delivered and not yielded goes back to the queue, unless it needs no
    answer.

    Arguments:
        consumer: its callbacks are replaced.
        limit: messages, or waits in vain; None or 0 has no end.
        timeout: seconds to wait for one message; None waits.
        callbacks: called with each message before it is yielded.

    Raises:
        ConnectionError, ChannelError: what ended the connection or the consumer.
        Exception: what a callback raised.
    """
    arrived: deque[tuple[Any, Any]] = deque()
    consumer.callbacks = [
        lambda body, message: arrived.append((body, message)),
        *(callbacks or ()),
    ]
    if not isinstance(consumer.channel.connection, Link):
        yield from _drained(consumer, arrived, limit, timeout)
        return
    session = consumer.channel.connection.client.session
    arrivals = consumer.sink = Arrivals(consumer, _needs_no_answer(consumer))
    try:
        with consumer:
            for _ in range(limit) if limit else count():
                if _has_arrived(arrived, arrivals, session, Deadline(timeout)):
                    yield arrived.popleft()
    finally:
        consumer.sink = None
        arrivals.give_back()
        for _, message in arrived:
            with suppress(Exception):
                message.requeue()


def _drained(
    consumer: Consumer, arrived: deque[tuple[Any, Any]], limit: int | None, timeout: float | None
) -> Generator[tuple[Any, Any], None, None]:
    """Do the same on a transport that is written to kombu's contract.  May switch."""
    with consumer:
        client = consumer.channel.connection.client
        for _ in range(limit) if limit else count():
            with suppress(TimeoutError):
                client.drain_events(timeout=timeout)
            if arrived:
                yield arrived.popleft()


def _needs_no_answer(consumer: Consumer) -> bool:
    if consumer.no_ack is not None:
        return consumer.no_ack
    return all(queue.no_ack for queue in consumer.queues)


def _has_arrived(
    arrived: deque[tuple[Any, Any]], arrivals: Arrivals, session: Session, deadline: Deadline
) -> bool:
    """Wait until a message has *arrived*; whether one has before the deadline.  May switch."""
    while not arrived:
        arrivals.check()
        try:
            handle = arrivals.next_event(session.whole(deadline).link, deadline)
        except TimeoutError:
            if not deadline.has_ended:
                raise
            return False
        handle()
    return True
