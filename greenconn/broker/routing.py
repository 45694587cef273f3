"""Routing of messages by the exchanges and bindings that one link knows.

Where no other process shares them, all connections of this one to a broker know what one of them has
declared.  Where others do, the rows of an exchange are asked for at each publish, and taken over into
the same tables when they have changed.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, Final, TypeVar

from greenconn.broker.dead_letters import carbon_copies
from greenconn.broker.topology import Topology
from greenconn.broker.topology_port import Row
from greenconn.transport.refusal import Method, no_exchange
from greenconn.transport.virtual.entities import PREDECLARED
from greenconn.transport.virtual.exchange import STANDARD_EXCHANGE_TYPES, ExchangeType
from greenconn.transport.virtual.state import Binding, BrokerState, Exchange

if TYPE_CHECKING:
    from greenconn.broker.base_link import BrokerLink


T = TypeVar("T")

#: For their rows; they need no channel.
_TYPES: Final[dict[str, ExchangeType]] = {
    name: kind(None) for name, kind in STANDARD_EXCHANGE_TYPES.items()
}


class Routing:
    """The routes of one link.

    Arguments:
        checks_queues: a binding may outlive its queue, so a link looks for those that it leads to.
    """

    def __init__(self, link: BrokerLink, *, checks_queues: bool = False) -> None:
        self._link = link
        self._checks_queues = checks_queues
        self._state: BrokerState = link.state

    @property
    def _topology(self) -> Topology | None:
        return self._link.topology

    # -- exchanges

    def find(self, name: str) -> Exchange | None:
        """Return an exchange as it is declared now; None: there is none.  May switch.

        Its bindings are those that are known here.
        """
        topology = self._topology
        if topology is None or name in PREDECLARED:
            return self._state.exchanges.get(name)
        found: Exchange | None = self._link.ask("routing", topology.find, name)
        known = self._state.exchanges.get(name)
        if known is not None and (
            found is None or (known.type, known.is_guess) != (found.type, found.is_guess)
        ):
            self.forget(name)
        if found is not None and name not in self._state.exchanges:
            self._state.declare(
                name,
                found.type,
                durable=found.durable,
                auto_delete=found.auto_delete,
                arguments=found.arguments,
                is_guess=found.is_guess,
                router=self._link.router_of(name, found.type),
            )
        return self._state.exchanges.get(name)

    def learn(self, name: str) -> Exchange | None:
        """Return an exchange with its bindings as they are now; None: there is none.  May switch."""
        topology = self._topology
        if topology is None:
            return self._state.exchanges.get(name)
        rows: Sequence[Row] | None = self._link.ask("routing", topology.rows, name)
        if rows is None:
            self.forget(name)
            return None
        known = self._state.exchanges.get(name)
        if known is None or known.is_guess or known.rows != rows:
            if self.find(name) is None:
                return None
            self._take_over(name, rows)
        return self._state.exchanges.get(name)

    def forget(self, name: str) -> None:
        """Forget an exchange.  Never switches."""
        self._state.delete(name)

    def _take_over(self, name: str, rows: Sequence[Row]) -> None:
        """Make the bindings of an exchange those of *rows*.  Never switches."""
        wanted = {
            Binding(name, row.queue, row.routing_key, row.arguments, to_exchange=row.to_exchange)
            for row in rows
        }
        for binding in wanted:
            self._state.bind(binding)
        for binding in list(self._state.exchanges[name].bindings):
            if binding not in wanted:
                self._state.unbind(binding)
        known = self._state.exchanges.get(name)
        if known is not None:
            known.rows = rows

    def is_used(self, name: str) -> bool:
        """Return whether something is bound to an exchange, by whatever process.  May switch."""
        if self._topology is not None:
            return self._link.ask("routing", self._topology.is_used, name)
        known = self._state.exchanges.get(name)
        return known is not None and bool(known.bindings)

    def note(self, exchange: Exchange) -> None:
        """Let other processes know of an exchange.  May switch."""
        if self._topology is not None:
            self._link.ask("declaring an exchange", self._topology.declare, exchange)

    def drop(self, name: str) -> None:
        """Forget a deleted exchange, which is not shared any more.  May switch."""
        if self._topology is not None:
            self._link.ask("deleting an exchange", self._topology.delete, name)

    # -- bindings

    def bind(self, binding: Binding) -> None:
        """Make a binding, here and for others; again: only tells the others.  May switch."""
        if self._topology is not None:
            row = self._row(binding)
            self._link.ask("binding", self._topology.bind, binding.source, row)
        if binding.source in self._state.exchanges:
            self._state.bind(binding)

    def unbind(self, binding: Binding) -> None:
        """Remove a binding, here and for others.  May switch."""
        self.find(binding.source)
        if self._topology is not None:
            row = self._row(binding)
            self._link.ask("unbinding", self._topology.unbind, binding.source, row)
        self._state.unbind(binding)

    def forget_queue(self, name: str) -> None:
        """Remove the bindings of a queue that is gone, here and for others.  May switch."""
        self._state.queue_bindings_delete(name)
        if self._topology is not None:
            self._link.ask("unbinding", self._topology.forget_queue, name)

    def own_rows(self, exchange: str) -> list[Row]:
        """Return the bindings of queues to an exchange that are known here.  Never switches."""
        known = self._state.exchanges.get(exchange)
        bindings = () if known is None else known.bindings
        return [self._row(each) for each in bindings if not each.to_exchange]

    def rows_to(self, queue: str) -> list[tuple[str, Row]]:
        """Return the bindings of a queue that are known here, and their exchanges.  Never switches."""
        return [
            (exchange, self._row(Binding(exchange, queue, routing_key, arguments)))
            for exchange, routing_key, arguments in self._state.queue_bindings(queue)
        ]

    def _row(self, binding: Binding) -> Row:
        """Return a binding as it is shared."""
        known = self._state.exchanges.get(binding.source)
        kind = _TYPES.get("direct" if known is None else known.type, _TYPES["direct"])
        key, pattern, queue = kind.prepare_bind(
            binding.destination, binding.source, binding.routing_key, binding.arguments
        )
        return Row(key, pattern or "", queue, binding.arguments or None, binding.to_exchange)

    # -- messages

    def routes(
        self, exchange: str, routing_key: str, headers: Mapping[str, Any], mandatory: bool = False
    ) -> Sequence[str]:
        """Return the queues that a message goes to, each once.  May switch.

        A process that finds a binding without its queue removes it, and then the exchange may have no
        binding for the message any more, but an alternate exchange.

        Arguments:
            mandatory: only queues that exist count.

        Raises:
            NotFound: there is no such exchange.
        """
        link, keys = self._link, (routing_key, *carbon_copies(headers, "CC", "BCC"))
        if not exchange:
            names = list(dict.fromkeys(filter(None, keys)))
            return link.existing(names) if mandatory else names
        gone: set[str] = set()
        while True:
            if self._learn_all(exchange) is None:
                vhost = getattr(link.client, "virtual_host", None) or "/"
                raise no_exchange(exchange, vhost, Method.BASIC_PUBLISH)
            queues: dict[str, None] = {}
            for key in keys:
                queues.update(dict.fromkeys(self._state.route(exchange, key, headers)))
            if not (mandatory or self._checks_queues):
                return list(queues)
            wanted = [each for each in queues if each not in gone]
            there = link.existing(wanted)
            if len(there) == len(wanted):
                return there
            gone.update(each for each in wanted if each not in there)

    def _learn_all(self, name: str) -> Exchange | None:
        """Learn an exchange, and those that it leads to."""
        start = self.learn(name)
        if start is None or self._topology is None:
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
