"""A process between clients and their broker that does to their connections what it is told.

``python -m tests.quality.faults.proxy DESCRIPTOR HOST PORT PROTOCOL``: the descriptor is a socket on
which it tells its own port, takes faults, one JSON object a line, and answers each with the number of
connections that it hit.  It ends with that socket.
"""

from __future__ import annotations

import json
import random
import struct
import sys
from collections.abc import Callable
from contextlib import suppress
from time import monotonic
from typing import Any

import gevent
from gevent import socket
from gevent.server import StreamServer

from tests.brokers.ports import some_ports
from tests.quality.faults.kinds import LASTING, Direction, Kind
from tests.quality.faults.units import units_of

SIZE = 1 << 16
#: Bytes of each part that are sent in pieces; the rest follows whole, or a big body would take minutes.
FRAGMENTED = 4096
#: Bytes a second of a throttled flow.
RATE = 20_000
#: The least and the longest that a part of a delayed flow is late, in seconds.
DELAY = (0.01, 0.3)
#: Seconds after which a connection is cut although nothing came in whose midst that could be done.
CUT_TIMEOUT = 0.3
CONNECT_TIMEOUT = 5.0
RST = struct.pack("ii", 1, 0)


class Weather:
    """What holds for all flows of a direction, and until when.

    Attributes:
        delay: the least and the longest that a part of a delayed flow is late, in seconds.
    """

    def __init__(self, delay: tuple[float, float]) -> None:
        self.delay = delay
        self._until: dict[Kind, float] = {}
        self.chance = random.Random(0)

    def set(self, kind: Kind, seconds: float) -> None:
        """Have *kind* for so many seconds."""
        self._until[kind] = max(monotonic() + seconds, self._until.get(kind, 0.0))

    def clear(self) -> None:
        """Be fair."""
        self._until.clear()

    def left(self, kind: Kind) -> float:
        """Seconds for which there is *kind*; 0 is not at all."""
        return max(self._until.get(kind, 0.0) - monotonic(), 0.0)


class Flow:
    """One direction of a connection.

    Attributes:
        is_silent: what comes is dropped.
        is_severed: its source is gone, which the other end has to find out by itself.
        spoil: how the next unit is spoiled.
        end_after: bytes that are passed on before the connection ends.
    """

    def __init__(
        self, pair: Pair, source: socket.socket, target: socket.socket, is_there: bool
    ) -> None:
        self._pair = pair
        self.source, self.target = source, target
        self._weather = pair.weather[Direction.THERE if is_there else Direction.BACK]
        self._units = units_of(pair.protocol, is_there)
        self.is_silent = self.is_severed = False
        self.spoil: Kind | None = None
        self.end_after: int | None = None

    def run(self) -> None:
        """Pass on until one of the ends is gone."""
        with suppress(OSError, ValueError):
            while True:
                self._wait()
                part = self.source.recv(SIZE)
                self._wait()
                if not part:
                    break
                if not self.is_silent:
                    self._pass(self._spoiled(part))
        if not self.is_severed:
            self._pair.end()

    def _wait(self) -> None:
        """Wait while nothing shall be read."""
        while left := self._weather.left(Kind.STOP_READING):
            gevent.sleep(min(left, 0.05))

    def _spoiled(self, part: bytes) -> bytes:
        starts = self._units.starts(part)
        if self.spoil is None:
            return part
        chance = self._weather.chance
        chance.shuffle(starts)
        change = self._units.corrupted if self.spoil is Kind.CORRUPT else self._units.doubled
        for at in starts:
            spoiled = change(part, at, chance)
            if spoiled is not None:
                self.spoil = None
                return spoiled
        return part

    def _pass(self, part: bytes) -> None:
        weather = self._weather
        if self.end_after is not None:
            self.target.sendall(part[: self.end_after])
            raise ConnectionAbortedError("cut")
        if weather.left(Kind.DELAY):
            gevent.sleep(weather.chance.uniform(*weather.delay))
        if weather.left(Kind.FRAGMENT):
            at = 0
            while at < min(len(part), FRAGMENTED):
                end = at + weather.chance.randint(1, 7)
                self.target.sendall(part[at:end])
                gevent.sleep(0)
                at = end
            part = part[at:]
        while part and weather.left(Kind.THROTTLE):
            self.target.sendall(part[: RATE // 50])
            part = part[RATE // 50 :]
            gevent.sleep(1 / 50)
        if part:
            self.target.sendall(part)


class Pair:
    """A connection of a client, and the one to the broker that belongs to it."""

    def __init__(
        self,
        client: socket.socket,
        broker: socket.socket,
        weather: dict[Direction, Weather],
        protocol: str,
    ) -> None:
        self.protocol = protocol
        self.weather = weather
        self._ends = (client, broker)
        for end in self._ends:
            end.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self.flows = {
            Direction.THERE: Flow(self, client, broker, True),
            Direction.BACK: Flow(self, broker, client, False),
        }

    def run(self) -> None:
        """Pass on in both directions until the connection has ended."""
        there = gevent.spawn(self.flows[Direction.THERE].run)
        try:
            self.flows[Direction.BACK].run()
            there.join()
        finally:
            there.kill()
            self.close()

    def end(self) -> None:
        """End both sides in good order."""
        for end in self._ends:
            with suppress(OSError):
                end.shutdown(socket.SHUT_RDWR)

    def close(self) -> None:
        """Forget it."""
        for end in self._ends:
            end.close()

    @property
    def is_severed(self) -> bool:
        """Whether one of the ends is gone, and the other does not know."""
        return any(flow.is_severed for flow in self.flows.values())

    def suffer(self, kind: Kind, direction: Direction, chance: random.Random) -> None:
        """Have a fault of one moment."""
        flows = [flow for where, flow in self.flows.items() if where in direction]
        if direction is not Direction.BOTH and kind is Kind.RESET:
            for flow in self.flows.values():
                flow.is_silent = True
        for flow in flows:
            if kind is Kind.RESET:
                flow.is_severed = direction is not Direction.BOTH
                with suppress(OSError):
                    flow.source.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, RST)
                # The RST leaves with the close; a shutdown would be a FIN.
                flow.source.close()
            elif kind is Kind.CUT:
                flow.end_after = chance.randrange(64)
            elif kind is Kind.HALF_OPEN:
                flow.is_silent = True
            elif kind in (Kind.CORRUPT, Kind.DUPLICATE):
                flow.spoil = kind
        if kind is Kind.CUT:
            gevent.spawn_later(CUT_TIMEOUT, self.end)


class Proxy:
    """Passes connections on to *broker*."""

    def __init__(
        self, broker: tuple[str, int], protocol: str, delay: tuple[float, float] = DELAY
    ) -> None:
        self._broker = broker
        self._protocol = protocol
        self._weather = {each: Weather(delay) for each in (Direction.THERE, Direction.BACK)}
        self._pairs: dict[Pair, None] = {}
        self._server = self._listening()
        self.port = int(self._server.server_port or 0)

    def _listening(self) -> StreamServer:
        for port in some_ports():
            server = StreamServer(("127.0.0.1", port), self._serve, backlog=1024)
            with suppress(OSError):
                server.start()
                return server
        raise OSError("no free port")

    def _serve(self, client: socket.socket, address: object) -> None:
        try:
            broker = socket.create_connection(self._broker, CONNECT_TIMEOUT)
        except OSError:  # nobody is there: the client learns of it as it would without us
            return
        broker.settimeout(None)
        pair = Pair(client, broker, self._weather, self._protocol)
        self._pairs[pair] = None
        try:
            pair.run()
        finally:
            del self._pairs[pair]

    def obey(self, order: dict[str, Any]) -> int:
        """Do what one line says; how many connections it hit."""
        if order["kind"] == "heal":
            for weather in self._weather.values():
                weather.clear()
            for pair in self._pairs:
                if pair.is_severed:
                    pair.end()
            return len(self._pairs)
        kind, direction = Kind(order["kind"]), Direction(order["direction"])
        chance = random.Random(order["seed"])
        if kind in LASTING:
            for where, weather in self._weather.items():
                if where in direction:
                    weather.chance = chance
                    weather.set(kind, order["seconds"])
            return len(self._pairs)
        pairs = list(self._pairs)
        chosen = [pair for pair in pairs if chance.random() < 0.6] or pairs[:1]
        for pair in chosen:
            pair.suffer(kind, direction, chance)
        return len(chosen)


def serve(control: socket.socket, obey: Callable[[dict[str, Any]], int], port: int) -> None:
    """Tell the port, then do what each line says, until the control is closed."""
    control.sendall(f"{port}\n".encode())
    with control.makefile("rb") as lines:
        for line in lines:
            control.sendall(f"{obey(json.loads(line))}\n".encode())


def main() -> None:
    """Run until the control is closed."""
    descriptor, host, port, protocol = sys.argv[1:]
    proxy = Proxy((host, int(port)), protocol)
    with suppress(ConnectionError), socket.socket(fileno=int(descriptor)) as control:
        serve(control, proxy.obey, proxy.port)


if __name__ == "__main__":
    main()
