"""A scripted AMQP peer: a broker in this very process, whose answers come in the same turns each time.

Whoever calls it switches as often in every run, and whatever it knows can be looked at without a
question.  It answers each chunk that it receives with one send.
"""

from __future__ import annotations

from typing import Any, ClassVar

import gevent
from amqp import spec
from amqp.serialization import dumps, loads
from gevent import socket

from greenconn.wire.amqp import FrameParser, method_frame
from tests.quality.faults.interruptions.channel import METHODS, Channel, Method
from tests.quality.faults.interruptions.model import Model, Refused

CAPABILITIES = (
    *("publisher_confirms", "exchange_exchange_bindings", "basic.nack", "consumer_cancel_notify"),
    *(
        "connection.blocked",
        "consumer_priorities",
        "authentication_failure_close",
        "per_consumer_qos",
    ),
    "direct_reply_to",
)


class End:
    """The peer's end of a connection."""

    def __init__(self, peer: Peer, client: socket.socket) -> None:
        self.peer = peer
        self.model = peer.model
        self.client = client
        self.channels: dict[int, Channel] = {}
        self.out = b""
        self.is_open = False
        self._parser = FrameParser()

    def serve(self) -> None:
        """Read and answer until the client hangs up."""
        try:
            if self._receive(8) != b"AMQP\x00\x00\x09\x01":
                return
            properties = {"product": "peer", "capabilities": dict.fromkeys(CAPABILITIES, True)}
            start = (0, 9, properties, "PLAIN AMQPLAIN", "en_US")
            self._say(spec.Connection.Start, "ooFSS", *start)
            self.flush()
            while data := self.client.recv(1 << 16):
                for number, ids, payload, header, body in self._parser.feed(data):
                    method = (ids >> 16, ids & 0xFFFF)
                    if number:
                        self._on_channel(number, method, payload, header, body)
                    else:
                        self._on_connection(method)
                self.peer.flush()
        except OSError:
            pass
        finally:
            self._leave()

    def _receive(self, size: int) -> bytes:
        data = b""
        while len(data) < size and (part := self.client.recv(size - len(data))):
            data += part
        return data

    def flush(self) -> None:
        """Send what there is to send."""
        out, self.out = self.out, b""
        if out:
            self.client.sendall(out)

    def _leave(self) -> None:
        self.client.close()
        self.peer.ends.remove(self)
        for channel in self.channels.values():
            channel.leave()
        for queue in list(self.model.queues.values()):
            if queue.owner is self:
                self.model.delete(queue)
        self.out = b""
        self.peer.flush()

    def _say(self, method: Method, form: str = "", *arguments: Any) -> None:
        self.out += method_frame(0, method, dumps(form, arguments) if form else b"")

    def _on_connection(self, method: Method) -> None:
        if method == spec.Connection.StartOk:
            self._say(spec.Connection.Tune, "BlB", 2047, 131072, 0)
        elif method == spec.Connection.Open:
            self._say(spec.Connection.OpenOk, "s", "")
            self.is_open = True
        elif method == spec.Connection.Close:
            self._say(spec.Connection.CloseOk)
        elif method == (10, 70):
            self._say((10, 71))

    def _on_channel(
        self, number: int, method: Method, payload: bytes, header: Any, body: Any
    ) -> None:
        if method == spec.Channel.Open:
            channel = self.channels[number] = Channel(self, number)
            channel.send(spec.Channel.OpenOk, "S", ("",))
            return
        channel = self.channels[number]
        if method in (spec.Channel.Close, spec.Channel.CloseOk):
            del self.channels[number]
            if method == spec.Channel.Close:
                channel.leave()
                channel.send(spec.Channel.CloseOk)
        elif not channel.is_closing:
            try:
                self._do(channel, method, payload, header, body)
            except Refused as refused:
                channel.refuse(refused, method)

    def _do(self, channel: Channel, method: Method, payload: bytes, header: Any, body: Any) -> None:
        self.peer.calls += 1
        if method == spec.Basic.Publish:
            _, exchange, key, mandatory, _ = loads("Bssbb", payload, 4)[0]
            channel.publish(exchange, key, mandatory, header, body)
            return
        function, form, reserved = METHODS[method]
        arguments = loads(form, payload, 4)[0] if form else []
        answer = function(channel, *arguments[reserved:])
        if answer is not None:
            channel.send(*answer)


class Peer:
    """The peer: it listens until it is closed."""

    #: How many connections may wait to be accepted.
    BACKLOG: ClassVar[int] = 128

    def __init__(self) -> None:
        self.model = Model()
        self.ends: list[End] = []
        #: Methods that it was asked for on channels.
        self.calls = 0
        self._serving: set[gevent.Greenlet[..., None]] = set()
        self._listener = socket.socket()
        self._listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        self._listener.bind(("127.0.0.1", 0))
        self._listener.listen(self.BACKLOG)
        self.port: int = self._listener.getsockname()[1]
        self._accepting = gevent.spawn(self._accept)

    @property
    def url(self) -> str:
        """Where clients connect to."""
        return f"amqp://guest:guest@127.0.0.1:{self.port}//"

    @property
    def unacked(self) -> int:
        """Messages that some channel holds."""
        return sum(len(each.unacked) for end in self.ends for each in end.channels.values())

    def flush(self) -> None:
        """Send all that there is to send."""
        for end in list(self.ends):
            try:
                end.flush()
            except OSError:
                pass  # its own greenlet sees it, too

    def cut(self) -> None:
        """End all connections.  May switch."""
        gevent.killall(list(self._serving))

    def close(self) -> None:
        """End.  May switch."""
        self._accepting.kill()
        self._listener.close()
        self.cut()

    def _accept(self) -> None:
        while True:
            client, _ = self._listener.accept()
            client.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            end = End(self, client)
            self.ends.append(end)
            serving = gevent.spawn(end.serve)
            self._serving.add(serving)
            serving.rawlink(self._serving.discard)
