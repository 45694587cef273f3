"""A RabbitMQ in a storm."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import gevent

from greenconn.connection import Connection
from greenconn.entity import Queue
from tests.brokers.keeper import Keeper
from tests.brokers.rabbitmq import RabbitMQ
from tests.brokers.tls import AUTHORITY, TlsRabbitMQ
from tests.quality.faults.kinds import Fault, Kind
from tests.quality.faults.targets.base import Place, Proxied, places_of

NOTHING, EVERYTHING = ("^$",) * 3, (".*",) * 3


class AmqpTarget(Proxied):
    """A RabbitMQ.

    Arguments:
        types: the types of the queues that are kept, in turn.
        tls_port: where it is reached over TLS; None: it is not.
    """

    transport = "amqp"
    kinds = Proxied.kinds | {Kind.MEMORY_ALARM, Kind.DISK_ALARM, Kind.REVOKE}
    heartbeat: float | None = 2

    def __init__(
        self, name: str, broker: RabbitMQ, types: tuple[str, ...], tls_port: int | None = None
    ) -> None:
        super().__init__(broker, tls_port or broker.port, "tls" if tls_port else "amqp")
        self.name = name
        self._broker = broker
        self._types = types
        self.url = f"amqp://guest:guest@127.0.0.1:{self.proxy.port}//"
        if tls_port:
            self.url = f"amqps{self.url.removeprefix('amqp')}?ssl_ca_certs={AUTHORITY}"

    @property
    def direct_url(self) -> str:
        return self._broker.url

    def places(self) -> list[Place]:
        """Four queues, besides those that are not kept."""
        kinds = (self._types * 4)[:4]
        return places_of(
            [
                Queue(f"{kind}-{number}", queue_arguments={"x-queue-type": kind})
                for number, kind in enumerate(kinds, 1)
            ]
        )

    def settle(self) -> None:
        """RabbitMQ 3.10 may forget what was declared in the second before it is killed."""
        self._broker.settle()

    def kill(self, fault: Fault) -> None:
        """The same for the queue that was deleted, and declared again just now."""
        self._broker.evaluate("mnesia:dump_log()")
        super().kill(fault)

    def memory_alarm(self, fault: Fault) -> None:
        """All who publish are blocked for a while."""
        self._broker.set_memory_alarm(True)
        try:
            gevent.sleep(fault.seconds)
        finally:
            self._broker.set_memory_alarm(False)

    def disk_alarm(self, fault: Fault) -> None:
        """The same, for want of disk."""
        self._broker.set_disk_alarm(True)
        try:
            gevent.sleep(fault.seconds)
        finally:
            self._broker.set_disk_alarm(False)

    def revoke(self, fault: Fault) -> None:
        """The user may nothing, or not even open the virtual host; who is in is thrown out."""
        ctl = self._broker.ctl
        if fault.seed % 2:
            ctl("clear_permissions", "guest")
        else:
            ctl("set_permissions", "guest", *NOTHING)
        try:
            ctl("close_all_connections", "revoked")
            gevent.sleep(fault.seconds)
        finally:
            ctl("set_permissions", "guest", *EVERYTHING)

    def heal(self) -> None:
        """Let it go on."""
        self.proxy.heal()
        self._broker.mend()

    def close(self) -> None:
        """End the proxy, and remove the queues."""
        super().close()
        with Connection(self._broker.url) as connection:
            for place in self.places():
                connection.default_channel.queue_delete(place.queue.name)


@contextmanager
def rabbitmq_target(name: str, *types: str, is_tls: bool = False) -> Iterator[AmqpTarget]:
    """Start a RabbitMQ; it ends with the block.  May switch."""
    with Keeper() as keeper:
        broker = TlsRabbitMQ(keeper) if is_tls else RabbitMQ(keeper)
        broker.start()
        tls_port = broker.tls_port if isinstance(broker, TlsRabbitMQ) else None
        target = AmqpTarget(name, broker, types, tls_port)
        try:
            yield target
        finally:
            target.close()
            broker.kill()
            broker.close()
