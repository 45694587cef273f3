"""Utilities for connections, queues and consumers (kombu 5.7, ``kombu.common``)."""

from __future__ import annotations

import os
from collections import deque
from collections.abc import Callable, Generator, Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, suppress
from functools import partial
from itertools import count
from typing import TYPE_CHECKING, Any, Final, Protocol, TypeVar, overload
from uuid import NAMESPACE_OID, uuid3, uuid4, uuid5

from gevent import get_hub
from gevent.lock import RLock

from greenconn.checks import Seconds, in_seconds
from greenconn.entity import Exchange, Queue, maybe_declare
from greenconn.entity.declaration import declaration_cached
from greenconn.entity.queue import DEAD
from greenconn.green.deadline import Deadline, is_thrown
from greenconn.green.hub import get_gevent_concurrent_error
from greenconn.identity import process_place, uuid
from greenconn.log import get_logger
from greenconn.messaging import Consumer, Producer
from greenconn.messaging.consumer import ConsumerInbox
from greenconn.serialization import registry as serializers
from greenconn.transport.base import Link

if TYPE_CHECKING:
    from typing_extensions import Self, Unpack

    from greenconn.abc import Channel, ChannelOrConnection
    from greenconn.connection import Connection
    from greenconn.entity.queue import QueueOptions
    from greenconn.session.session import Session

    class _BroadcastArguments(QueueOptions, total=False):
        """The further arguments of :class:`Broadcast`."""

        bindings: Iterable[Any] | None
        channel: ChannelOrConnection | None
        on_declared: Callable[..., Any] | None
        routing_key: str | None


__all__ = [
    "NAMESPACE_OID",
    "PREFETCH_COUNT_MAX",
    "Broadcast",
    "QoS",
    "collect_replies",
    "declaration_cached",
    "drain_consumer",
    "eventloop",
    "generate_oid",
    "get_node_id",
    "ignore_errors",
    "insured",
    "itermessages",
    "maybe_declare",
    "oid_from",
    "revive_connection",
    "send_reply",
    "uuid",
]

T = TypeVar("T")

logger = get_logger("greenconn.common")

#: The largest prefetch that fits into its field of the protocol.
PREFETCH_COUNT_MAX: Final = 0xFFFF

#: Seconds after which the broker deletes the queue of a broadcast that its process has left behind.
UNUSED: Final = 60.0

_node_id: int | None = None


def get_node_id() -> int:
    """Return the number of this process's node: random, the same from the first call on."""
    global _node_id
    if _node_id is None:
        _node_id = uuid4().int
    return _node_id


def generate_oid(node_id: int, process_id: int, thread_id: int, instance: object) -> str:
    """Return the UUID that belongs to an object of one thread of one process of one node."""
    name = f"{node_id:x}-{process_id:x}-{thread_id:x}-{id(instance):x}"
    try:
        return str(uuid3(NAMESPACE_OID, name))
    except ValueError:  # no MD5 here (FIPS)
        return str(uuid5(NAMESPACE_OID, name))


def oid_from(instance: object, threads: bool = True) -> str:
    """Return the UUID that belongs to *instance* here.

    Arguments:
        threads: whether it differs from thread to thread (that is, from hub to hub: greenlets of
            one hub share it, patched or not).
    """
    thread_id = get_hub().thread_ident if threads else 0
    return generate_oid(get_node_id(), os.getpid(), thread_id, instance)


class Broadcast(Queue):
    """Messages that each consumer gets, by a queue of its own that is bound to a fan-out exchange.

    The queue goes with its last consumer.  :func:`~greenconn.spawn_consumer` and ``App.consumer`` make
    one up for each consumer when it starts, so also after a fork; the broker deletes one that a killed
    process left behind after a minute without use.  :func:`~greenconn.publish` sends to the exchange.

    Arguments:
        name: of the fan-out exchange.
        queue: name of the queue; None makes one up.
        unique: make one up that begins with *queue*.
        auto_delete: the queue is deleted when its last consumer goes.
        exchange: an Exchange, instead of the one that *name* means.
        alias: a name for the program's own use; None is *name*.
        keep: seconds, or a timedelta, for which the broker keeps the queue while its process is away,
            with what is published meanwhile.  *queue* must then name it the same after a restart:
            ``{host}`` in it is the name of the machine, ``{slot}`` the number of the process under
            ``greenconn run``, or under gunicorn with :mod:`greenconn.contrib.gunicorn`.
        kwargs: see :class:`~greenconn.entity.Queue`.

    Raises:
        TypeError, ValueError: an argument is invalid.
    """

    queue: str | None
    #: Not in ``attrs``, which are kombu's.
    keep: float | None = None
    #: Beginning of a name that is made up; None: the program has given all of it.
    _prefix: str | None = None

    attrs: tuple[tuple[str, Callable[[Any], Any] | None], ...] = (*Queue.attrs, ("queue", None))

    def __init__(
        self,
        name: str | None = None,
        queue: str | None = None,
        unique: bool = False,
        auto_delete: bool = True,
        exchange: Exchange | None = None,
        alias: str | None = None,
        keep: Seconds | None = None,
        **kwargs: Unpack[_BroadcastArguments],
    ) -> None:
        if keep is not None:
            self.keep = _checked_keep(keep, queue, unique, kwargs)
            auto_delete, kwargs["expires"] = False, self.keep
        elif unique or not queue:
            self._prefix = queue or "bcast"
            queue = f"{self._prefix}.{uuid()}"
        super().__init__(  # type: ignore[call-arg]  # queue is in its table
            name=queue,
            queue=queue,
            exchange=Exchange(name or "", type="fanout") if exchange is None else exchange,
            auto_delete=auto_delete,
            alias=alias or name,
            **kwargs,
        )

    @property
    def is_made_up(self) -> bool:
        """Whether the name of the queue was made up, so that the queue ends with its consumer."""
        return self._prefix is not None

    @property
    def dead_letter_queue(self) -> str | None:
        """Name of the queue that ``dead_letter`` means: one for all consumers; None: it means none."""
        if self.dead_letter is True:
            return f"{self.alias or self.name}{DEAD}"
        return super().dead_letter_queue

    def when_bound(self) -> None:
        """Name the queue after this process if it is kept."""
        super().when_bound()
        self._name_after_process()

    def of_consumer(self) -> Self:
        """Return a copy with the queue of one more consumer of this process.  Never switches.

        Raises:
            ValueError: *queue* has a ``{slot}``, and nothing has numbered this process.
        """
        own = self.__copy__()
        own.on_declared = self.on_declared
        if self._prefix is not None:
            own.name = own.queue = f"{self._prefix}.{uuid()}"
            if own.expires is None and "x-expires" not in (own.queue_arguments or ()):
                own.expires = UNUSED  # auto_delete leaves one that was never consumed
        own._name_after_process()
        return own

    def _name_after_process(self) -> None:
        if self.keep is None or "{" not in self.name:
            return
        place = process_place()
        if "{slot}" in self.name and "{slot}" not in place:
            raise ValueError(
                f"queue of {self!r} has a {{slot}}, and this process has no number: start it by "
                f"greenconn run, or with the hooks of greenconn.contrib.gunicorn (pre_fork and "
                f"post_fork), or name the queue without it"
            )
        for placeholder, text in place.items():
            self.name = self.name.replace(placeholder, text)
        self.queue = self.name

    def as_dict(self, recurse: bool = False) -> dict[str, Any]:
        """Return what a Broadcast can be made from again."""
        result = super().as_dict(recurse)
        if self.keep is not None:
            result["keep"] = self.keep
            del result["expires"]
        return result


def _checked_keep(
    keep: Seconds, queue: str | None, unique: bool, options: Mapping[str, Any]
) -> float:
    seconds = in_seconds(keep)
    if seconds is None or seconds <= 0:
        raise ValueError(f"keep of Broadcast must be seconds above 0, or None, got {keep!r}")
    if unique or not queue:
        raise ValueError(
            "keep of Broadcast needs a queue whose name is the same after a restart, and another one in "
            "each process: for example queue='news.{host}.{slot}' under greenconn run or gunicorn"
        )
    for name in ("exclusive", "expires"):
        if options.get(name):
            raise ValueError(
                f"{name} of Broadcast must be None with keep, which says when the queue ends, got "
                f"{options[name]!r}"
            )
    return seconds


class _HasErrors(Protocol):
    """A connection, or anything else that knows its errors."""

    @property
    def connection_errors(self) -> tuple[type[BaseException], ...]: ...

    @property
    def channel_errors(self) -> tuple[type[BaseException], ...]: ...


@contextmanager
def _ignoring(conn: _HasErrors) -> Iterator[None]:
    try:
        yield
    except Exception as exc:
        # Looked up only now: a stand-in in the tests of a program need not have them.
        # A hosted transport may close a socket that another greenlet reads from.
        in_use = get_gevent_concurrent_error() or ()
        errors = (*conn.connection_errors, *conn.channel_errors)
        if not isinstance(exc, errors) and not isinstance(exc, in_use):
            raise


@overload
def ignore_errors(conn: _HasErrors, fun: None = None) -> AbstractContextManager[None]: ...
@overload
def ignore_errors(
    conn: _HasErrors, fun: Callable[..., T], *args: Any, **kwargs: Any
) -> T | None: ...
def ignore_errors(
    conn: _HasErrors, fun: Callable[..., Any] | None = None, *args: Any, **kwargs: Any
) -> Any:
    """Ignore errors of connection and channel, in a call or in a ``with`` block.

    For clean-up, where it does not matter any more whether the broker received it.

    Arguments:
        conn: anything with ``connection_errors`` and ``channel_errors``.
        fun: called with *args* and *kwargs*; None: the result is the context.

    Returns:
        What *fun* returned, None if it failed.
    """
    if fun is None:
        return _ignoring(conn)
    result = None
    with _ignoring(conn):
        result = fun(*args, **kwargs)
    return result


def revive_connection(
    connection: Connection, channel: Channel, on_revive: Callable[[Any], Any] | None = None
) -> None:
    """Tell *on_revive* of the channel that *connection* has now."""
    if on_revive is not None:
        on_revive(channel)


def insured(
    pool: Any,
    fun: Callable[..., T],
    args: Sequence[Any],
    kwargs: Mapping[str, Any],
    errback: Callable[[Exception, float], Any] | None = None,
    on_revive: Callable[[Any], Any] | None = None,
    **opts: Any,
) -> T:
    """Call *fun* on a connection of *pool*, again and again if that is lost.  May switch.

    Arguments:
        fun: called with *args*, *kwargs*, ``connection=`` and ``channel=``.
        errback: called with each error and the seconds until the next attempt; None logs it.
        on_revive: called with the channel after each reconnect.
        opts: of ``Connection.autoretry``: ``max_retries``, ``interval_start``...

    Raises:
        OperationalError: it was given up.
        Exception: what *fun* raised.
    """
    errback = errback or _ensure_errback
    with pool.acquire(block=True) as connection:
        connection.ensure_connection(errback=errback)
        call = connection.autoretry(
            fun,
            connection.default_channel,
            errback=errback,
            on_revive=partial(revive_connection, connection, on_revive=on_revive),
            **opts,
        )
        result: T = call(*args, **{**kwargs, "connection": connection})[0]
        return result


def _ensure_errback(exc: Exception, interval: float) -> None:
    logger.error("connection error: %r; the next attempt is in %s s", exc, interval, exc_info=exc)


def eventloop(
    conn: Any,
    limit: int | None = None,
    timeout: Seconds | None = None,
    ignore_timeouts: bool = False,
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
    timeout = in_seconds(timeout)
    for _ in range(limit) if limit else count():
        deadline = Deadline(timeout)
        try:
            result = conn.drain_events(timeout=timeout)
        except TimeoutError:
            if not deadline.has_ended or (timeout and not ignore_timeouts):
                raise  # it came from a callback
            continue
        yield result


def itermessages(
    conn: Any,
    channel: Channel | None,
    queue: Any,
    limit: int | None = 1,
    timeout: Seconds | None = None,
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
    timeout: Seconds | None = None,
    callbacks: list[Callable[..., Any]] | None = None,
) -> Generator[tuple[Any, Any], None, None]:
    """Consume, and yield each message as ``(body, message)``.  May switch.

    Other greenlets that drain the same connection take none of them.  At the end the consumer is
    cancelled, and what was delivered and not yielded goes back to the queue, unless it needs no
    answer.

    Arguments:
        consumer: its callbacks are replaced.
        limit: messages, and waits that ended without one; None or 0 has no end.
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
    arrivals = consumer.sink = ConsumerInbox(consumer, _needs_no_ack(consumer))
    try:
        with consumer:
            for _ in range(limit) if limit else count():
                if _has_arrived(arrived, arrivals, session, Deadline(timeout)):
                    yield arrived.popleft()
    finally:
        consumer.sink = None
        arrivals.requeue_unseen()
        for _, message in arrived:
            with suppress(Exception):
                message.put_back()


def _drained(
    consumer: Consumer, arrived: deque[tuple[Any, Any]], limit: int | None, timeout: Seconds | None
) -> Generator[tuple[Any, Any], None, None]:
    """Do the same on a transport that is written to kombu's contract.  May switch."""
    with consumer:
        client = consumer.channel.connection.client
        for _ in range(limit) if limit else count():
            try:
                client.drain_events(timeout=timeout)
            except TimeoutError as exc:
                if is_thrown(exc):
                    raise
            try:
                item = arrived.popleft()
            except IndexError:
                continue
            yield item


def _needs_no_ack(consumer: Consumer) -> bool:
    if consumer.no_ack is not None:
        return consumer.no_ack
    return all(queue.no_ack for queue in consumer.queues)


def _has_arrived(
    arrived: deque[tuple[Any, Any]], arrivals: ConsumerInbox, session: Session, deadline: Deadline
) -> bool:
    """Wait until a message has *arrived*; whether one has before the deadline.  May switch."""
    while not arrived:
        arrivals.check()
        try:
            handle = arrivals.next_event(session.wait_ready(deadline).link, deadline)
        except TimeoutError:
            if not deadline.has_ended:
                raise
            return False
        handle()
    return True


class _Request(Protocol):
    """The message that is replied to."""

    channel: Any
    content_type: Any
    content_encoding: Any
    properties: dict[str, Any]


def send_reply(
    exchange: Exchange | str | None,
    req: _Request,
    msg: Any,
    producer: Producer | None = None,
    retry: bool = False,
    retry_policy: dict[str, Any] | None = None,
    **props: Any,
) -> Any:
    """Publish *msg* as the reply to *req*, by the same serializer if it had one.  May switch.

    Arguments:
        exchange: where replies go.
        req: a message with ``reply_to``, and perhaps ``correlation_id``, among its properties.
        producer: None publishes on the channel of *req*.
        retry, retry_policy: see ``Producer.publish``.
        props: further arguments of ``publish``; they come first.

    Raises:
        KeyError: *req* wants no reply.
    """
    options = {
        "routing_key": req.properties["reply_to"],
        "correlation_id": req.properties.get("correlation_id"),
        "serializer": serializers.type_to_name.get(req.content_type),
        "content_encoding": req.content_encoding,
        **props,
    }
    producer = Producer(req.channel) if producer is None else producer
    return producer.publish(
        msg, exchange=exchange, retry=retry, retry_policy=retry_policy, **options
    )


def collect_replies(
    conn: Any, channel: Channel, queue: Any, *args: Any, **kwargs: Any
) -> Iterator[Any]:
    """Yield the bodies of the replies in *queue*.  May switch.

    Arguments:
        args, kwargs: see :func:`itermessages`; *no_ack* is True if it is not given.
    """
    no_ack = kwargs.setdefault("no_ack", True)
    has_received = False
    try:
        for body, message in itermessages(conn, channel, queue, *args, **kwargs):
            if not no_ack:
                message.ack()
            has_received = True
            yield body
    finally:
        if has_received:
            channel.after_reply_message_received(queue.name)


class QoS:
    """A prefetch that changes now and then; its owner sends it to the broker later.

    :meth:`increment_eventually` and :meth:`decrement_eventually` may be called from anywhere;
    :meth:`update` by who may talk to the broker.

    Arguments:
        callback: called as ``callback(prefetch_count=...)``: ``consumer.qos``, ``channel.basic_qos``.
        initial_value: messages; 0 or None is no limit, and stays so.
        max_prefetch: the limit never grows above it; None is no bound.

    Attributes:
        value: the wanted limit.
        prev: the limit that was last sent to the broker.
    """

    prev: int | None = None

    def __init__(
        self,
        callback: Callable[..., Any],
        initial_value: int | None,
        max_prefetch: int | None = None,
    ) -> None:
        self.callback = callback
        self.value = initial_value or 0
        self.max_prefetch = max_prefetch
        #: Held for no longer than it takes to count, so that no greenlet waits for the broker here.
        self._counting = RLock()
        #: Held while it is sent, so that ``prev`` is what the broker has.
        self._sending = RLock()

    def increment_eventually(self, n: int = 1) -> int:
        """Raise the wanted limit by *n*, if there is one; return it."""
        with self._counting:
            if self.value:
                value = self.value + max(n, 0)
                self.value = value if self.max_prefetch is None else min(value, self.max_prefetch)
            return self.value

    def decrement_eventually(self, n: int = 1) -> int:
        """Lower the wanted limit by *n*, to no less than 1, if there is one; return it."""
        with self._counting:
            if self.value:
                self.value = max(self.value - n, 1)
            return self.value

    def set(self, pcount: int) -> int:
        """Set the limit at the broker to *pcount*, unless it is; return it.  May switch."""
        with self._sending:
            if pcount != self.prev:
                sent = pcount
                if pcount > PREFETCH_COUNT_MAX:
                    logger.warning(
                        "prefetch_count %d is above %d: no limit is set", pcount, PREFETCH_COUNT_MAX
                    )
                    sent = 0
                logger.debug("prefetch_count: %d", sent)
                self.callback(prefetch_count=sent)
                self.prev = pcount
        return pcount

    def update(self) -> int:
        """Set the wanted limit at the broker; return it.  May switch."""
        with self._sending:
            return self.set(self.value)
