"""The limit: blocking loops by hand on frames that were encoded before."""

from __future__ import annotations

import json
from struct import Struct
from time import monotonic_ns, perf_counter
from typing import Final
from uuid import uuid4

from benchmarks.clock import Clock, Figures, p50
from benchmarks.frames import BINARY, HEAD, JSON, Properties, publish
from benchmarks.line import Line
from benchmarks.rivals.shape import CALLERS, CONSUMERS, PREFETCH
from benchmarks.stage import BODY, LARGE, Stage

_ACK: Final = Struct(">HHQ")  # class, method, delivery tag
_BASIC_ACK: Final = (60, 80)


class Works:
    """The works of the raw loop."""

    def __init__(self, url: str, stage: Stage) -> None:
        self.stage = stage
        self.url = url
        self.line = self._connected()

    def close(self) -> None:
        """End the connection."""
        self.line.close()

    def _connected(self) -> Line:
        line = Line(self.url)
        line.open_channel()
        return line

    def _again(self) -> None:
        """Connect again, so that delivery tags begin with 1."""
        self.line.close()
        self.line = self._connected()

    def publish(self, count: int) -> Figures:
        """One send for many."""
        sink = self.stage.sink()
        batch = self._json(sink) * CALLERS
        turns = max(1, count // CALLERS)
        with Clock() as clock:
            for _ in range(turns):
                self.line.socket.sendall(batch)
            self.line.settle(self.stage.mark)
        return clock.per(turns * CALLERS)

    def publish_pool(self, count: int) -> Figures:
        """The same: it needs no pool."""
        return self.publish(count)

    def confirmed(self, count: int) -> Figures:
        """Send, receive the confirm."""
        message = self._json(self.stage.sink())
        self._again()
        self.line.confirm()
        took = []
        with Clock() as clock:
            for number in range(1, count + 1):
                began = perf_counter()
                self.line.socket.sendall(message)
                self._confirmed(number)
                took.append(perf_counter() - began)
        return clock.per(count, p50=p50(took))

    def confirmed_shared(self, count: int) -> Figures:
        """Many under way."""
        batch = self._json(self.stage.sink()) * CALLERS
        turns = max(1, count // CALLERS)
        self._again()
        self.line.confirm()
        with Clock() as clock:
            for turn in range(1, turns + 1):
                self.line.socket.sendall(batch)
                self._confirmed(turn * CALLERS)
        return clock.per(turns * CALLERS)

    def consume(self, count: int) -> Figures:
        """One ack for all that came together."""
        source = self.stage.source(count)
        self._again()
        self.line.qos(PREFETCH)
        with Clock() as clock:
            self.line.consume(source)
            self._receive(count, len(json.dumps(BODY)), ack=True)
        return clock.per(count)

    def consume_no_ack(self, count: int) -> Figures:
        """Only received."""
        source = self.stage.source(count)
        with Clock() as clock:
            self.line.consume(source, no_ack=True)
            self._receive(count, len(json.dumps(BODY)), ack=False)
        return clock.per(count)

    def consumers(self, count: int) -> Figures:
        """1,000 consumers on one channel."""
        sources = self.stage.sources(CONSUMERS)
        each = max(1, count // CONSUMERS)
        self._again()
        self.line.qos(PREFETCH)
        for source in sources:
            self.line.consume(source)
        feeder = self.stage.peer("feed", str(each), *sources)
        with Clock() as clock:
            self.stage.go(feeder)
            self._receive(each * CONSUMERS, len(json.dumps(BODY)), ack=True)
        return clock.per(each * CONSUMERS)

    def rpc(self, count: int, together: int = 1) -> Figures:
        """Requests of which *together* are under way."""
        requests, replies = self.stage.server(), f"greenconn-benchmark-{uuid4()}"
        self.line.declare(replies, exclusive=True)
        self.line.consume(replies, no_ack=True)
        size = len(json.dumps(BODY))
        properties = Properties.encode(**JSON, correlation_id="1", reply_to=replies)
        batch = publish(requests, json.dumps(BODY).encode(), properties) * together
        turns = max(1, count // together)
        with Clock() as clock:
            for _ in range(turns):
                self.line.socket.sendall(batch)
                self._receive(together, size, ack=False)
        return clock.per(turns * together)

    def rpc_shared(self, count: int) -> Figures:
        """100 under way."""
        return self.rpc(count, CALLERS)

    def large_publish(self, count: int) -> Figures:
        """1 MiB in one send."""
        sink = self.stage.sink(length=2)
        frames = publish(sink, LARGE, Properties.encode(**BINARY), frame_max=self.line.frame_max)
        with Clock() as clock:
            for _ in range(count):
                self.line.socket.sendall(frames)
            self.line.settle(self.stage.mark)
        return clock.per(count)

    def large_consume(self, count: int) -> Figures:
        """1 MiB, only received."""
        source = self.stage.large_source(count)
        self._again()
        self.line.qos(PREFETCH)
        with Clock() as clock:
            self.line.consume(source)
            self._receive(count, len(LARGE), ack=True)
        return clock.per(count)

    def latency(self, count: int) -> Figures:
        """Wait for one after the other."""
        (source,) = self.stage.sources(1)
        ticker = self.stage.peer("tick", str(count), source)
        self.line.consume(source)
        took = []
        with Clock() as clock:
            self.stage.go(ticker)
            for _ in range(count):
                message = self.line.delivery()
                took.append((monotonic_ns() - json.loads(message.body)["sent"]) / 1e9)
                self.line.ack(message.tag)
        return clock.per(count, p50=p50(took))

    def connect(self, count: int) -> Figures:
        """Connect and close."""
        with Clock() as clock:
            for _ in range(count):
                Line(self.url).close()
        return clock.per(count)

    @staticmethod
    def _json(queue: str) -> bytes:
        properties = Properties.encode(**JSON, delivery_mode=2, priority=0)
        return publish(queue, json.dumps(BODY).encode(), properties)

    def _confirmed(self, tag: int) -> None:
        """Wait for the confirm of *tag*; those of one queue come in order."""
        while True:
            kind, payload = self.line.frame()
            if kind == 1:
                class_id, method_id, confirmed = _ACK.unpack_from(payload)
                if (class_id, method_id) == _BASIC_ACK and confirmed >= tag:
                    return

    def _receive(self, count: int, size: int, *, ack: bool) -> None:
        """Receive *count* bodies of *size* bytes without looking at them.

        With *ack* they are the first ones of the channel, and one ack answers all that are there.
        """
        line, unpack, head = self.line, HEAD.unpack_from, HEAD.size
        buffer, bytes_seen, acked = line.buffer, 0, 0
        while True:
            at, received = line.at, line.received
            while received - at > head:
                kind, _, length = unpack(buffer, at)
                end = at + head + length
                if end >= received:
                    break
                if kind == 3:
                    bytes_seen += length
                at = end + 1
            line.at = at
            seen = bytes_seen // size
            if ack and seen > acked:
                line.ack(seen)
                acked = seen
            if seen >= count:
                return
            line.receive()
