"""A blocking AMQP connection with one channel, by hand: the limit, and the hand that sets the stage."""

from __future__ import annotations

import socket
import ssl
from dataclasses import dataclass
from struct import pack, unpack_from
from typing import Final
from urllib.parse import quote, unquote, urlsplit

from benchmarks.frames import HEAD, Properties, long_text, method, publish, table, text

TIMEOUT = 60.0
RECEIVE = 1 << 20


@dataclass(frozen=True)
class Address:
    """Where the broker is, and who we are there."""

    host: str
    port: int
    user: str
    password: str
    vhost: str
    is_tls: bool = False

    @classmethod
    def of(cls, url: str) -> Address:
        """The address in *url*.

        Raises:
            ValueError: it is not one of AMQP.
        """
        parts = urlsplit(url)
        is_tls = parts.scheme == "amqps"
        if parts.scheme != "amqp" and not is_tls:
            raise ValueError(f"url {url!r}: the benchmarks connect by amqp:// and amqps:// only")
        return cls(
            parts.hostname or "127.0.0.1",
            parts.port or (5671 if is_tls else 5672),
            unquote(parts.username or "guest"),
            unquote(parts.password or "guest"),
            unquote(parts.path[1:]) or "/",
            is_tls,
        )

    @property
    def url(self) -> str:
        """The spelling that all rivals understand alike."""
        login = f"{quote(self.user, safe='')}:{quote(self.password, safe='')}"
        scheme = "amqps" if self.is_tls else "amqp"
        return f"{scheme}://{login}@{self.host}:{self.port}/{quote(self.vhost, safe='')}"


@dataclass(frozen=True)
class Delivery:
    """A message that came."""

    tag: int
    properties: dict[str, str]
    body: bytes


class Line:
    """One connection with one channel.

    Frames are looked at in place: ``received`` bytes of ``buffer`` are there, those before ``at`` have
    been seen.
    """

    def __init__(self, url: str) -> None:
        address = Address.of(url)
        self.buffer: Final = bytearray(2 * RECEIVE)
        self._view = memoryview(self.buffer)
        self.at = 0
        self.received = 0
        self.socket = socket.create_connection((address.host, address.port), TIMEOUT)
        try:
            self.socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            if address.is_tls:
                context = ssl.create_default_context()
                self.socket = context.wrap_socket(self.socket, server_hostname=address.host)
            self._open(address)
        except BaseException:
            self.socket.close()
            raise

    def _open(self, address: Address) -> None:
        self.socket.sendall(b"AMQP\0\0\x09\x01")
        self.wait(10, 10)
        login = long_text(f"\0{address.user}\0{address.password}".encode())
        start_ok = pack(">I", 0) + text("PLAIN") + login + text("en_US")
        self.socket.sendall(method(0, 10, 11, start_ok))
        channel_max, frame_max, _ = unpack_from(">HIH", self.wait(10, 30))
        self.frame_max = min(frame_max or 131072, 131072)
        self.socket.sendall(method(0, 10, 31, pack(">HIH", channel_max, self.frame_max, 0)))
        self.socket.sendall(method(0, 10, 40, text(address.vhost) + b"\0\0"))
        self.wait(10, 41)

    def open_channel(self) -> None:
        """Open the channel, number 1."""
        self.call(method(1, 20, 10, b"\0"), 20, 11)

    def close(self) -> None:
        """End it as the protocol wants."""
        try:
            self.call(method(0, 10, 50, pack(">H", 200) + b"\0" + pack(">HH", 0, 0)), 10, 51)
        finally:
            self.socket.close()

    def call(self, request: bytes, class_id: int, method_id: int) -> bytes:
        """Send *request* and wait for the reply; returns its arguments."""
        self.socket.sendall(request)
        return self.wait(class_id, method_id)

    def wait(self, class_id: int, method_id: int) -> bytes:
        """The arguments of the next such method; others are passed over."""
        while True:
            kind, payload = self.frame()
            if kind == 1:
                found = unpack_from(">HH", payload)
                if found == (class_id, method_id):
                    return payload[4:]
                if found in ((10, 50), (20, 40)):
                    raise ConnectionError(f"the broker refused: {payload[7:]!r}")

    def frame(self) -> tuple[int, bytes]:
        """The next frame: kind and payload."""
        while True:
            if self.received - self.at >= HEAD.size:
                kind, _, size = HEAD.unpack_from(self.buffer, self.at)
                begin, end = self.at + HEAD.size, self.at + HEAD.size + size
                if end < self.received:
                    self.at = end + 1
                    return kind, bytes(self._view[begin:end])
            self.receive()

    def receive(self) -> None:
        """Receive once, behind what has not been seen."""
        left = self.received - self.at
        if self.at:
            self.buffer[:left] = self._view[self.at : self.received]
            self.at, self.received = 0, left
        size = self.socket.recv_into(self._view[left:], RECEIVE)
        if not size:
            raise ConnectionError("the broker closed the connection")
        self.received += size

    @property
    def holds_more(self) -> bool:
        """Whether something received has not been seen."""
        return self.at < self.received

    def delivery(self) -> Delivery:
        """The next message."""
        arguments = self.wait(60, 60)
        (tag,) = unpack_from(">Q", arguments, 1 + arguments[0])
        _, header = self.frame()
        (size,) = unpack_from(">Q", header, 4)
        body = b""
        while len(body) < size:
            body += self.frame()[1]
        return Delivery(tag, Properties.decode(header[12:]), body)

    def declare(self, *queues: str, exclusive: bool = False, **limits: int) -> None:
        """Declare queues: exclusive, or durable; *limits* such as ``x_max_length``."""
        arguments = table({name.replace("_", "-"): limit for name, limit in limits.items()})
        flags = b"\x04" if exclusive else b"\x02"
        for queue in queues:
            self.socket.sendall(method(1, 50, 10, b"\0\0" + text(queue) + flags + arguments))
        for _ in queues:
            self.wait(50, 11)

    def delete(self, *queues: str) -> None:
        """Delete queues."""
        for queue in queues:
            self.socket.sendall(method(1, 50, 40, b"\0\0" + text(queue) + b"\0"))
        for _ in queues:
            self.wait(50, 41)

    def qos(self, prefetch: int) -> None:
        """Limit what may be unanswered."""
        self.call(method(1, 60, 10, pack(">IHB", 0, prefetch, 0)), 60, 11)

    def consume(self, queue: str, *, no_ack: bool = False) -> None:
        """Start a consumer."""
        flags = b"\x02" if no_ack else b"\0"
        request = b"\0\0" + text(queue) + text("") + flags + pack(">I", 0)
        self.call(method(1, 60, 20, request), 60, 21)

    def ack(self, tag: int) -> None:
        """Acknowledge all up to *tag*."""
        self.socket.sendall(method(1, 60, 80, pack(">QB", tag, 1)))

    def confirm(self) -> None:
        """Have the broker confirm what is published."""
        self.call(method(1, 85, 10, b"\0"), 85, 11)

    def publish(self, queue: str, body: bytes, properties: bytes) -> None:
        """Publish a message."""
        self.socket.sendall(publish(queue, body, properties, frame_max=self.frame_max))

    def settle(self, queue: str) -> None:
        """Return when the broker has seen all that was sent."""
        self.call(method(1, 50, 10, b"\0\0" + text(queue) + b"\x01" + pack(">I", 0)), 50, 11)
