"""A Redis in a storm."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import gevent

from greenconn.connection import Connection
from greenconn.entity import Queue
from greenconn.wire.resp import pack
from tests.brokers.keeper import Keeper
from tests.brokers.packages import NoBroker
from tests.brokers.ports import free_ports
from tests.brokers.redis_server import RedisServer, SteppedRedis
from tests.brokers.tls import AUTHORITY, REDIS_OPTIONS
from tests.quality.faults.kinds import Fault, Kind
from tests.quality.faults.targets.base import Place, Proxied, places_of

#: What a Redis keeps when it is killed; without it there would be nothing to count.
ON_DISK = ("--appendonly", "yes", "--appendfsync", "always")
HOUR = 3600
ALL = ("~*", "&*", "+@all")
USER = ("--user", "storm", "on", ">secret", *ALL)


class RedisTarget(Proxied):
    """A Redis that keeps all on its disk."""

    name = "redis"
    transport = "redis"
    #: There is no disk alarm: who does not reach its disk refuses as one without memory does.
    kinds = Proxied.kinds | {Kind.MEMORY_ALARM, Kind.EVICT, Kind.REVOKE}

    def __init__(self, broker: RedisServer, tls_port: int | None = None) -> None:
        super().__init__(broker, tls_port or broker.port, "tls" if tls_port else "redis")
        self._broker = broker
        if isinstance(broker, SteppedRedis):
            self.kinds = self.kinds | {Kind.CLOCK}
        self.url = f"redis://storm:secret@127.0.0.1:{self.proxy.port}/0"
        if tls_port:
            self.name = "redis-tls"
            self.url = f"rediss{self.url.removeprefix('redis')}?ssl_ca_certs={AUTHORITY}"
        self.options = {"lease": 3.0, "health_check_interval": 2, "reply_timeout": 5.0}

    @property
    def direct_url(self) -> str:
        return self._broker.url

    def places(self) -> list[Place]:
        """Lists."""
        return places_of([Queue(f"list-{number}") for number in (1, 2, 3, 4)])

    def held(self) -> int:
        """All of them."""
        return int(self._command("HLEN", "unacked"))

    def memory_alarm(self, fault: Fault) -> None:
        """It takes nothing for want of memory, for a while."""
        self._command("CONFIG", "SET", "maxmemory", "1mb")
        try:
            gevent.sleep(fault.seconds)
        finally:
            self._command("CONFIG", "SET", "maxmemory", "0")

    def evict(self, fault: Fault) -> None:
        """The same, with a policy that deletes what expires; none of the storm's queues does."""
        self._command("CONFIG", "SET", "maxmemory-policy", "volatile-lru")
        try:
            self.memory_alarm(fault)
        finally:
            self._command("CONFIG", "SET", "maxmemory-policy", "noeviction")

    def clock(self, fault: Fault) -> None:
        """Its clock is an hour fast or slow for a while; then it is set right."""
        assert isinstance(self._broker, SteppedRedis)
        self._broker.set_clock(HOUR if fault.seed % 2 else -HOUR)
        try:
            gevent.sleep(fault.seconds)
        finally:
            self._broker.set_clock(0)

    def revoke(self, fault: Fault) -> None:
        """The user may nothing, or is thrown out and may not come in."""
        if fault.seed % 2:
            self._command("ACL", "SETUSER", "storm", "off")
            self._command("CLIENT", "KILL", "USER", "storm")
        else:
            self._command("ACL", "SETUSER", "storm", "-@all")
        try:
            gevent.sleep(fault.seconds)
        finally:
            self._command("ACL", "SETUSER", "storm", "on", *ALL)

    def _command(self, *words: str) -> Any:
        with Connection(self.direct_url) as connection:
            return connection.connection.commands.call(pack(*words))


def _started(keeper: Keeper, *further: str) -> RedisServer:
    """A Redis whose clock can be set, where the library for that is to be had."""
    options = (*ON_DISK, *USER, *further)
    try:
        broker: RedisServer = SteppedRedis(keeper, options)
        broker.start()
    except NoBroker:
        broker = RedisServer(keeper, options)
        broker.start()
    return broker


@contextmanager
def redis_target(*, is_tls: bool = False) -> Iterator[RedisTarget]:
    """Start a Redis; it ends with the block.  May switch."""
    with Keeper() as keeper:
        tls_port = free_ports(1)[0] if is_tls else None
        further = ("--tls-port", str(tls_port), *REDIS_OPTIONS) if is_tls else ()
        broker = _started(keeper, *further)
        target = RedisTarget(broker, tls_port)
        try:
            yield target
        finally:
            target.close()
            broker.close()
