"""A server that ends TLS in front of one that speaks none."""

from __future__ import annotations

import ssl
from collections.abc import Callable
from pathlib import Path
from typing import TypeAlias

import gevent
import pytest
from gevent import socket

from greenconn.wire.tls import TlsSession
from tests.fix_peer import PeerFactory

__all__ = ["CERTS", "TlsFront"]

CERTS = Path(__file__).resolve().parent / "certs"
#: Starts a server before an address; returns its port.
TlsFront: TypeAlias = Callable[[tuple[str, int]], int]


@pytest.fixture
def tls_front(peer: PeerFactory) -> TlsFront:
    """Starts servers that pass what comes over TLS on; their certificate is that of ``localhost``."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(CERTS / "server.pem", CERTS / "server.key")

    def start(address: tuple[str, int]) -> int:
        def serve(client: socket.socket) -> None:
            session = TlsSession(context, None, server_side=True)
            with socket.create_connection(address) as broker:
                replies = gevent.spawn(_encrypt, session, broker, client)
                try:
                    while data := client.recv(65536):
                        try:
                            plain = session.feed(data)
                        finally:
                            client.sendall(session.take_output())
                        broker.sendall(plain)
                except OSError:
                    pass  # one of the two did not like what it saw
                finally:
                    replies.kill()

        return peer(serve).port

    return start


def _encrypt(session: TlsSession, broker: socket.socket, client: socket.socket) -> None:
    while data := broker.recv(65536):
        client.sendall(session.encrypt(data))
    client.shutdown(socket.SHUT_RDWR)
