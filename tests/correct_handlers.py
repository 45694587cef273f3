"""Handlers that bear every fault: torture tests are to find nothing in them."""

from __future__ import annotations

import weakref
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from shutil import rmtree
from tempfile import mkdtemp
from typing import Any, Final

import gevent
from sqlalchemy import Column, Integer, MetaData, String, Table, create_engine, select
from sqlalchemy.orm import Session, sessionmaker
from sqlalchemy.pool import StaticPool

from greenconn import App, Limit, Queue, Rate, in_order
from greenconn.contrib.idempotency import MemoryIds, handled_once
from greenconn.contrib.outbox.sqlalchemy import Outbox
from greenconn.torture import FAULTS
from tests.worlds import World


@dataclass
class Correct:
    """A program without a bug.

    Attributes:
        messages: queues and bodies.
        check: what must hold.
        reset: begins a history.
        faults: those that may occur.
        seconds: by the clock, which pass after the messages were handled.
        close: ends what is open, after the last history.
    """

    messages: list[tuple[str, Any]]
    check: Callable[[], object]
    reset: Callable[[], object]
    faults: tuple[str, ...] = field(default=FAULTS)
    seconds: float = 0.0
    close: Callable[[], object] = bool


Program = Callable[[App, World], Correct]
PROGRAMS: Final[dict[str, Program]] = {}


def correct(program: Program) -> Program:
    """Add a program to the list."""
    PROGRAMS[program.__name__] = program
    return program


@correct
def writes_the_same(app: App, world: World) -> Correct:
    """A handler whose writes may be repeated."""

    @app.consumer("users", concurrency=4)
    def rename(body: Any, message: Any) -> None:
        world.set(f"user {body['id']}", body["name"])
        world.set(f"cache {body['id']}", body["name"])

    def check() -> bool:
        return (world.peek("cache 1"), world.peek("user 2")) == ("Ada", "Bob")

    bodies = [{"id": 1, "name": "Ada"}, {"id": 2, "name": "Bob"}]
    return Correct([("users", each) for each in bodies], check, world.clear)


@correct
def one_atomic_step(app: App, world: World) -> Correct:
    """A mark that is written together with the work, as by a unique key."""

    @app.consumer("orders", concurrency=4)
    def charge(body: Any, message: Any) -> None:
        world.get("price")
        world.add("charges", body["id"])

    bodies = [{"id": 1}, {"id": 2}]
    return Correct(
        [("orders", each) for each in bodies],
        lambda: sorted(world.peek("charges", [])) == [1, 2],
        world.clear,
    )


@correct
def handled_once_in_memory(app: App, world: World) -> Correct:
    """An id of each message, and a handler whose effect is its last step."""
    charges: list[int] = []

    @app.consumer("orders", concurrency=4)
    @handled_once(MemoryIds())
    def charge(body: Any, message: Any) -> None:
        gevent.sleep(0.1)
        charges.append(body["id"])

    return Correct(
        [("orders", {"id": 1}), ("orders", {"id": 2})],
        lambda: sorted(charges) == [1, 2],
        charges.clear,
    )


@correct
def newer_wins(app: App, world: World) -> Correct:
    """Versions, so that late and reordered messages change nothing."""

    @app.consumer("prices", concurrency=4)
    def note(body: Any, message: Any) -> None:
        world.set_newer("price", body["version"], body["price"])

    return Correct(
        [("prices", {"version": 1, "price": 10}), ("prices", {"version": 2, "price": 12})],
        lambda: world.peek("price") == (2, 12),
        world.clear,
    )


@correct
def in_order_by_key(app: App, world: World) -> Correct:
    """The states of an order, one after the other."""

    @app.consumer(
        Queue("states", queue_arguments={"x-single-active-consumer": True}),
        concurrency=8,
        retry={"tries": 3, "delay": 0.1},
    )
    @in_order(lambda body, message: body["order"])
    def note(body: Any, message: Any) -> None:
        world.set(f"state {body['order']}", body["state"])

    return Correct(
        [("states", {"order": 1, "state": state}) for state in ("paid", "packed", "shipped")],
        lambda: world.peek("state 1") == "shipped",
        world.clear,
    )


@correct
def retries(app: App, world: World) -> Correct:
    """A handler whose first attempt fails, and which has a time limit."""
    failed: set[int] = set()

    @app.consumer("mails", handler_timeout=5, retry={"tries": 9, "delay": 2})
    def send(body: Any, message: Any) -> None:
        world.get("address")
        if body["id"] not in failed:
            failed.add(body["id"])
            raise OSError("no connection")
        world.add("sent", body["id"])

    def reset() -> None:
        failed.clear()
        world.clear()

    return Correct(
        [("mails", {"id": 1}), ("mails", {"id": 2})],
        lambda: sorted(world.peek("sent", [])) == [1, 2],
        reset,
    )


@correct
def limited(app: App, world: World) -> Correct:
    """A limit for each customer, and a rate."""
    running: list[int] = []
    most: list[int] = []

    @app.consumer("calls", concurrency=4, limit=Limit(1), rate=Rate(1, per=10, burst=2))
    def call(body: Any, message: Any) -> None:
        running.append(1)
        most.append(len(running))
        try:
            world.add("called", body["id"])
        finally:
            running.pop()

    def reset() -> None:
        running.clear()
        most.clear()
        world.clear()

    return Correct(
        [("calls", {"id": number}) for number in (1, 2, 3)],
        lambda: sorted(world.peek("called", [])) == [1, 2, 3],
        reset,
    )


@correct
def in_transaction(app: App, world: World) -> Correct:
    """A transaction in which the message is acknowledged, too."""
    engine = create_engine("sqlite://", poolclass=StaticPool)
    metadata = MetaData()
    table = Table("charges", metadata, Column("id", Integer), Column("part", String))
    metadata.create_all(engine)

    @app.consumer("orders", transaction=sessionmaker(engine))
    def charge(body: Any, message: Any, session: Session) -> None:
        session.execute(table.insert(), {"id": body["id"], "part": "net"})
        session.execute(table.insert(), {"id": body["id"], "part": "tax"})

    def check() -> bool:
        with engine.connect() as connection:
            return sorted(connection.scalars(select(table.c.id))) == [1, 1, 2, 2]

    def reset() -> None:
        with engine.begin() as connection:
            connection.execute(table.delete())

    return Correct(
        [("orders", {"id": 1}), ("orders", {"id": 2})], check, reset, close=engine.dispose
    )


@correct
def whole_batches(app: App, world: World) -> Correct:
    """A batch whose rows have keys."""

    @app.consumer("rows", batch_size=2, batch_interval=1)
    def insert(bodies: list[Any], messages: list[Any]) -> None:
        for body in bodies:
            world.add("rows", body["id"])

    return Correct(
        [("rows", {"id": number}) for number in (1, 2, 3)],
        lambda: sorted(world.peek("rows", [])) == [1, 2, 3],
        world.clear,
    )


@correct
def lock_in_finally(app: App, world: World) -> Correct:
    """A lock that is released whatever happens, and is waited for."""

    @app.consumer("reports", concurrency=4)
    def build(body: Any, message: Any) -> None:
        with locked():
            world.set(f"report {body['id']}", "built")

    @contextmanager
    def locked() -> Iterator[None]:
        while locks:
            gevent.sleep(1)
        locks.append(1)
        try:
            yield
        finally:
            locks.pop()

    locks: list[int] = []

    def reset() -> None:
        locks.clear()
        world.clear()

    return Correct(
        [("reports", {"id": 1}), ("reports", {"id": 2})],
        lambda: not locks and world.peek("report 1") == world.peek("report 2") == "built",
        reset,
    )


@correct
def parts_with_ids(app: App, world: World) -> Correct:
    """The parts of an order, published with ids that are the same each time."""

    @app.consumer("orders")
    def split(body: Any, message: Any) -> None:
        for part in body["parts"]:
            app.publish("parts", {"part": part}, message_id=f"{body['id']}-{part}")

    @app.consumer("parts")
    def pack(body: Any, message: Any) -> None:
        world.add("packed", message.properties["message_id"])

    return Correct(
        [("orders", {"id": 1, "parts": ["a", "b"]})],
        lambda: sorted(world.peek("packed", [])) == ["1-a", "1-b"],
        world.clear,
    )


@correct
def swapped_if_unchanged(app: App, world: World) -> Correct:
    """A balance that is written only if no other one has, with the ids that are in it."""
    row: dict[str, Any] = {}

    @app.consumer("payments", concurrency=4)
    def book(body: Any, message: Any) -> None:
        while True:
            version, booked = row.get("version", 0), row.get("booked", {})
            gevent.sleep(0)
            if body["id"] in booked:
                return
            if row.get("version", 0) == version:
                row.update(version=version + 1, booked={**booked, body["id"]: body["amount"]})
                gevent.sleep(0)
                return

    return Correct(
        [("payments", {"id": 1, "amount": 5}), ("payments", {"id": 2, "amount": 7})],
        lambda: sum(row["booked"].values()) == 12,
        row.clear,
    )


@correct
def row_and_outbox(app: App, world: World) -> Correct:
    """A row and a message in one transaction, and the relay that publishes the message."""
    folder = mkdtemp()
    weakref.finalize(app, rmtree, folder, ignore_errors=True)
    engine = create_engine(f"sqlite:///{folder}/shop.sqlite")
    metadata = MetaData()
    orders = Table("orders", metadata, Column("id", Integer, primary_key=True))
    outbox = Outbox(metadata)
    metadata.create_all(engine)

    @app.consumer("orders", transaction=sessionmaker(engine))
    def place(body: Any, message: Any, session: Session) -> None:
        session.execute(orders.insert(), {"id": body["id"]})
        outbox.publish(session, "mails", {"id": body["id"]})

    @app.consumer("mails")
    def send(body: Any, message: Any) -> None:
        world.add("mails", body["id"])

    app.service(outbox.relay(engine, publish=app.publish))

    def check() -> bool:
        with engine.connect() as connection:
            placed = list(connection.scalars(select(orders.c.id)))
        return bool(placed == world.peek("mails", []) == [1])

    def reset() -> None:
        with engine.begin() as connection:
            connection.execute(orders.delete())
        world.clear()

    return Correct([("orders", {"id": 1})], check, reset, close=engine.dispose)


@correct
def each_minute(app: App, world: World) -> Correct:
    """A schedule whose function does no harm when it is called twice."""

    @app.every(60)
    def tidy() -> None:
        world.set("tidied", world.get("tidied", 0) + 1)

    return Correct([], lambda: world.peek("tidied") >= 3, world.clear, seconds=200.0)
