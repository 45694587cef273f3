"""Servers that know nothing of AMQP, in a storm: PostgreSQL, beanstalk, SQS, MongoDB, CouchDB."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, suppress
from typing import Any, Protocol

import gevent

from greenconn.entity import Queue
from greenconn.exceptions import OperationalError, RecoverableConnectionError
from tests.brokers import couchdb_server, mongodb_server
from tests.brokers.beanstalk import Beanstalkd
from tests.brokers.keeper import Keeper
from tests.brokers.moto import ACCESS_KEY, SECRET_KEY, MotoServer
from tests.brokers.packages import NoBroker
from tests.brokers.postgresql import PostgresServer
from tests.quality.faults.kinds import Fault, Kind
from tests.quality.faults.targets.base import Place, Proxied, Server, places_of

#: Seconds between two looks at a server.
STEP = 0.2


class _Owned(Server, Protocol):
    @property
    def port(self) -> int: ...

    def close(self) -> None: ...


class _Moto(MotoServer):
    """A moto server that is asked for what it never does."""

    def stop(self) -> None:
        """End it."""
        self.kill()


class StoreTarget(Proxied):
    """A server that keeps leased messages.

    Arguments:
        rate: messages a second that it bears, on a machine that does other things too.
    """

    #: What is spoiled nobody could tell.
    kinds = Proxied.kinds - {Kind.CORRUPT, Kind.DUPLICATE}

    def __init__(self, name: str, server: _Owned, rate: float) -> None:
        super().__init__(server, server.port, name)
        self.name = self.transport = name
        self._server = server
        self._is_down = False
        self._watching: gevent.Greenlet[..., None] = gevent.spawn(self._watch)
        self.rate = rate
        self.url = self._url(self.proxy.port)
        self.options: dict[str, Any] = {"lease": 3.0, "reply_timeout": 5.0}

    def _watch(self) -> None:
        """Start it again when it ends by itself, as who runs services does."""
        while True:
            gevent.sleep(STEP)
            if not self._is_down and not self._server.is_running:
                with suppress(NoBroker):  # it has ended at once, and is started once more
                    self._server.start()

    def inject(self, fault: Fault) -> None:
        self._is_down = fault.kind in (Kind.KILL, Kind.RESTART, Kind.DRAIN_MODE)
        try:
            super().inject(fault)
        finally:
            self._is_down = False

    def delete(self, fault: Fault) -> None:
        """As soon as it is there."""
        while True:
            with suppress(OSError, OperationalError, RecoverableConnectionError):
                super().delete(fault)
                return
            gevent.sleep(STEP)

    def close(self) -> None:
        self._watching.kill()
        super().close()

    def _url(self, port: int) -> str:
        return f"{self.transport}://127.0.0.1:{port}/storm"

    @property
    def direct_url(self) -> str:
        return self._url(self._server.port)

    def places(self) -> list[Place]:
        """Queues of the store."""
        return places_of([Queue(f"{self.name}-{number}") for number in (1, 2, 3, 4)])


class BeanstalkTarget(StoreTarget):
    """beanstalkd, which has a mode in which it takes nothing new."""

    kinds = StoreTarget.kinds | {Kind.DRAIN_MODE}

    def drain_mode(self, fault: Fault) -> None:
        """SIGUSR1 for a while; a restart ends it."""
        assert isinstance(self._server, Beanstalkd)
        self._server.drain()
        gevent.sleep(fault.seconds)
        self._server.stop()
        self._server.start()


class PostgresTarget(StoreTarget):
    """PostgreSQL: relays stand before its port."""

    def _url(self, port: int) -> str:
        return f"postgresql://postgres@127.0.0.1:{port}/postgres"


class SqsTarget(StoreTarget):
    """moto's server, which forgets all when it ends: it is not killed."""

    is_ordered = False  # what does not say .fifo is not
    kinds = StoreTarget.kinds - {Kind.KILL, Kind.RESTART}

    def _url(self, port: int) -> str:
        return f"sqs://{ACCESS_KEY}:{SECRET_KEY}@127.0.0.1:{port}"


class CouchTarget(StoreTarget):
    """pouchdb-server, which may take seconds for an answer."""

    def __init__(self, name: str, server: _Owned, rate: float) -> None:
        super().__init__(name, server, rate)
        self.options = {"lease": 10.0, "reply_timeout": 10.0, "feed_heartbeat": 3.0}


@contextmanager
def _target(
    name: str, make: Callable[[Keeper], _Owned], rate: float, kind: type[StoreTarget] = StoreTarget
) -> Iterator[StoreTarget]:
    with Keeper() as keeper:
        server = make(keeper)
        server.start()
        target = kind(name, server, rate)
        try:
            yield target
        finally:
            target.close()
            server.resume()
            server.kill()
            server.close()


def beanstalk_target() -> AbstractContextManager[StoreTarget]:
    """Start a beanstalkd that keeps its jobs on the disk; it ends with the block.  May switch."""
    large = ("-z", str(1 << 20))

    def make(keeper: Keeper) -> Beanstalkd:
        return Beanstalkd(keeper, large, is_durable=True)

    return _target("beanstalk", make, float("inf"), BeanstalkTarget)


def couchdb_target() -> AbstractContextManager[StoreTarget]:
    """Start a server that keeps its documents; it ends with the block.  May switch."""
    kind = couchdb_server.KIND
    return _target("couchdb", lambda keeper: kind(keeper, is_kept=True), 10.0, CouchTarget)


def mongodb_target() -> AbstractContextManager[StoreTarget]:
    """Start a server that keeps its documents; it ends with the block.  May switch."""
    kind = mongodb_server.KIND
    return _target("mongodb", lambda keeper: kind(keeper, is_durable=True), 60.0)


def postgresql_target() -> AbstractContextManager[StoreTarget]:
    """Start a PostgreSQL; it ends with the block.  May switch."""
    return _target("postgresql", PostgresServer, float("inf"), PostgresTarget)


def sqs_target() -> AbstractContextManager[StoreTarget]:
    """Start moto's server; it ends with the block.  May switch."""
    return _target("sqs", _Moto, 40.0, SqsTarget)
