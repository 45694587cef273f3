"""kombu's own virtual transports, run by greenconn."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from itertools import count
from pathlib import Path
from queue import Empty
from typing import Any

import gevent
import pytest
from gevent.event import Event

import greenconn
from greenconn import Connection, Consumer, Exchange, Queue
from greenconn.exceptions import (
    AccessRefused,
    NotFound,
    PreconditionFailed,
    RecoverableChannelError,
    RecoverableConnectionError,
)
from greenconn.transport import resolve_transport
from greenconn.transport.hooks import hosted
from greenconn.transport.hooks.hosted import HostedMessage

pytest.importorskip("kombu")

FILESYSTEM = "kombu.transport.filesystem:Transport"
MEMORY = "kombu.transport.memory.Transport"


@pytest.fixture
def connect(tmp_path: Path) -> Iterator[Callable[..., Connection]]:
    """Connects to a folder of the test's own."""
    folder = tmp_path / "queues"
    folder.mkdir()
    made: list[Connection] = []

    def connect() -> Connection:
        options = {
            "data_folder_in": str(folder),
            "data_folder_out": str(folder),
            "control_folder": str(tmp_path / "control"),
            "polling_interval": 0.01,
        }
        connection = Connection(transport=FILESYSTEM, transport_options=options)
        made.append(connection)
        return connection

    yield connect
    for connection in made:
        connection.close()


@pytest.fixture
def connection(connect: Callable[..., Connection]) -> Connection:
    """One connection."""
    return connect()


def keeper(got: list[Any], wanted: int) -> tuple[Callable[[Any, Any], None], Event]:
    """A callback that keeps bodies and acknowledges, and what is set when it has enough."""
    enough = Event()

    def keep(body: Any, message: Any) -> None:
        got.append(body)
        if not message.acknowledged:
            message.ack()
        if len(got) >= wanted:
            enough.set()

    return keep, enough


def test_simple_queues(connection: Connection) -> None:
    with connection.SimpleQueue("mail") as queue:
        queue.put({"to": "ada"}, headers={"id": 1})
        assert queue.qsize() == 1
        message = queue.get(timeout=30)
        assert isinstance(message, greenconn.Message)
        assert (message.payload, message.headers["id"]) == ({"to": "ada"}, 1)
        message.ack()
        with pytest.raises(Empty):
            queue.get(timeout=0.05)


@pytest.mark.parametrize(
    ("kind", "key", "binding"), [("direct", "a", "a"), ("topic", "a.b", "a.*"), ("fanout", "", "")]
)
def test_exchanges(connection: Connection, kind: str, key: str, binding: str) -> None:
    exchange = Exchange(f"letters-{kind}", type=kind)
    queues = [Queue(f"{kind}-{number}", exchange, binding) for number in range(2)]
    got: list[Any] = []
    keep, _ = keeper(got, 2)
    with connection.Consumer(queues, callbacks=[keep]), connection.Producer() as producer:
        producer.publish("hello", exchange=exchange, routing_key=key)
        connection.drain_events(timeout=30)
        connection.drain_events(timeout=30)
    assert got == ["hello", "hello"]


def test_a_full_queue_is_left_for_others_after_a_while(
    connection: Connection, monkeypatch: pytest.MonkeyPatch
) -> None:
    names = ["full", "other"]
    with connection.Producer() as producer:
        for name in names:
            for number in range(3):
                producer.publish(number, routing_key=name, declare=[Queue(name)])
    seconds = count()  # pass with each message that is taken out
    monkeypatch.setattr(hosted, "monotonic", lambda: next(seconds))
    got: list[str] = []

    def note(message: Any) -> None:
        got.append(message.delivery_info["routing_key"])
        message.ack()

    channel = connection.channel()
    channel.flow(False)  # until both are consumed from
    with Consumer(channel, [Queue(name) for name in names], on_message=note):
        channel.flow(True)
        for _ in range(6):
            connection.drain_events(timeout=30)
    assert sorted(got[:2]) == sorted(got[2:4]) == sorted(got[4:]) == names


def test_prefetch_is_each_consumers_own(connection: Connection) -> None:
    for number in range(6):
        with connection.Producer() as producer:
            producer.publish(number, routing_key="mail", declare=[Queue("mail")])
    held: list[Any] = []
    with Consumer(connection, [Queue("mail")], on_message=held.append, prefetch_count=2):
        connection.drain_events(timeout=30)
        connection.drain_events(timeout=30)
        with pytest.raises(TimeoutError):
            connection.drain_events(timeout=0.1)
        held.pop().ack()
        connection.drain_events(timeout=10)
        assert len(held) == 2


def test_messages_go_back(connect: Callable[..., Connection]) -> None:
    connection = connect()
    channel = connection.channel()
    channel.queue_declare("mail")
    with connection.Producer() as producer:
        producer.publish("again", routing_key="mail")
    first = channel.basic_get("mail")
    first.requeue()
    second = channel.basic_get("mail")
    assert second.payload == "again"
    second.reject()
    assert channel.basic_get("mail") is None
    with connection.Producer() as producer:
        producer.publish("kept", routing_key="mail")
    assert channel.basic_get("mail") is not None
    connection.close()  # not answered
    other = connect()
    assert other.default_channel.basic_get("mail").payload == "kept"


def test_spawned_consumers_and_publish(connection: Connection, long: bool) -> None:
    count = 500 if long else 30
    got: list[Any] = []
    keep, enough = keeper(got, count)
    consumer = greenconn.spawn_consumer("mail", keep, connection=connection, concurrency=3)
    other = greenconn.spawn_consumer("mail", keep, connection=connection)
    assert consumer.wait_ready(30)
    assert other.wait_ready(30)
    gevent.joinall(
        [
            gevent.spawn(greenconn.publish, "mail", number, connection=connection)
            for number in range(count)
        ],
        raise_error=True,
    )
    assert enough.wait(50)
    assert consumer.stop(10)
    assert other.stop(10)
    assert sorted(got) == list(range(count))


def test_prefetch_of_a_channel(connection: Connection) -> None:
    channel = connection.channel()
    queues = [Queue("mail"), Queue("post")]
    with connection.Producer() as producer:
        for number in range(6):
            producer.publish(number, routing_key=("mail", "post")[number % 2], declare=queues)
    held: list[Any] = []
    channel.basic_qos(0, 3, True)
    with Consumer(channel, queues, on_message=held.append):
        while len(held) < 3:
            connection.drain_events(timeout=30)
        with pytest.raises(TimeoutError):
            connection.drain_events(timeout=0.1)
        held[-1].ack(multiple=True)
        while len(held) < 6:
            connection.drain_events(timeout=30)
        held[-1].ack(multiple=True)
    assert sorted(message.payload for message in held) == list(range(6))


def test_acks_outlive_their_consumer(connection: Connection) -> None:
    queue = Queue("mail")
    held: list[Any] = []
    with connection.Producer() as producer:
        for number in range(3):
            producer.publish(number, routing_key="mail", declare=[queue])
    channel = connection.channel()
    for wanted in (1, 2):  # a second reader of the same queue
        with Consumer(channel, [queue], on_message=held.append, prefetch_count=1):
            while len(held) < wanted:
                connection.drain_events(timeout=30)
    held[0].ack()
    held[1].requeue()
    with pytest.raises(PreconditionFailed):
        channel.basic_ack(held[0].delivery_tag)
    rest = {channel.basic_get("mail", no_ack=True).payload for _ in range(2)}
    assert rest == {0, 1, 2} - {held[0].payload}  # the folder has no certain order
    assert channel.basic_get("mail") is None


def test_exclusive_consumers_are_alone_on_their_connection(connection: Connection) -> None:
    channel = connection.channel()
    channel.queue_declare("mail")
    channel.basic_consume("mail", callback=print, exclusive=True)
    with pytest.raises(AccessRefused):
        connection.channel().basic_consume("mail", callback=print)


def test_what_does_not_exist_is_not_found(connection: Connection) -> None:
    with pytest.raises(NotFound, match="no exchange 'letters'"):
        connection.default_channel.exchange_declare("letters", passive=True)


def test_what_is_closed_says_so(connection: Connection) -> None:
    channel = connection.channel()
    channel.close()
    channel.close()
    with pytest.raises(RecoverableChannelError, match="closed"):
        channel.basic_get("mail")
    link = connection.connection
    connection.close()
    with pytest.raises(RecoverableConnectionError):
        link.open_channel()


def test_a_poll_that_fails_ends_the_link_and_recovery_follows(
    connection: Connection, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    got: list[Any] = []
    keep, enough = keeper(got, 1)
    consumer = greenconn.spawn_consumer("mail", keep, connection=connection)
    assert consumer.wait_ready(30)
    lost = Event()
    connection.session.on_connection_lost.append(lambda exc: lost.set())
    (tmp_path / "queues").rename(tmp_path / "away")
    assert lost.wait(30)
    (tmp_path / "away").rename(tmp_path / "queues")
    greenconn.publish("mail", "after", connection=connection)
    assert enough.wait(20)
    consumer.stop(10)


def test_classes_are_distinguished() -> None:
    from kombu.transport.base import Transport as KombuBase
    from kombu.transport.filesystem import Transport as Filesystem

    cls = resolve_transport(FILESYSTEM)
    assert resolve_transport(Filesystem) is cls
    assert cls.driver_type == "filesystem"
    assert "fanout" in cls.implements.exchange_type
    # Ours, since we have one of this name.
    assert resolve_transport(MEMORY).__module__.startswith("greenconn.")
    with pytest.raises(TypeError, match="only kombu's virtual transports can be hosted"):
        resolve_transport(KombuBase)


def test_what_a_lost_connection_held_goes_back(connection: Connection) -> None:
    got: list[Any] = []
    Queue("kept")(connection.channel()).declare()
    connection.Producer().publish("x", routing_key="kept")
    with connection.Consumer([Queue("kept")], on_message=got.append):
        connection.drain_events(timeout=30)
        connection.session.life.link.end(RecoverableConnectionError("lost"))
    with gevent.Timeout(30):
        while (found := connection.default_channel.basic_get("kept")) is None:
            gevent.sleep(0.01)
    assert [each.payload for each in (*got, found)] == ["x", "x"]
    found.ack()


def test_what_no_handler_saw_and_cannot_be_put_back_goes_back_later(
    connection: Connection, monkeypatch: pytest.MonkeyPatch
) -> None:
    channel: Any = connection.channel()
    Queue("unseen")(channel).declare()
    connection.Producer().publish("x", routing_key="unseen")
    link = connection.session.life.link
    raw = link.hooks("unseen")
    message = HostedMessage(raw.basic_get("unseen"), "unseen", channel)

    def fail(*args: Any, **kwargs: Any) -> None:
        raise RecoverableConnectionError("cut")

    with monkeypatch.context() as patch:
        patch.setattr(type(raw), "_put", fail)
        link.settlements.requeue_unseen(message.claimed)
        with gevent.Timeout(30):
            while link.is_open:
                gevent.sleep(0.01)
    with gevent.Timeout(30):
        while (found := connection.default_channel.basic_get("unseen")) is None:
            gevent.sleep(0.01)
    assert found.payload == "x"
    found.ack()
