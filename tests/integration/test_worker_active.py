"""One reader of a name reads a stream at a time, and another goes on where it was when it ends."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import gevent
import pytest
from gevent.event import Event

from greenconn.connection import Connection
from greenconn.entity import Queue, SuperStream
from greenconn.exceptions import RecoverableConnectionError
from greenconn.publishing import publish
from greenconn.service.offsets import FileOffsets
from greenconn.streams import OffsetStore
from greenconn.worker import spawn_consumer
from greenconn.worker.subscriptions import Subscription, token_queue
from tests.fix_wires import until
from tests.integration.processes import start
from tests.integration.test_streams import fill

CAME = 30.0


@pytest.fixture
def connection(amqp_url: str) -> Iterator[Connection]:
    with Connection(amqp_url, transport_options={"confirm_publish": True}) as connection:
        yield connection


@pytest.fixture
def stream(connection: Connection, unique: str) -> Iterator[Queue]:
    """A stream of ten messages, whose bodies are their offsets."""
    queue = Queue(unique, queue_arguments={"x-queue-type": "stream"})
    queue(connection.default_channel).declare()
    fill(connection, unique, range(10))
    yield queue
    connection.default_channel.queue_delete(unique)


class Program:
    """A program with a reader of which one at a time is active, over a connection of its own."""

    def __init__(self, relay_url: str, streams: Any, offsets: OffsetStore, **options: Any) -> None:
        self.connection = Connection(relay_url)
        self.handled: list[int] = []
        options = {"store_every": 1, "handler": self.handle, **options}
        self.reader = spawn_consumer(
            streams,
            options.pop("handler"),
            name="reader",
            single_active=True,
            offsets=offsets,
            connection=self.connection,
            **options,
        )
        assert self.reader.wait_ready(CAME)

    def handle(self, body: int, message: Any) -> None:
        self.handled.append(body)

    def end(self) -> None:
        """End it in good order."""
        assert self.reader.stop(CAME)
        self.connection.close()


@pytest.fixture
def stored(
    amqp_url: str, connection: Connection, stream: Queue, tmp_path: Path
) -> Iterator[FileOffsets]:
    """Offsets of readers of which one is active."""
    yield FileOffsets(tmp_path)
    connection.default_channel.queue_delete(token_queue(stream.name, "reader").name)


def test_one_reader_of_a_name_is_active_and_another_goes_on(
    amqp_url: str, connection: Connection, stream: Queue, stored: FileOffsets
) -> None:
    programs = [Program(amqp_url, stream, stored) for _ in range(3)]
    until(lambda: sum(len(each.handled) for each in programs) == 10)
    read = list(range(10))
    while programs:
        (active,) = [each for each in programs if each.handled]
        assert active.handled == read
        programs.remove(active)
        active.end()
        fill(connection, stream.name, range(read[-1] + 1, read[-1] + 6))
        read = list(range(read[-1] + 1, read[-1] + 6))
        if programs:
            until(lambda: sum(len(each.handled) for each in programs) >= 5)


def test_the_next_reader_begins_when_the_last_handler_has_ended(
    amqp_url: str, connection: Connection, stream: Queue, stored: FileOffsets
) -> None:
    began, hold = gevent.event.Event(), gevent.event.Event()
    handled: list[int] = []

    def handle(body: int, message: Any) -> None:
        if body == 9:
            began.set()
            hold.wait(CAME)
        handled.append(body)

    active = Program(amqp_url, stream, stored, handler=handle)
    assert began.wait(CAME)
    ending = gevent.spawn(active.end)
    following = Program(amqp_url, stream, stored)
    fill(connection, stream.name, range(10, 15))
    gevent.sleep(0.2)
    assert following.handled == []
    hold.set()
    ending.get(timeout=CAME)
    until(lambda: len(following.handled) == 5)
    assert handled + following.handled == list(range(15))
    following.end()


@pytest.mark.parametrize("end", ["kill", "pause", "cut"])
def test_another_reader_takes_over(
    amqp_url: str, connection: Connection, stream: Queue, stored: FileOffsets, end: str
) -> None:
    active = Program(amqp_url, stream, stored)
    until(lambda: active.handled == list(range(10)))
    following = Program(amqp_url, stream, stored)
    if end == "kill":
        active.reader.kill()
    elif end == "pause":
        assert active.reader.pause(CAME)
    else:
        active.connection.session.life.link.end(ConnectionResetError("cut"))
    fill(connection, stream.name, range(10, 15))
    until(lambda: len({*active.handled, *following.handled}) == 15)
    if end != "cut":  # after which the one that comes back first is active
        assert active.handled == list(range(10))
    if end == "pause":
        following.end()
        active.reader.resume()
        fill(connection, stream.name, range(15, 20))
        until(lambda: active.handled[-1] == 19)
        active.end()
    else:
        active.end() if end == "cut" else active.connection.close()
        following.end()


def test_a_reader_that_lost_its_right_stands_down(
    amqp_url: str, connection: Connection, stream: Queue, stored: FileOffsets
) -> None:
    active = Program(amqp_url, stream, stored)
    until(lambda: active.handled == list(range(10)))
    connection.default_channel.queue_delete(token_queue(stream.name, "reader").name)
    until(lambda: active.reader.stats()["state"] == "recovering")
    assert active.reader.wait_ready(CAME)
    fill(connection, stream.name, range(10, 15))
    until(lambda: active.handled[-1] == 14)
    assert sorted(set(active.handled)) == list(range(15))
    active.end()


def test_a_reader_whose_cancel_fails_stands_down_all_the_same(
    amqp_url: str,
    connection: Connection,
    stream: Queue,
    stored: FileOffsets,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    began, hold = Event(), Event()
    handled: list[int] = []

    def handle(body: int, message: Any) -> None:
        began.set()
        hold.wait(CAME)
        handled.append(body)

    cancel, failures = Subscription.cancel, [RecoverableConnectionError("no reply")]

    def cancel_and_fail(self: Subscription, *, nowait: bool = False) -> None:
        cancel(self, nowait=nowait)
        if failures:
            raise failures.pop()

    active = Program(amqp_url, stream, stored, handler=handle, prefetch_count=5)
    assert began.wait(CAME)
    until(lambda: active.reader.stats()["received"] == 5)
    monkeypatch.setattr(Subscription, "cancel", cancel_and_fail)
    connection.default_channel.queue_delete(token_queue(stream.name, "reader").name)
    until(lambda: not failures)
    assert active.reader.wait_ready(CAME)
    hold.set()
    until(lambda: set(handled) == set(range(10)))
    # The four that waited were read again, and handled then alone.
    assert sorted(handled) in ([*range(10)], [0, *range(10)])
    active.end()


def test_a_token_is_renewed(
    amqp_url: str,
    connection: Connection,
    stream: Queue,
    stored: FileOffsets,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("greenconn.worker.subscriptions.TOKEN_RENEWAL_INTERVAL", 0.05)
    programs = [Program(amqp_url, stream, stored) for _ in range(3)]
    until(lambda: sum(len(each.handled) for each in programs) == 10)
    channel = connection.default_channel
    (right,) = next(each for each in programs if each.handled).reader.lifecycle._active
    tokens = set()
    for _ in range(3):
        token: Any = right._token
        tokens.add(token.delivery_tag)
        until(lambda: right._token is not token)  # noqa: B023 - it is called at once
    assert len(tokens) == 3
    for each in programs:
        each.end()
    queue = token_queue(stream.name, "reader").name
    assert channel.queue_declare(queue, passive=True).message_count <= 1


def test_partitions_are_read_by_one_each(
    amqp_url: str, connection: Connection, unique: str, tmp_path: Path
) -> None:
    # The one that reads all is stopped: the other one reads all.
    super_stream = SuperStream(unique)
    super_stream.declare(connection.default_channel)
    stored = FileOffsets(tmp_path)
    programs = [Program(amqp_url, super_stream.streams, stored) for _ in range(2)]
    for number in range(30):
        publish(super_stream.stream_of(str(number)), number, connection=connection)
    until(lambda: sum(len(each.handled) for each in programs) == 30)
    assert sorted([*programs[0].handled, *programs[1].handled]) == list(range(30))
    programs[0].end()
    for number in range(30, 60):
        publish(super_stream.stream_of(str(number)), number, connection=connection)
    until(lambda: set(range(30, 60)) <= set(programs[1].handled))
    programs[1].end()
    assert sorted([*programs[0].handled, *programs[1].handled]) == list(range(60))
    for each in super_stream.streams:
        connection.default_channel.queue_delete(token_queue(each.name, "reader").name)
    super_stream.delete(connection.default_channel)


PROGRAM = """
import sys
import greenconn

def handle(body, message):
    print(body, flush=True)

url, stream, folder = sys.argv[1:]
greenconn.spawn_consumer(
    stream, handler=handle, name="reader", offsets=greenconn.FileOffsets(folder), single_active=True,
    store_every=10, store_interval=0.1, connection=url,
).get()
"""


@pytest.mark.full
def test_readers_that_are_killed_leave_nothing_out(
    amqp_url: str, connection: Connection, stream: Queue, stored: FileOffsets, tmp_path: Path
) -> None:
    programs = [
        start("-c", PROGRAM, amqp_url, stream.name, str(tmp_path / "offsets")) for _ in range(4)
    ]
    lines: list[list[int]] = [[] for _ in programs]

    def read(program: Any, into: list[int]) -> None:
        with suppress(EOFError):
            while True:
                into.append(int(program.line()))

    reading = [
        gevent.spawn(read, program, into) for program, into in zip(programs, lines, strict=True)
    ]
    ended: set[int] = set()
    count = 10
    try:
        for _ in range(3):
            fill(connection, stream.name, range(count, count + 300))
            count += 300
            until(lambda: any(each for n, each in enumerate(lines) if n not in ended))
            # One that reads: whatever it has not stored is read by the next one.
            active = max(
                (n for n in range(4) if n not in ended), key=lambda n: max(lines[n], default=-1)
            )
            programs[active].process.kill()
            ended.add(active)
        until(lambda: {number for each in lines for number in each} == set(range(count)))
    finally:
        gevent.killall(reading)
        for program in programs:
            program.end()
