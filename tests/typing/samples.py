"""Programs as users write them, for type checkers: mypy and pyright; nothing here runs.

A line that a checker must refuse says so with ``type: ignore``, and both report one that is needless.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from datetime import datetime, timedelta, timezone
from functools import partial
from typing import TYPE_CHECKING, Any, TypedDict

import greenconn
from greenconn import App, Limit, Message, Rate, Retry, rpc
from greenconn.common import Broadcast

if TYPE_CHECKING:
    from typing_extensions import assert_type


@dataclass
class Item:
    price: float


@dataclass
class Order:
    id: int
    items: list[Item]


class Address(TypedDict):
    to: str


def on_order(order: Order, message: Message[Order]) -> None:
    assert_type(message.payload, Order)
    assert_type(message.decode().items[0].price, float)


def on_plain(body: dict[str, Any], message: Message) -> None:
    assert_type(message.payload, Any)


def on_address(address: Address, message: Message) -> None:
    address["to"]


def on_orders(orders: list[Order], messages: list[Message[Order]]) -> int:
    return len(orders)


def on_plain_orders(orders: list[Order], messages: list[Message]) -> None: ...


def on_another(order: Order, message: Message[Item]) -> None: ...


def on_prefixed(prefix: str, order: Order, message: Message[Order]) -> None: ...


def on_body(body: Order) -> None: ...


async def on_order_later(order: Order, message: Message[Order]) -> None: ...


def on_order_in_parts(order: Order, message: Message[Order]) -> Iterator[int]:
    yield order.id


class Shop:
    def on_order(self, order: Order, message: Message[Order]) -> None: ...

    def __call__(self, order: Order, message: Message) -> None: ...


seen: list[int] = []


def consumers() -> None:
    """Handlers fit, and options have their types."""
    spawn = greenconn.spawn_consumer
    spawn("orders", on_order, concurrency=10, retry=Retry(tries=3), dead_letter=True)
    spawn(greenconn.Queue("orders"), Shop().on_order, handler_timeout=1.5)
    spawn(["orders", "others"], Shop(), schema=Order)
    spawn("orders", partial(on_prefixed, "a"), on_error="requeue")
    spawn("orders", on_plain, on_error=lambda message, exc: message.ack())
    spawn("orders", on_address, on_decode_error=lambda message, exc: message.reject())
    spawn("orders", lambda body, message: seen.append(body["id"]))
    spawn("orders", lambda body, message: seen.append(message.delivery_count), schema=list[Item])
    spawn("orders", on_orders, batch_size=10, batch_interval=0.5)
    spawn("orders", on_plain_orders, batch_size=10)
    spawn("orders", lambda bodies, messages: seen.append(len(bodies)), batch_size=10)
    spawn("orders", on_order, limit=Limit(2, key=lambda order, message: order.id), rate=Rate(9.5))
    spawn("orders", on_order, rate=Rate(100, per=timedelta(minutes=1), burst=5, scope="process"))
    assert_type(spawn("orders", on_order), greenconn.ConsumerGreenlet)

    spawn("orders", on_another)  # type: ignore[arg-type]
    spawn("orders", on_orders)  # type: ignore[arg-type]
    spawn("orders", on_order, batch_size=10)  # type: ignore[arg-type]
    spawn("orders", on_body)  # type: ignore[arg-type]
    spawn("orders", on_order_later)  # type: ignore[arg-type]
    spawn("orders", on_order_in_parts)  # type: ignore[arg-type]
    spawn("orders", on_order, concurency=10)  # type: ignore[call-overload]
    spawn("orders", on_order, concurrency="10")  # type: ignore[call-overload]
    spawn("orders", on_order, on_error="drop")  # type: ignore[call-overload]
    spawn("orders", on_order, limit=2)  # type: ignore[call-overload]
    spawn("orders", on_order, rate=Limit(2))  # type: ignore[call-overload]
    Limit(2, scope="queue")  # type: ignore[arg-type]


def bodies() -> Iterator[Order]:
    yield Order(1, [])


def publishing() -> None:
    """Any body, and options of their types."""
    greenconn.publish("orders", Order(1, [Item(1.5)]), delay=3, headers={"a": 1})
    greenconn.publish(greenconn.Exchange("orders"), {"id": 1}, routing_key="a", timeout=None)
    assert_type(greenconn.publish_many("orders", bodies(), expires=10, message_id="a"), int)
    greenconn.publish("orders", {}, unique="a", until=timedelta(hours=1))
    greenconn.publish("orders", {}, debounce="a", delay=5)
    greenconn.publish_many("orders", bodies(), unique=lambda order: str(order.id), until="started")
    assert_type(rpc.call("orders", Order(1, []), accept=["json"], priority=5), Any)
    assert_type(rpc.call("orders", {}, schema=Item).price, float)
    assert_type(rpc.call("orders", {}, schema=list[Item]), list[Item])

    greenconn.publish("orders", {}, delai=3)  # type: ignore[call-arg]
    greenconn.publish("orders", {}, delay="3")  # type: ignore[arg-type]
    greenconn.publish("orders", {}, delivery_mode="lasting")  # type: ignore[arg-type]
    greenconn.publish_many("orders", {1: 2}, priority="high")  # type: ignore[arg-type]
    greenconn.publish("orders", {}, unique=7)  # type: ignore[arg-type]
    greenconn.publish("orders", {}, unique="a", until="never")  # type: ignore[arg-type]
    greenconn.publish_many("orders", [], unique="a")  # type: ignore[arg-type]
    rpc.call("orders", {}, unique="a")  # type: ignore[call-overload]
    rpc.call("orders", {}, retries=3)  # type: ignore[call-overload]


def servers() -> None:
    """Functions with one argument."""
    rpc.spawn_server("total", lambda order: order.id, schema=Order, concurrency=10)
    rpc.spawn_server("total", on_body, serializer="msgpack", handler_timeout=1)

    rpc.spawn_server("total", on_order)  # type: ignore[arg-type]
    rpc.spawn_server("total", on_body, retry=Retry())  # type: ignore[call-arg]


def connecting() -> None:
    """The arguments of a connection, wherever they are taken."""
    greenconn.configure("amqp://", heartbeat=10, transport_options={"confirm_publish": True})
    App("amqp://", connect_timeout=3, ssl=True).configure(None, userid="ada")
    App("amqp://", limits="redis://").configure(limits=greenconn.Connection("redis://"))

    greenconn.configure("amqp://", heart_beat=10)  # type: ignore[call-arg]
    App(brokr="amqp://")  # type: ignore[call-arg]
    App(limits=6379)  # type: ignore[arg-type]
    App("amqp://", connect_timeout="3")  # type: ignore[arg-type]


def kombus() -> None:
    """The classes of kombu's API take what they know."""
    exchange = greenconn.Exchange("events", "fanout", durable=False, delivery_mode="transient")
    queue = greenconn.Queue("orders", exchange, dead_letter=True, expires=60, max_length=10)
    greenconn.Queue.from_dict("orders", exchange="orders", exchange_type="topic", max_priority=3)
    Broadcast("events", routing_key="a", durable=False)
    with greenconn.Connection("amqp://", heartbeat=10, connect_timeout=None) as connection:
        connection.clone(transport_options={"confirm_publish": True}).Pool(10, preload=1)
        connection.SimpleQueue("orders", serializer="json").put({}, priority=1)
        connection.Consumer(queue, prefetch_count=1, callbacks=[on_plain])
        producer = connection.Producer(serializer="json", on_return=None)
        producer.publish({}, routing_key="orders", correlation_id="a", MessageGroupId="b")

    greenconn.Queue("orders", dead_leter=True)  # type: ignore[call-arg]
    greenconn.Queue.from_dict("orders", exchange_typ="topic")  # type: ignore[call-arg]
    greenconn.Exchange("events", tpye="fanout")  # type: ignore[call-arg]
    Broadcast("events", uniqe=True)  # type: ignore[call-arg]
    greenconn.Connection("amqp://", hartbeat=10)  # type: ignore[call-arg]
    connection.clone(hartbeat=10)  # type: ignore[call-arg]
    connection.Pool(10, prelaod=1)  # type: ignore[call-arg]
    connection.ChannelPool(10, prelaod=1)  # type: ignore[call-arg]
    connection.SimpleQueue("orders", serialiser="json")  # type: ignore[call-arg]
    connection.Consumer(queue, prefetch_cuont=1)  # type: ignore[call-arg]
    connection.Producer(serialiser="json")  # type: ignore[call-arg]
    producer.publish({}, rouitng_key="orders")  # type: ignore[call-arg]
    Retry(dely=1)  # type: ignore[call-arg]


def durations() -> None:
    """A timedelta is taken wherever seconds are."""
    soon = timedelta(seconds=5)
    consumer = greenconn.spawn_consumer(
        "orders", on_order, retry=Retry(delay=soon, max_delay=60), handler_timeout=soon
    )
    consumer.stop(soon)
    greenconn.publish("orders", {}, delay=soon, expires=soon, timeout=soon)
    greenconn.publish_many("orders", [{}], at=datetime.now(timezone.utc) + soon)
    greenconn.publish("orders", {}, at=5)  # type: ignore[arg-type]
    assert_type(rpc.call("orders", {}, timeout=soon), Any)
    greenconn.configure("amqp://", connect_timeout=soon, heartbeat=soon)
    with greenconn.Connection("amqp://", connect_timeout=soon) as connection:
        connection.drain_events(timeout=soon)
        connection.Producer().publish({}, expiration=soon, timeout=soon, delay=soon)
        connection.Producer().publish({}, at=datetime.now(timezone.utc) + soon)
        connection.SimpleQueue("orders").get(timeout=soon)
    greenconn.Queue("orders", expires=soon, message_ttl=soon)
    App().every(soon)(seen.clear)

    Retry(delay="5")  # type: ignore[arg-type]
    raise greenconn.RetryLater(soon, counts=True) from greenconn.RetryLater(at=datetime.now())


def undecided(body: object, message: Message) -> None:
    if body is None:
        raise greenconn.Discard("empty")
    if body == 1:
        raise greenconn.RetryLater("5")  # type: ignore[arg-type]
    raise greenconn.DeadLetter("unknown")


app = App()


@app.consumer("orders", retry={"tries": 5}, schema=Order)
def declared(order: Order, message: Message[Order]) -> None:
    app.publish("mail", order, delay=1, timeout=5)
    app.publish_many("mail", [order], compression="zlib")
    app.call("total", order, timeout=5, accept=["json"])
    app.publish("mail", order, delai=1)  # type: ignore[call-arg]


@app.rpc("total", concurrency=3)
def total(order: Order) -> float:
    return sum(item.price for item in order.items)


@app.consumer("orders", tries=5)  # type: ignore[call-arg]
def misdeclared(order: Order, message: Message[Order]) -> None: ...


assert_type(total(Order(1, [])), float)


@app.consumer("orders")  # type: ignore[type-var]
async def on_later(order: Order, message: Message[Order]) -> None: ...


@app.consumer("orders")  # type: ignore[type-var]
def on_too_few(order: Order) -> None: ...


@app.every(60)  # type: ignore[type-var]
async def clean_up() -> None: ...
