"""Beanstalk's protocol, however it is cut, and the names of tubes."""

from __future__ import annotations

import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from greenconn.wire.beanstalk import (
    LONGEST_TUBE,
    BeanstalkParser,
    ProtocolError,
    Reply,
    is_whole,
    line,
    put,
    queue_of,
    statistics,
    tube_of,
)

REPLIES = (
    b"INSERTED 12\r\nUSING mail\r\nRESERVED 12 4\r\na\r\nb\r\nTIMED_OUT\r\nBURIED\r\nBURIED 9\r\n"
    b"WATCHING 3\r\nKICKED 7\r\nKICKED\r\nFOUND 4 0\r\n\r\nOK 5\r\n---\n-\r\nDRAINING\r\n"
)
WHOLE = [
    Reply(b"INSERTED", 12),
    Reply(b"USING"),
    Reply(b"RESERVED", 12, b"a\r\nb"),
    Reply(b"TIMED_OUT"),
    Reply(b"BURIED"),
    Reply(b"BURIED", 9),
    Reply(b"WATCHING", 3),
    Reply(b"KICKED", 7),
    Reply(b"KICKED"),
    Reply(b"FOUND", 4),
    Reply(b"OK", 5, b"---\n-"),
    Reply(b"DRAINING"),
]


def test_whole() -> None:
    assert list(BeanstalkParser().feed(REPLIES)) == WHOLE


def test_every_split() -> None:
    for at in range(len(REPLIES) + 1):
        parser = BeanstalkParser()
        assert [*parser.feed(REPLIES[:at]), *parser.feed(REPLIES[at:])] == WHOLE


@pytest.mark.parametrize("size", [1, 2, 3, 7])
def test_fragments(size: int) -> None:
    parser = BeanstalkParser()
    pieces = [REPLIES[at : at + size] for at in range(0, len(REPLIES), size)]
    assert [reply for piece in pieces for reply in parser.feed(piece)] == WHOLE


@pytest.mark.parametrize(
    "data",
    [
        b"HTTP/1.1 400 Bad Request\r\n",
        b"-ERR unknown command\r\n",
        b"RESERVED 1\r\n",
        b"RESERVED one 2\r\n",
        b"RESERVED 1 -2\r\n",
        b"INSERTED 1 2\r\n",
        b"INSERTED \xb2\r\n",
        b"INSERTED " + b"9" * 21 + b"\r\n",
        b"TIMED_OUT 5\r\n",
        b"reserved 1 2\r\n",
        b"\r\n",
        b"x" * 300,
        b"RESERVED 1 2\r\nabcd",
    ],
)
def test_what_is_not_beanstalk(data: bytes) -> None:
    with pytest.raises(ProtocolError):
        list(BeanstalkParser().feed(data))


def test_a_job_that_was_deleted_while_it_was_written_harms_nothing_behind() -> None:
    found, again, deleted = BeanstalkParser().feed(
        b"FOUND 1 2\r\nab\x30\x01FOUND 2 2\r\ncd\r\nDELETED\r\n"
    )
    assert deleted == Reply(b"DELETED")
    assert not is_whole(found, again)
    assert is_whole(again, again)
    assert not is_whole(again, Reply(b"NOT_FOUND"))


def test_huge_length_is_refused_at_its_announcement() -> None:
    parser = BeanstalkParser(longest_body=65535)
    assert list(parser.feed(b"RESERVED 1 65535\r\n")) == []
    with pytest.raises(ProtocolError, match="65536 bytes announced"):
        list(BeanstalkParser(longest_body=65535).feed(b"RESERVED 1 65536\r\n"))
    with pytest.raises(ProtocolError, match="announced"):
        list(parser.feed(b"x" * 65535 + b"\r\nOK 99999999999999999999\r\n"))


@given(st.binary(max_size=300))
def test_garbage_never_does_anything_else(data: bytes) -> None:
    parser = BeanstalkParser()
    try:
        for at in range(len(data)):
            list(parser.feed(data[at : at + 1]))
    except ProtocolError:
        pass


def test_a_body_in_small_pieces_is_parsed_when_it_is_whole(monkeypatch: pytest.MonkeyPatch) -> None:
    starts: list[int] = []
    parse = BeanstalkParser._next

    def counting(parser: BeanstalkParser, start: int) -> tuple[Reply, int] | None:
        starts.append(start)
        return parse(parser, start)

    parser = BeanstalkParser()
    head, body = b"RESERVED 1 1000\r\n", bytes(1000) + b"\r\n"
    assert list(parser.feed(head)) == []
    monkeypatch.setattr(BeanstalkParser, "_next", counting)
    found = [list(parser.feed(body[at : at + 1])) for at in range(len(body))]
    assert found[:-1] == [[]] * (len(body) - 1)
    assert found[-1] == [Reply(b"RESERVED", 1, bytes(1000))]
    assert starts == [0, len(head + body)]


def test_commands() -> None:
    assert line(b"use", b"mail") == b"use mail\r\n"
    assert line(b"release", 5, 65536, 0) == b"release 5 65536 0\r\n"
    assert put(1, 2, 3, b"a\r\nb") == b"put 1 2 3 4\r\na\r\nb\r\n"


def test_statistics() -> None:
    text = b'---\nid: 2\ntube: a:b\nversion: "1.12"\ndraining: false\n'
    assert statistics(text) == {
        b"id": b"2",
        b"tube": b"a:b",
        b"version": b"1.12",
        b"draining": b"false",
    }


@pytest.mark.parametrize(
    ("queue", "tube"),
    [
        ("mail", b"mail"),
        ("a-b+c/d;e.f$g_(h)", b"a-b+c/d;e.f$g_(h)"),
        ("-mail", b"$2dmail"),
        ("$queue.mail", b"$24queue.mail"),
        ("a$24", b"a$2424"),
        ("worker@host", b"worker$40host"),
        ("post für alle", b"post$20f$c3$bcr$20alle"),
        ("two\nlines", b"two$0alines"),
    ],
)
def test_tubes(queue: str, tube: bytes) -> None:
    assert tube_of(queue) == tube
    assert queue_of(tube) == queue


@given(st.text(min_size=1, max_size=66), st.text(min_size=1, max_size=66))
def test_tubes_are_reversible(queue: str, other: str) -> None:
    try:
        tube, other_tube = tube_of(queue), tube_of(other)
    except UnicodeEncodeError:
        assume(False)
    except ValueError:  # four bytes a sign
        assume(False)
    assert queue_of(tube) == queue
    assert (tube == other_tube) is (queue == other)
    assert len(tube) <= LONGEST_TUBE


@pytest.mark.parametrize("queue", ["", "x" * 201, "@" * 67])
def test_names_that_cannot_be(queue: str) -> None:
    with pytest.raises(ValueError, match="from 1 to 200"):
        tube_of(queue)
