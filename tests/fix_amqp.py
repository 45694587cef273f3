"""AMQP links without the facade, and a scripted AMQP server that says what the test wants."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator
from struct import pack, unpack, unpack_from
from typing import Any, TypeAlias

import gevent
import pytest
from amqp import spec
from amqp.serialization import dumps
from gevent import socket
from gevent.event import Event
from gevent.queue import Queue

from greenconn.green.deadline import Deadline
from greenconn.options import BROKER_HEARTBEAT
from greenconn.transport.amqp import Transport
from greenconn.transport.amqp.channel import Channel
from greenconn.transport.amqp.link import AmqpLink
from tests.fix_peer import Peer, PeerFactory
from tests.tiny_client import TinyClient

#: ``(class id, method id)``
Method: TypeAlias = tuple[int, int]
#: A method as the server got it: channel, method, arguments, body or None.
Got: TypeAlias = tuple[int, Method, bytes, "bytes | None"]

_WAIT = 10.0


class Client(TinyClient):
    """What the transport asks of a ``Connection``."""

    def __init__(self, url: str, heartbeat: float = BROKER_HEARTBEAT, **options: Any) -> None:
        super().__init__(url, **options)
        self.heartbeat = heartbeat  # type: ignore[assignment]
        self.connect_timeout = _WAIT

    def as_uri(self) -> str:
        return f"amqp://{self.userid or 'guest'}:**@{self.hostname}:{self.port}/{self.virtual_host}"


class Links:
    """Opens links, and closes them after the test."""

    def __init__(self, url: str) -> None:
        self.url = url
        self.links: list[AmqpLink] = []

    def __call__(
        self, url: str | None = None, *, connect_timeout: float = _WAIT, **options: Any
    ) -> AmqpLink:
        client = Client(url or self.url, **options)
        client.connect_timeout = connect_timeout
        link = Transport(client).establish_connection()
        self.links.append(link)
        return link

    def close(self) -> None:
        """Close them all."""
        for link in self.links:
            link.close()


@pytest.fixture
def amqp_links(request: pytest.FixtureRequest) -> Iterator[Links]:
    """Opens links with ``amqp_links(heartbeat=..., confirm_timeout=...)`` to the shared RabbitMQ."""
    links = Links(request.getfixturevalue("amqp_url"))
    yield links
    links.close()


@pytest.fixture
def amqp_link(amqp_links: Links) -> AmqpLink:
    """A link to the shared RabbitMQ."""
    return amqp_links()


@pytest.fixture
def amqp_channel(amqp_link: AmqpLink) -> Channel:
    """A channel of ``amqp_link``."""
    return amqp_link.channel()


@pytest.fixture
def amqp_queue(amqp_links: Links, unique: str) -> Iterator[str]:
    """An empty amqp_queue."""
    channel = amqp_links().channel()
    channel.queue_declare(unique, auto_delete=False)
    yield unique
    amqp_links().channel().queue_delete(unique)


class BrokerEnd:
    """The server's end of one connection.

    Methods that the client sends are kept in ``got``; those of channel 0 that keep the connection
    going, and opening and closing of channels, are answered as a broker does.
    """

    def __init__(self, client: socket.socket, tune: tuple[int, int, int]) -> None:
        self.client = client
        self.got: Queue[Got] = Queue()
        self.heartbeats = 0
        self.is_open = Event()
        #: Methods that are not answered although a broker would.
        self.ignored: set[Method] = set()
        #: Further methods and what they are answered with: a method, its format and arguments.
        self.answers: dict[Method, tuple[Any, ...]] = {}
        #: Methods for which the connection is closed, with the code and the text.
        self.refused: dict[Method, tuple[int, str]] = {}
        #: Publishes that the test has answered, by channel.
        self.answered: Counter[int] = Counter()
        #: A method at which the connection is reset.
        self.vanishes_at: Method | None = None
        self.product, self.version = "scripted", "1.0"
        #: Cleared while the server does not read.
        self.is_reading = Event()
        self.is_reading.set()
        self._tune = tune
        self._content: dict[int, list[Any]] = {}

    # What a test calls.

    def send(self, data: bytes) -> None:
        """Send bytes as they are."""
        self.client.sendall(data)

    def reset_on_close(self) -> None:
        """When the peer drops this connection, do it by a reset."""
        self.client.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\1\0\0\0\0\0\0\0")

    def confirm_consumers(self) -> None:
        """Say from now on that a consumer ``tag`` has begun, and that a prefetch is obeyed."""
        self.answers[spec.Basic.Consume] = (spec.Basic.ConsumeOk, "s", "tag")
        self.answers[spec.Basic.Qos] = (spec.Basic.QosOk,)

    def method(self, channel: int, method: Method, form: str = "", *args: Any) -> None:
        """Send a method."""
        self.send(method_frame(channel, method, form, *args))

    def deliver(self, channel: int, consumer: str, tag: int, body: bytes = b"body") -> None:
        """Send a delivery."""
        self.send(
            method_frame(channel, spec.Basic.Deliver, "sLbss", consumer, tag, False, "", "key")
            + content(channel, body)
        )

    def expect(self, method: Method, timeout: float = _WAIT) -> Got:
        """The next method of this kind; others before it are dropped.  May switch."""
        with gevent.Timeout(timeout, AssertionError(f"the client never sent {method}")):
            while True:
                got = self.got.get()
                if got[1] == method:
                    return got

    def nothing_more(self) -> bool:
        """Whether the client sent nothing that the test has not taken."""
        return self.got.empty()

    # What runs in the peer's greenlet.

    def serve(self) -> None:
        """Read until the client hangs up."""
        if self._read(8) != b"AMQP\x00\x00\x09\x01":
            return
        self.start()
        while True:
            kind, channel, size = unpack(">BHI", self._read(7))
            payload = self._read(size + 1)[:-1]
            if kind == 8:
                self.heartbeats += 1
            else:
                self._take(kind, channel, payload)

    def _read(self, size: int) -> bytes:
        parts = b""
        while len(parts) < size:
            self.is_reading.wait()
            part = self.client.recv(size - len(parts))
            if not part:
                raise ConnectionResetError
            parts += part
        return parts

    def start(self) -> None:
        """Send ``connection.start``."""
        properties = {
            "product": self.product,
            "version": self.version,
            "capabilities": {
                "publisher_confirms": True,
                "connection.blocked": True,
                "consumer_cancel_notify": True,
                "authentication_failure_close": True,
                "basic.nack": True,
            },
        }
        self.method(0, spec.Connection.Start, "ooFSS", 0, 9, properties, "PLAIN AMQPLAIN", "en_US")

    def _take(self, kind: int, channel: int, payload: bytes) -> None:
        if kind == 1:
            method: Method = unpack_from(">HH", payload)
            if method == spec.Basic.Publish:
                self._content[channel] = [method, payload[4:], None, b""]
                return
            self._on_method(channel, method, payload[4:])
            return
        content = self._content[channel]
        if kind == 2:
            content[2] = unpack_from(">Q", payload, 4)[0]
        else:
            content[3] += payload
        if len(content[3]) == content[2]:
            del self._content[channel]
            self.got.put((channel, content[0], content[1], content[3]))

    def _on_method(self, channel: int, method: Method, arguments: bytes) -> None:
        self.got.put((channel, method, arguments, None))
        if method == self.vanishes_at:
            self.reset_on_close()
            self.client.close()
            raise ConnectionResetError
        if method in self.ignored:
            return
        if method in self.refused:
            self.method(0, spec.Connection.Close, "BsBB", *self.refused[method], *method)
        if method in self.answers:
            self.method(channel, *self.answers[method])
        if method == spec.Connection.StartOk:
            self.method(0, spec.Connection.Tune, "BlB", *self._tune)
        elif method == spec.Connection.Open:
            self.method(0, spec.Connection.OpenOk, "s", "")
            self.is_open.set()
        elif method == spec.Connection.Close:
            self.method(0, spec.Connection.CloseOk)
        elif method == spec.Channel.Open:
            self.answered[channel] = 0
            self.method(channel, spec.Channel.OpenOk, "S", "")
        elif method == spec.Channel.Close:
            self.method(channel, spec.Channel.CloseOk)


class AmqpPeer:
    """A scripted AMQP server; ``end`` is the server's end of its latest connection."""

    def __init__(self, start_peer: PeerFactory, tune: tuple[int, int, int]) -> None:
        self.ends: list[BrokerEnd] = []
        self._tune = tune
        #: Called with each new end before it serves.
        self.prepare: Callable[[BrokerEnd], None] = lambda end: None
        self.peer: Peer = start_peer(self._serve)

    @property
    def url(self) -> str:
        return f"amqp://user:secret-word@{self.peer.host}:{self.peer.port}/"

    @property
    def end(self) -> BrokerEnd:
        """The server's end of the connection that came last."""
        return self.ends[-1]

    def _serve(self, client: socket.socket) -> None:
        end = BrokerEnd(client, self._tune)
        self.ends.append(end)
        self.prepare(end)
        end.serve()


AmqpPeers: TypeAlias = Callable[..., AmqpPeer]


@pytest.fixture
def amqp_peers(peer: PeerFactory) -> AmqpPeers:
    """Starts scripted AMQP servers; ``tune`` is their (channel_max, frame_max, heartbeat)."""
    return lambda tune=(2047, 131072, 0): AmqpPeer(peer, tune)


@pytest.fixture
def amqp_peer(amqp_peers: AmqpPeers) -> AmqpPeer:
    """A scripted AMQP server without heartbeats."""
    return amqp_peers()


@pytest.fixture
def scripted_link(amqp_peer: AmqpPeer) -> Iterator[AmqpLink]:
    """A link to ``amqp_peer``."""
    links = Links(amqp_peer.url)
    yield links()
    links.close()


def method_frame(channel: int, method: Method, form: str = "", *args: Any) -> bytes:
    """A method frame of the server."""
    payload = pack(">HH", *method) + (dumps(form, args) if form else b"")
    return pack(">BHI", 1, channel, len(payload)) + payload + b"\xce"


def content(channel: int, body: bytes) -> bytes:
    """The content of a method that was sent just before."""
    header = pack(">HHQH", 60, 0, len(body), 0)
    frames = pack(">BHI", 2, channel, len(header)) + header + b"\xce"
    if body:
        frames += pack(">BHI", 3, channel, len(body)) + body + b"\xce"
    return frames


def drain(link: AmqpLink, until: Callable[[], object], timeout: float = _WAIT) -> None:
    """Handle events until *until()*.  May switch."""
    deadline = Deadline(timeout)
    while not until():
        link.drain(deadline)
