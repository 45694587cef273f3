"""Requests over kept connections: each caller gets its own answer or one error, in time."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from time import monotonic
from typing import Any

import gevent
import pytest
from gevent import socket
from gevent.event import Event

from greenconn.green import http
from greenconn.green.deadline import Deadline
from greenconn.green.http import HttpClient, HttpConnection, HttpResponse, ResponseLines
from greenconn.wire.tls import CertificateRejected
from tests.brokers.ports import free_ports
from tests.brokers.tls import CERTS
from tests.fix_interrupts import interruptions
from tests.fix_peer import Peer, PeerFactory
from tests.fix_tls import TlsFront
from tests.fix_wires import Wire, until
from tests.forked import holds_in_child

WAIT = 30.0
OK = b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok"
CHUNKED = b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n"

Answerer = Callable[[socket.socket, bytes], Any]
Start = Callable[..., Peer]
Make = Callable[..., HttpClient]


def requests_of(client: socket.socket) -> Iterator[bytes]:
    """The requests that come over a connection, one after the other."""
    data = b""
    while True:
        while b"\r\n\r\n" not in data:
            part = client.recv(65536)
            if not part:
                return
            data += part
        head, _, data = data.partition(b"\r\n\r\n")
        size = int(head.lower().partition(b"content-length: ")[2].partition(b"\r\n")[0] or 0)
        while len(data) < size:
            data += client.recv(65536)
        yield head + b"\r\n\r\n" + data[:size]
        data = data[size:]


@pytest.fixture
def server(peer: PeerFactory) -> Start:
    """Starts servers that answer each request: with bytes, or as a function of the test says."""

    def start(reply: bytes | Answerer) -> Peer:
        def serve(client: socket.socket) -> None:
            for request in requests_of(client):
                if isinstance(reply, bytes):
                    client.sendall(reply)
                elif reply(client, request) is False:
                    return

        return peer(serve)

    return start


@pytest.fixture
def web() -> Iterator[Make]:
    """Makes clients of a peer, or of a port, that are closed after the test."""
    made: list[HttpClient] = []

    def make(peer: Peer | int, host: str = "127.0.0.1", **options: Any) -> HttpClient:
        port = peer if isinstance(peer, int) else peer.port
        made.append(HttpClient(host, port, **options))
        return made[-1]

    yield make
    for each in made:
        each.close()
    gevent.sleep(0)


def ask(web: HttpClient, method: str = "GET", target: str = "/", **options: Any) -> HttpResponse:
    return web.request(method, target, deadline=Deadline(options.pop("timeout", WAIT)), **options)


def silence(client: socket.socket, request: bytes) -> None:
    """Answers nothing."""


def gone(peer: Peer) -> bool:
    """Whether no connection is left, in time."""
    deadline = Deadline(WAIT)
    while peer.sockets and not deadline.has_ended:
        gevent.sleep(0.01)
    return not peer.sockets


def test_a_request_and_its_response(server: Start, web: Make) -> None:
    seen: list[bytes] = []

    def reply(client: socket.socket, request: bytes) -> None:
        seen.append(request)
        client.sendall(
            b"HTTP/1.1 201 Made\r\nX-A: 1\r\nx-a: \xe9\r\nContent-Length: 3\r\n\r\n\x00\xff\n"
        )

    peer = server(reply)
    got = ask(web(peer), "PUT", "/a%2Fb?c=d", body=b"{}", headers={"X-Mine": "1"})
    assert got == (201, {"x-a": "1, \xe9", "content-length": "3"}, b"\x00\xff\n", "Made")
    (request,) = seen
    assert request.startswith(b"PUT /a%2Fb?c=d HTTP/1.1\r\nX-Mine: 1\r\n")
    assert b"\r\nHost: 127.0.0.1:%d\r\n" % peer.port in request
    assert request.endswith(b"\r\nContent-Length: 2\r\n\r\n{}")


@pytest.mark.parametrize(
    "text",
    [
        b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\nhello",
        CHUNKED + b"2\r\nhe\r\n3;x=y\r\nllo\r\n0\r\nTrailer: x\r\n\r\n",
        b"HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\nhello",
    ],
)
@pytest.mark.parametrize("is_split", [False, True], ids=["whole", "bytewise"])
def test_all_forms_of_a_response(server: Start, web: Make, text: bytes, is_split: bool) -> None:
    def reply(client: socket.socket, request: bytes) -> None:
        for piece in [text[i : i + 1] for i in range(len(text))] if is_split else [text]:
            client.sendall(piece)
            gevent.sleep(0)

    peer = server(reply)
    mine = web(peer)
    for _ in range(3):
        assert ask(mine)[::2] == (200, b"hello")
    assert peer.accepted == 1


@pytest.mark.parametrize(
    "text",
    [
        b"HTTP/1.1 200 OK\r\n\r\nhello",
        b"HTTP/1.0 200 OK\r\nContent-Length: 5\r\n\r\nhello",
        b"HTTP/1.1 200 OK\r\nConnection: close\r\nContent-Length: 5\r\n\r\nhello",
        b"HTTP/1.1 200 OK\r\nKeep-Alive: timeout=1\r\nContent-Length: 5\r\n\r\nhello",
        b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\nhelloHTTP/1.1 200 OK\r\n",
        b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\nhelloNONSENSE",
    ],
    ids=["until the end", "1.0", "close", "keep-alive", "another answer", "nonsense"],
)
def test_a_connection_that_is_not_to_be_kept(server: Start, web: Make, text: bytes) -> None:
    def reply(client: socket.socket, request: bytes) -> bool:
        client.sendall(text)
        return False

    peer = server(reply)
    mine = web(peer)
    for _ in range(2):
        assert ask(mine).body == b"hello"
    assert peer.accepted == 2


def test_the_server_is_told_that_a_connection_is_not_kept(server: Start, web: Make) -> None:
    peer = server(b"HTTP/1.1 200 OK\r\nConnection: close\r\nContent-Length: 5\r\n\r\nhello")
    assert ask(web(peer)).body == b"hello"
    assert gone(peer)  # though the server itself closes nothing


@pytest.mark.parametrize(("seconds", "connections"), [(1, 2), (100, 1)])
def test_a_server_says_how_long_a_connection_may_be_idle(
    server: Start, web: Make, seconds: int, connections: int
) -> None:
    """It is used for a second less than that, since its end takes time to arrive."""
    peer = server(
        b"HTTP/1.1 200 OK\r\nKeep-Alive: timeout=%d\r\nContent-Length: 5\r\n\r\nhello" % seconds
    )
    mine = web(peer)
    for _ in range(2):
        assert ask(mine).body == b"hello"
    assert peer.accepted == connections


def test_a_response_has_no_body_where_there_is_none(server: Start, web: Make) -> None:
    peer = server(b"HTTP/1.1 200 OK\r\nContent-Length: 999999999999\r\n\r\n")
    mine = web(peer)
    assert ask(mine, "HEAD").body == ask(mine, "HEAD").body == b""
    assert peer.accepted == 1
    assert ask(web(server(b"HTTP/1.1 204 No Content\r\n\r\n"))).body == b""


@pytest.mark.parametrize(
    "text",
    [
        b"",
        b"HTTP/1.1 200 OK\r\nContent-Le",
        b"HTTP/1.1 200 OK\r\nContent-Length: 50\r\n\r\nhello",
        CHUNKED + b"5\r\nhel",
    ],
    ids=["nothing", "head", "body", "chunk"],
)
def test_a_response_that_is_cut_short_is_an_error(server: Start, web: Make, text: bytes) -> None:
    def reply(client: socket.socket, request: bytes) -> bool:
        client.sendall(text)
        return False

    peer = server(reply)
    with pytest.raises(ConnectionResetError, match=rf"127\.0\.0\.1:{peer.port}: .*closed"):
        ask(web(peer))
    assert peer.accepted == 1  # nothing is asked again over a fresh connection


@pytest.mark.parametrize(
    "text",
    [
        b"AMQP\x00\x00\x09\x01",
        b"HTTP/2.0 200 OK\r\n\r\n",
        b"HTTP/1.1 101 Other\r\nUpgrade: x\r\nConnection: Upgrade\r\n\r\nabc",
        b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\nContent-Length: 6\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nContent-Length: 99999999999999999999999\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\nTransfer-Encoding: chunked\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nNo colon\r\n\r\n",
        CHUNKED + b"zz\r\nhello\r\n",
        CHUNKED + b"-5\r\nhello\r\n",
        CHUNKED + b"5\r\nhelloXX5\r\n",
    ],
)
def test_nonsense_is_an_error_and_ends_the_connection(
    server: Start, web: Make, text: bytes
) -> None:
    peer = server(text)
    mine = web(peer)
    for _ in range(2):
        with pytest.raises(OSError, match=rf"127\.0\.0\.1:{peer.port}: ") as caught:
            ask(mine)
        assert not isinstance(caught.value, TimeoutError)
    assert gone(peer)


def test_a_large_response_is_refused_before_it_comes(server: Start, web: Make) -> None:
    peer = server(b"HTTP/1.1 200 OK\r\nContent-Length: 2147483648\r\n\r\n")
    with pytest.raises(OSError, match="body of the response exceeds"):
        ask(web(peer))
    assert ask(web(server(OK)), limit=2).body == b"ok"


@pytest.mark.parametrize(
    ("head", "piece"),
    [
        (b"HTTP/1.1 200 OK\r\n\r\n", b"x" * 1000),
        (CHUNKED, b"3e8\r\n" + b"x" * 1000 + b"\r\n"),
        (b"HTTP/1.1 200 OK\r\n", b"X: " + b"x" * 1000 + b"\r\n"),
        (b"", b"HTTP/1.1 100 Continue\r\n\r\n" * 40),
    ],
    ids=["until the end", "chunks", "headers", "interim"],
)
def test_an_endless_response_is_not_taken(
    server: Start, web: Make, head: bytes, piece: bytes
) -> None:
    def flood(client: socket.socket, request: bytes) -> None:
        client.sendall(head)
        while True:
            client.sendall(piece)

    peer = server(flood)
    with pytest.raises(OSError, match="exceeds"):
        ask(web(peer), limit=100_000)
    assert gone(peer)


def test_a_silent_server_costs_no_more_than_the_deadline(server: Start, web: Make) -> None:
    def drip(client: socket.socket, request: bytes) -> None:
        client.sendall(b"HTTP/1.1 200 OK\r\nContent-Length: 9999\r\n\r\n")
        while True:  # no single wait is long
            client.sendall(b"x")
            gevent.sleep(0.01)

    for reply in (silence, drip):
        peer = server(reply)
        began = monotonic()
        with pytest.raises(TimeoutError, match=rf"127\.0\.0\.1:{peer.port}: .*within 0\.2 s"):
            ask(web(peer), timeout=0.2)
        assert monotonic() - began < WAIT
        assert gone(peer)


def test_where_nobody_listens(web: Make) -> None:
    (port,) = free_ports(1)
    with pytest.raises(ConnectionRefusedError, match=f"127.0.0.1:{port}"):
        ask(web(port))


def test_connections_are_kept_and_have_a_bound(server: Start, web: Make) -> None:
    def reply(client: socket.socket, request: bytes) -> None:
        gevent.sleep(0.001)
        name = request.split()[1]
        client.sendall(b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n%s" % (len(name), name))

    peer = server(reply)
    mine = web(peer, limit=10)
    names = [f"/{number}" for number in range(100)]
    jobs = [gevent.spawn(ask, mine, target=name) for name in names for _ in range(3)]
    gevent.joinall(jobs, WAIT, raise_error=True)
    assert [job.get().body.decode() for job in jobs] == [name for name in names for _ in range(3)]
    assert peer.accepted == 10
    assert mine.stats()["idle"] == 10


def test_no_free_connection_in_time_is_an_error(server: Start, web: Make) -> None:
    peer = server(silence)
    mine = web(peer, limit=1)
    first = gevent.spawn(ask, mine)
    assert peer.has_accepted.wait(WAIT)
    with pytest.raises(TimeoutError, match="none free within"):
        ask(mine, timeout=0.1)
    first.kill()
    assert gone(peer)
    assert mine.stats()["in_use"] == 0


def closing_server(peer: PeerFactory, seen: list[bytes]) -> Peer:
    """Answers the first request of the first connection, and closes that at the second."""

    def serve(client: socket.socket) -> None:
        is_first = not seen
        for request in requests_of(client):
            seen.append(request)
            if is_first and len(seen) > 1:
                return
            client.sendall(OK)

    return peer(serve)


def test_what_may_be_repeated_is_where_a_kept_connection_was_closed(
    peer: PeerFactory, web: Make
) -> None:
    for method, may_repeat, is_repeated in (
        ("GET", None, True),
        ("PUT", None, True),
        ("POST", None, False),
        ("POST", True, True),
        ("PUT", False, False),
    ):
        seen: list[bytes] = []
        server = closing_server(peer, seen)
        mine = web(server)
        ask(mine)
        if is_repeated:
            assert ask(mine, method, may_repeat=may_repeat).body == b"ok"
        else:
            with pytest.raises(ConnectionResetError, match="before a response"):
                ask(mine, method, may_repeat=may_repeat)
            assert ask(mine, method).body == b"ok"
        assert len(seen) == 3
        assert server.accepted == 2


def test_a_response_that_was_begun_is_never_requested_again(peer: PeerFactory, web: Make) -> None:
    seen: list[bytes] = []

    def serve(client: socket.socket) -> None:
        for request in requests_of(client):
            seen.append(request)
            if len(seen) == 2:
                client.sendall(OK[:20])
                return
            client.sendall(OK)

    mine = web(peer(serve))
    ask(mine)
    with pytest.raises(ConnectionResetError):
        ask(mine)
    assert len(seen) == 2


def test_an_idle_connection_that_was_closed_is_not_used(server: Start, web: Make) -> None:
    peer = server(OK)
    mine = web(peer)
    ask(mine)
    (idle,) = mine._pool._idle
    peer.drop()
    until(lambda: not idle.item.stream.is_open)
    assert ask(mine, "POST").body == b"ok"
    assert peer.accepted == 2


@pytest.mark.parametrize(("idle", "connections"), [(-1.0, 2), (0.0, 2), (0.5, 1)])
def test_an_idle_connection_gets_old(
    server: Start, web: Make, monkeypatch: pytest.MonkeyPatch, idle: float, connections: int
) -> None:
    monkeypatch.setattr(http, "IDLE", idle)
    monkeypatch.setattr(http, "monotonic", lambda: 100.0)
    peer = server(OK)
    mine = web(peer)
    ask(mine)
    ask(mine)
    assert peer.accepted == connections


def test_what_nobody_asked_for_ends_the_connection(server: Start, web: Make) -> None:
    go_on = Event()

    def reply(client: socket.socket, request: bytes) -> None:
        client.sendall(OK)
        go_on.wait(WAIT)
        client.sendall(OK)

    peer = server(reply)
    mine = web(peer)
    ask(mine)
    go_on.set()
    assert gone(peer)
    assert ask(mine).body == b"ok"


def test_a_caller_may_be_interrupted_at_any_switch(server: Start, web: Make) -> None:
    peer = server(OK)
    mine = web(peer, limit=2)
    for _ in interruptions(lambda: ask(mine), delays=(0, 1)):
        assert ask(mine).body == b"ok"
        assert mine.stats()["in_use"] == 0


def test_the_response_to_a_killed_caller_is_dropped(server: Start, web: Make) -> None:
    asked, go_on = Event(), Event()

    def reply(client: socket.socket, request: bytes) -> None:
        name = request.split()[1]
        if name == b"/slow":
            client.sendall(b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\n/s")
            asked.set()
            go_on.wait(WAIT)
            client.sendall(b"low")
        else:
            client.sendall(b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\n" + name)

    mine = web(server(reply), limit=1)
    caller = gevent.spawn(ask, mine, target="/slow")
    assert asked.wait(WAIT)
    caller.kill()
    go_on.set()
    assert ask(mine, target="/fast").body == b"/fast"


def test_a_client_that_is_closed_ends_its_requests(server: Start, web: Make) -> None:
    asked = Event()

    def reply(client: socket.socket, request: bytes) -> None:
        asked.set()

    peer = server(reply)
    mine = web(peer)
    caller = gevent.spawn(ask, mine, "POST")
    assert asked.wait(WAIT)
    mine.close()
    with pytest.raises(ConnectionAbortedError):
        caller.get(timeout=WAIT)
    with pytest.raises(RuntimeError, match="closed"):
        ask(mine)
    assert gone(peer)


def test_a_child_has_connections_of_its_own(server: Start, web: Make) -> None:
    peer = server(OK)
    mine = web(peer)
    ask(mine)
    assert holds_in_child(lambda: mine.stats()["idle"] == 0)
    assert ask(mine).body == b"ok"
    assert peer.accepted == 1


@pytest.mark.parametrize(
    ("method", "target", "headers"),
    [
        ("GET", "/a b", {}),
        ("GET", "/\r\nX: y", {}),
        ("GET", "no-slash", {}),
        ("GE T", "/", {}),
        ("GET", "/", {"A": "b\r\nC: d"}),
        ("GET", "/", {"A:": "b"}),
        ("GET", "/", {"A": "\u20ac"}),
    ],
)
def test_a_request_cannot_be_split(
    server: Start, web: Make, method: str, target: str, headers: dict[str, str]
) -> None:
    peer = server(OK)
    with pytest.raises(ValueError, match=str(peer.port)):
        ask(web(peer), method, target, headers=headers)
    assert peer.accepted == 0


def test_tls_is_verified(server: Start, web: Make, tls_front: TlsFront) -> None:
    peer = server(OK)
    port = tls_front(peer.address)
    mine = web(port, "localhost", ssl={"ca_certs": str(CERTS / "ca.pem")})
    assert [ask(mine).body for _ in range(3)] == [b"ok"] * 3
    assert peer.accepted == 1
    with pytest.raises(CertificateRejected, match="localhost"):
        ask(web(port, "localhost", ssl=True))


def test_a_server_that_speaks_no_tls(peer: PeerFactory, web: Make) -> None:
    silent = peer(lambda client: gevent.sleep(WAIT))
    with pytest.raises(TimeoutError, match=r"no TLS session within 0\.1 s"):
        ask(web(silent, ssl=True), timeout=0.1)
    plain = peer(lambda client: client.sendall(OK))
    with pytest.raises(OSError, match="does not speak TLS"):
        ask(web(plain, ssl=True))


# -- line by line


def lines(web: HttpClient, **options: Any) -> ResponseLines:
    return web.lines("GET", "/", deadline=Deadline(WAIT), **options)


def test_lines_come_one_by_one(server: Start, web: Make) -> None:
    go_on = Event()

    def reply(client: socket.socket, request: bytes) -> bool:
        text = b"HTTP/1.1 200 OK\r\nX: y\r\nTransfer-Encoding: chunked\r\n\r\n4\r\none\n\r\n3\r\ntwo\r\n"
        for i in range(len(text)):
            client.sendall(text[i : i + 1])
            gevent.sleep(0)
        go_on.wait(WAIT)
        client.sendall(b"8\r\n\r\n\nthree\r\n0\r\n\r\n")
        return False

    with lines(web(server(reply))) as feed:
        assert (feed.status, feed.headers["x"]) == (200, "y")
        assert feed.line(Deadline(WAIT)) == b"one"
        with pytest.raises(TimeoutError, match="no line within"):
            feed.line(Deadline(0.01))
        go_on.set()
        assert [feed.line(Deadline(WAIT)) for _ in range(5)] == [b"two", b"", b"three", None, None]


def test_lines_that_are_cut_are_distinguished_from_their_end(server: Start, web: Make) -> None:
    def reply(client: socket.socket, request: bytes) -> bool:
        client.sendall(CHUNKED + b"6\r\none\ntw\r\n")
        return False

    with lines(web(server(reply))) as feed:
        assert feed.line(Deadline(WAIT)) == b"one"
        for _ in range(2):
            with pytest.raises(ConnectionResetError, match="while receiving"):
                feed.line(Deadline(WAIT))


def test_lines_that_nobody_takes_stop_the_server(server: Start, web: Make) -> None:
    line = b"x" * 9_999
    sent = 0

    def reply(client: socket.socket, request: bytes) -> bool:
        nonlocal sent
        client.sendall(b"HTTP/1.1 200 OK\r\n\r\n")
        for _ in range(3000):
            client.sendall(line + b"\n")
            sent += 1
        return False

    with lines(web(server(reply))) as feed:
        until(lambda: feed._connection.stream.is_paused)
        assert sent < 3000
        for _ in range(3000):
            assert feed.line(Deadline(WAIT)) == line
        assert feed.line(Deadline(WAIT)) is None


def test_a_line_has_a_limit(server: Start, web: Make) -> None:
    is_read = Event()

    def flood(client: socket.socket, request: bytes) -> None:
        client.sendall(b"HTTP/1.1 200 OK\r\n\r\none\n")
        assert is_read.wait(WAIT)
        while True:
            client.sendall(b"x" * 1000)

    peer = server(flood)
    with lines(web(peer), limit=100_000) as feed:
        assert feed.line(Deadline(WAIT)) == b"one"
        is_read.set()
        with pytest.raises(OSError, match="a line of the response exceeds 100000 bytes"):
            feed.line(Deadline(WAIT))
    assert gone(peer)


def test_a_line_may_be_as_long_as_the_limit(server: Start, web: Make) -> None:
    may_end = Event()

    def reply(client: socket.socket, request: bytes) -> None:
        client.sendall(CHUNKED + b"64\r\n" + b"x" * 100 + b"\r\n")
        assert may_end.wait(WAIT)
        client.sendall(b"1\r\n\n\r\n0\r\n\r\n")

    with lines(web(server(reply)), limit=100) as feed:
        may_end.set()
        assert feed.line(Deadline(WAIT)) == b"x" * 100


def test_who_waits_for_a_line_may_be_killed(server: Start, web: Make) -> None:
    peer = server(lambda client, request: client.sendall(CHUNKED + b"4\r\none\n\r\n"))
    with lines(web(peer)) as feed:
        waiter = gevent.spawn(feed.line, Deadline(WAIT))
        assert waiter.get(timeout=WAIT) == b"one"
        waiter = gevent.spawn(feed.line, Deadline(WAIT))
        gevent.sleep(0)
        waiter.kill()
    with pytest.raises(ConnectionAbortedError):
        feed.line(Deadline(WAIT))
    assert gone(peer)


def test_lines_whose_head_does_not_come(server: Start, web: Make) -> None:
    peer = server(silence)
    mine = web(peer)
    with pytest.raises(TimeoutError):
        mine.lines("GET", "/", deadline=Deadline(0.1))
    assert gone(peer)


def test_a_client_may_be_used_with_with() -> None:
    client = HttpClient("127.0.0.1", 1)
    with client as entered:
        assert entered is client


def test_lines_end_when_their_client_is_closed(server: Start, web: Make) -> None:
    def reply(peer: socket.socket, request: bytes) -> bool:
        peer.sendall(b"HTTP/1.1 200 OK\r\n\r\n")
        peer.recv(1)
        return False

    client = web(server(reply))
    with lines(client) as feed:
        client.close()
        with pytest.raises(ConnectionAbortedError):
            feed.line(Deadline(WAIT))


def test_who_is_killed_in_a_handshake_leaves_no_connection(peer: PeerFactory, web: Make) -> None:
    silent = peer(lambda client: client.recv(1 << 16) and client.recv(1 << 16))
    caller = gevent.spawn(ask, web(silent, ssl=True))
    assert silent.has_accepted.wait(WAIT)
    for _ in range(3):
        gevent.sleep(0)
    caller.kill()
    assert gone(silent)


def test_a_response_without_an_end_of_its_own_may_have_a_last_line(
    server: Start, web: Make
) -> None:
    def reply(client: socket.socket, request: bytes) -> bool:
        client.sendall(b"HTTP/1.1 200 OK\r\n\r\none\r\ntwo")
        return False

    with lines(web(server(reply))) as feed:
        assert [feed.line(Deadline(WAIT)) for _ in range(4)] == [b"one", b"two", None, None]


def test_a_connection_without_a_response_is_not_used_again(wire: Wire) -> None:
    connection = HttpConnection(wire.take(), "http://it", None, Deadline(WAIT))
    assert not connection.is_usable()
    connection.close()
