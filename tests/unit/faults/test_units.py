"""The proxy spoils only what the protocol can tell."""

from __future__ import annotations

import random
import ssl
from collections.abc import Callable
from functools import partial

import pytest

from greenconn.exceptions import FrameError
from greenconn.wire.amqp import FrameParser
from greenconn.wire.resp import ProtocolError, RespParser, pack
from greenconn.wire.tls import TlsError, TlsSession, tls_session
from tests.brokers.tls import AUTHORITY, CERTS
from tests.quality.faults.units import AmqpFrames, RespUnits, TlsBytes, Units


def frame(kind: int, channel: int, payload: bytes) -> bytes:
    head = kind.to_bytes(1, "big") + channel.to_bytes(2, "big") + len(payload).to_bytes(4, "big")
    return head + payload + b"\xce"


FRAMES = [frame(1, 1, b"\x00\x3c\x00\x50" + bytes(9)), frame(8, 0, b""), frame(3, 1, b"x" * 300)]
COMMANDS = [pack("LPUSH", "q", "a\r\nb"), pack("PING"), pack("SET", "k", "")]
REPLIES = [
    b"+OK\r\n",
    b":12\r\n",
    b"$3\r\na\nb\r\n",
    b"*2\r\n$-1\r\n*1\r\n:1\r\n",
    b"%1\r\n+a\r\n_\r\n",
]

FLOWS: dict[str, tuple[Callable[[], Units], list[bytes]]] = {
    "frames": (partial(AmqpFrames, False), FRAMES),
    "commands": (partial(RespUnits, True), COMMANDS),
    "replies": (partial(RespUnits, False), REPLIES),
}


def starts_in(units: Units, stream: bytes, size: int) -> list[int]:
    """Where units begin in a stream that comes in pieces of so many bytes."""
    found: list[int] = []
    for at in range(0, len(stream), size):
        found += [at + start for start in units.starts(stream[at : at + size])]
    return found


@pytest.mark.parametrize("size", [1, 2, 3, 7, 1000])
@pytest.mark.parametrize("name", FLOWS)
def test_units_begin_where_they_begin_however_they_come(name: str, size: int) -> None:
    make, units = FLOWS[name]
    begins = [sum(map(len, units[:number])) for number in range(len(units))]
    assert starts_in(make(), b"".join(units), size) == begins


def test_a_client_of_amqp_begins_with_a_header() -> None:
    stream = b"AMQP\0\0\x09\x01" + b"".join(FRAMES[:2])
    assert starts_in(AmqpFrames(True), stream, 3) == [8, 8 + len(FRAMES[0])]


@pytest.mark.parametrize("seed", range(30))
@pytest.mark.parametrize("how", ["corrupted", "doubled"])
def test_spoiled_frames_are_noticed(how: str, seed: int) -> None:
    chance = random.Random(seed)
    stream = b"".join(FRAMES)
    at = chance.choice(AmqpFrames(False).starts(stream))
    spoiled = getattr(AmqpFrames(False), how)(stream, at, chance)
    assert spoiled is not None
    assert spoiled != stream
    parser = FrameParser(131072)
    with pytest.raises(FrameError):
        parser.feed(spoiled + b"".join(FRAMES) * 10)


@pytest.mark.parametrize("seed", range(10))
@pytest.mark.parametrize("how", ["corrupted", "doubled"])
def test_spoiled_records_are_noticed(how: str, seed: int) -> None:
    chance = random.Random(seed)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(CERTS / "server.pem", CERTS / "server.key")
    server = TlsSession(context, None, server_side=True)
    client = tls_session({"ca_certs": AUTHORITY}, "localhost")
    server.feed(client.start())
    client.feed(server.take_output())
    server.feed(client.take_output())
    stream = b"".join(client.encrypt(each) for each in FRAMES)
    at = chance.choice(TlsBytes().starts(stream))
    spoiled = getattr(TlsBytes(), how)(stream, at, chance)
    with pytest.raises(TlsError):
        for _ in range(20):  # a length that is spoiled may swallow what follows
            server.feed(spoiled)


@pytest.mark.parametrize("how", ["corrupted", "doubled"])
def test_spoiled_replies_are_noticed(how: str) -> None:
    for at in RespUnits(False).starts(b"".join(REPLIES)):
        spoiled = getattr(RespUnits(False), how)(b"".join(REPLIES), at, random.Random(1))
        if spoiled is not None:
            with pytest.raises(ProtocolError):
                list(RespParser().feed(spoiled))
