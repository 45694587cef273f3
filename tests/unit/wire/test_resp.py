"""Redis' protocol, however it is cut."""

from __future__ import annotations

import random
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


ANNOUNCED = [
    b"$9999999999\r\n",
    b"$600000000\r\nabc",
    b"=600000000\r\ntxt:",
    b"*2\r\n$1\r\nx\r\n$600000000\r\n",
    b"*1\r\n*1\r\n%1\r\n$1\r\na\r\n$600000000\r\n",
    b">2\r\n+message\r\n$600000000\r\n",
    b"$3\r\nabc\r\n" * 1000 + b"$600000000\r\n",
    b"*2\r\n$100\r\n" + b"$12345678\r\n".ljust(100) + b"\r\n$600000000\r\n",
]


@pytest.mark.parametrize("data", ANNOUNCED)
def test_a_string_that_is_too_long_is_refused_when_it_is_announced(data: bytes) -> None:
    for at in {0, *range(max(0, len(data) - 60), len(data))}:
        parser = RespParser()
        with pytest.raises(ProtocolError, match=r"string of [0-9]+ bytes announced"):
            for piece in (data[:at], data[at:], b"x"):
                for _ in parser.feed(piece):
                    pass


def test_the_strings_of_one_reply_are_counted_together() -> None:
    parser = RespParser(reply_limit=100_000_000)
    with pytest.raises(ProtocolError, match="of 99999999 bytes announced"):
        for piece in (b"*3\r\n$1000\r\n" + b"a" * 1000 + b"\r\n", b"$99999999\r\n"):
            assert list(parser.feed(piece)) == []


def test_what_looks_like_a_long_string_may_be_text() -> None:
    text = b"$600000000\r\n" * 500
    reply = b"*2\r\n" + bulk(text) + bulk(text)
    for at in range(0, len(reply), 7):
        parser = RespParser()
        assert [*parser.feed(reply[:at]), *parser.feed(reply[at:])] == [[text, text]]
    assert list(RespParser().feed(bulk(text) * 3)) == [text] * 3


TRICKY = (b"$600000000\r\n", b"\r\n$99999999999\r\n", b"abc", b"\r\n", b"=1234567890", b"-", b"+")


@pytest.mark.parametrize("seed", range(100))
def test_heads_are_distinguished_from_text_however_it_is_cut(seed: int) -> None:
    chance = random.Random(seed)
    values = []
    for _ in range(chance.randrange(1, 60)):
        text = b"".join(chance.choices(TRICKY, k=chance.randrange(40)))
        values.append(chance.choice((bulk(text), b"+OK\r\n", b":5\r\n", b"$-1\r\n", b"_\r\n")))
    data = b"".join(values)
    is_long = seed % 2 == 0
    if is_long:
        data += chance.choice((b"", b"*2\r\n", b"*2\r\n:1\r\n")) + b"$700000000\r\nxyz"
    parser, found, at, most = RespParser(), 0, 0, chance.choice((1, 3, 20, 300, 3000))
    refusal = ""
    try:
        while at < len(data):
            size = chance.randrange(1, most + 1)
            found += len(list(parser.feed(data[at : at + size])))
            at += size
    except ProtocolError as exc:
        refusal = str(exc)
    assert ("700000000" in refusal) == is_long == bool(refusal)
    assert is_long or found == len(values)


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


def fed(parser: RespParser, *pieces: bytes) -> list[Any]:
    return [reply for piece in pieces for reply in parser.feed(piece)]


LONG_LISTS = [
    *(mark + b"1000000\r\n" for mark in (b"*", b"~", b"%", b">", b"|")),
    b"*99999999999\r\n:1\r\n",
    b":1\r\n*2\r\n:5\r\n*1000000\r\n",
    b"+*\r\n" * 40 + b"*1000000\r\n",  # behind much that looks like a list
    b"+***\r\n" * 5 + b"*1000000\r\n",
    b"+***\r\n" * 200 + b"*1000000\r\n",
    (b"*1\r\n" + bulk(b"x" * 100)) * 40 + b"*1000000\r\n",  # behind many short lists
    bulk(b"*1000000\r\n") + b"*1000000\r\n",
    bulk(b"*1000000\r\n" * 20) + b"~1234567\r\n",
]


@pytest.mark.parametrize("data", LONG_LISTS)
def test_a_list_that_is_too_long_is_refused_when_it_is_announced(data: bytes) -> None:
    for at in range(len(data)):
        parser = RespParser()
        with pytest.raises(ProtocolError, match="list of 1,000,000 members or more announced"):
            fed(parser, data[:at], data[at:])


@pytest.mark.parametrize("mark", [b"*", b"~", b">"])
def test_a_list_may_have_less_than_a_million(mark: bytes) -> None:
    head = mark + b"999999\r\n"
    for at in (0, 5, 7):
        assert fed(RespParser(), head[:at], head[at:], b":1\r\n") == []


@pytest.mark.parametrize(
    "text",
    [b"*1000000\r\n", b"*1000000\r\n" * 50, b"~|>%*" * 50, b"*" * 15, b"x" * 9 + b"*1234567"],
)
def test_what_looks_like_a_long_list_may_be_text(text: bytes) -> None:
    data = bulk(text) + b":7\r\n"
    for at in range(0, len(data), 3):
        assert fed(RespParser(), data[:at], data[at:]) == [text, 7]


def test_lists_of_many_lists() -> None:
    data = b"*20\r\n" + b"*1\r\n:1\r\n" * 20 + b"*0\r\n"
    for at in range(len(data)):
        assert fed(RespParser(), data[:at], data[at:]) == [[[1]] * 20, []]


def test_a_reply_that_nobody_can_decode() -> None:
    with pytest.raises(ProtocolError, match=r"a reply cannot be decoded: .*unhashable"):
        fed(RespParser(), b"%1\r\n*1\r\n:1\r\n:1\r\n")


@pytest.mark.parametrize("former", [b"", b":1\r\n"])
def test_a_reply_has_a_limit(former: bytes) -> None:
    parser = RespParser(reply_limit=100)
    fed(parser, former)
    assert fed(parser, b"*3\r\n" + bulk(b"x" * 89)) == []  # 100 bytes with what is around it
    with pytest.raises(ProtocolError, match="a reply has more than 100 bytes"):
        fed(parser, b":")


def test_the_limit_is_for_each_reply() -> None:
    parser = RespParser(reply_limit=100)
    for _ in range(5):
        assert fed(parser, b"*1\r\n", bulk(b"x" * 80)) == [[b"x" * 80]]
    assert fed(parser, b":5\r\n" * 100) == [5] * 100
    with pytest.raises(ProtocolError, match="a reply has more than 100 bytes"):
        fed(parser, b"*2\r\n" + bulk(b"x" * 50), bulk(b"x" * 50)[:-2])


@pytest.mark.parametrize("mark", [b"$", b"="])
def test_a_string_may_be_as_long_as_the_limit(mark: bytes) -> None:
    for limit in (10_000_000, 123_456_789):
        head = b"*1\r\n" + mark + b"%d\r\n"
        for at in range(len(head % limit)):
            data = head % limit
            assert fed(RespParser(string_limit=limit), data[:at], data[at:], b"x") == []
            data = head % (limit + 1)
            with pytest.raises(ProtocolError, match=f"string of {limit + 1} bytes announced"):
                fed(RespParser(string_limit=limit), data[:at], data[at:], b"x")


def test_what_is_announced_counts_for_the_reply() -> None:
    begun = b"*2\r\n:1\r\n$10000000\r\n"
    limit = len(begun) + 10_000_000
    assert fed(RespParser(reply_limit=limit), begun) == []
    with pytest.raises(ProtocolError, match="string of 10000000 bytes announced"):
        fed(RespParser(reply_limit=limit - 1), begun)


def test_an_error_has_a_code() -> None:
    assert ErrorReply("ERR unknown command").code == "ERR"
    assert ErrorReply("LOADING").code == "LOADING"


def test_one_argument_of_a_command() -> None:
    assert [bulk(each) for each in (b"ab", "\xe9", 12, 1.5)] == [
        b"$2\r\nab\r\n",
        b"$2\r\n\xc3\xa9\r\n",
        b"$2\r\n12\r\n",
        b"$3\r\n1.5\r\n",
    ]
