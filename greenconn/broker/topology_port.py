"""The records of exchanges and bindings that a broker must be able to keep, for programs to share them.

An adapter has no rules of its own: which exchange goes with which binding is decided once, in
:class:`~greenconn.broker.topology.Topology`.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Collection, Mapping, Sequence
from typing import Any, NamedTuple, TypeAlias

__all__ = ["ExchangeRecord", "Row", "TopologyStore"]

#: How an exchange was declared: ``type``, ``durable``, ``auto_delete`` and ``arguments``.  Any may be
#: missing from what a foreign program has written.  ``is_guess`` is true where no program has said so,
#: and only bindings tell that there is an exchange.
ExchangeRecord: TypeAlias = Mapping[str, Any]


class Row(NamedTuple):
    """A binding as stores share it: kombu's row, and what kombu's rows have not.

    Attributes:
        pattern: what kombu stores for a topic exchange; empty for others.
        queue: where it leads to.
        to_exchange: *queue* is the name of an exchange.
    """

    routing_key: str
    pattern: str
    queue: str
    arguments: Mapping[str, Any] | None = None
    to_exchange: bool = False


class TopologyStore(ABC):
    """Named records of exchanges, each with its bindings.  All methods may switch."""

    @abstractmethod
    def get(self, exchange: str) -> ExchangeRecord | None:
        """Return how an exchange was declared; None: there is none."""

    @abstractmethod
    def put(self, exchange: str, record: ExchangeRecord) -> None:
        """Keep how an exchange was declared, unless it is there."""

    @abstractmethod
    def delete(self, exchange: str) -> None:
        """Delete an exchange and the bindings that begin there; one that is not there is no error."""

    @abstractmethod
    def rows(self, exchange: str) -> Sequence[Row] | None:
        """Return the bindings that begin at an exchange; None: neither it nor any binding is there.

        Asked for each publish: the adapter keeps what it may keep, and returns the same object as long
        as nothing has changed.
        """

    def has_rows(self, exchange: str) -> bool:
        """Return whether any binding begins at an exchange."""
        return bool(self.rows(exchange))

    @abstractmethod
    def add(self, exchange: str, row: Row) -> None:
        """Add a binding; again: changes nothing."""

    @abstractmethod
    def remove(self, exchange: str, row: Row) -> bool:
        """Remove a binding; return whether it was there."""

    @abstractmethod
    def remove_to(self, destination: str, *, is_exchange: bool) -> Collection[str]:
        """Remove all bindings that lead to a queue or an exchange; return where they began."""
