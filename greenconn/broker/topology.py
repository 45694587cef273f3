"""Exchanges and bindings that all programs on one broker share."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Sequence
from typing import Any, TypeVar

from greenconn.broker.topology_port import ExchangeRecord, Row, TopologyStore
from greenconn.transport.virtual.entities import PREDECLARED
from greenconn.transport.virtual.exchange import ROUTERS
from greenconn.transport.virtual.state import Exchange

T = TypeVar("T")


class Topology(ABC):
    """The exchanges and bindings of one broker.  All methods may switch."""

    @abstractmethod
    def _read(self, function: Callable[..., T], *args: Any) -> T:
        """Return ``function(store, *args)``, which changes nothing."""

    @abstractmethod
    def _change(self, function: Callable[..., object], *args: Any) -> None:
        """Do ``function(store, *args)``, in one transaction if the broker has any."""

    def declare(self, exchange: Exchange) -> None:
        """Keep an exchange, unless there is one of its name."""
        record = {
            "type": exchange.type,
            "durable": exchange.durable,
            "auto_delete": exchange.auto_delete,
            "arguments": dict(exchange.arguments),
        }
        self._change(_put, exchange.name, record)

    def find(self, name: str) -> Exchange | None:
        """Return an exchange without its bindings; None: there is none."""
        return _exchange(name, self._read(_get, name))

    def delete(self, name: str) -> None:
        """Delete an exchange, its bindings, and those that lead to it."""
        self._change(_delete, name)

    def rows(self, name: str) -> Sequence[Row] | None:
        """Return the bindings of an exchange; None: there is no such exchange.

        It is the same object as long as nothing has changed.
        """
        rows: Sequence[Row] | None = self._read(_rows, name)
        return () if rows is None and name in PREDECLARED else rows

    def is_used(self, name: str) -> bool:
        """Return whether any binding begins at an exchange."""
        return self._read(_has_rows, name)

    def bind(self, exchange: str, row: Row) -> None:
        """Add a binding; again: changes nothing."""
        self._change(_add, exchange, row)

    def unbind(self, exchange: str, row: Row) -> None:
        """Remove a binding, and an auto-delete exchange with its last one."""
        self._change(_unbind, exchange, row)

    def forget_queue(self, name: str) -> None:
        """Remove the bindings of a queue, and auto-delete exchanges with their last one."""
        self._change(_forget_queue, name)

    def delete_unbound(self, names: Iterable[str]) -> None:
        """Delete those of some exchanges that go with their last binding, and have none."""
        self._change(_delete_unbound, names)


class DirectTopology(Topology):
    """The records of a broker that has no transactions.

    A change is several calls of the store.  Who is killed between two of them leaves bindings to what is
    not there any more, which no message takes.

    Arguments:
        store: the records.
    """

    def __init__(self, store: TopologyStore) -> None:
        self._store = store

    def _read(self, function: Callable[..., T], *args: Any) -> T:
        return function(self._store, *args)

    def _change(self, function: Callable[..., object], *args: Any) -> None:
        function(self._store, *args)


# What is called with the store.


def _get(store: TopologyStore, name: str) -> ExchangeRecord | None:
    return store.get(name)


def _put(store: TopologyStore, name: str, record: ExchangeRecord) -> None:
    store.put(name, record)


def _rows(store: TopologyStore, name: str) -> Sequence[Row] | None:
    return store.rows(name)


def _has_rows(store: TopologyStore, name: str) -> bool:
    return store.has_rows(name)


def _add(store: TopologyStore, exchange: str, row: Row) -> None:
    store.add(exchange, row)


def _delete(store: TopologyStore, name: str) -> None:
    store.delete(name)
    _delete_unbound(store, store.remove_to(name, is_exchange=True))


def _unbind(store: TopologyStore, exchange: str, row: Row) -> None:
    if store.remove(exchange, row):
        _delete_unbound(store, [exchange])


def _forget_queue(store: TopologyStore, name: str) -> None:
    _delete_unbound(store, store.remove_to(name, is_exchange=False))


def _delete_unbound(store: TopologyStore, names: Iterable[str]) -> None:
    for name in dict.fromkeys(names):
        record = store.get(name)
        if record is not None and record.get("auto_delete") and not store.has_rows(name):
            _delete(store, name)


def _exchange(name: str, record: ExchangeRecord | None) -> Exchange | None:
    """Return the exchange; None: there is none, or its type is unknown here."""
    kind = None if record is None else record.get("type")
    if record is None or not isinstance(kind, str) or kind not in ROUTERS:
        return None
    arguments = record.get("arguments")
    return Exchange(
        name,
        kind,
        ROUTERS[kind](),
        durable=bool(record.get("durable")),
        auto_delete=bool(record.get("auto_delete")),
        arguments=arguments if isinstance(arguments, dict) else {},
        is_guess=bool(record.get("is_guess")),
    )
