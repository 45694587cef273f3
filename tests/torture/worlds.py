"""The brokers that a storm may be in, each one's own, with a proxy before it."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, Protocol

import gevent

from greenconn.connection import Connection
from greenconn.entity import Queue
from greenconn.exceptions import RecoverableConnectionError
from greenconn.transport import memory
from greenconn.wire.resp import pack
from tests.brokers.keeper import Keeper
from tests.brokers.rabbitmq import RabbitMQ
from tests.brokers.redis_server import RedisServer
from tests.torture.faults import PROXIED, Fault, Kind
from tests.torture.proxied import ProxyProcess

__all__ = ["WORLDS", "World", "declare", "depths", "world_of"]

#: What a Redis keeps when it is killed; without it there would be nothing to count.
ON_DISK = ("--appendonly", "yes", "--appendfsync", "always")


class World(Protocol):
    """A broker.

    Attributes:
        name: its kind.
        url: where clients connect to: the proxy, where there is one.
        kinds: the faults that it can have.
        options: transport options with which clients notice faults soon.
        heartbeat: seconds.
    """

    name: str
    url: str
    kinds: frozenset[Kind]
    options: dict[str, Any]
    heartbeat: float | None

    def queues(self) -> list[Queue]:
        """The queues of the storm; the last one is deleted now and then."""
        ...

    def settle(self) -> None:
        """What was declared shall outlive a kill.  May switch."""
        ...

    def inject(self, fault: Fault) -> None:
        """Have a fault, to its end, except what the proxy does for a while.  May switch."""
        ...

    def heal(self) -> None:
        """End all faults.  May switch."""
        ...

    def close(self) -> None:
        """End it.  May switch."""
        ...


class Proxied:
    """What RabbitMQ and Redis have in common."""

    kinds = PROXIED | {Kind.KILL, Kind.RESTART, Kind.PAUSE, Kind.ALARM, Kind.DELETE, Kind.INTERRUPT}

    def __init__(self, broker: RabbitMQ | RedisServer, proxy: ProxyProcess) -> None:
        self.broker = broker
        self.proxy = proxy

    def inject(self, fault: Fault) -> None:
        """Have a fault."""
        if fault.kind in PROXIED:
            self.proxy.inject(fault)
        else:
            getattr(self, fault.kind.value)(fault)

    def kill(self, fault: Fault) -> None:
        """SIGKILL, and a start on what is on the disk."""
        self.broker.kill()
        gevent.sleep(fault.seconds)
        self.broker.start()

    def restart(self, fault: Fault) -> None:
        """An end in good order, and a start."""
        self.broker.stop()
        gevent.sleep(fault.seconds)
        self.broker.start()

    def pause(self, fault: Fault) -> None:
        """SIGSTOP for a while."""
        self.broker.pause()
        try:
            gevent.sleep(fault.seconds)
        finally:
            self.broker.resume()

    def delete(self, fault: Fault) -> None:
        """The last queue goes, with consumers and all."""
        with Connection(self.broker.url) as connection:
            connection.default_channel.queue_delete(self.queues()[-1].name)

    def queues(self) -> list[Queue]:
        raise NotImplementedError

    def close(self) -> None:
        """End the proxy and the broker."""
        self.proxy.close()
        self.broker.close()


class AmqpWorld(Proxied):
    """A RabbitMQ."""

    name = "amqp"
    heartbeat: float | None = 2
    broker: RabbitMQ

    def __init__(self, keeper: Keeper) -> None:
        broker = RabbitMQ(keeper)
        broker.start()
        super().__init__(broker, ProxyProcess(broker.port, "amqp"))
        self.url = f"amqp://guest:guest@127.0.0.1:{self.proxy.port}//"
        self.options: dict[str, Any] = {}

    def queues(self) -> list[Queue]:
        """Two classic and two quorum queues, and the one that is deleted."""
        quorum = {"x-queue-type": "quorum"}
        return [
            Queue("classic-1"),
            Queue("quorum-1", queue_arguments=quorum),
            Queue("classic-2"),
            Queue("quorum-2", queue_arguments=quorum),
            Queue("deleted"),
        ]

    def settle(self) -> None:
        """RabbitMQ 3.10 may forget what was declared in the second before it is killed."""
        self.broker.settle()

    def kill(self, fault: Fault) -> None:
        """The same for the queue that was deleted, and declared again just now."""
        self.broker.ctl("eval", "mnesia:dump_log().")
        super().kill(fault)

    def alarm(self, fault: Fault) -> None:
        """All who publish are blocked for a while."""
        self.broker.set_memory_alarm(True)
        try:
            gevent.sleep(fault.seconds)
        finally:
            self.broker.set_memory_alarm(False)

    def heal(self) -> None:
        """Let it go on."""
        self.proxy.heal()
        self.broker.mend()


class RedisWorld(Proxied):
    """A Redis that keeps all on its disk."""

    name = "redis"
    heartbeat: float | None = None
    broker: RedisServer

    def __init__(self, keeper: Keeper) -> None:
        broker = RedisServer(keeper, ON_DISK)
        broker.start()
        super().__init__(broker, ProxyProcess(broker.port, "redis"))
        self.url = f"redis://127.0.0.1:{self.proxy.port}/0"
        self.options: dict[str, Any] = {
            "lease": 3.0,
            "health_check_interval": 2,
            "reply_timeout": 5.0,
        }

    def queues(self) -> list[Queue]:
        """Lists."""
        return [Queue(f"list-{number}") for number in range(4)] + [Queue("deleted")]

    def settle(self) -> None:
        """Each reply came after a write to the disk."""

    def alarm(self, fault: Fault) -> None:
        """It takes nothing for want of memory, for a while."""
        self._limit("1mb")
        try:
            gevent.sleep(fault.seconds)
        finally:
            self._limit("0")

    def _limit(self, maxmemory: str) -> None:
        with Connection(self.broker.url) as connection:
            connection.connection.call(pack("CONFIG", "SET", "maxmemory", maxmemory))

    def heal(self) -> None:
        """Let it go on."""
        self.proxy.heal()
        self.broker.resume()
        if not self.broker.is_running:
            self.broker.start()
        self._limit("0")


class MemoryWorld:
    """The broker in this process: there are no bytes to spoil, but links and queues to take away."""

    name = "memory"
    url = "memory:///torture"
    kinds = frozenset({Kind.CUT, Kind.RESTART, Kind.DELETE, Kind.INTERRUPT})
    heartbeat: float | None = None

    def __init__(self, keeper: Keeper) -> None:
        self.options: dict[str, Any] = {}

    def queues(self) -> list[Queue]:
        """Durable queues: a restart keeps them."""
        return [Queue(f"memory-{number}") for number in range(4)] + [Queue("deleted")]

    def settle(self) -> None:
        """There is no disk."""

    def inject(self, fault: Fault) -> None:
        """Have a fault."""
        broker = memory.broker_of("torture")
        if fault.kind is Kind.CUT:
            for link in list(broker.links):
                link.end(RecoverableConnectionError("cut by the torture"))
        elif fault.kind is Kind.RESTART:
            memory.restart("torture")
        elif fault.kind is Kind.DELETE:
            with Connection(self.url) as connection:
                connection.default_channel.queue_delete("deleted")

    def heal(self) -> None:
        """Nothing lasts."""

    def close(self) -> None:
        """Forget it."""
        memory.reset("torture")


WORLDS: dict[str, Callable[[Keeper], World]] = {
    "amqp": AmqpWorld,
    "redis": RedisWorld,
    "memory": MemoryWorld,
}


def declare(world: World, for_good: bool) -> None:
    """Declare its queues.  May switch.

    Arguments:
        for_good: they shall be there after a kill.
    """
    with Connection(world.url) as connection:
        for queue in world.queues():
            queue(connection.default_channel).declare()
    if for_good:
        world.settle()


def depths(world: World) -> dict[str, int]:
    """How many messages wait in each of its queues.  May switch."""
    names = [queue.name for queue in world.queues()]
    with Connection(world.url) as connection:
        return {name: _depth(connection, name) for name in names}


def _depth(connection: Connection, name: str) -> int:
    try:
        declared = connection.default_channel.queue_declare(name, passive=True)
    except connection.channel_errors:
        return 0  # it was deleted, and nobody has wanted it back
    return int(declared.message_count)


@contextmanager
def world_of(name: str) -> Iterator[World]:
    """Start the broker of that name; it ends with the block.  May switch.

    Raises:
        NoBroker: it is not to be had.
    """
    with Keeper() as keeper:
        world = WORLDS[name](keeper)
        try:
            yield world
        finally:
            world.close()
