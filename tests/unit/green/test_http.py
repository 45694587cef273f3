"""One HTTP request: whatever the server does, the caller gets one answer or one error, in time."""

from __future__ import annotations

from collections.abc import Callable
from time import monotonic
from typing import Any

import gevent
import pytest
from gevent import socket

from greenconn.green import http
from greenconn.green.deadline import Deadline
from greenconn.green.http import Answer, ask
from tests.brokers.ports import free_ports
from tests.fix_interrupts import interruptions
from tests.fix_peer import Peer, PeerFactory

WAIT = 10.0


@pytest.fixture
def server(peer: PeerFactory) -> Callable[..., Peer]:
    """Starts servers that read a request and send what the test says."""

    def start(*pieces: bytes, then: Callable[[socket.socket], Any] | None = None) -> Peer:
        def serve(client: socket.socket) -> None:
            requests.append(_request(client))
            for piece in pieces:
                client.sendall(piece)
                gevent.sleep(0)
            if then is not None:
                then(client)

        requests: list[bytes] = []
        started = peer(serve)
        started.requests = requests  # type: ignore[attr-defined]
        return started

    return start


def _request(client: socket.socket) -> bytes:
    data = b""
    while b"\r\n\r\n" not in data:
        part = client.recv(4096)
        if not part:
            return data
        data += part
    head, _, body = data.partition(b"\r\n\r\n")
    size = int(head.lower().partition(b"content-length: ")[2].partition(b"\r\n")[0] or 0)
    while len(body) < size:
        body += client.recv(4096)
    return head + b"\r\n\r\n" + body


def asked(server: Peer, method: str = "GET", path: str = "/", **options: Any) -> Answer:
    deadline = Deadline(options.pop("timeout", WAIT))
    return ask(method, server.host, server.port, path, deadline=deadline, **options)


def test_a_request_and_its_answer(server: Callable[..., Peer]) -> None:
    peer = server(b"HTTP/1.1 201 Made\r\nContent-Length: 2\r\n\r\nok")
    answer = asked(peer, "PUT", "/a%2Fb", body=b"{}", headers={"X-Mine": "1"})
    assert answer == (201, "Made", b"ok")
    (request,) = peer.requests  # type: ignore[attr-defined]
    assert request.startswith(b"PUT /a%2Fb HTTP/1.1\r\n")
    assert b"\r\nX-Mine: 1\r\n" in request
    assert b"\r\nConnection: close\r\n" in request
    assert request.endswith(b"\r\n\r\n{}")


@pytest.mark.parametrize(
    "text",
    [
        b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\nhello",
        b"HTTP/1.1 200 OK\r\n\r\nhello",
        b"HTTP/1.0 200 OK\r\n\r\nhello",
        b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n2\r\nhe\r\n3\r\nllo\r\n0\r\n\r\n",
        b"HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\nhello",
    ],
)
@pytest.mark.parametrize("is_split", [False, True], ids=["whole", "bytewise"])
def test_all_forms_of_an_answer(server: Callable[..., Peer], text: bytes, is_split: bool) -> None:
    pieces = [text[i : i + 1] for i in range(len(text))] if is_split else [text]
    assert asked(server(*pieces)) == (200, "OK", b"hello")


def test_an_answer_without_a_body(server: Callable[..., Peer]) -> None:
    assert asked(server(b"HTTP/1.1 204 No Content\r\n\r\n")).body == b""


@pytest.mark.parametrize(
    "text",
    [
        b"",
        b"HTTP/1.1 200 OK\r\nContent-Le",
        b"HTTP/1.1 200 OK\r\nContent-Length: 50\r\n\r\nhello",
        b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nhel",
    ],
)
def test_an_answer_that_is_cut_short_is_an_error(server: Callable[..., Peer], text: bytes) -> None:
    with pytest.raises(OSError, match="closed"):
        asked(server(text))


def test_who_does_not_speak_http_is_told_apart(server: Callable[..., Peer]) -> None:
    with pytest.raises(OSError, match="does not speak HTTP"):
        asked(server(b"AMQP\x00\x00\x09\x01"))


def test_an_endless_answer_is_not_taken(
    server: Callable[..., Peer], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(http, "LIMIT", 10_000)

    def flood(client: socket.socket) -> None:
        while True:
            client.sendall(b"x" * 1000)

    with pytest.raises(OSError, match="answer above"):
        asked(server(b"HTTP/1.1 200 OK\r\n\r\n", then=flood))


def test_a_server_that_is_silent_costs_no_more_than_the_deadline(
    server: Callable[..., Peer],
) -> None:
    began = monotonic()
    with pytest.raises(TimeoutError, match=r"within 0\.2 s"):
        asked(server(then=lambda client: gevent.sleep(WAIT)), timeout=0.2)
    assert monotonic() - began < WAIT


def test_who_never_closes_is_not_waited_for_longer(server: Callable[..., Peer]) -> None:
    text = b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n"
    with pytest.raises(TimeoutError):
        asked(server(text, then=lambda client: gevent.sleep(WAIT)), timeout=0.2)


def test_where_nobody_listens() -> None:
    port = free_ports(1)[0]
    with pytest.raises(ConnectionRefusedError):
        ask("GET", "127.0.0.1", port, "/", deadline=Deadline(WAIT))


def test_a_caller_may_be_interrupted_at_any_switch(server: Callable[..., Peer]) -> None:
    peer = server(b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok")
    for _ in interruptions(lambda: asked(peer), delays=(0, 1)):
        assert asked(peer).body == b"ok"


def test_a_killed_caller_leaves_nothing_behind(server: Callable[..., Peer]) -> None:
    peer = server(then=lambda client: client.recv(1))
    caller = gevent.spawn(asked, peer)
    assert peer.has_accepted.wait(WAIT)
    gevent.sleep(0)
    caller.kill()
    deadline = Deadline(WAIT)
    while peer.sockets and not deadline.has_ended:
        gevent.sleep(0.01)
    assert not peer.sockets
