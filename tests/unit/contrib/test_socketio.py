"""The client manager for python-socketio, with servers of one process whose clients are none."""

from __future__ import annotations

import json
import logging
from collections.abc import Callable, Iterator
from typing import Any

import gevent
import pytest

pytest.importorskip("socketio")

import socketio

import greenconn
from greenconn import Queue
from greenconn.contrib.socketio import Manager
from greenconn.exceptions import OperationalError
from greenconn.testing import MemoryBroker
from tests.fix_leaks import HubErrors
from tests.fix_wires import until

SOON = 60.0
logger = logging.getLogger("greenconn.tests.socketio")


class Server(socketio.Server):
    """A server that notes what it would send to its clients."""

    def __init__(self, manager: Manager, **options: Any) -> None:
        self.sent: list[tuple[str, str]] = []
        super().__init__(client_manager=manager, logger=logger, async_mode="gevent", **options)

    def _send_packet(self, eio_sid: str, pkt: Any) -> None:
        self.sent.append((eio_sid, pkt.encode()))

    def _send_eio_packet(self, eio_sid: str, eio_pkt: Any) -> None:
        self.sent.append((eio_sid, str(eio_pkt.data)))

    def connect(self, client: str) -> str:
        """Connect a client, and return its session id.  May switch."""
        self._handle_eio_connect(client, {})
        self._handle_connect(client, "/", None)
        return str(self.manager.sid_from_eio_sid(client, "/"))

    def events(self, client: str) -> list[Any]:
        """What was emitted to a client."""
        return [
            json.loads(text[1:]) for each, text in self.sent if each == client and text[0] == "2"
        ]


Serve = Callable[..., Server]


@pytest.fixture
def serve(broker: MemoryBroker) -> Iterator[Serve]:
    """Start a server with the given options of its manager; closed after the test."""
    managers = []

    def start(**options: Any) -> Server:
        manager = Manager(broker.url, **options)
        managers.append(manager)
        return Server(manager)

    yield start
    for manager in managers:
        manager.close()


def has_events(server: Server, client: str, expected: list[Any]) -> None:
    """Wait for the events of a client: these, in this order, and no others."""
    until(lambda: len(server.events(client)) >= len(expected), SOON, f"events of {client}")
    assert server.events(client) == expected


def test_events_come_to_the_clients_of_all_servers_once(serve: Serve) -> None:
    one, two = serve(), serve()
    one.connect("a")
    two.connect("b")
    for number in range(50):
        (one if number % 2 else two).emit("news", number)
    one.emit("last", (1, {"two": 2}))
    expected = [["news", number] for number in range(50)] + [["last", 1, {"two": 2}]]
    for server, client in ((one, "a"), (two, "b")):
        until(lambda: len(server.events(client)) >= len(expected), SOON)  # noqa: B023
        assert sorted(server.events(client), key=str) == sorted(expected, key=str)
    # Those of one server come in its order.
    assert [each for each in two.events("b") if each[1:] and each[1] in range(1, 50, 2)] == [
        ["news", number] for number in range(1, 50, 2)
    ] + [["last", 1, {"two": 2}]]


def test_a_client_that_is_connected_misses_nothing(serve: Serve) -> None:
    one = serve()
    one.connect("a")
    for number in range(5):
        other = serve()
        other.connect("b")
        one.emit("news", number)
        has_events(other, "b", [["news", number]])


def test_a_process_without_clients_emits_by_a_manager_alone(
    broker: MemoryBroker, serve: Serve
) -> None:
    server = serve()
    sid = server.connect("a")
    server.connect("b")
    emitter = Manager(broker.url, write_only=True)
    emitter.emit("news", "for all")
    emitter.emit("news", "for one", room=sid)
    emitter.emit("news", b"bytes", room=sid)
    has_events(server, "b", [["news", "for all"]])
    until(lambda: len([each for each in server.sent if each[0] == "a"]) >= 5, SOON)
    assert server.events("a") == [["news", "for all"], ["news", "for one"]]
    emitter.close()


def test_the_default_connection(broker: MemoryBroker) -> None:
    server = Server(Manager())
    server.connect("a")
    Manager(write_only=True).emit("news", 1)
    has_events(server, "a", [["news", 1]])
    server.manager.close()
    greenconn.publish("mail", 1)  # the default connection is not closed with it
    assert broker.count("mail") == 1


def test_the_answer_of_a_client_elsewhere(serve: Serve) -> None:
    one, two = serve(), serve()
    one.connect("a")
    sid = two.connect("b")
    asking = gevent.spawn(one.call, "ask", {"n": 1}, to=sid, timeout=SOON)
    until(lambda: any("ask" in text for _, text in two.sent), SOON, "the question")
    [question] = [text for _, text in two.sent if "ask" in text]
    number = int(question[1 : question.index("[")])
    two._handle_ack("b", "/", number, ["answer"])
    assert asking.get(timeout=SOON) == "answer"


def test_a_copy_of_an_event_is_dropped(serve: Serve) -> None:
    server = serve()
    server.connect("a")
    manager = server.manager
    text = json.dumps(
        {"method": "emit", "event": "news", "data": [1], "namespace": "/", "host_id": "other"}
    )
    for message_id in ("m1", "m1", "m2"):
        greenconn.publish(
            manager._exchange,
            text,
            connection=manager._connections.get(),
            routing_key=manager.channel,
            content_type="text/plain",
            message_id=message_id,
        )
    manager._publish({"method": "emit", "event": "last", "data": [], "namespace": "/"})
    until(lambda: ["last"] in server.events("a"), SOON, "the last")
    assert server.events("a") == [["news", 1], ["news", 1], ["last"]]


def test_what_is_no_event_is_skipped(broker: MemoryBroker, serve: Serve) -> None:
    server = serve()
    server.connect("a")
    manager = server.manager
    for body in ("no json", {"method": "unknown"}, [1], {"method": "emit"}):
        greenconn.publish(
            manager._exchange,
            body,
            connection=manager._connections.get(),
            routing_key=manager.channel,
        )
    emitter = Manager(broker.url, write_only=True)
    emitter.emit("news", 1)
    has_events(server, "a", [["news", 1]])
    emitter.close()


def test_what_is_emitted_while_nothing_is_consumed_waits(serve: Serve) -> None:
    one, two = serve(), serve()
    one.connect("a")
    two.connect("b")
    consumer = two.manager._consumer
    assert consumer.pause(SOON)
    one.emit("news", 1)
    assert two.events("b") == []
    consumer.resume()
    has_events(two, "b", [["news", 1]])


def test_close_deletes_the_queue(broker: MemoryBroker) -> None:
    server = Server(Manager(broker.url))
    server.connect("a")
    manager = server.manager
    name = manager._queue.name
    with broker.connection() as connection:
        assert connection.default_channel.queue_declare(name, passive=True)
    manager.close()
    manager.close()
    assert manager.thread.ready()
    with broker.connection() as connection, pytest.raises(greenconn.exceptions.NotFound):
        connection.default_channel.queue_declare(name, passive=True)


def test_a_queue_that_the_broker_refuses_is_tried_again(
    broker: MemoryBroker, serve: Serve, hub_errors: HubErrors, caplog: pytest.LogCaptureFixture
) -> None:
    server = serve()
    name = f"socketio.events.{server.manager.host_id}"
    with broker.connection() as connection:
        other = Queue(name, durable=False)(connection.default_channel)
        other.declare()
        server.connect("a")  # it does not wait for what is refused
        until(lambda: "next attempt in" in caplog.text, SOON, "the refusal")
        other.delete()
        until(lambda: server.manager._consumer.lifecycle.is_confirmed, SOON, "the queue")
    emitter = Manager(broker.url, write_only=True)
    emitter.emit("news", 1)
    has_events(server, "a", [["news", 1]])
    emitter.close()
    hub_errors.clear()


def test_clients_connect_though_the_broker_is_away(caplog: pytest.LogCaptureFixture) -> None:
    server = Server(Manager("amqp://guest:guest@127.0.0.1:1//", timeout=0.3))
    server.connect("a")
    assert "is not ready" in caplog.text
    server.connect("b")
    with pytest.raises(OperationalError):
        server.emit("news", 1)
    assert server.events("a") == server.events("b") == [["news", 1]]
    server.manager.close()
    assert server.manager.thread.ready()


@pytest.mark.parametrize(
    "options", [{"expires": 0}, {"timeout": -1}, {"timeout": None}, {"expires": True}], ids=str
)
def test_wrong_arguments(options: dict[str, Any]) -> None:
    [name] = options
    with pytest.raises(ValueError, match=rf"{name} must be a number of seconds above 0, got"):
        Manager("memory://", **options)


def test_servers_with_threads_are_refused(patched: bool) -> None:
    manager = Manager("memory://")
    if patched:
        socketio.Server(async_mode="threading", client_manager=manager, logger=logger)
        return
    with pytest.raises(RuntimeError, match="must be 'gevent', got 'threading'"):
        socketio.Server(async_mode="threading", client_manager=manager, logger=logger)
