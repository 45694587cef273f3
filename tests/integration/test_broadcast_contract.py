"""``Broadcast``: each consumer gets each message once, on every transport that can."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import gevent
import pytest

from greenconn import Broadcast, Connection, Queue, publish, publish_many, spawn_consumer
from greenconn.exceptions import NotFound, RecoverableConnectionError
from greenconn.worker import ConsumerGreenlet
from tests.fix_wires import until
from tests.integration.capabilities import Can, Kind, needs

SOON = 30.0


@pytest.fixture
def options() -> dict[str, Any]:
    """The transport options of :func:`connections`."""
    return {}


@pytest.fixture
def connections(kind_url: str, options: dict[str, Any]) -> Iterator[list[Connection]]:
    """Two connections, as of two processes."""
    made = [Connection(kind_url, transport_options=options) for _ in range(2)]
    yield made
    for each in made:
        each.close()


def listen(broadcast: Broadcast, connection: Connection) -> tuple[ConsumerGreenlet, list[Any]]:
    """Consume, until the broker has confirmed it; returns what comes."""
    got: list[Any] = []

    def handle(body: Any, message: Any) -> None:
        got.append(body)

    consumer = spawn_consumer(broadcast, handle, connection=connection)
    assert consumer.wait_ready(SOON)
    return consumer, got


def queue_of(consumer: ConsumerGreenlet) -> str:
    (queue,) = consumer.lifecycle.options.queues
    assert isinstance(queue, Queue)
    return queue.name


def is_gone(name: str, connection: Connection) -> Callable[[], bool]:
    """Return a function that says whether there is no such queue."""

    def look() -> bool:
        try:
            connection.channel().queue_declare(name, passive=True)
        except NotFound:
            return True
        return False

    return look


@needs(Can.QUEUE_EXPIRY)
def test_each_consumer_gets_each_message_once(connections: list[Connection], unique: str) -> None:
    news = Broadcast(unique)
    listening = [
        listen(each, connection)
        for connection in connections
        for each in (news, Broadcast(unique))  # several of one process, by one object or by more
    ]
    listening.append(listen(news, connections[0]))
    publish(news, 0, connection=connections[1])
    publish_many(news, range(1, 4), connection=connections[0])
    until(lambda: all(len(got) >= 4 for _, got in listening), what="all", timeout=SOON)
    names = [queue_of(consumer) for consumer, _ in listening]
    assert len(set(names)) == 5
    assert news.name not in names  # what a process before a fork would share with its children
    assert {consumer.name for consumer, _ in listening} == {f"greenconn:consumer:{unique}"}
    for consumer, _ in listening:
        assert consumer.stop(SOON)
    assert [got for _, got in listening] == [[0, 1, 2, 3]] * 5
    for name in names:
        until(is_gone(name, connections[0]), what="the queue goes", timeout=SOON)


@needs(Can.QUEUE_EXPIRY)
def test_nobody_need_listen(connections: list[Connection], unique: str) -> None:
    publish(Broadcast(unique), "lost", connection=connections[0])
    consumer, got = listen(Broadcast(unique), connections[0])
    publish(Broadcast(unique), "heard", connection=connections[1])
    until(lambda: bool(got), what="the second", timeout=SOON)
    consumer.stop(SOON)
    assert got == ["heard"]


@needs(Can.QUEUE_EXPIRY)
def test_listens_again_after_a_loss(connections: list[Connection], unique: str) -> None:
    consumer, got = listen(Broadcast(unique), connections[0])
    link = connections[0].connection
    link.end(RecoverableConnectionError("cut by the test"))
    until(lambda: connections[0].connection is not link, what="a new link", timeout=SOON)
    assert consumer.wait_ready(SOON)
    with gevent.Timeout(SOON):
        while not got:  # Redis may subscribe after it has confirmed the consumer
            publish(Broadcast(unique), "again", connection=connections[1])
            gevent.sleep(0.05)
    assert consumer.stop(SOON)


@needs(Can.QUEUE_EXPIRY)
def test_failed_message_is_kept_only_where_it_is_told(
    connections: list[Connection], unique: str
) -> None:
    done: list[Any] = []

    def fail(body: Any, message: Any) -> None:
        done.append(body)
        raise ValueError("by the test")

    dead = Queue(f"{unique}.dead", expires=60)
    dead(connections[0].default_channel).declare()
    consumers = [
        spawn_consumer(Broadcast(unique), fail, connection=each, dead_letter=True)
        for each in connections
    ]
    assert all(each.wait_ready(SOON) for each in consumers)
    publish(Broadcast(unique), "bad", connection=connections[0])
    until(lambda: len(done) == 2, what="both", timeout=SOON)
    assert all(each.stop(SOON) for each in consumers)
    bound = dead(connections[0].default_channel)
    bodies: list[Any] = []
    with gevent.Timeout(SOON):
        while len(bodies) < 2:
            message = bound.get(no_ack=True)
            if message is not None:
                bodies.append(message.payload)
    assert bodies == ["bad", "bad"]
    bound.delete()


class TestKept:
    """A queue that is there while its process is away."""

    @pytest.fixture
    def options(self, broker_kind: Kind) -> dict[str, Any]:
        """Fan-out that is stored, where that is an option."""
        return {"fanout_lists": True} if "fanout_lists" in broker_kind.options else {}

    @needs(Can.QUEUE_EXPIRY)
    def test_what_was_sent_meanwhile_comes(
        self, connections: list[Connection], unique: str
    ) -> None:
        news = Broadcast(unique, f"{unique}-mine", keep=60)
        consumer, got = listen(news, connections[0])
        other, heard = listen(Broadcast(unique), connections[1])
        with pytest.raises(ValueError, match="has another consumer in this process"):
            spawn_consumer(news, print, connection=connections[0])
        publish(news, 1, connection=connections[1])
        until(lambda: got == [1], what="the first", timeout=SOON)
        consumer.stop(SOON)
        publish(news, 2, connection=connections[1])
        until(lambda: heard == [1, 2], what="both at the other", timeout=SOON)
        consumer, got = listen(news, connections[0])
        until(lambda: got == [2], what="the second", timeout=SOON)
        consumer.stop(SOON)
        other.stop(SOON)
        connections[0].default_channel.queue_delete(f"{unique}-mine")

    @needs(Can.QUEUE_EXPIRY)
    @pytest.mark.sampled(3)
    def test_it_ends_after_that_time(self, connections: list[Connection], unique: str) -> None:
        consumer, _ = listen(Broadcast(unique, f"{unique}-mine", keep=1), connections[0])
        consumer.stop(SOON)
        with gevent.Timeout(SOON):
            gevent.sleep(1.5)  # to look is to use it
            while not is_gone(f"{unique}-mine", connections[1])():
                gevent.sleep(1.5)


def test_brokers_that_cannot_refuse(
    broker_kind: Kind, connections: list[Connection], unique: str
) -> None:
    news = Broadcast(unique)
    if Can.QUEUE_EXPIRY in broker_kind.lacks:
        with pytest.raises(ValueError, match="deletes the queues of processes that are gone"):
            spawn_consumer(news, print, connection=connections[0])
        for send in (publish, publish_many):
            with pytest.raises(ValueError, match="a Broadcast needs a broker that"):
                send(news, "x", connection=connections[0])
    elif "fanout_lists" in broker_kind.options:
        with pytest.raises(ValueError, match="'fanout_lists': True"):
            spawn_consumer(Broadcast(unique, "mine", keep=9), print, connection=connections[0])
