"""A store inside this process: for tests, with switches and failures where a test wants them."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from copy import deepcopy
from time import monotonic
from typing import Any

from gevent.event import Event
from msgspec.structs import replace

from greenconn.broker.envelope import mark_redelivered
from greenconn.broker.exchanges import ExchangeRecord, Row, TopologyStore
from greenconn.broker.link import StoreOptions, StoreTransport
from greenconn.broker.port import (
    Claimed,
    Entry,
    NoQueue,
    QueueFull,
    Settlement,
    SettleRequest,
    Store,
)
from greenconn.broker.queues import Declaration
from greenconn.green.deadline import Deadline


class Item:
    """A message of the fake broker."""

    def __init__(self, entry: Entry, number: int) -> None:
        self.entry = entry
        self.number = number
        self.deliveries = 0
        self.ready_at = monotonic() + entry.delay
        self.dies_at = None if entry.lifetime is None else self.ready_at + entry.lifetime
        #: Who has it: the number of the claim; 0: nobody.
        self.claim = 0

    @property
    def order(self) -> tuple[int, int]:
        return (-self.entry.priority, self.number)


class FakeBroker:
    """A broker in this process: the messages that all its stores share."""

    def __init__(self) -> None:
        self.queues: dict[str, Declaration] = {}
        self.items: dict[str, list[Item]] = {}
        self.exchanges: dict[str, ExchangeRecord] = {}
        self.rows: dict[str, tuple[Row, ...]] = {}
        self.stores: list[FakeStore] = []
        self.number = 0
        #: Called with a method and its argument before it does anything: may switch or raise.
        self.before: Callable[[str, Any], object] = lambda method, argument: None
        #: The same after it has done everything.
        self.after: Callable[[str, Any], object] = lambda method, argument: None
        self.calls: list[tuple[str, Any]] = []

    def hold(self, method: str) -> Event:
        """Let calls of a method wait from now on, until the event that is returned is set."""
        may_go = Event()
        self.before = lambda called, argument: called == method and may_go.wait()
        return may_go

    def next(self) -> int:
        self.number += 1
        return self.number

    def count(self, method: str) -> int:
        """Return the number of calls of a method."""
        return sum(1 for name, _ in self.calls if name == method)

    def bodies(self, queue: str) -> list[bytes]:
        """What is stored, whoever holds it."""
        return [each.entry.envelope["body"] for each in self.items.get(queue, ())]

    def expire_leases(self) -> None:
        """What is held is nobody's from now on."""
        for items in self.items.values():
            for item in items:
                item.claim = 0
        self.wake(None)

    def wake(self, queue: str | None) -> None:
        for store in list(self.stores):
            store.wake(queue)
            store.bell.set()


class FakeTopology(TopologyStore):
    """The exchanges and bindings of a :class:`FakeBroker`."""

    def __init__(self, fake_broker: FakeBroker, call: Callable[[str, Any], None]) -> None:
        self._world = fake_broker
        self._call = call

    def get(self, exchange: str) -> ExchangeRecord | None:
        self._call("get_exchange", exchange)
        return self._world.exchanges.get(exchange)

    def put(self, exchange: str, record: ExchangeRecord) -> None:
        self._call("put_exchange", exchange)
        self._world.exchanges.setdefault(exchange, record)
        self._world.rows.setdefault(exchange, ())

    def delete(self, exchange: str) -> None:
        self._call("delete_exchange", exchange)
        self._world.exchanges.pop(exchange, None)
        self._world.rows.pop(exchange, None)

    def rows(self, exchange: str) -> Sequence[Row] | None:
        return self._world.rows.get(exchange)

    def add(self, exchange: str, row: Row) -> None:
        self._call("add_binding", row)
        rows = self._world.rows.setdefault(exchange, ())
        if row not in rows:
            self._world.rows[exchange] = (*rows, row)

    def remove(self, exchange: str, row: Row) -> bool:
        self._call("remove_binding", row)
        return self._keep(exchange, lambda each: each != row)

    def remove_to(self, destination: str, *, is_exchange: bool) -> Collection[str]:
        end = (destination, is_exchange)
        names = list(self._world.rows)
        return [
            name
            for name in names
            if self._keep(name, lambda each: (each.queue, each.to_exchange) != end)
        ]

    def _keep(self, exchange: str, condition: Callable[[Row], bool]) -> bool:
        rows = self._world.rows.get(exchange, ())
        kept = tuple(filter(condition, rows))
        if len(kept) == len(rows):
            return False
        self._world.rows[exchange] = kept
        return True


class FakeStore(Store):
    """A store over a :class:`FakeBroker`."""

    body_encoding = None
    topology: TopologyStore

    def __init__(
        self, client: Any, wake: Callable[[str | None], None], fake_broker: FakeBroker
    ) -> None:
        super().__init__(client, wake)
        self.fake_broker = fake_broker
        self.topology = FakeTopology(fake_broker, self._call)
        self.is_open = False
        self.bell = Event()

    def _call(self, method: str, argument: Any = None) -> None:
        self.fake_broker.calls.append((method, argument))
        self.fake_broker.before(method, argument)

    def open(self, deadline: Deadline) -> None:
        self._call("open")
        self.fake_broker.stores.append(self)
        self.is_open = True

    def close(self) -> None:
        self._call("close")

    def drop(self) -> None:
        self.is_open = False
        if self in self.fake_broker.stores:
            self.fake_broker.stores.remove(self)

    def make_queue(self, name: str, declaration: Declaration) -> Declaration:
        self._call("make_queue", name)
        return self.fake_broker.queues.setdefault(name, declaration)

    def find_queue(self, name: str) -> Declaration | None:
        self._call("find_queue", name)
        return self.fake_broker.queues.get(name)

    def drop_queue(self, name: str) -> int:
        self._call("drop_queue", name)
        fake_broker = self.fake_broker
        fake_broker.queues.pop(name, None)
        self.topology.forget_queue(name)
        for store in fake_broker.stores:
            if store is not self:
                store.gone(name)
        return sum(1 for item in fake_broker.items.pop(name, ()) if not item.claim)

    def purge(self, name: str) -> int:
        self._call("purge", name)
        items = self.fake_broker.items.get(name, [])
        kept = [item for item in items if item.claim]
        self.fake_broker.items[name] = kept
        return len(items) - len(kept)

    def size(self, name: str) -> int:
        self._call("size", name)
        return sum(1 for item in self.fake_broker.items.get(name, ()) if not item.claim)

    def put(self, entries: Sequence[Entry]) -> Sequence[Exception | None]:
        self._call("put", list(entries))
        outcomes: list[Exception | None] = []
        fake_broker = self.fake_broker
        for entry in entries:
            declared = fake_broker.queues.get(entry.queue)
            if declared is None:
                outcomes.append(NoQueue(entry.queue))
                continue
            items = fake_broker.items.setdefault(entry.queue, [])
            most = declared.policy.max_length
            if most is not None and len(items) >= most:
                outcomes.append(QueueFull(entry.queue))
                continue
            items.append(Item(entry, fake_broker.next()))
            outcomes.append(None)
        self.fake_broker.after("put", list(entries))
        for queue in {entry.queue for entry in entries}:
            self._wake_others(queue)
        return outcomes

    def _wake_others(self, queue: str) -> None:
        for store in list(self.fake_broker.stores):
            if store is not self:
                store.wake(queue)
            store.bell.set()

    def abandon(self, queue: str) -> None:
        self.bell.set()

    def claim(self, wanted: Mapping[str, int], wait: float) -> Sequence[Claimed]:
        self._call("claim", dict(wanted))
        deadline = Deadline(wait)
        while True:
            found = self._take(wanted)
            if found or not wait or deadline.has_ended:
                break
            self.bell.clear()
            if self.bell.wait(deadline.left()):
                found = self._take(wanted)
                break
        self.fake_broker.after("claim", found)
        return found

    def _take(self, wanted: Mapping[str, int]) -> list[Claimed]:
        found: list[Claimed] = []
        now = monotonic()
        for queue, most in wanted.items():
            taken = 0
            for item in sorted(self.fake_broker.items.get(queue, ()), key=lambda item: item.order):
                if taken >= most:
                    break
                if item.claim or item.ready_at > now:
                    continue
                item.claim = self.fake_broker.next()
                handle = [queue, item.number, item.claim]  # of a kind that cannot be hashed
                dead = "expired" if item.dies_at is not None and item.dies_at <= now else None
                waiting = self.size(queue)
                found.append(
                    Claimed(
                        queue,
                        deepcopy(item.entry.envelope),
                        handle,
                        item.deliveries,
                        dead=dead,
                        waiting=waiting,
                    )
                )
                item.deliveries += 1
                taken += dead is None
        return found

    def interrupt(self) -> None:
        self.bell.set()

    def settle(self, requests: Sequence[SettleRequest]) -> int | None:
        self._call("settle", list(requests))
        for request in requests:
            item = self._held(request.message.handle)
            if item is None:
                continue
            queue = request.message.handle[0]
            for entry in request.entries:
                self.fake_broker.items.setdefault(entry.queue, []).append(
                    Item(entry, self.fake_broker.next())
                )
            if request.settlement is Settlement.REQUEUE:
                item.claim = 0
                item.deliveries -= request.is_unseen or request.is_unhandled
                if request.is_unhandled:
                    envelope = deepcopy(item.entry.envelope)
                    mark_redelivered(envelope)
                    item.entry = replace(item.entry, envelope=envelope)
                self._wake_others(queue)
            else:
                self.fake_broker.items[queue].remove(item)
        self.fake_broker.after("settle", list(requests))
        return None

    def _held(self, handle: Any) -> Item | None:
        queue, number, claim = handle
        for item in self.fake_broker.items.get(queue, ()):
            if item.number == number and item.claim == claim:
                return item
        return None

    def renew(self, handles: Sequence[Any]) -> Sequence[Any]:
        self._call("renew", list(handles))
        return [handle for handle in handles if self._held(handle) is None]


class WaitingStore(FakeStore):
    """The same, whose claims wait."""

    claim_wait = 20.0


class EachStore(WaitingStore):
    """The same, whose claims are for one queue each."""

    claims_each_queue = True
    claim_limit = 10
    put_limit = 10
    put_calls = 4


class FakeTransport(StoreTransport):
    """A transport to a fake broker.

    Arguments:
        kind: what makes the stores.
    """

    Options = StoreOptions
    driver_type = "fake"
    driver_name = "fake"

    def __init__(
        self, client: Any, fake_broker: FakeBroker, kind: type[FakeStore] = FakeStore
    ) -> None:
        super().__init__(client)
        self.fake_broker = fake_broker
        self.kind = kind
        self.made: list[FakeStore] = []

    def make_store(self, wake: Callable[[str | None], None]) -> FakeStore:
        self.made.append(self.kind(self.client, wake, self.fake_broker))
        return self.made[-1]
