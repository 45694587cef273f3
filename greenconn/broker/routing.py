"""Where a message goes: exchanges as this process knows them, bindings as the store shares them.

Where bindings are not shared, all connections of a process to one broker know what one of them has
declared.  Where they are, the store's rows are asked for at each publish, and taken over into the same
tables when they have changed.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, Final

from greenconn.broker.port import Row
from greenconn.transport.refusal import Method, no_exchange
from greenconn.transport.virtual.burying import carbon_copies
from greenconn.transport.virtual.entities import PREDECLARED
from greenconn.transport.virtual.exchange import STANDARD_EXCHANGE_TYPES, ExchangeType
from greenconn.transport.virtual.state import Binding, BrokerState, Exchange

if TYPE_CHECKING:
    from greenconn.broker.link import LeasedLink

__all__ = ["Routing"]

#: For their rows; they need no channel.
_TYPES: Final[dict[str, ExchangeType]] = {
    name: kind(None) for name, kind in STANDARD_EXCHANGE_TYPES.items()
}


class Routing:
    """The routes of one link."""

    __slots__ = ("_link", "_seen", "_state")

    def __init__(self, link: LeasedLink) -> None:
        self._link = link
        self._state: BrokerState = link.state
        #: Exchange -> the rows that were taken over last.
        self._seen: dict[str, Sequence[Row]] = {}

    # -- exchanges

    def learn(self, name: str) -> Exchange | None:
        """Return an exchange as it is now; None: there is none.  May switch."""
        store = self._link.store
        if not store.shares_bindings or name in PREDECLARED:
            if store.shares_bindings:
                self._take_over(name, self._rows(name) or ())
            return self._state.exchanges.get(name)
        rows = self._rows(name)
        if rows is None:
            self._seen.pop(name, None)
            self._state.delete(name)
            return None
        if rows is not self._seen.get(name) or name not in self._state.exchanges:
            found = self._link.ask("routing", store.find_exchange, name)
            if found is None:
                self._state.delete(name)
                return None
            known = self._state.exchanges.get(name)
            if known is not None and known.type != found.type:
                self._state.delete(name)
                known = None
            if known is None:
                self._state.declare(
                    name,
                    found.type,
                    durable=found.durable,
                    auto_delete=found.auto_delete,
                    arguments=found.arguments,
                )
            self._take_over(name, rows)
        return self._state.exchanges.get(name)

    def _rows(self, name: str) -> Sequence[Row] | None:
        rows: Sequence[Row] | None = self._link.ask("routing", self._link.store.rows, name)
        return rows

    def _take_over(self, name: str, rows: Sequence[Row]) -> None:
        """Make the bindings of an exchange those of *rows*.  Never switches."""
        if rows is self._seen.get(name):
            return
        state, keeps_all = self._state, self._link.store.shares_exchange_bindings
        wanted = {
            Binding(name, row.queue, row.routing_key, row.arguments, to_exchange=row.to_exchange)
            for row in rows
        }
        for binding in wanted:
            state.bind(binding)
        for binding in list(state.exchanges[name].bindings):
            if binding not in wanted and (keeps_all or not binding.to_exchange):
                state.unbind(binding)
        self._seen[name] = rows

    def is_used(self, name: str) -> bool:
        """Whether something is bound to an exchange, by whatever process.  May switch."""
        known = self.learn(name)
        return known is not None and bool(known.bindings)

    def note(self, exchange: Exchange) -> None:
        """Let the store know of an exchange, if it shares any.  May switch."""
        link = self._link
        if link.store.shares_bindings:
            link.ask("declaring an exchange", link.store.note_exchange, exchange)

    def drop(self, name: str) -> None:
        """An exchange was deleted: the store need not share it any more.  May switch."""
        link = self._link
        if link.store.shares_bindings:
            link.ask("deleting an exchange", link.store.drop_exchange, name)

    # -- bindings

    def bind(self, binding: Binding) -> None:
        """Make a binding, here and in the store; again: only tells the store.  May switch."""
        link, row = self._link, self.row(binding)
        if row is not None:
            link.ask("binding", link.store.bind, binding.source, row)
        if binding.source in self._state.exchanges:
            self._state.bind(binding)

    def unbind(self, binding: Binding) -> None:
        """Remove a binding, here and from the store.  May switch."""
        link = self._link
        self.learn(binding.source)
        row = self.row(binding)
        if row is not None:
            link.ask("unbinding", link.store.unbind, binding.source, row)
        was_there = binding.source in self._state.exchanges
        self._state.unbind(binding)
        if was_there and binding.source not in self._state.exchanges:
            self.drop(binding.source)  # it was to be deleted with its last binding

    def unbind_queue(self, name: str) -> None:
        """A queue is gone: so are its bindings, as far as they are known here.  Never switches."""
        self._state.queue_bindings_delete(name)

    def row(self, binding: Binding) -> Row | None:
        """A binding as the store shares it; None: it does not."""
        store = self._link.store
        if not store.shares_bindings:
            return None
        if binding.to_exchange and not store.shares_exchange_bindings:
            return None
        known = self._state.exchanges.get(binding.source)
        kind = _TYPES.get("direct" if known is None else known.type, _TYPES["direct"])
        key, pattern, queue = kind.prepare_bind(
            binding.destination, binding.source, binding.routing_key, binding.arguments
        )
        arguments = binding.arguments or None
        return Row(key, pattern or "", queue, arguments, binding.to_exchange)

    # -- messages

    def routes(self, exchange: str, routing_key: str, headers: Mapping[str, Any]) -> list[str]:
        """Return the queues that a message goes to, each once.  May switch.

        Raises:
            NotFound: there is no such exchange.
        """
        keys = (routing_key, *carbon_copies(headers, "CC", "BCC"))
        if not exchange:
            return list(dict.fromkeys(keys))
        if self._learn_all(exchange) is None:
            vhost = getattr(self._link.client, "virtual_host", None) or "/"
            raise no_exchange(exchange, vhost, Method.BASIC_PUBLISH)
        queues: dict[str, None] = {}
        for key in keys:
            queues.update(dict.fromkeys(self._state.route(exchange, key, headers)))
        return list(queues)

    def _learn_all(self, name: str) -> Exchange | None:
        """Learn an exchange, and those that it leads to."""
        start = self.learn(name)
        if start is None or not self._link.store.shares_bindings:
            return start
        seen, todo = {name}, deque([start])
        while todo:
            exchange = todo.popleft()
            onward = [each.destination for each in exchange.bindings if each.to_exchange]
            if exchange.alternate is not None:
                onward.append(exchange.alternate)
            for each in onward:
                if each not in seen:
                    seen.add(each)
                    known = self.learn(each)
                    if known is not None:
                        todo.append(known)
        return self._state.exchanges.get(name)
