"""The scripted peer."""

from __future__ import annotations

import gevent
import pytest
from gevent import socket
from gevent.event import Event

from tests.fix_peer import PeerFactory


def echo(client: socket.socket) -> None:
    while received := client.recv(100):
        client.sendall(received)


def wait(client: socket.socket) -> None:
    Event().wait()


def test_each_connection_is_served(peer: PeerFactory) -> None:
    server = peer(echo)
    clients = [socket.create_connection(server.address) for _ in range(3)]
    for number, client in enumerate(clients):
        client.sendall(b"%d" % number)
    for number, client in enumerate(clients):
        assert client.recv(10) == b"%d" % number
        client.close()
    assert server.accepted == 3
    gevent.sleep(0.01)
    assert server.sockets == []


def test_one_that_stopped_refuses_and_starts_at_the_same_port(peer: PeerFactory) -> None:
    server = peer(echo)
    address = server.address
    with socket.create_connection(address) as client:
        assert server.has_accepted.wait(30)
        server.stop()
        assert client.recv(1) == b""
    with pytest.raises(ConnectionRefusedError):
        socket.create_connection(address)
    server.start()
    assert server.address == address
    with socket.create_connection(address) as client:
        client.sendall(b"x")
        assert client.recv(1) == b"x"


def test_dropping_ends_connections_and_goes_on_listening(peer: PeerFactory) -> None:
    server = peer(wait)
    with socket.create_connection(server.address) as client:
        assert server.has_accepted.wait(30)
        server.drop()
        assert client.recv(1) == b""
    server.has_accepted.clear()
    with socket.create_connection(server.address):
        assert server.has_accepted.wait(30)


def test_the_end_of_the_connection_is_no_error_of_the_script(peer: PeerFactory) -> None:
    def fill(client: socket.socket) -> None:
        while True:
            client.sendall(bytes(65536))

    server = peer(fill)
    socket.create_connection(server.address).close()
    assert server.has_accepted.wait(30)
