"""The brokers that calls are made to."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager, suppress
from functools import partial
from tempfile import TemporaryDirectory
from typing import Any, ClassVar

from greenconn.connection import Connection
from greenconn.exceptions import RecoverableConnectionError
from greenconn.green.hub import yield_to_hub
from greenconn.transport import memory
from tests.brokers.environment import AMQP_URL, REDIS_URL
from tests.brokers.keeper import Keeper
from tests.brokers.rabbitmq import RabbitMQ
from tests.brokers.redis_server import RedisServer
from tests.fix_peer import Handler
from tests.fix_peer import Peer as TcpPeer
from tests.fix_relay import Relay
from tests.fix_wires import until
from tests.quality.faults.interruptions.peer import Peer


class Target:
    """A broker.

    Arguments:
        name: of the broker.
        url: where clients connect to.
    """

    #: Whether an answer comes after the same turns each time, so that each turn can be tried.
    is_scripted: ClassVar[bool] = False
    #: Whether the broker ends links when it is told to.
    can_cut: ClassVar[bool] = False

    def __init__(self, name: str, url: str) -> None:
        self.name = name
        self.url = url

    def __repr__(self) -> str:
        return self.name

    @property
    def speaks_amqp(self) -> bool:
        """Whether channels, confirms and returns are those of AMQP itself."""
        return self.url.startswith("amqp")

    def cut(self) -> None:
        """End all links.  May switch."""
        raise NotImplementedError

    def check(self) -> None:
        """Nothing is held that nobody owns, once nobody uses it.  May switch."""


class Scripted(Target):
    """The AMQP peer in this process."""

    is_scripted = True
    can_cut = True

    def __init__(self, peer: Peer) -> None:
        super().__init__("amqp", peer.url)
        self.peer = peer

    def cut(self) -> None:
        """End all links."""
        self.peer.cut()

    def check(self) -> None:
        """No message is held, no consumer listens, no link is open."""

        def left() -> dict[str, Any]:
            queues = self.peer.model.queues.values()
            found = {
                "unacked": self.peer.unacked,
                "consumers": [each.name for each in queues if each.consumers],
                "connections": len(self.peer.ends),
                "replies": list(self.peer.model.repliers),
            }
            return {name: value for name, value in found.items() if value}

        with suppress(AssertionError):
            until(lambda: not left(), 2.0)
        assert not left(), f"the broker still has {left()}"


class Memory(Target):
    """The memory broker."""

    is_scripted = True
    can_cut = True

    def __init__(self, host: str) -> None:
        super().__init__("memory", f"memory://localhost/{host}")
        self._host = host

    def cut(self) -> None:
        """End all links."""
        with Connection(self.url) as connection:
            connection.connect()
            broker = connection.session.life.link.broker
        for link in list(broker.links):
            link.end(RecoverableConnectionError("cut by the test"))
        yield_to_hub()


class Relayed(Target):
    """A broker that runs, behind a relay that can cut.

    Its answers come when they come; who waits switches as often all the same.
    """

    can_cut = True

    def __init__(self, name: str, url: str) -> None:
        self._peers: list[TcpPeer] = []
        self._relay = Relay(self._start, url)
        super().__init__(name, self._relay.url)

    def _start(self, handler: Handler) -> TcpPeer:
        self._peers.append(TcpPeer(handler))
        return self._peers[-1]

    def cut(self) -> None:
        """End all links."""
        self._relay.cut()

    def close(self) -> None:
        """End the relay."""
        for peer in self._peers:
            peer.stop()


@contextmanager
def scripted_target() -> Iterator[Target]:
    """The scripted AMQP peer, which needs nothing."""
    peer = Peer()
    try:
        yield Scripted(peer)
    finally:
        peer.close()


@contextmanager
def memory_target() -> Iterator[Target]:
    """The memory broker."""
    yield Memory("moments")
    memory.reset("moments")


@contextmanager
def running_target(name: str, url: str, is_relayed: bool = True) -> Iterator[Target]:
    """The broker at *url*; its links can be cut if a relay is before it, which takes time."""
    if not is_relayed:
        yield Target(name, url)
        return
    target = Relayed(name, url)
    try:
        yield target
    finally:
        target.close()


@contextmanager
def own_target(name: str) -> Iterator[Target]:
    """A broker of our own; if the environment names one, that.

    Raises:
        NoBroker: it is not to be had.
    """
    given = os.environ.get(URLS[name])
    with ExitStack() as stack:
        if given is None:
            keeper = stack.enter_context(Keeper())
            broker = RabbitMQ(keeper) if name == "rabbitmq" else RedisServer(keeper)
            stack.callback(broker.close)
            broker.start()
            given = broker.url
        yield stack.enter_context(running_target(name, given))


@contextmanager
def sqlite_target() -> Iterator[Target]:
    """A file."""
    with TemporaryDirectory() as directory:
        yield Target("sqlite", f"sqlite:///{directory}/moments.db")


#: The brokers that may be named in the environment.
URLS: dict[str, str] = {"rabbitmq": AMQP_URL, "redis": REDIS_URL}
#: What makes each target.
TARGETS: dict[str, Callable[[], AbstractContextManager[Target]]] = {
    "amqp": scripted_target,
    "memory": memory_target,
    "sqlite": sqlite_target,
    "redis": partial(own_target, "redis"),
    "rabbitmq": partial(own_target, "rabbitmq"),
}
