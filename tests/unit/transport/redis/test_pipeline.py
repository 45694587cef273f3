"""The shared socket, against servers that do what a real one does not."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import gevent
import pytest
from gevent import socket
from redis import exceptions

from greenconn.green.deadline import Deadline
from greenconn.green.stream import connect_tcp
from greenconn.transport.redis.errors import (
    LinkLost,
    LoginRefused,
    NotRedis,
    ReplyLate,
    ServerNotReady,
)
from greenconn.transport.redis.pipeline import Pipeline
from greenconn.transport.redis.server import Address, Login, open_pipeline
from greenconn.wire.resp import RespParser, pack
from tests.fix_interrupts import Signal, signals
from tests.fix_peer import Peer, PeerFactory

SOON = 30.0
Answer = Callable[[list[bytes]], bytes]
Opened = Callable[[Callable[[socket.socket], Any]], Pipeline]


def commands(sock: socket.socket) -> Iterator[list[bytes]]:
    """What the client sends."""
    parser = RespParser()
    while data := sock.recv(65536):
        yield from parser.feed(data)


def answering(answer: Answer) -> Callable[[socket.socket], None]:
    """A server that answers each command."""

    def serve(sock: socket.socket) -> None:
        for command in commands(sock):
            sock.sendall(answer(command))

    return serve


def echo(command: list[bytes]) -> bytes:
    last = command[-1]
    return b"$%d\r\n%b\r\n" % (len(last), last)


class Losses(list[LinkLost]):
    """Why it was lost."""


@pytest.fixture
def losses() -> Losses:
    return Losses()


@pytest.fixture
def opened(peer: PeerFactory, losses: Losses) -> Iterator[Opened]:
    """A pipeline to a server with that handler."""
    made: list[Pipeline] = []

    def connect(handler: Callable[[socket.socket], Any]) -> Pipeline:
        server: Peer = peer(handler)
        sock = connect_tcp(server.host, server.port, Deadline(SOON))
        pushes: list[Any] = []
        made.append(Pipeline(sock, "redis://peer", pushes.append, losses.append))
        made[-1].pushes = pushes  # type: ignore[attr-defined]
        return made[-1]

    yield connect
    for each in made:
        each.close()


def test_replies_reach_their_callers(opened: Opened) -> None:
    pipeline = opened(answering(echo))
    callers = [gevent.spawn(pipeline.call, pack("ECHO", n)) for n in range(500)]
    assert [int(each.get(timeout=SOON)) for each in callers] == list(range(500))
    # Those of one turn leave in one send, but for the first.
    assert pipeline.writer.sends < 100


def test_killed_callers_keep_their_places(opened: Opened) -> None:
    pipeline = opened(answering(echo))
    callers = [gevent.spawn(pipeline.call, pack("ECHO", n)) for n in range(100)]
    gevent.sleep(0)
    for each in callers[::3]:
        each.kill(block=False)
    for number, each in enumerate(callers):
        if number % 3:
            assert int(each.get(timeout=SOON)) == number


@pytest.mark.parametrize("many", [False, True], ids=["call", "ask"])
@pytest.mark.sampled(1)
def test_replies_reach_their_callers_after_a_signal_amid_a_command(
    opened: Opened, losses: Losses, many: bool
) -> None:
    pipelines = [opened(answering(echo))]

    def command() -> None:
        if many:
            pipelines[-1].ask([pack("ECHO", "amid"), pack("ECHO", "it")], Deadline(SOON))
        else:
            pipelines[-1].call(pack("ECHO", "amid"), Deadline(SOON))

    for raised in signals(command):
        assert raised is None or isinstance(raised, Signal)
        if pipelines[-1].lost is None:
            assert pipelines[-1].call(pack("ECHO", "behind"), Deadline(SOON)) == b"behind"
            continue
        assert "interrupted by Signal" in str(losses.pop())
        pipelines[-1].close()
        pipelines.append(opened(answering(echo)))
    assert len(pipelines) > 1


def test_timeout_of_one_call_affects_nobody_else(opened: Opened) -> None:
    def serve(sock: socket.socket) -> None:
        for command in commands(sock):
            if command[-1] == b"slow":
                gevent.sleep(0.1)
            sock.sendall(echo(command))

    pipeline = opened(serve)
    with pytest.raises(TimeoutError):
        pipeline.call(pack("ECHO", "slow"), Deadline(0.02))
    assert pipeline.call(pack("ECHO", "next"), Deadline(SOON)) == b"next"
    with pytest.raises(TimeoutError):
        pipeline.call(pack("ECHO", "never"), Deadline(0))


def test_one_byte_at_a_time(opened: Opened) -> None:
    def serve(sock: socket.socket) -> None:
        for command in commands(sock):
            for byte in echo(command) + b">2\r\n+a\r\n:1\r\n":
                sock.sendall(bytes((byte,)))
                gevent.sleep(0)

    pipeline: Any = opened(serve)
    assert pipeline.call(pack("ECHO", "x")) == b"x"
    assert pipeline.call(pack("ECHO", "y")) == b"y"
    assert pipeline.pushes[0] == [b"a", 1]


def test_everybody_learns_of_the_end(opened: Opened, losses: Losses) -> None:
    def serve(sock: socket.socket) -> None:
        sock.recv(1)  # and goes

    pipeline = opened(serve)
    callers = [gevent.spawn(pipeline.call, pack("ECHO", n)) for n in range(50)]
    for each in callers:
        with pytest.raises(LinkLost, match="connection lost") as caught:
            each.get(timeout=SOON)
        assert isinstance(caught.value, exceptions.ConnectionError)
    assert len(losses) == 1
    with pytest.raises(LinkLost):
        pipeline.call(pack("PING"))
    seen: list[Any] = []
    pipeline.post(pack("PING"), seen.append)
    assert isinstance(seen[0], LinkLost)


def test_errors_are_their_callers_own(opened: Opened) -> None:
    pipeline = opened(
        answering(lambda command: b"-ERR no\r\n" if command[-1] == b"bad" else echo(command))
    )
    with pytest.raises(exceptions.ResponseError, match="redis://peer: testing: ERR no"):
        pipeline.call(pack("ECHO", "bad"), what="testing")
    with pytest.raises(exceptions.ResponseError):
        pipeline.call_all([pack("ECHO", "a"), pack("ECHO", "bad"), pack("ECHO", "c")])
    assert pipeline.call_all([pack("ECHO", "a"), pack("ECHO", "b")]) == [b"a", b"b"]
    assert pipeline.call_all([]) == []


def test_server_that_is_no_master_any_more_ends_it(opened: Opened, losses: Losses) -> None:
    pipeline = opened(answering(lambda command: b"-READONLY You can't write\r\n"))
    with pytest.raises(ServerNotReady):
        pipeline.call(pack("SET", "a", "b"))
    assert [type(each) for each in losses] == [ServerNotReady]


def test_silence(opened: Opened, losses: Losses) -> None:
    pipeline = opened(lambda sock: [sock.recv(65536) for _ in iter(lambda: gevent.sleep(1), 1)])
    pipeline.watch(0.1, 0)
    with pytest.raises(ReplyLate, match=r"within 0\.1 s"):
        pipeline.call(pack("PING"))
    assert len(losses) == 1


def test_idle_server_is_asked(opened: Opened, losses: Losses) -> None:
    asked: list[bytes] = []

    def answer(command: list[bytes]) -> bytes:
        asked.append(command[0])
        return b"+PONG\r\n"

    pipeline = opened(answering(answer))
    pipeline.watch(1.0, 0.05)
    with gevent.Timeout(SOON):
        while len(asked) < 3:
            gevent.sleep(0.01)
    assert set(asked) == {b"PING"}
    assert not losses


@pytest.mark.parametrize("data", [b"HTTP/1.1 400 Bad Request\r\n\r\n", b"+unasked\r\n"])
def test_what_is_no_answer(opened: Opened, losses: Losses, data: bytes) -> None:
    def serve(sock: socket.socket) -> None:
        sock.sendall(data)
        sock.recv(1)

    pipeline = opened(serve)
    if data.startswith(b"HTTP"):
        with pytest.raises(LinkLost) as caught:
            pipeline.call(pack("PING"))
        assert isinstance(caught.value.__cause__, NotRedis)
    else:
        with gevent.Timeout(SOON):
            while not losses:
                gevent.sleep(0.01)
        assert isinstance(losses[0].__cause__, NotRedis)


def test_command_without_a_reply(opened: Opened) -> None:
    def answer(command: list[bytes]) -> bytes:
        if command[0] == b"PSUBSCRIBE":
            return b"-NOPERM\r\n" if command[1] == b"bad" else b""
        return echo(command)

    pipeline = opened(answering(answer))
    errors: list[Any] = []
    for topic in ("good", "bad"):
        pipeline.post_quiet(pack("PSUBSCRIBE", topic), errors.append)
        assert pipeline.call(pack("ECHO", topic)) == topic.encode()
    assert len(errors) == 1


def test_peer_that_stops_reading(opened: Opened) -> None:
    release = gevent.event.Event()

    def serve(sock: socket.socket) -> None:
        release.wait(SOON)
        for command in commands(sock):
            sock.sendall(b":%d\r\n" % len(command[-1]))

    pipeline = opened(serve)
    body = "x" * (4 * 1024 * 1024)
    callers = [gevent.spawn(pipeline.call, pack("SET", body)) for _ in range(6)]
    gevent.sleep(0.05)
    # Those behind the high-water mark wait, with their deadline.
    with pytest.raises(TimeoutError):
        pipeline.call(pack("SET", "small"), Deadline(0.05))
    release.set()
    assert [each.get(timeout=SOON) for each in callers] == [len(body)] * 6


# -- login


def login(server: Peer, **options: Any) -> Pipeline:
    address = Address(host=server.host, port=server.port, where="redis://peer")
    password = options.pop("password", None)
    wanted = Login(credentials=lambda: (None, password), **options)
    pipeline, _ = open_pipeline(address, wanted, Deadline(1.0), lambda push: None, lambda exc: None)
    return pipeline


def redis_like(**replies: bytes) -> Callable[[socket.socket], None]:
    usual = {
        "HELLO": b"%1\r\n+proto\r\n:3\r\n",
        "SELECT": b"+OK\r\n",
        "ROLE": b"*2\r\n$6\r\nmaster\r\n:0\r\n",
        "PING": b"+PONG\r\n",
        **replies,
    }
    return answering(lambda command: usual[command[0].decode()])


def test_login(peer: PeerFactory) -> None:
    login(peer(redis_like())).close()


NO_HELLO = {
    "Redis": b"-ERR unknown command 'HELLO', with args beginning with: '3' 'AUTH'\r\n",
    "Valkey 9": b"-NOAUTH Authentication required.\r\n",
}


@pytest.mark.parametrize("hello", NO_HELLO.values(), ids=NO_HELLO)
def test_login_where_hello_was_renamed(peer: PeerFactory, hello: bytes) -> None:
    asked: list[list[bytes]] = []
    usual = {
        b"SELECT": b"+OK\r\n",
        b"ROLE": b"*2\r\n$6\r\nmaster\r\n:0\r\n",
        b"PING": b"+PONG\r\n",
        b"HELLO": hello,
        b"AUTH": b"+OK\r\n",
        b"CLIENT": b"-NOPERM this user may not\r\n",
    }

    def answer(command: list[bytes]) -> bytes:
        asked.append(command)
        return usual[command[0]]

    login(peer(answering(answer)), password="secret", client_name="app").close()
    assert [b"AUTH", b"secret"] in asked
    assert [b"CLIENT", b"SETNAME", b"app"] in asked


def test_no_password_where_one_is_wanted(peer: PeerFactory) -> None:
    server = peer(
        redis_like(**dict.fromkeys(("HELLO", "SELECT", "ROLE", "PING"), NO_HELLO["Valkey 9"]))
    )
    with pytest.raises(LoginRefused, match="needs a password"):
        login(server)


@pytest.mark.parametrize(
    ("replies", "error"),
    [
        ({"PING": b"-LOADING Redis is loading\r\n"}, ServerNotReady),
        ({"ROLE": b"-LOADING Redis is loading\r\n"}, ServerNotReady),
        ({"ROLE": b"*2\r\n$5\r\nslave\r\n:0\r\n"}, ServerNotReady),
        ({"HELLO": b"HTTP/1.1 400\r\n"}, NotRedis),
        ({"HELLO": b"", "SELECT": b"", "ROLE": b"", "PING": b""}, TimeoutError),
    ],
)
def test_refused_login(
    peer: PeerFactory, replies: dict[str, bytes], error: type[BaseException]
) -> None:
    with pytest.raises(error):
        login(peer(redis_like(**replies)))


def test_login_interrupted(peer: PeerFactory) -> None:
    server = peer(redis_like(HELLO=b""))
    greenlet = gevent.spawn(login, server)
    assert server.has_accepted.wait(SOON)
    gevent.sleep(0.01)
    greenlet.kill()
    with gevent.Timeout(SOON):
        while server.sockets:
            gevent.sleep(0.01)
