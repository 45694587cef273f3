"""A server that ends TLS in front of one that speaks none."""

from __future__ import annotations

import ssl
import warnings
from collections.abc import Callable
from contextlib import suppress

import gevent
import pytest
from gevent import socket

from greenconn.wire.tls import TlsSession
from tests.brokers.tls import CERTS
from tests.fix_peer import PeerFactory


class TlsFront:
    """Starts servers that pass what comes over TLS on.

    Calling it starts one before an address, and returns its port.
    """

    def __init__(self, peer: PeerFactory) -> None:
        self._peer = peer

    def __call__(
        self,
        address: tuple[str, int],
        *,
        certificate: str = "server",
        client_authority: str | None = None,
        most: ssl.TLSVersion = ssl.TLSVersion.TLSv1_3,
        on_plain: Callable[[bytes], object] = lambda data: None,
    ) -> int:
        """Start one.

        Arguments:
            certificate: which one of ``certs`` it shows.
            client_authority: who must have signed the client's; None: it asks for none.
            most: the highest version that it speaks.
            on_plain: called with what came, decrypted.
        """
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(CERTS / f"{certificate}.pem", CERTS / f"{certificate}.key")
        if client_authority is not None:
            context.load_verify_locations(CERTS / f"{client_authority}.pem")
            context.verify_mode = ssl.CERT_REQUIRED
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", DeprecationWarning)
            context.minimum_version = min(most, ssl.TLSVersion.TLSv1_2)
            context.maximum_version = most

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
                        if plain:
                            on_plain(plain)
                        broker.sendall(plain)
                except OSError:
                    pass  # one of the two did not like what it saw
                finally:
                    replies.kill()

        return self._peer(serve).port


@pytest.fixture
def tls_front(peer: PeerFactory) -> TlsFront:
    """Starts servers that speak TLS before those that do not."""
    return TlsFront(peer)


def _encrypt(session: TlsSession, broker: socket.socket, client: socket.socket) -> None:
    with suppress(OSError):  # the client may be gone
        while data := broker.recv(65536):
            client.sendall(session.encrypt(data))
        client.shutdown(socket.SHUT_RDWR)
