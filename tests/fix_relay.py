"""A relay between clients and a broker, which can cut, slow down and count."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from time import monotonic
from urllib.parse import urlsplit

import gevent
import pytest
from gevent import socket
from gevent.event import Event

from greenconn.connection import Connection
from tests.fix_peer import Peer, PeerFactory

#: The TCP connections of this machine: remote address in the third column, state in the fourth.
TABLE = Path("/proc/net/tcp")


class Relay:
    """Stands between clients and the broker of *url*; its own :attr:`url` leads there.

    Attributes:
        delay: seconds before a new connection is passed on.
        rate: bytes a second from each client to the broker; None is as fast as it goes.
        back_rate: the same from the broker to each client.
        passed: bytes from clients that were passed on.
        budget: bytes from clients that are still passed on; None is no end.
        back_budget: the same from the broker; a connection whose bytes they were ends then.
        on_budget: called when they have been passed on; without it, each connection ends then.
        is_passing: cleared while nothing is read from either side.
        is_ending: cleared while the broker does not hear that clients have ended.
        most: the largest number of connections that clients in this process had open at once, those
            being opened included.
    """

    def __init__(self, peer: PeerFactory, url: str) -> None:
        parts = urlsplit(url)
        self._broker = (str(parts.hostname), parts.port or int(Connection(url).port or 0))
        self.delay = 0.0
        self.rate: float | None = None
        self.back_rate: float | None = None
        self.passed = 0
        self.budget: int | None = None
        self.back_budget: int | None = None
        self.on_budget: Callable[[], object] | None = None
        self.is_passing = Event()
        self.is_passing.set()
        self.is_ending = Event()
        self.is_ending.set()
        self.most = 0
        self.server: Peer = peer(self._serve)
        login, at, _ = parts.netloc.rpartition("@")
        self.url = parts._replace(netloc=f"{login}{at}127.0.0.1:{self.server.port}").geturl()

    @property
    def accepted(self) -> int:
        """How many connections came."""
        return self.server.accepted

    @property
    def open(self) -> int:
        """How many connections there are now."""
        return len(self.server.sockets)

    def ends(self) -> int:
        """How many connections to here are open, or being opened, at the clients' end."""
        port = f":{self.server.port:04X}"
        # Row by row: a busy machine has thousands, and a soak looks at memory.
        with TABLE.open() as table:
            rows = (row.split(maxsplit=4) for row in table if port in row)
            # By their own addresses: the kernel may show one twice, since others come and go meanwhile.
            return len({row[1] for row in rows if row[2].endswith(port) and row[3] in ("01", "02")})

    def cut(self) -> None:
        """End all connections.  May switch."""
        self.server.drop()

    def cut_after(self, budget: int, *, is_back: bool = False) -> None:
        """Cut them when *budget* more bytes have come from clients, or after a second.  May switch.

        Arguments:
            is_back: bytes from the broker count instead.
        """
        which = "back_budget" if is_back else "budget"
        setattr(self, which, budget)
        end = monotonic() + 1.0
        while getattr(self, which) and self.open and monotonic() < end:
            gevent.sleep(0.005)
        setattr(self, which, None)
        self.cut()

    def _serve(self, client: socket.socket) -> None:
        self.most = max(self.most, self.ends())
        gevent.sleep(self.delay)
        with socket.create_connection(self._broker) as broker:
            for end in (client, broker):
                end.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            there = gevent.spawn(self._copy, client, broker, True)
            try:
                self._copy(broker, client, False)
            finally:
                there.kill()

    def _copy(self, source: socket.socket, target: socket.socket, is_there: bool) -> None:
        with suppress(OSError):
            while part := source.recv(1 << 16):
                self.is_passing.wait()
                if not (self._pass if is_there else self._pass_back)(part, target):
                    break
            if is_there:
                self.is_ending.wait()
            target.shutdown(socket.SHUT_WR)

    def _pass(self, part: bytes, broker: socket.socket) -> bool:
        """Pass *part* of a client on; whether its connection goes on."""
        if self.budget is not None:
            part = part[: max(self.budget, 0)]
            self.budget -= len(part)
        self.passed += len(part)
        broker.sendall(part)
        if self.rate is not None:
            gevent.sleep(len(part) / self.rate)
        if self.budget == 0:
            if self.on_budget is None:
                return False
            self.on_budget()
        return True

    def _pass_back(self, part: bytes, client: socket.socket) -> bool:
        """Pass *part* of the broker on; whether its connection goes on."""
        if self.back_budget is not None:
            part = part[: max(self.back_budget, 0)]
            self.back_budget -= len(part)
        client.sendall(part)
        if self.back_rate is not None:
            gevent.sleep(len(part) / self.back_rate)
        return self.back_budget != 0


class RelayFactory:
    """Makes relays."""

    def __init__(self, peer: PeerFactory) -> None:
        self._peer = peer

    def __call__(self, url: str) -> Relay:
        return Relay(self._peer, url)


@pytest.fixture
def relay(peer: PeerFactory, amqp_url: str) -> Relay:
    """A relay before the shared RabbitMQ."""
    return Relay(peer, amqp_url)


@pytest.fixture
def relay_to(peer: PeerFactory) -> RelayFactory:
    """Start a relay before another broker with ``relay_to(url)``."""
    return RelayFactory(peer)
