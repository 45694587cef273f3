"""A scripted Redis Cluster: nodes that say what the test wants."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any, TypeAlias

import pytest
from gevent import socket

from greenconn.transport.redis.cluster.nodes import Nodes, Place
from greenconn.transport.redis.pipeline import Pipeline, ignore
from greenconn.transport.redis.server import Address, Login
from greenconn.wire.resp import RespParser
from tests.fix_peer import Peer, PeerFactory

__all__ = ["ScriptedCluster", "ScriptedNode"]

#: What a node answers a command; None: nothing.
Answer: TypeAlias = bytes | None

LAST_SLOT = 16383


def bulk(text: str) -> bytes:
    """Return a text as a reply."""
    return b"$%d\r\n%b\r\n" % (len(text.encode()), text.encode())


def array(*parts: bytes) -> bytes:
    """Return an array as a reply."""
    return b"*%d\r\n%b" % (len(parts), b"".join(parts))


class ScriptedNode:
    """One node.

    Attributes:
        got: the commands of clients, as texts, but for those of logins and of the cluster.
        answer: returns what the node answers to one of them.
        knows_hello: it speaks RESP3.
        state: of the cluster, as this node sees it.
    """

    def __init__(self, start_peer: PeerFactory, cluster: ScriptedCluster) -> None:
        self._cluster = cluster
        self.got: list[str] = []
        self.answer: Callable[[str], Answer] = bulk
        self.knows_hello = True
        self.state = "ok"
        self.peer: Peer = start_peer(self._serve)

    @property
    def place(self) -> Place:
        """Its address."""
        return Place(self.peer.host, self.peer.port)

    def _serve(self, client: socket.socket) -> None:
        parser = RespParser()
        while data := client.recv(65536):
            for command in parser.feed(data):
                reply = self._reply(" ".join(each.decode() for each in command))
                if reply is not None:
                    client.sendall(reply)

    def _reply(self, command: str) -> Answer:
        if command.startswith("HELLO"):
            if not self.knows_hello:
                return b"-ERR unknown command 'HELLO'\r\n"
            return b"%1\r\n" + bulk("id") + b":7\r\n"
        if command == "CLUSTER SLOTS":
            return self._cluster.slots()
        if command == "CLUSTER INFO":
            return bulk(f"cluster_state:{self.state}\r\n")
        if command == "ROLE":
            return array(bulk("master"))
        if command.startswith(("SELECT", "CLIENT", "INFO", "PING")):
            return b"+OK\r\n"
        self.got.append(command)
        return self.answer(command)


class ScriptedCluster:
    """Nodes, the slots that they say they serve, and a client's view of them.

    Attributes:
        ranges: the first and the last slot of each range, and its node.
        host: by which nodes name each other; None: by their addresses.
        lost: sockets that the client has lost.
    """

    def __init__(self, start_peer: PeerFactory, size: int) -> None:
        self.nodes = [ScriptedNode(start_peer, self) for _ in range(size)]
        self.ranges: list[tuple[int, int, ScriptedNode]] = []
        self.host: str | None = None
        self.lost: list[Pipeline] = []
        self.listeners: list[Callable[[Pipeline], None]] = []
        self._clients: list[Nodes] = []

    def slots(self) -> bytes:
        """Return the reply to ``CLUSTER SLOTS``."""
        parts = []
        for first, last, node in self.ranges:
            host = node.place.host if self.host is None else self.host
            server = array(bulk(host), b":%d\r\n" % node.place.port, bulk("id"))
            parts.append(array(b":%d\r\n" % first, b":%d\r\n" % last, server))
        return array(*parts)

    def serve_all(self, node: ScriptedNode) -> None:
        """Let all nodes say that *node* serves all slots."""
        self.ranges = [(0, LAST_SLOT, node)]

    def client(self, seeds: Sequence[ScriptedNode] = ()) -> Nodes:
        """Return the nodes as a client sees them that knows *seeds*, or the first one."""
        nodes = Nodes(
            [
                Address(host=host, port=port, where=f"redis+cluster://{host}:{port}")
                for host, port in (each.place for each in seeds or self.nodes[:1])
            ],
            Login(credentials=lambda: (None, None)),
            10.0,
            lambda pipeline: None,
            ignore,
            self._on_lost,
        )
        self._clients.append(nodes)
        return nodes

    def _on_lost(self, pipeline: Pipeline) -> None:
        self.lost.append(pipeline)
        for each in self.listeners:
            each(pipeline)

    def close(self) -> None:
        """Close the clients."""
        for each in self._clients:
            each.close()


@pytest.fixture
def scripted_cluster(peer: PeerFactory) -> Iterator[ScriptedCluster]:
    """Two scripted nodes; the first one serves all slots."""
    cluster = ScriptedCluster(peer, 2)
    cluster.serve_all(cluster.nodes[0])
    yield cluster
    cluster.close()


def plain(value: Any) -> str:
    """Return a reply as a text, to be compared."""
    return value.decode() if isinstance(value, bytes) else type(value).__name__
