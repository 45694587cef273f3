"""A client manager for python-socketio and Flask-SocketIO that shares events between server processes.

::

    import socketio
    from greenconn.contrib.socketio import Manager

    server = socketio.Server(
        async_mode="gevent", client_manager=Manager("amqp://user:password@host/vhost")
    )

In a process that has no clients and only emits events::

    Manager("amqp://user:password@host/vhost", write_only=True).emit("news", {"id": 7})

The manager works on every transport.  ``emit`` returns when the broker has the event.  Each server
process has its own queue, which survives a loss of the connection and a restart of the broker: events
that are emitted in the meantime wait in the queue.  Each event is emitted once to clients, even if its
message is redelivered.

All greenlets of a process share one connection for publishing events and one for consuming them.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any, Final

from gevent import monkey
from gevent.event import Event
from gevent.queue import Queue as Inbox  # SimpleQueue blocks the thread before gevent 25
from socketio import PubSubManager

from greenconn.checks import Seconds, in_seconds, is_number
from greenconn.connection import Connection
from greenconn.contrib.idempotency import MemoryIds, handled_once
from greenconn.defaults import consuming_connection
from greenconn.entity import Exchange, Queue
from greenconn.exceptions import AMQPError, KombuError
from greenconn.green.deadline import Deadline
from greenconn.green.hub import PerHub
from greenconn.green.retry import Backoff, RetryPolicy
from greenconn.green.slot import Slot
from greenconn.identity import uuid
from greenconn.message import Message
from greenconn.publishing import publish
from greenconn.worker import ConsumerGreenlet, spawn_consumer

if TYPE_CHECKING:
    from typing_extensions import Unpack

    from greenconn.connection import ConnectionArguments

__all__ = ["Manager"]

#: Events that the broker sends ahead.
PREFETCH: Final = 100
#: Ids of events that are remembered, and seconds for which: copies are sent soon, or never.
IDS: Final = 20_000
IDS_KEPT: Final = 3600.0
#: Until a consumer that the broker has refused is started again.
REFUSED: Final = RetryPolicy(first=1.0, longest=60.0)
#: Seconds that :meth:`Manager.close` takes for each of its steps at most.
CLOSING: Final = 10.0
#: What a broker may answer, or not.
FAILURES: Final = (AMQPError, KombuError, OSError)


class _Closed(BaseException):
    """The end of the listening; no ``Exception``, after each of which python-socketio listens again."""


class Manager(PubSubManager):
    """A client manager that uses connections of greenconn.

    The connection is opened when the first client connects or the first event is emitted.

    Arguments:
        url: the URL of the broker, as in :class:`greenconn.Connection`.  None, without connection
            arguments, uses the default connection.
        channel: the name of the channel, the same in all processes that share events.
        write_only: whether the process only emits events and receives none.
        logger, json: as in ``socketio.PubSubManager``.
        expires: the seconds without a connection after which the broker deletes the queue of a process.
        timeout: maximum seconds until the broker has accepted an event.  The first clients wait no
            longer than this until the queue of their process is declared.
        queue_arguments: additional arguments for declaring the queue, such as ``{"x-max-length":
            10_000}``.
        connection_kwargs: further arguments of :class:`greenconn.Connection`.

    Raises:
        ValueError: *expires* or *timeout* is not above 0.
    """

    name = "greenconn"

    def __init__(
        self,
        url: str | None = None,
        channel: str = "socketio",
        write_only: bool = False,
        logger: Any = None,
        json: Any = None,
        *,
        expires: Seconds = 300.0,
        timeout: Seconds = 30.0,
        queue_arguments: Mapping[str, Any] | None = None,
        **connection_kwargs: Unpack[ConnectionArguments],
    ) -> None:
        super().__init__(channel=channel, write_only=write_only, logger=logger)
        if json is not None:
            self.json = json
        expires, timeout = in_seconds(expires), in_seconds(timeout)
        for option, value in (("expires", expires), ("timeout", timeout)):
            if not (is_number(value) and value > 0):
                raise ValueError(f"{option} must be a number of seconds above 0, got {value!r}")
        is_default = url is None and not connection_kwargs
        where = () if url is None else (url,)
        template = Connection(*where, **connection_kwargs)  # to be checked; it never opens
        self._connections: PerHub[Connection | None] = PerHub(
            lambda: None if is_default else template.clone()
        )
        self._expires = float(expires)
        self._timeout = float(timeout)
        self._queue_arguments = dict(queue_arguments or {})
        #: Direct: on every broker what is sent to it is kept in each queue that is bound to it.
        self._exchange = Exchange(f"{channel}.events", type="direct", durable=True)
        self._pid = os.getpid()
        self._queue: Queue | None = None
        self._consumer: ConsumerGreenlet | None = None
        #: Until then clients wait for the queue; later it is there, and keeps what comes.
        self._first_clients = Deadline(0.0)
        #: Events with the slot that has their message acked; None: the consumer has ended.
        self._inbox: Inbox[tuple[Any, Slot[None]] | None] = Inbox()
        self._closing = Event()
        self._handle = handled_once(MemoryIds(IDS), name=channel, ttl=IDS_KEPT)(self._receive)

    # -- called by python-socketio

    def set_server(self, server: Any) -> None:
        """Set the server whose clients receive the events.

        Raises:
            RuntimeError: the background tasks of the server are threads instead of greenlets.
        """
        mode = server.eio.async_mode
        if "gevent" not in mode and not monkey.is_module_patched("threading"):
            raise RuntimeError(
                f"async_mode of the server must be 'gevent', got {mode!r}, or the process must be "
                f"patched with gevent.monkey.patch_all()"
            )
        super().set_server(server)

    def initialize(self) -> None:
        """Start the consumer when the first client of this process connects.  Never switches."""
        if self._pid != os.getpid():
            # Made before a fork: processes of one identity would ignore each other's events.
            self._pid, self.host_id = os.getpid(), uuid()
        if not self.write_only:
            self._queue = Queue(
                f"{self.channel}.events.{self.host_id}",
                self._exchange,
                routing_key=self.channel,
                durable=True,
                expires=self._expires,
                queue_arguments=self._queue_arguments,
            )
            self._first_clients = Deadline(self._timeout)
            self._start_consumer()
        super().initialize()

    def pre_connect(self, eio_sid: str, namespace: str) -> Any:
        """Register a client after the queue of this process is declared.  May switch.

        The client therefore receives all events that are emitted after it has connected.
        """
        if self._consumer is not None and not self._first_clients.has_ended:
            self._await_queue(self._consumer)
        return super().pre_connect(eio_sid, namespace)

    def _await_queue(self, consumer: ConsumerGreenlet) -> None:
        try:
            if consumer.wait_ready(self._first_clients.left()):
                return
        except FAILURES:
            pass  # the listener logs it, and tries again
        self._get_logger().warning(
            "the queue of this process is not ready: until then its clients miss what other "
            "processes emit"
        )

    def _publish(self, data: Any) -> None:
        """Send an event to all other servers, and return when the broker has it.  May switch.

        Raises:
            OperationalError: the broker did not accept the event in time; see :func:`greenconn.publish`.
        """
        publish(
            self._exchange,
            self.json.dumps(data),
            connection=self._connections.get(),
            timeout=self._timeout,
            routing_key=self.channel,
            mandatory=False,  # there may be no servers
            content_type="text/plain",
            message_id=uuid(),
        )

    def _thread(self) -> None:
        """Pass on what other processes emit.  May switch."""
        try:
            super()._thread()
        except _Closed:
            pass

    def _listen(self) -> Iterator[Any]:
        """Yield events.  May switch.

        Raises:
            _Closed: the consumer was stopped, by :meth:`close` or at the end of the process.
        """
        pauses = Backoff(REFUSED)
        while True:
            entry = self._inbox.get()
            if entry is None:
                self._restart_consumer(next(pauses))
                continue
            pauses.reset()
            event, done = entry
            if not done.has_left:
                yield event
                done.offer(None)

    # -- the consumer

    def _start_consumer(self) -> None:
        assert self._queue is not None
        consumer = self._consumer = spawn_consumer(
            self._queue,
            self._handle,
            connection=self._connections.get(),
            prefetch_count=PREFETCH,
            on_error="discard",  # an event is for now, and the queue has a generated name
            name=f"socketio:{self.channel}",
        )
        # Requests wait for the callbacks of clients of other processes: it is stopped after them.
        consumer.answers_calls = True
        consumer.rawlink(self._note_end)

    def _note_end(self, consumer: ConsumerGreenlet) -> None:
        # In the hub.
        self._inbox.put(None)

    def _receive(self, event: Any, message: Message) -> None:
        """Have an event passed on, and wait for that.  May switch."""
        done: Slot[None] = Slot()
        self._inbox.put((event, done))
        done.wait(Deadline())

    def _restart_consumer(self, pause: float) -> None:
        """Start the consumer anew, after *pause* seconds.  May switch.

        Raises:
            _Closed: it was stopped, and not refused.
        """
        consumer = self._consumer
        if consumer is None or consumer.successful():
            raise _Closed
        self._get_logger().error(
            "the consumer of this process has failed, next attempt in %.1f s: %s",
            pause,
            consumer.exception,
        )
        if self._closing.wait(pause):
            raise _Closed
        self._start_consumer()

    def close(self) -> None:
        """Stop the consumer, delete the queue of this process and close the connections.  May switch.

        If the queue cannot be deleted now, for example because the connection is lost, the broker
        deletes it after *expires* seconds without use.
        """
        self._closing.set()
        consumer, self._consumer = self._consumer, None
        try:
            if consumer is not None:
                consumer.stop(CLOSING)
                self.thread.join(CLOSING)
                self._delete_queue(consuming_connection(self._connections.get()))
        finally:
            connection = self._connections.pop()
            if connection is not None:
                connection.close()

    def _delete_queue(self, connection: Connection) -> None:
        assert self._queue is not None
        name = self._queue.name
        if not connection.session.is_open:
            return
        try:
            connection.session.utility.run(
                lambda channel: channel.queue_delete(name), Deadline(CLOSING)
            )
        except FAILURES as exc:
            self._get_logger().warning("queue %s could not be deleted: %s", name, exc)
