"""Redis' protocol, however it is cut."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from greenconn.wire.resp import ErrorReply, ProtocolError, Push, RespParser, bulk, head, pack

REPLIES = (
    b"+OK\r\n:5\r\n$3\r\na\r\n\r\n*2\r\n$1\r\nx\r\n*-1\r\n-WRONGTYPE no\r\n_\r\n"
    b">2\r\n$10\r\ninvalidate\r\n*1\r\n$1\r\nq\r\n%1\r\n+a\r\n:1\r\n#t\r\n,1.5\r\n$-1\r\n"
)


def shown(replies: list[Any]) -> list[Any]:
    return [(type(each).__name__, str(each)) for each in replies]


def test_every_split() -> None:
    whole = shown(list(RespParser().feed(REPLIES)))
    assert len(whole) == 11
    for at in range(len(REPLIES) + 1):
        parser = RespParser()
        assert shown([*parser.feed(REPLIES[:at]), *parser.feed(REPLIES[at:])]) == whole


def test_byte_by_byte() -> None:
    parser = RespParser()
    found = [reply for n in range(len(REPLIES)) for reply in parser.feed(REPLIES[n : n + 1])]
    assert shown(found) == shown(list(RespParser().feed(REPLIES)))


def test_kinds() -> None:
    ok, five, text, array, error, nothing, push, *_ = RespParser().feed(REPLIES)
    assert (ok, five, text, array, nothing) == (b"OK", 5, b"a\r\n", [b"x", None], None)
    assert isinstance(error, ErrorReply)
    assert error.code == "WRONGTYPE"
    assert push.__class__ is Push
    assert push == [b"invalidate", [b"q"]]


@pytest.mark.parametrize("data", [b"HTTP/1.1 400 Bad Request\r\n\r\n", b"AMQP\x00\x00\x09\x01\r\n"])
def test_what_is_not_redis(data: bytes) -> None:
    with pytest.raises(ProtocolError):
        list(RespParser().feed(data))


@given(st.lists(st.one_of(st.binary(max_size=20), st.integers(), st.text(max_size=9)), min_size=1))
def test_commands_are_arrays_of_strings(args: list[Any]) -> None:
    try:
        texts = [each if isinstance(each, bytes) else str(each).encode() for each in args]
    except UnicodeEncodeError:
        return
    (parsed,) = RespParser().feed(pack(*args))
    assert parsed == texts
    (again,) = RespParser().feed(head(len(texts), *texts[:1]) + b"".join(map(bulk, texts[1:])))
    assert again == texts
