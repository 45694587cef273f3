"""The shared socket, against servers that do what a real one does not."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import gevent
import pytest
from gevent import socket
from gevent.event import Event

from greenconn.green.deadline import Deadline
from greenconn.green.stream import connect_tcp
from greenconn.transport.beanstalk import BeanstalkOptions, BeanstalkStore
from greenconn.transport.beanstalk.connection import LinkLost, Pipeline
from greenconn.wire.beanstalk import Reply, line
from tests.fix_interrupts import OwnTimeout, Signal, signals
from tests.fix_peer import Peer, PeerFactory
from tests.tiny_client import TinyClient

SOON = 30.0
Opened = Callable[[Callable[[socket.socket], Any]], Pipeline]


def stats(name: bytes, value: int) -> bytes:
    """An answer to a command for statistics."""
    body = b"---\n%b: %d\n" % (name, value)
    return b"OK %d\r\n%b\r\n" % (len(body), body)


def lines(sock: socket.socket) -> Iterator[bytes]:
    """The commands that the client sends, which have no bodies here."""
    with sock.makefile("rb") as file:
        for each in file:
            yield each.rstrip()


def answering(answer: Callable[[bytes], bytes]) -> Callable[[socket.socket], None]:
    """A server that answers each command."""

    def serve(sock: socket.socket) -> None:
        for command in lines(sock):
            sock.sendall(answer(command))

    return serve


@pytest.fixture
def losses() -> list[LinkLost]:
    """Why it was lost."""
    return []


@pytest.fixture
def opened(peer: PeerFactory, losses: list[LinkLost]) -> Iterator[Opened]:
    """A pipeline to a server with that handler."""
    made: list[Pipeline] = []

    def connect(handler: Callable[[socket.socket], Any]) -> Pipeline:
        server: Peer = peer(handler)
        sock = connect_tcp(server.host, server.port, Deadline(SOON))
        made.append(Pipeline(sock, "beanstalk://peer", losses.append))
        return made[-1]

    yield connect
    for each in made:
        each.close()


def test_replies_reach_their_callers(opened: Opened) -> None:
    pipeline = opened(answering(lambda command: b"INSERTED %b\r\n" % command.split()[1]))

    def ask(number: int) -> list[int]:
        replies = pipeline.ask([line(b"echo", number), line(b"echo", number + 1)])
        return [each.number for each in replies]

    callers = [gevent.spawn(ask, number) for number in range(500)]
    assert [each.get(timeout=SOON) for each in callers] == [[n, n + 1] for n in range(500)]
    # Those of one turn leave in one send, but for the first.
    assert pipeline.writer.sends < 100


@pytest.mark.full
def test_replies_reach_their_callers_after_a_signal_amid_a_command(
    opened: Opened, losses: list[LinkLost]
) -> None:
    server = answering(lambda command: b"INSERTED %b\r\n" % command.split()[1])
    pipelines = [opened(server)]
    for raised in signals(lambda: pipelines[-1].ask([line(b"n", 1), line(b"n", 2)])):
        assert raised is None or isinstance(raised, Signal)
        if pipelines[-1].lost is None:
            assert pipelines[-1].ask([line(b"n", 3)], Deadline(SOON)) == [Reply(b"INSERTED", 3)]
            continue
        assert "interrupted by Signal" in str(losses.pop())
        pipelines[-1].close()
        pipelines.append(opened(server))
    assert len(pipelines) > 1


def test_killed_caller_leaves_the_others_right(opened: Opened) -> None:
    go_on = Event()

    def answer(command: bytes) -> bytes:
        go_on.wait()
        return b"KICKED %b\r\n" % command.split()[1]

    pipeline = opened(answering(answer))
    callers = [gevent.spawn(pipeline.ask, [line(b"n", number)] * 3) for number in range(20)]
    gevent.sleep(0.01)
    for each in callers[::2]:
        each.kill()
    go_on.set()
    for number, each in enumerate(callers):
        if number % 2:
            assert each.get(timeout=SOON) == [Reply(b"KICKED", number)] * 3


def test_an_own_timeout_of_a_caller_that_lets_others_run_leaves_it_open(opened: Opened) -> None:
    pipeline = opened(answering(lambda command: b"KICKED 1\r\n"))
    error = OwnTimeout("mine")

    def send() -> None:
        pipeline.writer.must_wait = pipeline.writer._yield_due = True  # as after 64 KiB
        with pytest.raises(OwnTimeout) as caught:
            pipeline.wait_writable()
        assert caught.value is error

    caller = gevent.spawn(send)
    gevent.sleep(0)
    caller.kill(error)
    caller.get(timeout=SOON)
    assert pipeline.ask([line(b"n", 1)], Deadline(SOON)) == [Reply(b"KICKED", 1)]


@pytest.mark.parametrize(
    "data",
    [
        b"HTTP/1.1 400 Bad Request\r\n",
        b"SURPRISE\r\n",
        b"RESERVED 1 4294967296\r\n",
        b"RESERVED 1 99999999999999999999\r\n",
        b"x" * 5000,
        b"TIMED_OUT\r\nTIMED_OUT\r\n",  # one more than was asked for
        b"FOUND 1 3\r\nabcdef\r\n",
    ],
)
def test_what_is_not_beanstalk_ends_it(data: bytes, opened: Opened, losses: list[LinkLost]) -> None:
    pipeline = opened(answering(lambda command: data))
    with pytest.raises(LinkLost, match=r"protocol|unexpected reply") as caught:
        for _ in range(2):
            pipeline.ask([line(b"reserve")], Deadline(SOON))
            gevent.sleep(0.05)
    assert len(losses) == 1
    with pytest.raises(LinkLost):
        pipeline.check()
    with pytest.raises(LinkLost) as again:
        pipeline.ask([line(b"reserve")])
    assert again.value is not caught.value


def test_cut_in_mid_reply(opened: Opened, losses: list[LinkLost]) -> None:
    def serve(sock: socket.socket) -> None:
        # All that was sent is read, so that the socket ends in order, behind what is sent here.
        commands = lines(sock)
        for _ in range(5):
            next(commands)
        del commands
        sock.sendall(b"RESERVED 1 100\r\nabc")

    pipeline = opened(serve)
    callers = [gevent.spawn(pipeline.ask, [line(b"reserve")]) for _ in range(5)]
    for each in callers:
        with pytest.raises(LinkLost, match="the peer closed the connection"):
            each.get(timeout=SOON)
    assert len(losses) == 1


def test_silence_ends_it(opened: Opened, losses: list[LinkLost]) -> None:
    pipeline = opened(lambda sock: gevent.sleep(SOON))
    pipeline.watch(0.1)
    gevent.sleep(0.3)
    assert not losses  # nothing is due
    with pytest.raises(LinkLost, match=r"did not reply within 0\.1 s"):
        pipeline.ask([line(b"stats")], Deadline(SOON))


def test_a_command_that_waits_has_a_longer_timeout(opened: Opened, losses: list[LinkLost]) -> None:
    def serve(sock: socket.socket) -> None:
        for _ in lines(sock):
            gevent.sleep(0.4)
            sock.sendall(b"TIMED_OUT\r\n")

    pipeline = opened(serve)
    pipeline.watch(0.1)
    pipeline.extra_timeout = 5.0
    assert pipeline.ask([line(b"reserve-with-timeout", 5)])[0].word == b"TIMED_OUT"
    pipeline.extra_timeout = 0.0
    with pytest.raises(LinkLost):
        pipeline.ask([line(b"stats")])


@pytest.mark.parametrize(
    ("answer", "text"),
    [
        (b"TIMED_OUT\r\n", "unexpected reply TIMED_OUT"),
        (b"UNKNOWN_COMMAND\r\n", "older than beanstalkd"),
        (b"OK 4294967295\r\n", "4294967295 bytes announced"),
        (b"SSH-2.0-OpenSSH_9.2\r\n", "does not speak beanstalk's protocol"),
    ],
)
def test_opening_what_is_no_beanstalkd(answer: bytes, text: str, peer: PeerFactory) -> None:
    server = peer(answering(lambda command: answer))
    store = BeanstalkStore(
        TinyClient(f"beanstalk://127.0.0.1:{server.port}/"), lambda queue: None, BeanstalkOptions()
    )
    with pytest.raises(LinkLost, match=text):
        store.open(Deadline(SOON))
    store.drop()


def test_byte_by_byte(peer: PeerFactory) -> None:
    def serve(sock: socket.socket) -> None:
        for command in lines(sock):
            is_first = command == b"stats"
            answer = (
                stats(b"max-job-size", 65535) if is_first else stats(b"current-jobs-ready", 1234)
            )
            for number in range(len(answer)):
                sock.sendall(answer[number : number + 1])
                gevent.sleep(0)

    server = peer(serve)
    store = BeanstalkStore(
        TinyClient(f"beanstalk://127.0.0.1:{server.port}/"), lambda queue: None, BeanstalkOptions()
    )
    store.open(Deadline(SOON))
    assert store.size("q") == 1234
    store.drop()
