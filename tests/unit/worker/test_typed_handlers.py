"""Handlers that get bodies of the type that they declare."""

from __future__ import annotations

from dataclasses import asdict, dataclass, field
from typing import Annotated, Any, ClassVar

import gevent
import pytest
from gevent.event import Event

from greenconn import App, rpc
from greenconn.connection import Connection
from greenconn.exceptions import DecodeError, RemoteError
from greenconn.message import Message
from greenconn.options import Retry
from greenconn.worker import spawn_consumer
from tests.fix_wires import until
from tests.unit.worker.conftest import Broker, Spawn

#: Seconds in which what must come comes.
SOON = 20.0


@dataclass
class Item:
    price: float


@dataclass
class Order:
    id: int
    items: list[Item] = field(default_factory=list)


@pytest.fixture(autouse=True)
def queue(broker: Broker) -> None:
    broker.declare("q")


def test_the_annotation_decides(spawn: Spawn, broker: Broker) -> None:
    seen: list[Any] = []

    def handle(order: Order, message: Message) -> None:
        seen.append((order, message.payload))

    spawn("q", handle)
    broker.publish("q", {"id": 1, "items": [{"price": 2}]}, Order(2, [Item(3.5)]))
    until(lambda: len(seen) == 2)
    first, second = Order(1, [Item(2.0)]), Order(2, [Item(3.5)])
    assert seen == [(first, first), (second, second)]


def test_the_schema_decides(spawn: Spawn, broker: Broker) -> None:
    seen: list[Any] = []
    broker.declare("r")
    spawn("q", lambda body, message: seen.append(body), schema=Item)

    def handle(order: Order, message: Message) -> None:
        seen.append(order)

    spawn("r", handle, schema=object)
    broker.publish("q", {"price": 1})
    broker.publish("r", {"price": 2})
    until(lambda: len(seen) == 2)
    assert Item(1.0) in seen
    assert {"price": 2} in seen


def test_each_retry_has_a_body_of_its_own(spawn: Spawn, broker: Broker) -> None:
    seen: list[Order] = []

    def handle(order: Order, message: Message) -> None:
        seen.append(order)
        order.items.append(Item(1.0))
        if len(seen) < 3:
            raise OSError("try me again")

    broker.publish("q", Order(1))
    consumer = spawn("q", handle, retry=Retry(delay=0.01))
    until(lambda: consumer.stats()["handled"] == 1)
    assert seen == [Order(1, [Item(1.0)])] * 3


def test_a_body_that_does_not_fit_is_reported(spawn: Spawn, broker: Broker) -> None:
    seen: list[Any] = []

    def handle(order: Order, message: Message) -> None:
        seen.append(order)

    def refuse(message: Message, exc: Exception) -> None:
        seen.append((message.payload, exc))

    broker.publish("q", {"id": 1, "items": [{"price": "much"}]}, Order(2))
    consumer = spawn("q", handle, on_decode_error=refuse)
    until(lambda: consumer.stats()["handled"] == 1 and consumer.stats()["rejected"] == 1)
    (payload, error), order = seen
    assert payload == {"id": 1, "items": [{"price": "much"}]}
    assert isinstance(error, DecodeError)
    assert "Expected `float`, got `str` - at `$.items[0].price`" in str(error)
    assert order == Order(2)


@dataclass
class Slow:
    id: int

    def __post_init__(self) -> None:
        if self.id == 1:
            with gevent.Timeout(0.001):
                gevent.sleep(60)


def test_a_check_of_the_class_may_wait(spawn: Spawn, broker: Broker) -> None:
    seen: list[Any] = []

    def handle(body: Slow, message: Message) -> None:
        seen.append(body.id)

    broker.publish("q", {"id": 1}, {"id": 2})
    consumer = spawn("q", handle, on_decode_error=lambda message, exc: seen.append(exc))
    until(lambda: consumer.stats()["handled"] == 1 and consumer.stats()["rejected"] == 1)
    assert isinstance(seen[0], gevent.Timeout)
    assert seen[1] == 2


def test_a_consumer_killed_in_a_check_loses_nothing(spawn: Spawn, broker: Broker) -> None:
    begun = Event()

    def handle(body: Waiting, message: Message) -> None: ...

    Waiting.begun = begun
    broker.publish("q", {"id": 1})
    consumer = spawn("q", handle)
    assert begun.wait(SOON)
    consumer.kill()
    assert broker.get("q") == {"id": 1}


@dataclass
class Waiting:
    begun: ClassVar[Event]
    id: int

    def __post_init__(self) -> None:
        self.begun.set()
        gevent.sleep(60)


def test_batches(spawn: Spawn, broker: Broker) -> None:
    seen: list[Any] = []

    def handle(orders: list[Order], messages: list[Message]) -> None:
        seen.append((orders, [each.payload for each in messages]))

    broker.publish("q", Order(1), {"id": "2"}, Order(3))
    consumer = spawn("q", handle, batch_size=3, batch_interval=0.1)
    until(lambda: consumer.stats()["handled"] == 2)
    assert consumer.stats()["rejected"] == 1
    assert seen == [([Order(1), Order(3)], [Order(1), Order(3)])]


def test_servers(connection: Connection) -> None:
    def total(order: Order) -> Item:
        return Item(sum(each.price for each in order.items))

    server = rpc.spawn_server("total", total, connection=connection)
    plain = rpc.spawn_server("plain", lambda body: body, schema=Order, connection=connection)
    assert server.wait_ready(SOON)
    assert plain.wait_ready(SOON)
    order = Order(1, [Item(1.5), Item(2.5)])
    assert rpc.call("total", order, connection=connection) == {"price": 4.0}
    for schema in (Item, Annotated[Item, []]):  # which has no hash
        assert rpc.call("total", order, schema=schema, connection=connection) == Item(4.0)
    with pytest.raises(DecodeError, match="the body does not fit Order: Object missing required"):
        rpc.call("total", order, schema=Order, connection=connection)
    with pytest.raises(TypeError, match="schema must be a type"):
        rpc.call("total", order, schema=7, connection=connection)
    assert rpc.call("plain", order, connection=connection) == asdict(order)
    with pytest.raises(RemoteError, match=r"the body does not fit Order: Expected `int`.*`\$\.id`"):
        rpc.call("total", {"id": "1"}, connection=connection)


def test_applications() -> None:
    app = App()
    seen: list[Any] = []

    @app.around_handle
    def noted(message: Message) -> Any:
        seen.append(message.payload)
        yield

    @app.consumer("orders")
    def handle(order: Order, message: Message) -> None:
        seen.append(order)

    @app.consumer("items", schema=Item)
    def handle_item(item: Any, message: Message) -> None:
        seen.append(item)

    @app.rpc("double")
    def double(item: Item) -> Item:
        return Item(2 * item.price)

    with app.testing() as test:
        app.publish_many("orders", [Order(1), Order(2)])
        test.run_until_idle()
        assert sorted(seen, key=lambda each: each.id) == [Order(1), Order(1), Order(2), Order(2)]
        app.publish("items", Item(1.0))
        test.run_until_idle()
        assert seen[-2:] == [Item(1.0), Item(1.0)]
        assert app.call("double", Item(2.0)) == {"price": 4.0}
        assert app.call("double", Item(2.0), schema=Item) == Item(4.0)


def test_wrong_types_are_refused_where_they_are_declared(connection: Connection) -> None:
    app = App()
    wrong = r"schema must be a type that bodies can be converted to, got 7"
    with pytest.raises(TypeError, match=wrong):
        spawn_consumer("q", lambda body, message: None, schema=7, connection=connection)
    with pytest.raises(TypeError, match=wrong):
        rpc.spawn_server("q", lambda body: None, schema=7, connection=connection)
    with pytest.raises(TypeError, match=wrong):
        app.consumer("q", schema=7)(lambda body, message: None)
    with pytest.raises(TypeError, match=wrong):
        app.rpc("q", schema=7)(lambda body: None)

    def function(body: Nowhere) -> None: ...  # type: ignore[name-defined]  # noqa: F821

    with pytest.raises(
        TypeError, match="must be known where the handler is defined, got 'Nowhere'"
    ):
        app.rpc("q")(function)
