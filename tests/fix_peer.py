"""A scripted peer: a TCP server on the loopback interface that does what the test says."""

from __future__ import annotations

import errno
from collections.abc import Callable, Iterator
from typing import TypeAlias

import gevent
import pytest
from gevent import socket
from gevent.event import Event

from tests.brokers.ports import some_ports

Handler: TypeAlias = Callable[[socket.socket], object]
ATTEMPTS = 20


class Peer:
    """A listening server; each connection is served by *handler* in a greenlet of its own.

    The handler ends by returning; its socket is closed then.  An error of the connection
    (``ConnectionError``) ends it quietly, any other error fails the test.
    """

    def __init__(self, handler: Handler) -> None:
        self.handler = handler
        self.host = "127.0.0.1"
        self.port = 0
        #: The connections that are open now, in the order in which they came.
        self.sockets: list[socket.socket] = []
        #: How many connections came.
        self.accepted = 0
        #: Set when a connection has come; clear it to wait for the next one.
        self.has_accepted = Event()
        self._listener: socket.socket | None = None
        self._greenlets: set[gevent.Greenlet[..., None]] = set()
        self.start()

    @property
    def address(self) -> tuple[str, int]:
        """Host and port."""
        return (self.host, self.port)

    def start(self) -> None:
        """Listen, on the port it had before."""
        assert self._listener is None
        self._listener = self._listen()
        self.port = self._listener.getsockname()[1]
        self._spawn(self._accept, self._listener)

    def _listen(self) -> socket.socket:
        # Its own port, which a connection may still hold for a moment, or the first that is free.
        for port in [self.port] * ATTEMPTS if self.port else some_ports():
            listener = socket.socket()
            listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            try:
                listener.bind((self.host, port))
                listener.listen(1024)
            except OSError as error:
                listener.close()
                if error.errno != errno.EADDRINUSE:
                    raise
                gevent.sleep(0.05 if self.port else 0)
            else:
                return listener
        raise OSError(errno.EADDRINUSE, f"port {self.port} is in use")

    def _spawn(self, function: Callable[..., None], *args: object) -> None:
        greenlet = gevent.spawn(function, *args)
        greenlet.name = f"peer {self.port}"
        self._greenlets.add(greenlet)
        greenlet.rawlink(self._greenlets.discard)

    def _accept(self, listener: socket.socket) -> None:
        while True:
            try:
                client, _ = listener.accept()
            except OSError:  # stop() closed the listener
                return
            self.sockets.append(client)
            self.accepted += 1
            self._spawn(self._serve, client)
            self.has_accepted.set()

    def _serve(self, client: socket.socket) -> None:
        try:
            self.handler(client)
        except ConnectionError:
            pass
        finally:
            self._forget(client)

    def _forget(self, client: socket.socket) -> None:
        client.close()
        if client in self.sockets:
            self.sockets.remove(client)

    def stop(self) -> None:
        """End all connections and do not listen any more; :meth:`start` takes the same port."""
        listener, self._listener = self._listener, None
        if listener is not None:
            listener.close()
        self.drop()

    def drop(self) -> None:
        """End all connections, and go on listening.  May switch."""
        greenlets = list(self._greenlets)
        if self._listener is not None:
            greenlets = [each for each in greenlets if each.args[:1] != (self._listener,)]
        clients = list(self.sockets)  # not those that come meanwhile, which are served
        gevent.killall(greenlets, timeout=30.0)
        for client in clients:
            self._forget(client)


PeerFactory: TypeAlias = Callable[[Handler], Peer]


@pytest.fixture
def peer() -> Iterator[PeerFactory]:
    """Start servers with ``peer(handler)``; all are closed after the test."""
    peers: list[Peer] = []

    def start(handler: Handler) -> Peer:
        peers.append(Peer(handler))
        return peers[-1]

    yield start
    for each in peers:
        each.stop()
