"""Publishing to a queue by its name: who declares it, and that nobody contradicts its consumer."""

from __future__ import annotations

import json
import logging
from collections.abc import Callable, Iterator
from typing import Any

import gevent
import pytest
from gevent.queue import Queue as Inbox

import greenconn
from greenconn import Connection, Message, Queue
from greenconn.entity import declaration
from greenconn.exceptions import (
    BatchPublishError,
    NotFound,
    PreconditionFailed,
    PublishTimeout,
    Unroutable,
)
from tests.integration.capabilities import Can, Kind, needs
from tests.integration.processes import start

pytestmark = pytest.mark.halved

SOON = 30.0

#: A worker that knows the arguments of its queue.
WORKER = """
import json
import sys
import greenconn

url, options, name, dead = sys.argv[1:]
arguments = {"x-dead-letter-exchange": "", "x-dead-letter-routing-key": dead}
with greenconn.Connection(url, transport_options=json.loads(options)) as connection:
    consumer = greenconn.spawn_consumer(
        greenconn.Queue(name, queue_arguments=arguments),
        lambda body, message: print(body, flush=True),
        connection=connection,
    )
    assert consumer.wait_ready(20)
    print("ready", flush=True)
    consumer.join()
"""


@pytest.fixture
def connection(broker_kind: Kind, kind_url: str, unique: str) -> Iterator[Connection]:
    """A connection over each transport in turn; the queue ``unique`` is deleted."""
    with Connection(kind_url, transport_options=dict(broker_kind.options)) as connection:
        yield connection
        greenconn.stop_consumers(SOON)
        connection.channel().queue_delete(unique)
    assert not declaration._awaited.get()


@pytest.fixture
def defined(unique: str) -> Queue:
    """The queue ``unique``, with arguments that its name alone does not tell."""
    arguments = {"x-dead-letter-exchange": "", "x-dead-letter-routing-key": f"{unique}-dead"}
    return Queue(unique, queue_arguments=arguments)


@pytest.fixture
def by_name() -> Iterator[Callable[[bool], None]]:
    """Choose who declares queues that are known by their name."""
    yield lambda declares: greenconn.configure(declare_by_name=declares)
    greenconn.defaults.reset()


def into(inbox: Inbox[Any]) -> Callable[[object, Message], None]:
    """A handler that puts bodies into *inbox*."""
    return lambda body, message: inbox.put(body)


def exists(connection: Connection, name: str) -> bool:
    """Whether a queue exists."""
    try:
        connection.channel().queue_declare(name, passive=True)
    except NotFound:
        return False
    return True


def test_a_name_declares_nothing_unless_that_is_asked_for(
    connection: Connection, unique: str
) -> None:
    for _ in range(2):
        with pytest.raises(Unroutable, match=f"'{unique}' does not exist at .* declare=True"):
            greenconn.publish(unique, 1, connection=connection)
    assert not exists(connection, unique)
    with pytest.raises(BatchPublishError) as caught:
        greenconn.publish_many(unique, [1, 2], connection=connection)
    assert [type(each) for each in caught.value.failed.values()] == [Unroutable, Unroutable]
    assert not exists(connection, unique)
    greenconn.publish(unique, "kept", connection=connection, declare=True)
    greenconn.publish(unique, "too", connection=connection)
    assert connection.channel().queue_declare(unique, passive=True).message_count == 2


def test_who_does_not_mind_that_nobody_takes_it_needs_no_queue(
    connection: Connection, unique: str, defined: Queue
) -> None:
    greenconn.publish(unique, "lost", connection=connection, mandatory=False)
    defined(connection.channel()).declare()  # nothing contradicts it


def test_the_program_may_choose(
    connection: Connection,
    unique: str,
    by_name: Callable[[bool], None],
    caplog: pytest.LogCaptureFixture,
) -> None:
    by_name(False)
    consumer = greenconn.spawn_consumer(unique, print, connection=connection)
    with pytest.raises(NotFound):
        consumer.get(timeout=SOON)
    with pytest.raises(Unroutable):
        greenconn.publish(unique, 1, connection=connection)
    by_name(True)
    with pytest.raises(Unroutable):
        greenconn.publish(unique, 1, connection=connection, declare=False)
    greenconn.publish(unique, 1, connection=connection)
    assert exists(connection, unique)


def test_two_lines(connection: Connection, unique: str) -> None:
    inbox: Inbox[Any] = Inbox()
    greenconn.spawn_consumer(unique, into(inbox), connection=connection)
    greenconn.publish(unique, 1, connection=connection)
    assert greenconn.publish_many(unique, [2, 3], connection=connection) == 2
    assert sorted(inbox.get(timeout=SOON) for _ in range(3)) == [1, 2, 3]


def test_a_call_waits_for_its_server(connection: Connection, unique: str) -> None:
    greenconn.rpc.spawn_server(unique, sum, connection=connection)
    assert greenconn.rpc.call(unique, [1, 2], connection=connection) == 3


@pytest.mark.parametrize("declare", [None, True])
def test_publishers_wait_for_the_queue_of_the_consumer(
    connection: Connection, unique: str, defined: Queue, declare: bool | None
) -> None:
    inbox: Inbox[Any] = Inbox()

    def publish(number: int) -> int:
        greenconn.publish(unique, number, connection=connection, declare=declare)
        return number

    consumer = greenconn.spawn_consumer(defined, into(inbox), connection=connection)
    publishers = [gevent.spawn(publish, number) for number in range(20)]
    gevent.joinall(publishers, raise_error=True)
    assert sorted(inbox.get(timeout=SOON) for _ in publishers) == list(range(20))
    assert consumer.wait_ready(SOON)
    defined(connection.channel()).declare()  # it is as its consumer says


def test_a_consumer_that_comes_during_the_lookup_is_not_contradicted(
    connection: Connection, unique: str, defined: Queue
) -> None:
    """Whoever was earlier: a publisher finds no queue, or that of the consumer."""
    connection.ensure_connection()
    # By number: the lookups of some brokers end in any order.
    outcomes: dict[int, Unroutable | None] = {}

    def publish(number: int) -> None:
        try:
            greenconn.publish(unique, 1, connection=connection)
        except Unroutable as exc:
            outcomes[number] = exc
        else:
            outcomes[number] = None

    publishers = []
    for number in range(12):
        publishers.append(gevent.spawn(publish, number))
        gevent.sleep(0)
        if number == 5:
            consumer = greenconn.spawn_consumer(defined, print, connection=connection)
    gevent.joinall(publishers, raise_error=True)
    assert consumer.wait_ready(SOON)
    assert outcomes[11] is None
    assert list(outcomes.values()).count(None) >= 6
    defined(connection.channel()).declare()


def test_a_consumer_by_name_gives_way_to_one_with_the_queue(
    connection: Connection, unique: str, defined: Queue
) -> None:
    named = [greenconn.spawn_consumer(unique, print, connection=connection) for _ in range(3)]
    defining = greenconn.spawn_consumer(defined, print, connection=connection)
    named.append(greenconn.spawn_consumer([unique, f"{unique}-2"], print, connection=connection))
    assert defining.wait_ready(SOON)
    assert all(each.wait_ready(SOON) for each in named)
    defined(connection.channel()).declare()
    greenconn.stop_consumers(SOON)
    connection.channel().queue_delete(f"{unique}-2")


def test_an_exclusive_queue_is_waited_for(connection: Connection, unique: str) -> None:
    inbox: Inbox[Any] = Inbox()
    queue = Queue(unique, exclusive=True)
    consumer = greenconn.spawn_consumer(queue, into(inbox), connection=connection)
    greenconn.publish(unique, 1, connection=connection)
    assert inbox.get(timeout=SOON) == 1
    assert consumer.wait_ready(SOON)


def test_a_consumer_that_never_declares_is_not_waited_for(
    connection: Connection, unique: str, defined: Queue, caplog: pytest.LogCaptureFixture
) -> None:
    paused = greenconn.spawn_consumer(defined, print, connection=connection)
    paused.pause(0)
    killed = greenconn.spawn_consumer(defined, print, connection=connection)
    killed.kill()
    passive = greenconn.spawn_consumer(unique, print, connection=connection, passive=True)
    with pytest.raises(NotFound):
        passive.get(timeout=SOON)
    with pytest.raises(Unroutable):
        greenconn.publish(unique, 1, connection=connection, timeout=SOON)
    paused.resume()
    greenconn.publish(unique, 1, connection=connection)


def test_waiting_ends_with_the_deadline(unique: str) -> None:
    with Connection(f"memory:///{unique}") as connection:
        expectation = declaration.expect_queue(connection.session, unique)
        with pytest.raises(PublishTimeout, match="declares it has not done so yet") as caught:
            greenconn.publish(unique, 1, connection=connection, timeout=0.05)
        assert caught.value.maybe_delivered is False
        waiting = gevent.spawn(greenconn.publish, unique, 1, connection=connection)
        gevent.sleep(0)
        waiting.kill()
        expectation.settle()
        with pytest.raises(Unroutable):
            greenconn.publish(unique, 1, connection=connection)
    assert not declaration._awaited.get()


def test_another_broker_is_not_waited_for(unique: str) -> None:
    with Connection(f"memory:///{unique}") as here, Connection(f"memory:///{unique}-2") as there:
        expectation = declaration.expect_queue(there.session, unique)
        with pytest.raises(Unroutable):
            greenconn.publish(unique, 1, connection=here)
        expectation.settle()


@needs(Can.PROCESSES)
@pytest.mark.sampled(3)
def test_a_worker_in_another_process(
    broker_kind: Kind, connection: Connection, kind_url: str, unique: str
) -> None:
    """A web application publishes all the time, and a worker is started a moment later."""
    options = json.dumps(dict(broker_kind.options))
    with pytest.raises(Unroutable):
        greenconn.publish(unique, 0, connection=connection)
    worker = start("-c", WORKER, kind_url, options, unique, f"{unique}-dead")
    try:
        with gevent.Timeout(SOON):
            while True:
                try:
                    greenconn.publish(unique, "first", connection=connection)
                    break
                except Unroutable:
                    gevent.sleep(0.02)
        assert sorted(worker.line() for _ in range(2)) == ["first", "ready"]
    finally:
        worker.end()


def test_a_consumer_says_what_differs_and_how_to_migrate(
    connection: Connection, unique: str, defined: Queue, caplog: pytest.LogCaptureFixture
) -> None:
    Queue(unique)(connection.channel()).declare()
    consumer = greenconn.spawn_consumer(defined, print, connection=connection)
    with pytest.raises(PreconditionFailed, match="inequivalent arg 'x-dead-letter-"):
        consumer.get(timeout=SOON)
    (line,) = [each.getMessage() for each in caplog.records if each.levelno >= logging.WARNING]
    assert "inequivalent arg 'x-dead-letter-" in line
    assert "to change it, consume from a queue of another name" in line
