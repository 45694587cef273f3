"""Handlers with one bug each, of the kinds that people report, as torture tests are to find them.

Each function declares its handlers in an application, and says what is published and what must hold.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any, Final

from greenconn import App
from greenconn.contrib.idempotency import MemoryIds, handled_once
from greenconn.torture import FAULTS
from tests.worlds import World


@dataclass
class Planted:
    """A program with a bug.

    Attributes:
        messages: queues and bodies.
        check: what must hold of the world.
        forget: drops what the process has in its memory.
        faults: those that may occur.
    """

    messages: list[tuple[str, Any]]
    check: Callable[[World], object]
    forget: Callable[[], object] | None = None
    faults: tuple[str, ...] = field(default=FAULTS)


Program = Callable[[App, World], Planted]
PROGRAMS: Final[dict[str, Program]] = {}


def planted(program: Program) -> Program:
    """Add a program to the list."""
    PROGRAMS[program.__name__] = program
    return program


@planted
def charges_each_delivery(app: App, world: World) -> Planted:
    """A charge is not looked up first."""

    @app.consumer("orders")
    def charge(body: Any, message: Any) -> None:
        world.append("charges", body["id"])

    return Planted([("orders", {"id": 1})], lambda world: world.peek("charges") == [1])


@planted
def double_charge(app: App, world: World) -> Planted:
    """The charge is marked after it was made."""

    @app.consumer("orders")
    def charge(body: Any, message: Any) -> None:
        if not world.get("paid"):
            world.append("charges", body["id"])
            world.set("paid", True)

    return Planted([("orders", {"id": 1})], lambda world: world.peek("charges") == [1])


@planted
def marked_before_work(app: App, world: World) -> Planted:
    """The message is marked as done before it is."""

    @app.consumer("orders")
    def ship(body: Any, message: Any) -> None:
        if world.add("seen", body["id"]):
            world.append("parcels", body["id"])

    return Planted([("orders", {"id": 1})], lambda world: world.peek("parcels") == [1])


@planted
def lost_update(app: App, world: World) -> Planted:
    """A balance is read, and written after a wait."""

    @app.consumer("payments", concurrency=4)
    def book(body: Any, message: Any) -> None:
        if world.peek(f"booked {body['id']}"):
            return
        balance = world.get("balance", 0)
        world.set("balance", balance + body["amount"])

    return Planted(
        [("payments", {"id": 1, "amount": 5}), ("payments", {"id": 2, "amount": 7})],
        lambda world: world.peek("balance") == 12,
        faults=("overlap",),
    )


@planted
def counter(app: App, world: World) -> Planted:
    """A number is counted up for each delivery."""

    @app.consumer("visits")
    def count(body: Any, message: Any) -> None:
        world.increment("visits")

    return Planted([("visits", {"id": 1})], lambda world: world.peek("visits") == 1)


@planted
def outbox_not_atomic(app: App, world: World) -> Planted:
    """The order is stored, then its mail is published."""

    @app.consumer("orders")
    def store(body: Any, message: Any) -> None:
        if world.add("orders", body["id"]):
            app.publish("mails", {"order": body["id"]})

    @app.consumer("mails")
    def mail(body: Any, message: Any) -> None:
        world.add("mails", body["order"])

    return Planted([("orders", {"id": 1})], lambda world: world.peek("mails") == [1])


@planted
def published_before_stored(app: App, world: World) -> Planted:
    """The mail is published, then the order is stored."""

    @app.consumer("orders")
    def store(body: Any, message: Any) -> None:
        if not world.get("stored"):
            app.publish("mails", {"order": body["id"]})
            world.set("stored", True)

    @app.consumer("mails")
    def mail(body: Any, message: Any) -> None:
        world.append("mails", body["order"])

    return Planted(
        [("orders", {"id": 1})],
        lambda world: world.peek("mails") == [1],
        faults=("kill", "reconnect", "timeout"),
    )


@planted
def wrong_idempotency_key(app: App, world: World) -> Planted:
    """The key is the number of the delivery, which a redelivery has not."""

    @app.consumer("orders")
    @handled_once(MemoryIds(), key=lambda message: str(message.delivery_tag))
    def charge(body: Any, message: Any) -> None:
        world.append("charges", body["id"])

    return Planted(
        [("orders", {"id": 1})],
        lambda world: world.peek("charges") == [1],
        faults=("redeliver", "duplicate"),
    )


@planted
def ack_before_work(app: App, world: World) -> Planted:
    """The message is acknowledged first."""

    @app.consumer("orders")
    def ship(body: Any, message: Any) -> None:
        message.ack()
        address = world.get("address", "")
        world.set("parcel", [body["id"], address])

    return Planted([("orders", {"id": 1})], lambda world: world.peek("parcel") == [1, ""])


@planted
def order_by_arrival(app: App, world: World) -> Planted:
    """The last message that came is taken for the latest."""

    @app.consumer("states")
    def note(body: Any, message: Any) -> None:
        world.set("state", body["state"])

    return Planted(
        [("states", {"state": "paid"}), ("states", {"state": "shipped"})],
        lambda world: world.peek("state") == "shipped",
        faults=("reorder",),
    )


@planted
def late_overwrites(app: App, world: World) -> Planted:
    """A copy that comes late writes an old price."""

    @app.consumer("prices")
    def note(body: Any, message: Any) -> None:
        world.set("price", body["price"])

    return Planted(
        [("prices", {"price": 10}), ("prices", {"price": 12})],
        lambda world: world.peek("price") == 12,
        faults=("late",),
    )


@planted
def cache_before_commit(app: App, world: World) -> Planted:
    """The cache is written before the database."""

    @app.consumer("users")
    def rename(body: Any, message: Any) -> None:
        if world.get("cache") == body["name"]:
            return
        world.set("cache", body["name"])
        world.set("database", body["name"])

    return Planted(
        [("users", {"name": "Ada"})],
        lambda world: world.peek("database") == "Ada",
    )


@planted
def cleanup_not_in_finally(app: App, world: World) -> Planted:
    """A lock is left behind."""

    @app.consumer("reports")
    def build(body: Any, message: Any) -> None:
        if not world.add("locks", "report"):
            return  # another one builds it
        world.set("report", "built")
        world.delete("locks")

    return Planted(
        [("reports", {"id": 1}), ("reports", {"id": 2})],
        lambda world: not world.peek("locks"),
        faults=("kill", "timeout", "restart"),
    )


@planted
def stuck_in_progress(app: App, world: World) -> Planted:
    """A state that only its handler ends."""

    @app.consumer("orders")
    def process(body: Any, message: Any) -> None:
        if world.get("state") is not None:
            return
        world.set("state", "in progress")
        world.set("state", "done")

    return Planted([("orders", {"id": 1})], lambda world: world.peek("state") == "done")


@planted
def seen_in_memory(app: App, world: World) -> Planted:
    """The ids that were handled are in a set of the process."""
    seen: set[int] = set()

    @app.consumer("orders")
    def charge(body: Any, message: Any) -> None:
        if body["id"] not in seen:
            seen.add(body["id"])
            world.append("charges", body["id"])

    return Planted(
        [("orders", {"id": 1})],
        lambda world: world.peek("charges") == [1],
        forget=seen.clear,
        faults=("redeliver", "restart"),
    )


@planted
def state_of_module(app: App, world: World) -> Planted:
    """The current user is in a variable of the module."""
    current: dict[str, Any] = {}

    @app.consumer("logins", concurrency=4)
    def greet(body: Any, message: Any) -> None:
        current["user"] = body["user"]
        text = world.get("greeting", "hello")
        world.set(f"to {body['user']}", f"{text} {current['user']}")

    return Planted(
        [("logins", {"user": "Ada"}), ("logins", {"user": "Bob"})],
        lambda world: world.peek("to Ada") == "hello Ada",
    )


@planted
def retry_after_partial_effect(app: App, world: World) -> Planted:
    """A handler that fails has sent a mail already."""

    @app.consumer("mails", handler_timeout=5, retry={"tries": 3, "delay": 0.1})
    def send(body: Any, message: Any) -> None:
        world.append("sent", body["to"])
        world.set("archive", body["to"])

    return Planted(
        [("mails", {"to": "Ada"})],
        lambda world: world.peek("sent") == ["Ada"],
        faults=("timeout",),
    )


@planted
def batch_half_done(app: App, world: World) -> Planted:
    """A batch is redelivered as a whole."""

    @app.consumer("rows", batch_size=2, batch_interval=1)
    def insert(bodies: list[Any], messages: list[Any]) -> None:
        for body in bodies:
            world.append("rows", body["id"])

    return Planted(
        [("rows", {"id": 1}), ("rows", {"id": 2})],
        lambda world: sorted(world.peek("rows", [])) == [1, 2],
    )


@planted
def check_then_act(app: App, world: World) -> Planted:
    """An account is looked up, and created after a wait."""

    @app.consumer("accounts", concurrency=4)
    def create(body: Any, message: Any) -> None:
        if not world.get("account"):
            world.set("account", body["name"])
            world.append("welcomed", body["name"])

    return Planted(
        [("accounts", {"name": "Ada"})],
        lambda world: world.peek("welcomed") == ["Ada"],
        faults=("duplicate", "overlap"),
    )


@planted
def numbers_with_gaps(app: App, world: World) -> Planted:
    """A number is drawn for each attempt."""

    @app.consumer("invoices")
    def write(body: Any, message: Any) -> None:
        number = world.increment("number")
        world.set(f"invoice {body['id']}", number)

    return Planted([("invoices", {"id": 1})], lambda world: world.peek("invoice 1") == 1)


@planted
def copies_known_too_shortly(app: App, world: World) -> Planted:
    """An id is forgotten before a copy comes late."""

    @app.consumer("orders")
    @handled_once(MemoryIds(), ttl=60)
    def charge(body: Any, message: Any) -> None:
        world.append("charges", body["id"])

    return Planted(
        [("orders", {"id": 1})],
        lambda world: world.peek("charges") == [1],
        faults=("late",),
    )


@planted
def stock_leaks(app: App, world: World) -> Planted:
    """The stock is taken, then the reservation is written."""

    @app.consumer("reservations")
    def reserve(body: Any, message: Any) -> None:
        if world.get("reserved") or world.peek("stock", 1) < 1:
            return
        world.set("stock", world.peek("stock", 1) - 1)
        world.set("reserved", True)

    return Planted(
        [("reservations", {"id": 1})],
        lambda world: world.peek("reserved") is True and world.peek("stock") == 0,
    )


@planted
def fan_out_half_done(app: App, world: World) -> Planted:
    """The parts of an order are published one by one."""

    @app.consumer("orders")
    def split(body: Any, message: Any) -> None:
        for part in body["parts"]:
            app.publish("parts", {"part": part})

    @app.consumer("parts")
    def pack(body: Any, message: Any) -> None:
        world.append("packed", body["part"])

    return Planted(
        [("orders", {"parts": ["a", "b"]})],
        lambda world: sorted(world.peek("packed", [])) == ["a", "b"],
        faults=("kill",),
    )


@planted
def end_is_swallowed(app: App, world: World) -> Planted:
    """Each exception is swallowed, also what ends the greenlet."""

    @app.consumer("orders", handler_timeout=5, retry={"tries": 3, "delay": 0.1})
    def ship(body: Any, message: Any) -> None:
        with suppress(BaseException):
            address = world.get("address", "home")
            world.set("parcel", address)

    return Planted(
        [("orders", {"id": 1})],
        lambda world: world.peek("parcel") == "home",
    )


@planted
def barrier_counts_copies(app: App, world: World) -> Planted:
    """The parts that came are counted, and a copy counts, too."""

    @app.consumer("parts")
    def join(body: Any, message: Any) -> None:
        if world.increment("parts") == 2:
            world.append("complete", sorted([*world.peek("names", []), body["name"]]))
        else:
            world.add("names", body["name"])

    return Planted(
        [("parts", {"name": "a"}), ("parts", {"name": "b"})],
        lambda world: world.peek("complete") == [["a", "b"]],
        faults=("redeliver", "duplicate"),
    )
