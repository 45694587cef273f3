"""What is in the database: kombu's documents, claims and leases, bindings, expiry."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from datetime import datetime, timedelta
from functools import partial
from typing import Any

import gevent
import pymongo
import pytest
from pymongo.errors import AutoReconnect
from pymongo.monitoring import CommandListener, CommandStartedEvent

from greenconn.broker.exchanges import ROUTERS, Exchange, Row
from greenconn.broker.port import Claimed, Entry, Settlement, SettleRequest
from greenconn.broker.queues import UNDECLARED, Declaration
from greenconn.exceptions import ContentTooLarge
from greenconn.green.deadline import Deadline
from greenconn.jsoncodec import loads
from greenconn.transport.mongodb import Claims, MongoOptions, MongoStore, changes, queues
from tests.fix_mongodb import Database
from tests.fix_wires import until
from tests.tiny_client import TinyClient

pytestmark = pytest.mark.halved

Stores = Callable[..., MongoStore]

QUEUE = "mail"


@pytest.fixture
def stores(mongodb_url: str, monkeypatch: pytest.MonkeyPatch) -> Iterator[Stores]:
    """Opens stores with ``stores(lease=..., ttl=...)``, which look often; closed after the test."""
    monkeypatch.setattr(changes, "SWEEP_INTERVAL", 0.1)
    opened: list[MongoStore] = []

    def make(unanswered: set[Any] | None = None, **options: Any) -> MongoStore:
        client = TinyClient(mongodb_url)
        client.hostname = mongodb_url
        store = MongoStore(client, lambda queue: None, MongoOptions(**options), unanswered)
        store.open(Deadline(10.0))
        opened.append(store)
        return store

    yield make
    for store in opened:
        store.close()


def entry(body: Any = "hello", queue: str = QUEUE, **options: Any) -> Entry:
    """A message."""
    envelope = {
        "body": body,
        "content-encoding": "utf-8",
        "content-type": "text/plain",
        "headers": {},
        "properties": {"priority": 0, "delivery_info": {}, "delivery_tag": "t"},
    }
    return Entry(queue, envelope, **options)


def bodies(claimed: Any) -> list[Any]:
    """The bodies of what was claimed."""
    return [each.envelope["body"] for each in claimed]


def claim_into(found: list[Claimed], store: MongoStore, most: int = 1) -> list[Claimed]:
    """Claim, and add what there is to *found*, which is returned."""
    found.extend(store.claim({QUEUE: most}, 0))
    return found


def done(claimed: list[Claimed]) -> list[SettleRequest]:
    """The answers that say that all was handled."""
    return [SettleRequest(each, Settlement.ACK) for each in claimed]


def test_message_is_kombus(stores: Stores, mongodb_database: Database) -> None:
    store = stores()
    assert list(store.put([entry(priority=3)])) == [None]
    (found,) = mongodb_database["messages"].find()
    del found["_id"]
    assert loads(found.pop("payload"))["body"] == "hello"
    assert found == {"queue": QUEUE, "priority": 6}


def test_claimed_message_is_hidden_from_kombu(stores: Stores, mongodb_database: Database) -> None:
    store = stores()
    store.put([entry(str(n)) for n in range(3)])
    claimed = list(store.claim({QUEUE: 2}, 0))
    assert bodies(claimed) == ["0", "1"]
    assert mongodb_database["messages"].count_documents({"queue": QUEUE}) == 1
    assert store.size(QUEUE) == 1
    first, second = claimed
    store.settle([SettleRequest(first, Settlement.ACK), SettleRequest(second, Settlement.REQUEUE)])
    (back, other) = mongodb_database["messages"].find(sort=[("_id", 1)])
    assert set(back) == {"_id", "payload", "queue", "priority", "deliveries"}
    assert (back["deliveries"], other["queue"]) == (1, QUEUE)
    assert [each.deliveries for each in store.claim({QUEUE: 9}, 0)] == [1, 0]


def test_nobody_has_seen_it(stores: Stores) -> None:
    store = stores()
    store.put([entry()])
    (claimed,) = store.claim({QUEUE: 1}, 0)
    store.settle([SettleRequest(claimed, Settlement.REQUEUE, is_unseen=True)])
    (claimed,) = store.claim({QUEUE: 1}, 0)
    assert claimed.deliveries == 0


def test_no_queue_hides_another(stores: Stores) -> None:
    store = stores()
    store.put([entry(queue="deep")] * 250 + [entry(queue="late")])
    claimed = list(store.claim({"deep": 1, "late": 1, "empty": 5}, 0))
    assert sorted(each.queue for each in claimed) == ["deep", "late"]


def test_unreadable_message(stores: Stores, mongodb_database: Database) -> None:
    store = stores()
    mongodb_database["messages"].insert_one({"payload": "{no", "queue": QUEUE, "priority": 9})
    (claimed,) = store.claim({QUEUE: 1}, 0)
    assert (claimed.envelope, claimed.raw) == (None, b"{no")


# Leases


def test_message_that_came_back_to_the_same(stores: Stores, mongodb_database: Database) -> None:
    store = stores(lease=1.0)
    store.put([entry()])
    (first,) = store.claim({QUEUE: 1}, 0)
    second: list[Claimed] = []
    until(lambda: claim_into(second, store))
    store.settle([SettleRequest(first, Settlement.ACK)])
    assert mongodb_database["messages"].count_documents({}) == 1
    store.settle(done(second))
    assert mongodb_database["messages"].count_documents({}) == 0


def test_renewed_lease(stores: Stores, mongodb_database: Database) -> None:
    store, other = stores(lease=600.0), stores()
    store.put([entry()])
    (held,) = store.claim({QUEUE: 1}, 0)
    ends = [each["lease_until"] for each in mongodb_database["messages"].find()]
    for _ in range(3):
        gevent.sleep(0.01)  # the server counts milliseconds
        assert list(store.renew([held.handle])) == []
        ends += [each["lease_until"] for each in mongodb_database["messages"].find()]
    assert sorted(set(ends)) == ends
    assert list(other.claim({QUEUE: 1}, 0)) == []


def test_next_life_settles(stores: Stores, mongodb_database: Database) -> None:
    store = stores()
    store.put([entry()])
    claimed = list(store.claim({QUEUE: 1}, 0))
    store.drop()
    stores().settle(done(claimed))
    assert mongodb_database["messages"].count_documents({}) == 0


def test_next_life_requeues_what_nobody_knows_of(
    stores: Stores, mongodb_database: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A claim that nobody hears of, and a server that is away when it should be given back."""
    unanswered: set[Any] = set()
    store, giving = stores(unanswered), Claims._requeue
    store.put([entry("a"), entry("b")])
    (known,) = store.claim({QUEUE: 1}, 0)
    (lost,) = store.claim({QUEUE: 1}, 0)
    store._claims._open.add(lost.handle.claim)  # as if who made it had been killed in it

    def away(self: Claims, claims: list[Any]) -> None:
        raise AutoReconnect("away, says the test")

    monkeypatch.setattr(Claims, "_requeue", away)
    store.close()
    assert unanswered == {lost.handle.claim}
    monkeypatch.setattr(Claims, "_requeue", giving)
    again = stores(unanswered)
    assert not unanswered
    (back,) = again.claim({QUEUE: 9}, 0)
    assert bodies([back]) == bodies([lost])
    assert back.deliveries == 0
    again.settle(done([known, back]))
    assert mongodb_database["messages"].count_documents({}) == 0


def test_dead_messages_of_which_nobody_was_notified(stores: Stores) -> None:
    store, other = stores(), stores()
    store.put([entry(lifetime=0.05)])

    def sweep() -> bool:
        store._sweep(True)
        return bool(store._dead)

    until(sweep)
    store.close()
    found: list[Claimed] = []
    until(lambda: claim_into(found, other))
    assert [each.dead for each in found] == ["expired"]


def test_servers_clock_counts(stores: Stores, mongodb_database: Database) -> None:
    store = stores()
    store._servers._clock_offset = timedelta(hours=3)  # as if ours were three hours late
    store.put([entry()])
    assert list(store.claim({QUEUE: 1}, 0))
    (held,) = mongodb_database["messages"].find()
    ahead = held["lease_until"] - datetime.utcnow()
    assert timedelta(hours=3) < ahead < timedelta(hours=4)
    store._servers._clock_read_at = None
    store._servers.set_clock()
    assert abs(store._servers._clock_offset) < timedelta(minutes=1)


# Time


def test_delayed_copy_that_is_refused(
    stores: Stores, mongodb_database: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = stores()
    store.put([entry("a"), entry("b")])
    large, fine = store.claim({QUEUE: 9}, 0)
    copies = [entry("x" * (16 * 1024 * 1024), delay=1.0), entry("again", delay=1.0)]
    store.settle(
        [
            SettleRequest(each, Settlement.ACK, entries=[copy])
            for each, copy in zip((large, fine), copies, strict=True)
        ]
    )
    assert mongodb_database["messages"].count_documents({"due_at": {"$exists": True}}) == 2
    until(lambda: mongodb_database["messages"].count_documents({"queue": QUEUE}))
    (again,) = store.claim({QUEUE: 9}, 0)
    assert bodies([again]) == ["again"]  # the other one comes after a lease


def test_dead_messages_are_reported(stores: Stores) -> None:
    store = stores()
    store.put([entry("dies", "lonely", lifetime=0.05), entry("stays")])
    gevent.sleep(0.1)
    assert store.size("lonely") == 0
    found: list[Claimed] = []
    until(lambda: len(claim_into(found, store, 9)) == 2)
    assert {each.queue: each.dead for each in found} == {"lonely": "expired", QUEUE: None}


def test_server_that_removes_what_is_old(stores: Stores, mongodb_database: Database) -> None:
    store = stores(ttl=True)
    assert any(
        each.get("expireAfterSeconds") == 0
        for each in mongodb_database["messages"].index_information().values()
    )
    store.put([entry("held", lifetime=2.0)])
    (held,) = store.claim({QUEUE: 1}, 0)
    store.put([entry("waits", lifetime=2.0)])
    assert "expire_at" in (mongodb_database["messages"].find_one({"queue": QUEUE}) or {})
    # What somebody works on is not removed under his hands.
    (left,) = mongodb_database["messages"].find({"claimed": QUEUE, "claim": held.handle.claim})
    assert "expire_at" not in left
    store.settle([SettleRequest(held, Settlement.REQUEUE)])
    until(lambda: not list(mongodb_database["messages"].find({"queue": QUEUE})))


class Filters(CommandListener):
    """Notes by what a client asks for messages."""

    def __init__(self) -> None:
        self.noted: list[dict[str, Any]] = []

    def started(self, event: CommandStartedEvent) -> None:
        """Note the filters of a command."""
        command = event.command
        if command.get(event.command_name) == "messages":
            parts = [command, *command.get("updates", ()), *command.get("deletes", ())]
            for part in parts:
                self.noted += [part[name] for name in ("filter", "query", "q") if name in part]

    def succeeded(self, event: object) -> None:
        """It is known by its start."""

    failed = succeeded


def test_each_search_is_by_an_index(
    stores: Stores, mongodb_database: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    """How long it takes does not depend on how many messages wait."""
    filters = Filters()
    client = partial(pymongo.MongoClient, event_listeners=[filters])
    monkeypatch.setattr(pymongo, "MongoClient", client)
    store = stores()
    store.put([entry(), entry(lifetime=60.0), entry(delay=0.1), entry(queue="other")])
    found = claim_into([], store)
    store.settle([SettleRequest(each, Settlement.REQUEUE) for each in found])
    until(lambda: len(claim_into(found, store, 9)) == 4)
    store.settle(done(found[1:]))
    until(lambda: len(store.claim({QUEUE: 1, "other": 1}, 0)) == 1)
    swept = len(filters.noted)
    until(lambda: any("dead_at" in each for each in filters.noted[swept:]))
    indexes = mongodb_database["messages"].index_information().values()
    first = {index["key"][0][0] for index in indexes}
    for noted in filters.noted:
        for each in noted.get("$or", [noted]):
            by = {name for name, value in each.items() if value != {"$exists": True}}
            assert by & first, noted


def test_message_that_is_too_large(stores: Stores) -> None:
    store = stores()
    outcomes = store.put([entry("a"), entry("x" * (16 * 1024 * 1024)), entry("b")])
    assert [type(each) for each in outcomes] == [type(None), ContentTooLarge, type(None)]
    assert bodies(store.claim({QUEUE: 9}, 0)) == ["a", "b"]


# Queues and exchanges


def test_queue_of_kombus(stores: Stores, mongodb_database: Database) -> None:
    store = stores()
    assert store.find_queue("theirs") is None
    mongodb_database["messages"].insert_one({"payload": "{}", "queue": "theirs", "priority": 9})
    assert store.find_queue("theirs") is UNDECLARED
    assert store.drop_queue("theirs") == 1
    assert store.find_queue("theirs") is None


def test_queue_that_another_one_has_declared_anew(
    stores: Stores, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Two find at the same time that an owner has gone: the slower one deletes nothing."""
    gone, first, second = stores(lease=0.2), stores(), stores()
    gone.make_queue("mine", Declaration(owner="gone"))
    look = second._queues._find_queue
    seen = [look("mine")]  # it reads the record before the other one deletes it
    until(lambda: first.find_queue("mine") is None)
    first.make_queue("mine", Declaration(owner="first"))
    first.put([entry(queue="mine")])
    late = lambda name: seen.pop() if seen else look(name)  # noqa: E731
    monkeypatch.setattr(second._queues, "_find_queue", late)
    found = second.find_queue("mine")
    assert found is not None
    assert (found.owner, seen) == ("first", [])
    assert first.size("mine") == 1
    first.renew([])  # else: LeaseExpired


def test_owner_that_was_stopped_deletes_nothing_of_the_next_one(stores: Stores) -> None:
    gone, other = stores(lease=0.2), stores()
    gone.make_queue("mine", Declaration(owner="gone"))
    until(lambda: other.find_queue("mine") is None)
    other.make_queue("mine", Declaration(owner="other"))
    other.put([entry(queue="mine")])
    assert gone.drop_queue("mine") == 0
    assert other.size("mine") == 1
    assert other.drop_queue("mine") == 1
    assert gone.find_queue("mine") is None


def test_queue_that_expires_at_many_at_once(
    stores: Stores, monkeypatch: pytest.MonkeyPatch
) -> None:
    arguments = {"x-expires": 100}
    first, second = stores(), stores()
    first.make_queue("idle", Declaration(arguments=arguments))
    find = second._queues._find_records
    late: list[Any] = []

    def expired() -> bool:
        late[:] = find({"_id": "idle", "dead_at": {"$lte": second._servers.now()}})
        return bool(late)

    until(expired)
    until(lambda: first.find_queue("idle") is None)
    first.make_queue("idle", Declaration(arguments={"x-expires": 600_000}))
    first.put([entry(queue="idle")])
    monkeypatch.setattr(second._queues, "_find_records", lambda which: late)
    assert second._queues.drop_unused() == []
    assert first.size("idle") == 1


@pytest.mark.parametrize("how", ["it ends", "it dies"])
def test_queue_that_is_being_deleted(
    stores: Stores, how: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Who declares it waits until it is gone, or goes on with the deletion."""
    if how == "it dies":
        monkeypatch.setattr(queues, "ENDING_TIMEOUT", timedelta(seconds=0.3))
    deleting, other = stores(), stores()
    deleting.make_queue("mine", Declaration(durable=True))
    deleting.put([entry(queue="mine")])
    mark = deleting._queues._mark("mine", {})
    assert mark is not None
    made = gevent.spawn(other.make_queue, "mine", Declaration())
    if how == "it ends":
        gevent.sleep(0.1)
        assert not made.ready()
        assert deleting._queues._delete("mine", mark) == 1
    assert made.get(timeout=30) == Declaration()
    deleting._queues._delete("mine", mark)  # too late, it is another one's
    found = other.find_queue("mine")
    assert found == Declaration()


def test_bindings_are_kombus(stores: Stores, mongodb_database: Database) -> None:
    store, other = stores(), stores()
    for name, kind in (("news", "topic"), ("heads", "headers")):
        store.topology.declare(Exchange(name, kind, ROUTERS[kind]()))
    topic = Row("a.*", r"^a\.[^\.]+$", QUEUE)
    header = Row("", "", QUEUE, {"x-match": "all", "a.b": 1})
    onward = Row("a.#", "", "heads", None, True)
    for exchange, row in (("news", topic), ("heads", header), ("news", onward)):
        store.topology.add(exchange, row)
        store.topology.add(exchange, row)
    (kombus,) = mongodb_database["messages.routing"].find({}, {"_id": 0})
    assert kombus == {
        "exchange": "news",
        "queue": QUEUE,
        "routing_key": "a.*",
        "pattern": r"^a\.[^\.]+$",
    }
    assert [each.arguments for each in other.topology.rows("heads") or ()] == [header.arguments]
    rows = other.topology.rows("news")
    assert rows is not None
    assert [(each.queue, each.to_exchange) for each in rows] == [(QUEUE, False), ("heads", True)]
    assert other.topology.rows("news") is rows
    store.topology.unbind("news", topic)
    store.topology.drop("heads")
    assert other.topology.rows("news") == ()
    assert other.topology.rows("heads") is None


def test_indexes(stores: Stores, mongodb_database: Database) -> None:
    stores()
    indexes = mongodb_database["messages"].index_information().values()
    keys = [each["key"] for each in indexes]
    assert [("queue", 1), ("priority", 1), ("_id", 1)] in keys
    assert [("lease_until", 1)] in keys
    assert [("due_at", 1)] in keys
