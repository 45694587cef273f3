"""``spawn_consumer`` and ``stop_consumers``."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

import gevent

from greenconn.connection import Connection
from greenconn.defaults import consuming_connection, declare_by_name
from greenconn.green.deadline import Deadline
from greenconn.options import Retry
from greenconn.worker.consumer import GRACE, ConsumerGreenlet
from greenconn.worker.plan import Handler, OnError, QueueLike, planned
from greenconn.worker.roster import enter, running_consumers
from greenconn.worker.state import Wish

__all__ = ["spawn_consumer", "stop_all", "stop_consumers"]


def spawn_consumer(
    queue: QueueLike | Iterable[QueueLike],
    handler: Handler,
    *,
    connection: Connection | str | None = None,
    concurrency: int = 1,
    prefetch_count: int | None = None,
    no_ack: bool = False,
    accept: Iterable[str] | None = None,
    on_error: OnError = "reject",
    retry: Retry | Mapping[str, Any] | None = None,
    name: str | None = None,
    **consumer_args: Any,
) -> ConsumerGreenlet:
    """Have *handler* called with each message of a queue.  Returns at once.

    The consumer lives by itself: it survives reconnects and restarts of the broker, and nobody has
    to drain anything.  When the handler returns, its message is acked.  When it raises, first
    *retry*, then *on_error* decides.  A handler that acked or rejected the message itself is left
    alone.  ``Exception`` and ``gevent.Timeout`` are failures; ``GreenletExit`` puts the message back
    into the queue; ``SystemExit`` and ``KeyboardInterrupt`` do so, stop the consumer and end the
    program.  Handlers may publish, declare, spawn consumers, and stop their own.

    Messages that are handled when the connection is lost come again: handlers must bear being
    called twice with one message.

    Arguments:
        queue: a name (looked up and used as it is; declared as a durable queue if it does not exist,
            unless ``configure(declare_by_name=False)`` was said), a ``Queue`` (declared), or a list
            of them.
        handler: called as ``handler(body, message)``, in a greenlet that serves many messages, each
            in a copy of the context (``contextvars``) of this call.
        connection: shared and never closed by us; a URL; None is the default one.
        concurrency: handlers that run at once.
        prefetch_count: messages that may be unanswered, over all queues; default max(10,
            2 x concurrency, number of queues).  0 is no limit: such a consumer, and one with
            *no_ack*, gets a connection of its own.
        no_ack: the broker forgets a message when it sends it.
        accept: names of serializers or content types; None: all that are not disabled.
        on_error: ``'reject'``: the message goes to the queue's dead-letter exchange, *and is gone if
            there is none*; ``'requeue'``; or a callable ``(message, exc)``, after which a message
            that it left unanswered is rejected.
        retry: :class:`~greenconn.options.Retry`, or a dict of its arguments.  The message waits in
            this process, unanswered, and the handler's place is free meanwhile.
        name: for logs; default: the names of the queues.
        consumer_args:
            ``on_decode_error``: called as ``(message, exc)`` for a body that cannot be decoded or is
            not accepted; default: it is rejected.
            ``blocking_threshold``: a handler that ran for longer without letting others run is logged,
            once (0.5 s; None: never).
            ``handler_timeout``: seconds after which a handler is interrupted: a failure.
            ``batch_size``: the handler gets lists of so many bodies and messages, which are answered
            as one; fewer after ``batch_interval`` (1 s).
            ``exclusive``, ``priority``, ``arguments``, ``tag_prefix``: of the consumer at the broker.
            ``passive``: the queue must exist.
            ``offset``: where to begin in a stream: ``'first'``, ``'last'``, ``'next'``, a number, a
            datetime, or an interval such as ``'1h'``.  After a reconnect it goes on with the first
            message that was not handled.

    Raises:
        TypeError: an option that is not known, or a value of another type.
        ValueError: a value out of range, or options that exclude each other.
        WrongHub: the connection belongs to another thread.
    """
    options = {
        "handler": handler,
        "concurrency": concurrency,
        "prefetch_count": prefetch_count,
        "no_ack": no_ack,
        "accept": accept,
        "on_error": on_error,
        "retry": retry,
        "name": name,
        "declares_names": declare_by_name() is not False,
    }
    plan = planned(queue, options, consumer_args)
    of_program = consuming_connection(connection)
    _ = of_program.session.settled  # raises if it was opened in another thread
    consumer = ConsumerGreenlet(plan, of_program)
    enter(consumer)
    consumer.start()
    return consumer


def stop_consumers(timeout: float | None = None) -> bool:
    """Stop all consumers of this thread in good order, together.  May switch.

    Called by a handler it does not wait for that handler's own consumer.

    Arguments:
        timeout: seconds for all of them; None waits.

    Returns:
        False: the time was up; the handlers that were left were interrupted, and their messages given
        back.
    """
    return stop_all(running_consumers(), Deadline(timeout))


def stop_all(consumers: list[ConsumerGreenlet], deadline: Deadline) -> bool:
    """Stop *consumers* in good order, together; see :func:`stop_consumers`.  May switch."""
    for consumer in consumers:
        consumer.conductor.ask(Wish.STOP)
    others = [each for each in consumers if not each.runs_here]
    gevent.joinall(others, timeout=deadline.left())
    late = [each for each in others if not each.ready()]
    for consumer in late:
        consumer.conductor.ask(Wish.END)
    gevent.joinall(late, timeout=GRACE)
    return not late
