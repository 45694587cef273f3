"""HTTP/1.1 without I/O: the same response in every split, and nothing that might mean another end."""

from __future__ import annotations

from random import Random

import pytest

from greenconn.wire.http import HEAD_LIMIT, LINE_LIMIT, ResponseParser, request_head

OK = b"HTTP/1.1 200 OK\r\n"
CHUNKED = OK + b"Transfer-Encoding: chunked\r\n\r\n"

#: Answers with the body "hello", and whether the connection may go on.
HELLO = [
    (OK + b"Content-Length: 5\r\n\r\nhello", True),
    (OK + b"Content-Length:5 \r\nContent-Length: 5\r\nX:\r\n\r\nhello", True),
    (b"HTTP/1.1 200\r\nContent-Length: 5\r\n\r\nhello", True),
    (b"HTTP/1.1 100 Continue\r\nX: y\r\n\r\n" + OK + b"Content-Length: 5\r\n\r\nhello", True),
    (CHUNKED + b"5\r\nhello\r\n0\r\n\r\n", True),
    (CHUNKED + b"2\r\nhe\r\n03 ;x=y\r\nllo\r\n0\r\nTrailer: x\r\n\r\n", True),
    (OK + b"Transfer-Encoding: Chunked\r\n\r\n5\r\nhello\r\n0\r\n\r\n", True),
    (OK + b"\r\nhello", False),
    (b"HTTP/1.0 200 OK\r\nContent-Length: 5\r\n\r\nhello", False),
    (b"HTTP/1.0 200 OK\r\nConnection: Keep-Alive\r\nContent-Length: 5\r\n\r\nhello", True),
    (OK + b"Connection: x, Close\r\nContent-Length: 5\r\n\r\nhello", False),
    (OK + b"Content-Length: 5\r\n\r\nhelloHTTP/1.1 200 OK\r\n", False),
    (CHUNKED + b"5\r\nhello\r\n0\r\n\r\nX", False),
]

NONSENSE = [
    b"AMQP\x00\x00\x09\x01",
    b"HTTP/2.0 200 OK\r\n\r\n",
    b"HTTP/1.2 200 OK\r\n\r\n",
    b"HTTP/1.1 099 OK\r\n\r\n",
    b"HTTP/1.1 2000 OK\r\n\r\n",
    b"HTTP/1.1  200 OK\r\n\r\n",
    b"HTTP/1.1 200 O\x00K\r\n\r\n",
    b"HTTP/1.1 101 Other\r\nUpgrade: x\r\n\r\n",
    OK + b"Content-Length: 5\r\nContent-Length: 6\r\n\r\n",
    OK + b"Content-Length: 5, 6\r\n\r\n",
    OK + b"Content-Length: +5\r\n\r\n",
    OK + b"Content-Length: 0x5\r\n\r\n",
    OK + b"Content-Length: \xb2\r\n\r\n",
    OK + b"Content-Length: \r\n\r\n",
    OK + b"Content-Length: 9999999999999999999\r\n\r\n",
    OK + b"Content-Length: 5\r\nTransfer-Encoding: chunked\r\n\r\n",
    OK + b"Transfer-Encoding: gzip, chunked\r\n\r\n",
    OK + b"Transfer-Encoding: chunked\r\nTransfer-Encoding: chunked\r\n\r\n",
    OK + b"No colon\r\n\r\n",
    OK + b"Space : x\r\n\r\n",
    OK + b" Folded: x\r\n\r\n",
    OK + b"X: y\r\n folded\r\n\r\n",
    OK + b"X: a\rb\r\n\r\n",
    OK + b"X: a\nContent-Length: 5\r\n\r\n",
    OK + b": x\r\n\r\n",
    CHUNKED + b"zz\r\nhello\r\n",
    CHUNKED + b"-5\r\nhello\r\n",
    CHUNKED + b"\r\nhello\r\n",
    CHUNKED + b"5\nhello\r\n",
    CHUNKED + b"1000000000000000\r\nhello\r\n",
    CHUNKED + b"5\r\nhelloXX5\r\n",
    CHUNKED + b"0\r\nNo colon\r\n\r\n",
    CHUNKED + b"x" * (LINE_LIMIT + 3),
    CHUNKED + b"0\r\n" + b"X: %s\r\n" % (b"y" * 1000) * 70,
    OK + b"X: %s\r\n" % (b"y" * HEAD_LIMIT),
    b"HTTP/1.1 100 Continue\r\n\r\n" * 3000,
]


@pytest.mark.parametrize("size", [1, 100, LINE_LIMIT, LINE_LIMIT + 1, LINE_LIMIT + 2, 1 << 16])
@pytest.mark.parametrize("line", [LINE_LIMIT, LINE_LIMIT + 1])
def test_a_line_between_chunks_has_a_limit_however_it_is_split(size: int, line: int) -> None:
    data = b"5;".ljust(line, b"x") + b"\r\nhello\r\n0\r\n\r\n"
    pieces = [CHUNKED, *(data[at : at + size] for at in range(0, len(data), size))]
    if line > LINE_LIMIT:
        with pytest.raises(OSError, match=f"a line between chunks exceeds {LINE_LIMIT} bytes"):
            parsed(pieces)
    else:
        assert parsed(pieces).take() == b"hello"


def parsed(pieces: list[bytes], method: str = "GET", limit: int = 100) -> ResponseParser:
    """The response that comes in these pieces, behind which the server closes."""
    response = ResponseParser(method, limit)
    for each in pieces:
        response.feed(each)
    response.end()
    return response


@pytest.mark.parametrize(("text", "goes_on"), HELLO)
def test_every_split_is_the_same_response(text: bytes, goes_on: bool) -> None:
    for first in range(len(text) + 1):
        for second in range(first, len(text) + 1):
            response = parsed([text[:first], text[first:second], text[second:]])
            assert response.is_complete
            assert (response.status, response.take(), response.is_reusable) == (
                200,
                b"hello",
                goes_on,
            )
    response = parsed([text[i : i + 1] for i in range(len(text))])
    assert (response.is_complete, response.take(), response.is_reusable) == (
        True,
        b"hello",
        goes_on,
    )


@pytest.mark.parametrize("text", NONSENSE)
@pytest.mark.parametrize("size", [1, 7, 1 << 20])
def test_nonsense_is_an_error(text: bytes, size: int) -> None:
    with pytest.raises(OSError, match=r"server|response|chunk"):
        parsed([text[i : i + size] for i in range(0, len(text), size)])


@pytest.mark.parametrize("text", [text for text, _ in HELLO if b"hello" in text[-5:]])
def test_what_is_cut_short_is_not_complete(text: bytes) -> None:
    is_until_end = b"Length" not in text
    for size in range(1, len(text)):
        assert parsed([text[:size]]).is_complete == (is_until_end and size >= len(OK) + 2)
    for size in range(len(CHUNKED), len(HELLO[4][0])):
        assert not parsed([HELLO[4][0][:size]]).is_complete


def test_headers_and_reason() -> None:
    fields = b"X-A: 1\r\nx-a:  \xe9 \r\nB:\r\nContent-Length: 0\r\n\r\n"
    response = parsed([b"HTTP/1.1 404 Not  here\r\n" + fields])
    assert response.headers == {"x-a": "1, \xe9", "b": "", "content-length": "0"}
    assert (response.status, response.reason, response.take()) == (404, "Not  here", b"")


@pytest.mark.parametrize(
    ("method", "head"),
    [("HEAD", OK), ("GET", b"HTTP/1.1 204 No Content\r\n"), ("GET", b"HTTP/1.1 304 Old\r\n")],
)
def test_some_responses_have_no_body(method: str, head: bytes) -> None:
    for fields in (b"", b"Content-Length: 99999\r\n", b"Transfer-Encoding: chunked\r\n"):
        response = ResponseParser(method, 100)
        response.feed(head + fields + b"\r\n")
        assert response.is_complete
        assert response.is_reusable


def test_a_body_is_taken_as_it_comes() -> None:
    response = ResponseParser("GET", 10)
    response.feed(CHUNKED)
    for _ in range(100):
        response.feed(b"8\r\n12345678\r\n")
        assert response.take() == b"12345678"
    assert not response.is_complete


@pytest.mark.parametrize(
    "text",
    [
        OK + b"Content-Length: 101\r\n\r\n",
        OK + b"\r\n" + b"x" * 101,
        CHUNKED + b"40\r\n" + b"x" * 64 + b"\r\n40\r\n" + b"x" * 64,
    ],
)
def test_a_body_has_a_limit(text: bytes) -> None:
    with pytest.raises(OSError, match="body of the response exceeds 100 bytes"):
        parsed([text])


def test_random_bytes_do_no_harm() -> None:
    chance = Random(7)
    for _ in range(5000):
        broken = bytearray(chance.choice(HELLO)[0])
        for _ in range(chance.randrange(1, 5)):
            broken[chance.randrange(len(broken))] = chance.choice(b"\r\n :;,-059af\x00\xff")
        cut = chance.randrange(len(broken))
        outcomes = []
        for pieces in ([bytes(broken)], [bytes(broken[:cut]), bytes(broken[cut:])]):
            try:
                response = parsed(pieces)
                outcomes.append((response.is_complete, response.status, response.take()))
            except OSError:
                outcomes.append((False, -1, b""))
        assert outcomes[0] == outcomes[1]


def test_the_head_of_a_request() -> None:
    assert request_head("POST", "/a?b=c", "host:1", {"X": "\xe9"}, 0) == (
        b"POST /a?b=c HTTP/1.1\r\nX: \xe9\r\nHost: host:1\r\nAccept-Encoding: identity\r\n"
        b"Content-Length: 0\r\n\r\n"
    )
    assert request_head("GET", "/", "host", {"host": "other"}, 0) == (
        b"GET / HTTP/1.1\r\nhost: other\r\nAccept-Encoding: identity\r\n\r\n"
    )
