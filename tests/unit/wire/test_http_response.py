"""An answer of a web server, fed in pieces of any size."""

from __future__ import annotations

import errno

import pytest

from greenconn.wire.http import HEAD_LIMIT, ResponseParser

LIMIT = 100
OK = b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\nhello"


def fed(
    data: bytes, size: int = 1 << 20, method: str = "GET", limit: int = LIMIT
) -> ResponseParser:
    """An answer that was fed *data* in pieces of *size* bytes."""
    answer = ResponseParser(method, limit)
    for at in range(0, len(data), size):
        answer.feed(data[at : at + size])
    return answer


def states(answer: ResponseParser) -> tuple[bool, bool, bool, bool]:
    """What it says of itself."""
    return answer.has_begun, answer.has_head, answer.is_complete, answer.is_reusable


@pytest.mark.parametrize("size", [1, 2, 3, 7, 1 << 20])
@pytest.mark.parametrize(
    ("data", "is_reusable"),
    [
        (OK, True),
        (
            b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n2\r\nhe\r\n3\r\nllo\r\n0\r\n\r\n",
            True,
        ),
        (b"HTTP/1.1 200 OK\r\nConnection: close\r\nContent-Length: 5\r\n\r\nhello", False),
        (b"HTTP/1.0 200 OK\r\nContent-Length: 5\r\n\r\nhello", False),
        (b"HTTP/1.1 100 Continue\r\nX: 1\r\n\r\n" + OK, True),
    ],
)
def test_it_is_complete_with_its_last_byte(data: bytes, is_reusable: bool, size: int) -> None:
    answer = ResponseParser("GET", LIMIT)
    assert states(answer) == (False, False, False, False)
    for at in range(0, len(data), size):
        assert states(answer)[2:] == (False, False)
        answer.feed(data[at : at + size])
        assert answer.has_begun
    assert states(answer) == (True, True, True, is_reusable)
    assert answer.status == 200
    assert answer.take() == b"hello"
    assert answer.take() == b""
    assert answer.end()


def test_its_headers_have_one_value_each() -> None:
    lines = [b"HTTP/1.1 404 No", b"X-One:  a b ", b"ETAG: 1", b"x-one: c", b"X-Latin: \xe9"]
    answer = fed(b"\r\n".join([*lines, b"Content-Length: 0", b"", b""]))
    assert answer.status == 404
    assert answer.headers == {
        "x-one": "a b, c",
        "etag": "1",
        "x-latin": "\xe9",
        "content-length": "0",
    }
    assert answer.is_complete


@pytest.mark.parametrize("data", [b"", OK[:20]])
def test_nothing_is_known_before_the_head(data: bytes) -> None:
    answer = fed(data)
    assert (answer.status, answer.reason, answer.headers) == (0, "", {})
    assert answer.take() == b""


def test_an_interim_response_is_no_response() -> None:
    answer = fed(b"HTTP/1.1 103 Early Hints\r\nLink: x\r\n\r\n")
    assert answer.has_begun
    assert not answer.has_head
    assert not answer.is_complete
    assert answer.headers == {}
    assert not answer.end()


def test_a_body_without_a_length_ends_with_the_connection() -> None:
    answer = fed(b"HTTP/1.1 200 OK\r\n\r\nhel", 1)
    answer.feed(b"lo")
    assert states(answer) == (True, True, False, False)
    assert answer.end()
    assert states(answer) == (True, True, True, False)
    assert answer.take() == b"hello"


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"HTTP/1.1 2",
        OK[:-1],
        b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n2\r\nhe\r\n",
    ],
)
def test_what_is_cut_short_is_not_complete(data: bytes) -> None:
    answer = fed(data)
    assert not answer.end()
    assert not answer.is_complete


def test_there_is_no_body_after_head() -> None:
    answer = fed(b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\n", method="HEAD")
    assert answer.is_complete
    assert answer.is_reusable
    assert answer.take() == b""


@pytest.mark.parametrize(
    "data", [b"SSH-2.0-x\r\n", b"HTTP/2 200\r\n", b"\x15\x03", b"HTTP/1.1 20x OK\r\n\r\n"]
)
def test_what_is_not_http_is_an_error(data: bytes) -> None:
    with pytest.raises(OSError, match=r"HTTP/1\.1") as caught:
        fed(data)
    assert caught.value.errno == errno.EPROTO


def test_a_response_that_changes_the_protocol_is_an_error() -> None:
    with pytest.raises(OSError, match=r"HTTP/1\.1|changes the protocol") as caught:
        fed(b"HTTP/1.1 101 Switching Protocols\r\n\r\n")
    assert caught.value.errno == errno.EPROTO


@pytest.mark.parametrize("more", [b"x", OK])
def test_a_connection_with_more_than_one_response_cannot_go_on(more: bytes) -> None:
    answer = fed(OK + more)
    assert answer.is_complete
    assert not answer.is_reusable
    assert answer.take() == b"hello"


def test_a_length_above_the_limit_is_refused_before_it_comes() -> None:
    head = "HTTP/1.1 200 OK\r\nContent-Length: {}\r\n\r\n"
    with pytest.raises(OSError, match="exceeds 100 bytes") as caught:
        fed(head.format(LIMIT + 1).encode())
    assert caught.value.errno == errno.EMSGSIZE
    assert not fed(head.format(LIMIT).encode()).is_complete
    # There is no body that could be too large.
    assert fed(head.format(LIMIT + 1).encode(), method="HEAD").is_complete


@pytest.mark.parametrize("size", [1, 50, 1 << 20])
def test_a_body_above_the_limit_is_not_kept(size: int) -> None:
    head = b"HTTP/1.1 200 OK\r\n\r\n"
    assert fed(head + bytes(LIMIT), size).take() == bytes(LIMIT)
    answer = ResponseParser("GET", LIMIT)
    answer.feed(head + bytes(LIMIT))
    with pytest.raises(OSError, match="exceeds 100 bytes"):
        answer.feed(b"x")
    assert answer.take() == b""


def test_what_was_taken_does_not_count() -> None:
    answer = fed(b"HTTP/1.1 200 OK\r\n\r\n")
    for _ in range(5):
        answer.feed(bytes(LIMIT))
        assert answer.take() == bytes(LIMIT)


@pytest.mark.parametrize("size", [1000, 1 << 20])
def test_a_head_has_a_limit(size: int) -> None:
    begin, end = b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\nX: ", b"\r\n\r\n"
    fits = begin + b"x" * (HEAD_LIMIT - len(begin)) + end
    assert fed(fits, size).is_complete
    with pytest.raises(OSError, match="head of the response exceeds 64 KiB") as caught:
        fed(begin + b"x" * (HEAD_LIMIT - len(begin) + 1) + end, size)
    assert caught.value.errno == errno.EMSGSIZE


def test_interim_responses_count_for_the_limit_of_the_head() -> None:
    interim = b"HTTP/1.1 103 Early Hints\r\nX: " + b"x" * 1000 + b"\r\n\r\n"
    with pytest.raises(OSError, match="head of the response exceeds 64 KiB"):
        fed(interim * (HEAD_LIMIT // len(interim) + 1))
