"""Transports that were written for kombu: on kombu, on greenconn in its stead, and hosted."""

from __future__ import annotations

import warnings
from collections import deque
from collections.abc import Callable
from pathlib import Path
from textwrap import dedent
from typing import Any

import pytest
from gevent.event import Event

import greenconn
from tests.compat import third_party
from tests.compat.programs.library import GREENCONN, KOMBU, Library, Raised, drain, outcome, quiet
from tests.compat.third_party import Backend
from tests.integration.processes import run

pytestmark = pytest.mark.full

pytest.importorskip("kombu")

Shape = Callable[[Library, Backend], Any]

#: Whose virtual layer the class is built on, and whose ``Connection`` it is used with.
WAYS = {"kombu": (KOMBU, KOMBU), "instead": (GREENCONN, GREENCONN), "hosted": (KOMBU, GREENCONN)}


@pytest.fixture(params=WAYS)
def way(request: pytest.FixtureRequest) -> tuple[Library, Library]:
    """Both libraries."""
    return WAYS[request.param]


def connected(shape: Shape, way: tuple[Library, Library], **options: Any) -> tuple[Any, Backend]:
    """A connection over a transport of that shape, and its backend."""
    backend = Backend()
    made, used = way
    transport = shape(made, backend)
    connection = used.connection.Connection(transport=transport, transport_options=options)
    return connection, backend


@pytest.mark.parametrize("shape", third_party.SHAPES, ids=lambda shape: shape.__name__)
def test_messages_come_and_go(shape: Shape, way: tuple[Library, Library]) -> None:
    lib = way[1]
    connection, backend = connected(shape, way)
    with connection:
        queue = lib.entity.Queue("q", lib.entity.Exchange("e", "topic"), "a.*")
        got: list[Any] = []

        def keep(body: Any, message: Any) -> None:
            got.append((body, message.headers.get("h"), message.delivery_info["routing_key"]))
            message.ack()

        with lib.messaging.Consumer(connection, [queue], callbacks=[keep], prefetch_count=1):
            producer = lib.messaging.Producer(connection, queue.exchange)
            for number in range(5):
                producer.publish({"n": number}, "a.b", headers={"h": number})
            drain(connection, lambda: len(got) == 5)
            assert quiet(connection)
        assert got == [({"n": number}, number, "a.b") for number in range(5)]
        with connection.SimpleQueue("simple") as simple:
            for body in (b"bytes", "text", ["list"]):
                simple.put(body)
            assert simple.qsize() == 3
            for body in (b"bytes", "text", ["list"]):
                message = simple.get(timeout=30)
                assert message.payload == body
                message.ack()
    assert not any(backend.queues.values())


def test_a_qos_sees_every_ack_and_reject(way: tuple[Library, Library]) -> None:
    lib = way[1]
    connection, backend = connected(third_party.own_qos, way)
    with connection:
        producer = lib.messaging.Producer(connection)
        queue = lib.entity.Queue("q")
        held: list[Any] = []
        for number in range(4):
            producer.publish(number, "q", declare=[queue])
        with lib.messaging.Consumer(connection, [queue], on_message=held.append):
            drain(connection, lambda: len(held) == 2)
            assert quiet(connection)
            held[0].ack()
            held[1].reject()
            drain(connection, lambda: len(held) == 4)
            held[2].requeue()
            drain(connection, lambda: len(held) == 5)
            held[3].ack()
            held[4].ack()
    assert backend.notes.count("append") == 5
    assert backend.notes.count("ack") == 3
    assert ("reject", "q", False) in backend.notes
    assert ("reject", "q", True) in backend.notes
    assert [held[4].payload, backend.queues["q"]] == [held[2].payload, deque()]


def test_several_at_once_reach_their_consumers(way: tuple[Library, Library]) -> None:
    lib = way[1]
    connection, backend = connected(third_party.bulk, way)
    with connection:
        producer = lib.messaging.Producer(connection)
        queues = [lib.entity.Queue("q"), lib.entity.Queue("r")]
        got: list[Any] = []
        for number in range(6):
            producer.publish(number, "qr"[number % 2], declare=queues)
        consumer = lib.messaging.Consumer(connection, queues, on_message=got.append)
        consumer.qos(prefetch_count=3)
        with consumer:
            drain(connection, lambda: len(got) >= 3)
            for message in got[:]:
                message.ack()
            drain(connection, lambda: len(got) == 6)
            for message in got:
                if not message.acknowledged:
                    message.ack()
    assert sorted(message.payload for message in got) == list(range(6))
    assert not any(backend.queues.values())


def test_a_fan_out_of_its_own_is_used(way: tuple[Library, Library]) -> None:
    lib = way[1]
    connection, backend = connected(third_party.broadcasting, way)
    with connection:
        exchange = lib.entity.Exchange("news", "fanout")
        queues = [lib.entity.Queue(name, exchange) for name in "ab"]
        for queue in queues:
            queue(connection).declare()
        lib.messaging.Producer(connection, exchange).publish("x", "k")
        assert [queue(connection).get(no_ack=True).payload for queue in queues] == ["x", "x"]
        assert connection.supports_exchange_type("fanout")
        assert not connection.supports_exchange_type("headers")
    assert backend.notes == [("fanout", "news", "k")]


def test_methods_of_its_own_are_called(way: tuple[Library, Library]) -> None:
    lib = way[1]
    connection, backend = connected(third_party.own_methods, way)
    with connection:
        queue = lib.entity.Queue("q", lib.entity.Exchange("e", "direct"), "k")
        got: list[Any] = []
        with lib.messaging.Consumer(connection, [queue], on_message=got.append, no_ack=False):
            lib.messaging.Producer(connection).publish("x", "k", exchange="e")
            drain(connection, lambda: got)
            got[0].ack()
    assert got[0].headers == {"seen": True}
    label = "a transport's own"
    for note in [
        ("declare", "e", "direct", True),
        ("queue", "q", False),
        ("bind", "e", "k", label),
        ("consume", "q", False, False),
        ("publish", "e", "k"),
        ("ack", True),
        ("cancel", "q"),
    ]:
        assert note in backend.notes


def test_publishing_of_its_own_is_not_passed_by() -> None:
    connection, backend = connected(third_party.own_methods, WAYS["instead"], confirm_publish=True)
    with connection:
        got: list[Any] = []
        came = Event()

        def keep(body: Any, message: Any) -> None:
            got.append(message.headers["seen"])
            if len(got) == 2:
                came.set()

        consumer = greenconn.spawn_consumer("q", keep, connection=connection)
        assert consumer.wait_ready(30)
        for body in "xy":
            greenconn.publish("q", body, connection=connection)
        assert came.wait(30)
        assert consumer.stop(10)
    assert backend.notes.count(("publish", "", "q")) == 2
    assert got == [True, True]


def test_routing_of_its_own_is_used(way: tuple[Library, Library]) -> None:
    lib = way[1]
    connection, backend = connected(third_party.own_routing, way, prefix="here")
    with connection:
        exchange = lib.entity.Exchange("by-letter", "x-initial")
        queues = {name: lib.entity.Queue(name, exchange, name) for name in ("apple", "pear")}
        for queue in queues.values():
            queue(connection).declare()
        producer = lib.messaging.Producer(connection, exchange)
        producer.publish("to a", "avocado")
        producer.publish("to p", "plum")
        assert queues["apple"](connection).get(no_ack=True).payload == "to a"
        assert queues["pear"](connection).get(no_ack=True).payload == "to p"
        assert queues["pear"](connection).get(no_ack=True) is None
    assert ("here", "by-letter", "plum") in backend.notes


def test_a_life_of_its_own_is_led(way: tuple[Library, Library]) -> None:
    lib = way[1]
    connection, backend = connected(third_party.own_life, way)
    with connection:
        lib.messaging.Producer(connection).publish("x", "q", declare=[lib.entity.Queue("q")])
        assert lib.entity.Queue("q")(connection).get(no_ack=True).payload == "x"
        assert LookupError in connection.connection_errors
        assert ArithmeticError in connection.channel_errors
        assert connection.transport.verify_connection(connection.connection)
        assert connection.as_uri() == "backend://masked"
        assert (connection.transport.driver_version(), connection.info()["port"]) == ("1", 4711)
    for note in ("establish", ("channel", "/"), "message", "channel closed", "close"):
        assert note in backend.notes


def test_what_has_no_queue_goes_to_that_of_last_resort(way: tuple[Library, Library]) -> None:
    lib = way[1]
    connection, backend = connected(third_party.plain, way, deadletter_queue="dead")
    with connection, warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        exchange = lib.entity.Exchange("e", "direct")
        exchange(connection).declare()
        producer = lib.messaging.Producer(connection, exchange)
        producer.publish("lost", "nobody")
        producer.publish("lost too", "nobody", exchange="unheard-of")
        dead = lib.entity.Queue("dead")(connection)
        assert dead.get(no_ack=True).payload == "lost"
        assert dead.get(no_ack=True).payload == "lost too"
    warned = [each for each in caught if each.category.__name__ == "UndeliverableWarning"]
    assert len(warned) == 2
    assert backend.queues["dead"] == deque()


@pytest.mark.parametrize("encoding", ["base64", None])
def test_bodies_are_stored_as_given(way: tuple[Library, Library], encoding: str | None) -> None:
    lib = way[1]
    connection, backend = connected(third_party.plain, way, body_encoding=encoding)
    with connection:
        queue = lib.entity.Queue("q")
        lib.messaging.Producer(connection).publish("text", "q", declare=[queue])
        stored = backend.queues["q"][0]
        assert stored["properties"]["body_encoding"] == encoding
        assert stored["body"] == ("dGV4dA==" if encoding else stored["body"])
        assert stored["properties"]["delivery_info"] == {"exchange": "", "routing_key": "q"}
        assert queue(connection).get(no_ack=True).payload == "text"


def test_what_was_not_settled_is_redelivered(way: tuple[Library, Library]) -> None:
    lib = way[1]
    connection, backend = connected(third_party.plain, way)
    queue = lib.entity.Queue("q")
    with connection:
        lib.messaging.Producer(connection).publish("x", "q", declare=[queue])
        channel = connection.channel()
        assert queue(channel).get().payload == "x"
        assert not backend.queues["q"]
        channel.close()
        assert len(backend.queues["q"]) == 1
        again = queue(connection).get()
        assert again.payload == "x"
        again.reject(requeue=True)
        assert isinstance(outcome(again.ack), Raised)
        assert len(backend.queues["q"]) == 1


@pytest.mark.parametrize("name", ["filesystem", "memory"])
def test_transports_of_kombus_run_in_its_stead(name: str, tmp_path: Path) -> None:
    outcome = run("-c", PROGRAM, name, str(tmp_path))
    assert outcome.code == 0, outcome.errors
    assert outcome.output.split() == ["simple", "direct", "topic", "fanout"]


#: Runs the source of a transport as it is in kombu's distribution, where ``kombu`` is greenconn.
PROGRAM = dedent("""
    import importlib.metadata, importlib.util, sys
    from greenconn.compat import install_as_kombu

    install_as_kombu()

    import kombu.transport

    name, folder = sys.argv[1:]
    path = importlib.metadata.distribution("kombu").locate_file(f"kombu/transport/{name}.py")
    spec = importlib.util.spec_from_file_location("kombu.transport.theirs", path)
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    options = {"polling_interval": 0.01}
    for option in ("data_folder_in", "data_folder_out", "control_folder"):
        options[option] = folder
    with kombu.Connection(transport=module.Transport, transport_options=options) as connection:
        with connection.SimpleQueue("simple") as queue:
            queue.put("simple")
            message = queue.get(timeout=30)
            print(message.payload)
            message.ack()
        for kind, key, pattern in [("direct", "a", "a"), ("topic", "a.b", "a.*"), ("fanout", "", "")]:
            exchange = kombu.Exchange(f"e-{kind}", kind)
            queues = [kombu.Queue(f"{kind}-{number}", exchange, pattern) for number in range(2)]
            got = []
            def keep(body, message):
                got.append(body)
                message.ack()
            with connection.Consumer(queues, callbacks=[keep]):
                connection.Producer().publish(kind, exchange=exchange, routing_key=key)
                while len(got) < 2:
                    connection.drain_events(timeout=30)
            assert got == [kind, kind], got
            print(kind)
""")
