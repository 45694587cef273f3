"""A scripted Redis Cluster: nodes that say what the test wants."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import suppress
from typing import Any, TypeAlias

import pytest
from gevent import socket
from redis.crc import key_slot

from greenconn import Connection
from greenconn.transport.redis.cluster import ClusterPlacement, tag_of
from greenconn.transport.redis.nodes import Nodes, Place
from greenconn.transport.redis.pipeline import Pipeline, ignore
from greenconn.transport.redis.scripts import DROP, RENEW, Script
from greenconn.transport.redis.server import Address, Login
from greenconn.wire.resp import RespParser
from tests.fix_peer import Peer, PeerFactory

#: What a node answers a command; None: nothing.
Answer: TypeAlias = bytes | None

LAST_SLOT = 16383
MIDDLE = 8192
NOTHING = b"$-1\r\n"


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

    def say(self, data: bytes) -> None:
        """Say something on all sockets; some may be closed just now."""
        for each in list(self.peer.sockets):
            with suppress(OSError):
                each.sendall(data)

    def refuse(self, *texts: str, first: str = "") -> None:
        """Answer with an error for each text, and then as an empty server does.

        Arguments:
            first: only to commands that begin so.
        """
        left = list(texts)

        def answer(command: str) -> Answer:
            if left and command.startswith(first):
                return f"-{left.pop(0)}\r\n".encode()
            return empty(command)

        self.answer = answer

    def names(self) -> list[str]:
        """Return the names of the commands that came."""
        return [each.partition(" ")[0] for each in self.got]

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

    def halve(self) -> None:
        """Let all nodes say that the first one serves the lower slots, and the second the others."""
        first, second = self.nodes
        self.ranges = [(0, MIDDLE - 1, first), (MIDDLE, LAST_SLOT, second)]

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
def cluster(peer: PeerFactory) -> Iterator[ScriptedCluster]:
    """Two scripted nodes; the first one serves all slots."""
    cluster = ScriptedCluster(peer, 2)
    cluster.serve_all(cluster.nodes[0])
    yield cluster
    cluster.close()


def runs(script: Script, command: str) -> bool:
    """Return whether a command runs a script, by its text or by its digest."""
    words = f"EVAL {script.text.decode()}", f"EVALSHA {script.digest.decode()}"
    return command.startswith(words)


def empty(command: str) -> Answer:
    """Return what a server without any keys answers; it holds whatever it is to remove or to move."""
    word, *rest = command.split(" ")
    if word in ("HDEL", "ZREM"):
        return b":%d\r\n" % (len(rest) - 1)
    if word in ("SMEMBERS", "HGETALL", "HKEYS"):
        return array()
    if runs(DROP, command):
        return array(b":0\r\n")
    if runs(RENEW, command):
        return array(b":1\r\n")
    if word == "ZSCAN":
        return array(bulk("0"), array())
    if word == "HMGET":
        return array(*[NOTHING] * (len(rest) - 1))
    if word in ("GET", "ZSCORE"):
        return NOTHING
    if word in ("DEL", "EXISTS", "LLEN", "PUBLISH", "SISMEMBER"):
        return b":0\r\n"
    return b":1\r\n"


def with_sets(sets: Mapping[str, Sequence[str]]) -> Callable[[str], Answer]:
    """Return what answers as a server with these sets, by their keys; all other keys are there, too."""

    def answer(command: str) -> Answer:
        word, _, key = command.partition(" ")
        if word == "SMEMBERS":
            return array(*map(bulk, sets.get(key, ())))
        return b":1\r\n" if word == "EXISTS" else empty(command)

    return answer


def on_node(number: int, count: int = 1) -> list[str]:
    """Return names of queues that are on one of two nodes, each in a partition of its own."""
    found: dict[str, str] = {}
    candidates = (f"queue-{each}" for each in range(10_000))
    while len(found) < count:
        name = next(candidates)
        tag = tag_of(name)
        if key_slot(tag.encode()) // MIDDLE == number:
            found.setdefault(tag, name)
    return list(found.values())


class ClusterLink:
    """A connection to two nodes, each of which serves one half of the slots.

    Arguments:
        options: of the transport.
    """

    def __init__(self, cluster: ScriptedCluster, **options: Any) -> None:
        host, port = cluster.nodes[0].place
        url = f"redis+cluster://{host}:{port}"
        self.connection = Connection(url, transport_options=options)
        placement = self.connection.connection.placement
        assert isinstance(placement, ClusterPlacement)
        self.placement = placement

    def prefix(self, queue: str) -> str:
        """Return what begins the keys of a queue's partition."""
        return self.placement.of(queue).commands.keys.prefix

    def handle(self, queue: str, number: int) -> str:
        """Return the field under which a message of a queue is held."""
        return f"{self.placement.of(queue).commands.prefix}{number}"


ClusterLinks: TypeAlias = Callable[..., ClusterLink]


@pytest.fixture
def cluster_links(cluster: ScriptedCluster) -> Iterator[ClusterLinks]:
    """Makes links: ``cluster_links(reply_timeout=...)``; the nodes answer as if they had no keys."""
    made: list[ClusterLink] = []
    cluster.halve()
    for node in cluster.nodes:
        node.answer = empty

    def make(**options: Any) -> ClusterLink:
        made.append(ClusterLink(cluster, **options))
        return made[-1]

    yield make
    for each in made:
        each.connection.close()


def plain(value: Any) -> str:
    """Return a reply as a text, to be compared."""
    return value.decode() if isinstance(value, bytes) else type(value).__name__
