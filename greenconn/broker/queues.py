"""The queues of a store, for the directory of one link."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from typing import Any, Protocol, TypeVar

from greenconn.broker.port import Store
from greenconn.broker.queue_port import ConsumedQueue, KnownQueues, QueueStore
from greenconn.transport.virtual.declaration import Declaration
from greenconn.transport.virtual.names import is_lost
from greenconn.transport.virtual.state import BrokerState

__all__ = ["StoredQueues"]

T = TypeVar("T")


class QueuesLink(Protocol):
    """The link to a store."""

    @property
    def store(self) -> Store: ...
    @property
    def state(self) -> BrokerState: ...
    @property
    def feeds(self) -> Mapping[str, ConsumedQueue]: ...

    def ask(self, what: str, function: Callable[..., T], *args: Any) -> T:
        """Return what a method of the store returns.  May switch."""

    def catch_up(self) -> None:
        """Wait until the store has all acks, rejects and cancels up to now.  May switch."""


class StoredQueues(QueueStore):
    """The queues of a store.

    Where it matters that a queue is there, the store is asked; what does not change as long as it is
    there (its arguments) is remembered.

    Arguments:
        link: asks the store.
        known: gets what was read.
    """

    __slots__ = ("_known", "_link")

    def __init__(self, link: QueuesLink, known: KnownQueues) -> None:
        self._link = link
        self._known = known

    def settle(self) -> None:
        self._link.catch_up()

    def find(self, name: str) -> Declaration | None:
        link = self._link
        declared = link.ask("looking up a queue", link.store.find_queue, name)
        if declared is not None and is_lost(declared.owner):
            self.drop(name)  # its lease was ours, and is not waited for
            declared = None
        if declared is None:
            self._known.ended(name)
        else:
            self._known.remember(name, declared)
        return declared

    def is_there(self, name: str) -> bool:
        return name in self._known.declared or self.find(name) is not None

    def make(self, name: str, declared: Declaration) -> Declaration:
        link = self._link
        kept = link.ask("declaring a queue", link.store.make_queue, name, declared)
        self._known.remember(name, kept)
        return kept

    def counts(self, name: str) -> tuple[int, int]:
        link = self._link
        size = link.ask("counting messages", link.store.size, name)
        others = link.ask("counting consumers", link.store.other_consumers, name)
        feed = link.feeds.get(name)
        return int(size), int(others) + (len(feed.consumers) if feed is not None else 0)

    def names(self) -> Collection[str] | None:
        return self._link.ask("listing queues", self._link.store.queue_names)

    def purge(self, name: str) -> int:
        return int(self._link.ask("purging a queue", self._link.store.purge, name))

    def drop(self, name: str) -> int:
        link = self._link
        link.state.queue_bindings_delete(name)
        return int(link.ask("deleting a queue", link.store.drop_queue, name))
