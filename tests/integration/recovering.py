"""What the tests of recovery have in common: faults, and looks at the broker."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from time import monotonic
from typing import Any

import gevent
from gevent.event import Event

from greenconn.connection import Connection
from greenconn.serialization import dumps
from tests.brokers.rabbitmq import RabbitMQ, RabbitMQHandle
from tests.fix_relay import Relay
from tests.fix_wires import until

#: Seconds for what must come: a broker needs 5 s to start when the machine is not busy.
SOON = 60.0


# Faults


def restart_app(broker: RabbitMQ) -> None:
    """The broker ends in order, and begins again."""
    broker.stop_app()
    broker.start_app()


def kill(broker: RabbitMQ) -> None:
    """The broker is killed at once (SIGKILL), and begins again on its data."""
    # It may have noted a queue that was declared within the last second in memory alone.
    broker.evaluate("mnesia:dump_log()")
    broker.kill()
    broker.start()


def lose(relay: Relay, connection: Connection, then: Callable[[], Any] | None = None) -> None:
    """Cut *connection*, which must be recovering by itself, and wait until all is restored.

    Arguments:
        then: called while nobody can connect.
    """
    with Recoveries(connection) as recoveries:
        if then is None:
            relay.cut()
        else:
            relay.server.stop()
            until(lambda: not connection.connected)
            then()
            relay.server.start()
        recoveries.wait()


class Recoveries:
    """Counts how often *connection* was lost and restored, from the beginning of ``with`` on."""

    def __init__(self, connection: Connection) -> None:
        self._connection = connection
        self.lost: list[BaseException] = []
        self.count = 0
        self._changed = Event()

    def __enter__(self) -> Recoveries:
        self._connection.on_connection_lost.append(self.lost.append)
        self._connection.on_recovered.append(self._recovered)
        return self

    def __exit__(self, *exc_info: object) -> None:
        self._connection.on_connection_lost.remove(self.lost.append)
        self._connection.on_recovered.remove(self._recovered)

    def _recovered(self) -> None:
        self.count += 1
        self._changed.set()

    def wait(self, count: int = 1) -> None:
        """Wait until it was restored *count* times.  May switch."""
        while self.count < count:
            self._changed.clear()
            assert self._changed.wait(SOON), "it was not restored in time"


# Looks


def consumer_counts(broker: RabbitMQHandle) -> Counter[str]:
    """How many consumers the broker has, by queue.  May switch."""
    rows = broker.ctl("list_consumers", "queue_name").splitlines()
    return Counter(row.strip() for row in rows)


def consumers_of(connection: Connection, queue: str) -> int:
    """How many consumers a queue has; 0 where there is none, or it is somebody else's.  May switch."""
    channel = connection.channel()
    try:
        found = int(channel.queue_declare(queue, passive=True).consumer_count)
    except connection.channel_errors:
        return 0
    channel.close()
    return found


def settled(
    connection: Connection, queue: str, count: int = 1, timeout: float = SOON
) -> tuple[int, int]:
    """Wait until the broker has *count* consumers of *queue*.  May switch.

    Returns:
        The smallest and the largest number that were seen since the first consumer was.
    """
    seen: list[int] = []
    end = monotonic() + timeout
    while not seen or seen[-1] != count:
        assert monotonic() < end, f"{queue}: {seen[-1:]} consumers, not {count}"
        found = consumers_of(connection, queue)
        if found or seen:
            seen.append(found)
        gevent.sleep(0.01)
    return min(seen), max(seen)


def exists(connection: Connection, queue: str = "", exchange: str = "") -> bool:
    """Whether the broker has a queue or an exchange.  May switch."""
    channel = connection.channel()
    try:
        if queue:
            channel.queue_declare(queue, passive=True)
        else:
            channel.exchange_declare(exchange, "direct", passive=True)
    except connection.channel_errors:
        return False
    channel.close()
    return True


def send(connection: Connection, routing_key: str, *bodies: Any, exchange: str = "") -> None:
    """Publish, and wait until the broker has it.  May switch."""
    with connection.channel() as channel:
        channel.confirm_select()
        for body in bodies:
            content_type, encoding, data = dumps(body)
            message = channel.prepare_message(data, None, content_type, encoding, {}, {})
            channel.basic_publish_confirm(message, exchange, routing_key, timeout=SOON)
