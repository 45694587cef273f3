"""What lives in a storm: greenconn, in the ways in which a program may use it."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextlib import suppress
from functools import partial
from typing import Any, NamedTuple, Protocol, TypeAlias

import gevent

from greenconn import defaults, pools
from greenconn.connection import Connection
from greenconn.entity import Queue
from greenconn.exceptions import BatchPublishError, ConsumerCancelled, OperationalError
from greenconn.messaging import Consumer
from greenconn.publishing import publish, publish_many
from greenconn.worker import RetryLater, spawn_consumer
from tests.quality.faults.targets.base import Place, Role, Target

#: Publishes bodies to a queue in their order; returns the errors of those that failed, by position.
Send: TypeAlias = Callable[[str, list[str]], Mapping[int, BaseException]]


class Way(NamedTuple):
    """A way to publish.

    Attributes:
        send: the call.
        delay: seconds by which it delays the messages.
    """

    send: Send
    delay: float = 0.0


#: Takes the queue, the body, and whether it is marked as redelivered.
Handle: TypeAlias = Callable[[str, object, bool], None]

#: Seconds for a publish, over all that goes wrong meanwhile.
PUBLISH_TIMEOUT = 40.0
#: Seconds for an end in good order.
STOP_TIMEOUT = 30.0
#: Greenlets that drain one connection.
DRAINERS = 2
#: Seconds for which one waits for an event.
STEP = 0.3
CONCURRENCY = 4
#: Seconds by which messages are delayed, and after which a handler is called again.
DELAY = 1
POLICY = {"max_retries": 20, "interval_start": 0.1, "interval_step": 0.1, "interval_max": 1.0}


class Mishap(Exception):
    """A handler fails on purpose: its message shall come again."""


def receive(handle: Handle, queue: str, no_ack: bool, body: object, message: Any) -> None:
    """Handle a delivery of *queue*, and settle it as a program does."""
    try:
        handle(queue, body, bool(message.delivery_info.get("redelivered")))
    except Mishap:
        message.requeue()
    else:
        if not no_ack:
            message.ack()


class Receiver(Protocol):
    """Consumes from one queue."""

    def begin(self) -> None:
        """Consume.  May switch."""
        ...

    def end(self) -> None:
        """Stop in good order.  May switch."""
        ...

    def trouble(self) -> str | None:
        """Why it consumes no more, if it does not."""
        ...


class Client(Protocol):
    """A library in a storm."""

    name: str

    def ways(self, place: Place) -> list[Way]:
        """The ways to publish to a queue."""
        ...

    def receiver(self, number: int, place: Place, handle: Handle) -> Receiver:
        """What consumes from a queue, the one of that number."""
        ...

    def slots(self) -> int:
        """How many resources of pools are in use."""
        ...

    def close(self) -> None:
        """Close all.  May switch."""
        ...


class Greenconn:
    """greenconn.

    Arguments:
        is_calm: no fault will come, so that all must be handled in its order.
    """

    name = "greenconn"

    def __init__(self, target: Target, is_calm: bool) -> None:
        self._target = target
        self._is_calm = is_calm
        self._connections: list[Connection] = []
        self._publishing = self._connection()
        self._consuming = self._connection()
        self._pooled = self._connection(confirm_publish=True)

    def _connection(self, **options: Any) -> Connection:
        target = self._target
        if target.transport != "amqp":
            options.pop("confirm_publish", None)  # each publish is answered
        arguments: dict[str, Any] = {}
        if target.heartbeat is not None:
            arguments["heartbeat"] = target.heartbeat
        connection = Connection(
            target.url, transport_options={**target.options, **options}, **arguments
        )
        self._connections.append(connection)
        return connection

    def ways(self, place: Place) -> list[Way]:
        """Singly, in batches, by kombu's producers, and with a delay.

        Producers do not tell of a message which no queue takes, as that of a queue that is deleted.  A
        delayed message has no place in the order of its stream, and nothing keeps it for a consumer that
        needs no ack.
        """
        one = Way(partial(self._publish, place.queue))
        if place.role is Role.DELETED:
            return [one]
        found = [one, Way(partial(self._publish_many, place.queue)), Way(self._produce)]
        if place.role is Role.KEPT and not self._is_calm:
            found.append(Way(partial(self._publish, place.queue, delay=DELAY), DELAY))
        return found

    def _publish(
        self, queue: Queue, name: str, bodies: list[str], delay: float | None = None
    ) -> Mapping[int, BaseException]:
        failed: dict[int, BaseException] = {}
        for position, body in enumerate(bodies):
            try:
                publish(
                    queue,
                    body,
                    connection=self._publishing,
                    timeout=PUBLISH_TIMEOUT,
                    declare=True,
                    delay=delay,
                )
            except Exception as exc:
                failed[position] = exc
        return failed

    def _publish_many(
        self, queue: Queue, name: str, bodies: list[str]
    ) -> Mapping[int, BaseException]:
        try:
            publish_many(
                queue, bodies, connection=self._publishing, timeout=PUBLISH_TIMEOUT, declare=True
            )
        except BatchPublishError as exc:
            rest = dict.fromkeys(range(exc.taken, len(bodies)), exc)
            return {**rest, **exc.failed}
        return {}

    def _produce(self, name: str, bodies: list[str]) -> Mapping[int, BaseException]:
        failed: dict[int, BaseException] = {}
        pool = pools.producers[self._pooled]
        for position, body in enumerate(bodies):
            try:
                with pool.acquire(block=True, timeout=PUBLISH_TIMEOUT) as producer:
                    producer.publish(
                        body,
                        routing_key=name,
                        retry=position % 2 == 0,
                        retry_policy=POLICY,
                        timeout=PUBLISH_TIMEOUT,
                    )
            except Exception as exc:
                failed[position] = exc
        return failed

    def receiver(self, number: int, place: Place, handle: Handle) -> Receiver:
        """``spawn_consumer`` and ``Consumer`` in turn; who wants to have a queue back is the former."""
        if number % 2 == 0 or place.role is Role.DELETED:
            return Spawned(self._consuming, place, handle, 1 if self._is_calm else CONCURRENCY)
        return Draining(self._connection(), place, handle, 1 if self._is_calm else DRAINERS)

    def slots(self) -> int:
        """Producers and connections of pools that are in use."""
        key = self._pooled
        if key not in pools.producers:
            return 0
        return sum(group[key].stats()["in_use"] for group in (pools.producers, pools.connections))

    def close(self) -> None:
        """Close all connections and pools."""
        pools.reset()
        for connection in self._connections:
            connection.close()
        defaults.reset()


class Spawned:
    """``spawn_consumer``, whose handler fails by turns and asks to be called later."""

    def __init__(
        self, connection: Connection, place: Place, handle: Handle, concurrency: int
    ) -> None:
        self._handle = handle
        self._queue = place.queue
        self._no_ack = place.role is Role.UNACKED
        self._connection, self._concurrency = connection, concurrency
        self._mishaps = 0

    def begin(self) -> None:
        """Consume."""
        self._consumer = spawn_consumer(
            self._queue,
            self._receive,
            connection=self._connection,
            concurrency=self._concurrency,
            no_ack=self._no_ack,
            on_error="reject" if self._no_ack else "requeue",
        )
        assert self._consumer.wait_ready(STOP_TIMEOUT), f"{self._queue} is not consumed from"

    def _receive(self, body: object, message: Any) -> None:
        try:
            self._handle(self._queue.name, body, bool(message.delivery_info.get("redelivered")))
        except Mishap:
            self._mishaps += 1
            if self._mishaps % 2:
                raise
            raise RetryLater(DELAY) from None

    def end(self) -> None:
        """Stop."""
        assert self._consumer.stop(STOP_TIMEOUT), f"the consumer of {self._queue} does not stop"

    def trouble(self) -> str | None:
        """Why it has ended."""
        return repr(self._consumer.exception) if self._consumer.ready() else None


class Draining:
    """kombu's ``Consumer``, and greenlets that drain its connection whatever happens."""

    def __init__(self, connection: Connection, place: Place, handle: Handle, drainers: int) -> None:
        self._connection = connection
        self._queue = place.queue
        self._no_ack = place.role is Role.UNACKED
        self._handle = handle
        self._drainers = drainers
        self._is_over = False
        self._greenlets: list[gevent.Greenlet[..., None]] = []

    def begin(self) -> None:
        """Consume."""
        self._consumer: Consumer | None = None
        self._consume()
        self._greenlets = [gevent.spawn(self._drain) for _ in range(self._drainers)]

    def _drain(self) -> None:
        passing: Any = (TimeoutError, *self._connection.connection_errors)
        refused: Any = self._connection.channel_errors
        while not self._is_over:
            try:
                self._connection.drain_events(timeout=STEP)
            except ConsumerCancelled:
                self._consume()  # the node of its queue has ended
            except passing:
                pass
            except refused:
                self._consume()  # the user had lost its rights

    def _consume(self) -> None:
        """Begin, or begin anew, as soon as that can be, as a program of kombu does."""
        connection = self._connection
        errors = (*connection.connection_errors, *connection.channel_errors, OperationalError)
        while not self._is_over:
            with suppress(*errors):
                if self._consumer is not None:
                    self._consumer.revive(connection.default_channel)
                else:
                    self._consumer = Consumer(
                        connection,
                        self._queue,
                        no_ack=self._no_ack,
                        callbacks=[self._receive],
                        prefetch_count=None if self._no_ack else 20,
                    )
                self._consumer.consume()
                return
            gevent.sleep(0.2)

    def _receive(self, body: object, message: Any) -> None:
        receive(self._handle, self._queue.name, self._no_ack, body, message)

    def end(self) -> None:
        """Cancel it, and handle what is there."""
        assert self._consumer is not None
        self._consumer.cancel()
        self._is_over = True
        gevent.joinall(self._greenlets, timeout=STOP_TIMEOUT, raise_error=True)
        assert all(each.ready() for each in self._greenlets), f"{self._queue} is drained for ever"
        self._connection.close()

    def trouble(self) -> str | None:
        """What has ended one of the greenlets."""
        for greenlet in self._greenlets:
            if greenlet.ready():
                return repr(greenlet.exception)
        return None
