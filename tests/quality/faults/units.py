"""Where in a flow of bytes its units begin: AMQP's frames, Redis' commands and replies.

The proxy spoils bytes only where the protocol can tell.  A byte of a body, or a whole frame that comes
twice, is what nobody below the application could notice.
"""

from __future__ import annotations

import random
from typing import Protocol


class Units(Protocol):
    """Knows the units of one flow."""

    def starts(self, part: bytes) -> list[int]:
        """Where in *part*, the next of the flow, units begin."""
        ...

    def corrupted(self, part: bytes, at: int, chance: random.Random) -> bytes | None:
        """*part* with a byte of the unit at *at* spoiled; None where that cannot be done."""
        ...

    def doubled(self, part: bytes, at: int, chance: random.Random) -> bytes | None:
        """*part* with bytes of the unit at *at* twice; None where that cannot be done."""
        ...


class AmqpFrames:
    """AMQP 0-9-1: frames, behind the protocol header of eight bytes from the client (4.2.2)."""

    def __init__(self, is_there: bool) -> None:
        self._left = 8 if is_there else 0
        self._head = b""

    def starts(self, part: bytes) -> list[int]:
        """Where frames begin."""
        found: list[int] = []
        at = 0
        while at < len(part):
            if self._left:
                step = min(self._left, len(part) - at)
                self._left -= step
            else:
                if not self._head:
                    found.append(at)
                piece = part[at : at + 7 - len(self._head)]
                self._head += piece
                step = len(piece)
                if len(self._head) == 7:
                    self._left = int.from_bytes(self._head[3:], "big") + 1
                    self._head = b""
            at += step
        return found

    def corrupted(self, part: bytes, at: int, chance: random.Random) -> bytes | None:
        """Another type of frame, or another end of the frame before it."""
        spoiled = bytearray(part)
        spoiled[at - 1 if at and chance.random() < 0.5 else at] = 0xEE
        return bytes(spoiled)

    def doubled(self, part: bytes, at: int, chance: random.Random) -> bytes | None:
        """The beginning of a frame's head twice.

        Not two, four or five bytes of it: they give a frame of 64 KiB, or of 256 to 2,048 bytes, which
        is valid until it ends.  That takes minutes where nothing but heartbeats follows.
        """
        count = chance.choice((1, 3, 6, 7))
        return part[:at] + part[at : at + count] + part[at:] if len(part) - at >= 7 else None


class RespUnits:
    """Redis: commands and replies, which are lines and strings of an announced length (RESP2, RESP3)."""

    def __init__(self, is_there: bool) -> None:
        self._is_there = is_there
        self._pending = 0  # elements of the unit that are to come
        self._left = 0  # bytes of a string that are to come
        self._line = b""

    def starts(self, part: bytes) -> list[int]:
        """Where commands or replies begin."""
        found: list[int] = []
        at = 0
        while at < len(part):
            if self._left:
                step = min(self._left, len(part) - at)
                self._left -= step
                at += step
                continue
            if not self._pending:
                found.append(at)
                self._pending = 1
            end = part.find(b"\n", at) + 1 or len(part)
            self._line += part[at:end]
            at = end
            if self._line.endswith(b"\n"):
                self._take(self._line)
                self._line = b""
        return found

    def _take(self, line: bytes) -> None:
        kind, rest = line[:1], line[1:-2]
        self._pending -= 1
        if kind in b"*~>%":
            self._pending += max(int(rest), 0) * (2 if kind == b"%" else 1)
        elif kind in b"$=!" and int(rest) >= 0:
            self._left = int(rest) + 2

    def corrupted(self, part: bytes, at: int, chance: random.Random) -> bytes | None:
        """A command whose number of words is none, or a reply of a type that does not exist."""
        where = at + 1 if self._is_there else at
        if where >= len(part):
            return None
        return part[:where] + b"Z" + part[where + 1 :]

    def doubled(self, part: bytes, at: int, chance: random.Random) -> bytes | None:
        """The type twice, where the number behind it is none then.  (``++OK`` is a status, too.)"""
        return part[:at] + part[at : at + 1] + part[at:] if part[at] in b"*$:>%" else None


class TlsBytes:
    """TLS: no byte can be changed that the other side does not notice."""

    def starts(self, part: bytes) -> list[int]:
        """Everywhere; some places are enough."""
        return list(range(0, len(part), 1 + len(part) // 50))

    def corrupted(self, part: bytes, at: int, chance: random.Random) -> bytes | None:
        """Another byte."""
        spoiled = bytearray(part)
        spoiled[at] ^= chance.randrange(1, 256)
        return bytes(spoiled)

    def doubled(self, part: bytes, at: int, chance: random.Random) -> bytes | None:
        """Some bytes twice."""
        count = chance.randrange(1, 100)
        return part[:at] + part[at : at + count] + part[at:]


class Opaque:
    """A protocol that cannot tell: its bytes are passed on as they are."""

    def starts(self, part: bytes) -> list[int]:
        """Nowhere."""
        return []

    def corrupted(self, part: bytes, at: int, chance: random.Random) -> bytes | None:
        """Nothing can be done."""
        return None

    def doubled(self, part: bytes, at: int, chance: random.Random) -> bytes | None:
        """Nothing can be done."""
        return None


def units_of(protocol: str, is_there: bool) -> Units:
    """What knows the units of a flow of *protocol*: ``amqp``, ``redis`` or ``tls``; else nothing."""
    if protocol == "amqp":
        return AmqpFrames(is_there)
    if protocol == "tls":
        return TlsBytes()
    return RespUnits(is_there) if protocol == "redis" else Opaque()
