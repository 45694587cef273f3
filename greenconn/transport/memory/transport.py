"""Connections to a broker inside this process."""

from __future__ import annotations

import logging
import os
from typing import Any, ClassVar

from greenconn.broker.channel import StoreChannel
from greenconn.broker.entities import Management
from greenconn.exceptions import RecoverableChannelError, RecoverableConnectionError
from greenconn.green.deadline import Deadline
from greenconn.options import MemoryOptions, known_options
from greenconn.transport import base
from greenconn.transport.memory.broker import Broker
from greenconn.transport.memory.link import Channel, MemoryLink
from greenconn.transport.memory.timer import Clock

logger = logging.getLogger("greenconn.transport.memory")


_brokers: dict[str, Broker] = {}


def broker_of(virtual_host: str = "/", clock: Clock | None = None) -> Broker:
    """Return the broker of a virtual host of this process; the first call makes it.

    It belongs to the hub (the thread) that made it, until :func:`reset`.

    Arguments:
        clock: what expiry goes by, if this call makes the broker; None is the hub's clock.

    Raises:
        WrongHub: it belongs to another thread.
    """
    name = virtual_host or "/"
    broker = _brokers.get(name)
    # After a fork the child begins with an empty one: the parent's messages are the parent's.
    if broker is None or broker.pid != os.getpid() or broker.hub_affinity.hub.dead:
        broker = _brokers[name] = Broker(name, clock)
    broker.hub_affinity.check(broker, "use another virtual host in each thread")
    return broker


def reset(virtual_host: str | None = None) -> None:
    """Empty the brokers of this process (or that of one virtual host): all that they hold is gone.

    Connections to them are closed, and open anew when they are next used.  Brokers that belong to
    other threads are forgotten: what is connected to them stays with them.
    """
    for name in [virtual_host] if virtual_host is not None else list(_brokers):
        broker = _brokers.pop(name, None)
        if broker is not None and broker.is_here:
            broker.clear()


def restart(virtual_host: str | None = None) -> None:
    """Do to the brokers of this thread what a restart does: for tests of recovery.

    All connections are lost.  Durable exchanges and queues stay, and persistent messages in them.
    """
    for name in [virtual_host] if virtual_host is not None else list(_brokers):
        broker = _brokers.get(name)
        if broker is not None and broker.is_here:
            broker.restart()


class Transport(base.Transport[MemoryLink]):
    """``memory://``: one broker for each process and virtual host.

    All connections with the same virtual host share its exchanges and queues; closing the last
    keeps them.  A broker belongs to the thread that used it first (``WrongHub`` otherwise).
    """

    Channel = Channel
    Management = Management
    driver_type = "memory"
    driver_name = "memory"
    default_port = None
    inner_schemes: ClassVar[frozenset[str] | None] = frozenset()

    @property
    def default_connection_params(self) -> dict[str, Any]:
        return {"hostname": "localhost", "port": self.default_port}

    @property
    def recoverable_connection_errors(self) -> tuple[type[BaseException], ...]:
        return (RecoverableConnectionError,)

    @property
    def recoverable_channel_errors(self) -> tuple[type[BaseException], ...]:
        return (RecoverableChannelError,)

    def establish_connection(self, deadline: Deadline | None = None) -> MemoryLink:
        """Open a link.  Never waits.

        Raises:
            ValueError: a transport option has a value that cannot be.
            WrongHub: the broker belongs to another thread.
        """
        client = self.client
        options = known_options(MemoryOptions, client.transport_options, "memory broker", logger)
        return MemoryLink(client, broker_of(client.virtual_host), options)

    def create_channel(self, connection: MemoryLink) -> StoreChannel[MemoryLink]:
        """Open a channel."""
        return self.Channel(connection)

    def qos_semantics_matches_spec(self, connection: MemoryLink) -> bool:
        """``apply_global`` means the channel, as RabbitMQ has it."""
        return False
